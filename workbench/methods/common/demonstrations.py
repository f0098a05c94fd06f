"""What DRAGON learns from: its own samples, drawn in fewer steps where that will do, and parted into good and bad (sets.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Media, Policy, Reward, Trajectory
from workbench.methods.common.rollout import judge, roll, spread
from workbench.methods.common.schedule import onward
from workbench.methods.common.set_splits import Demonstrations, Score, credit, halves, ranked, swapped


class Building(Protocol):
    """How a method wants its demonstrations."""

    group: int  # samples a prompt
    steps: int  # that they are drawn in; 0: the policy's own
    at_once: int  # prompts drawn together; 0: all
    build: str  # "swap" or "credit", for rewards of whole sets
    paired: bool  # D+ and D- have each prompt alike
    contrast: float
    sweeps: int
    keep: float


@torch.no_grad()
def drawn(method: Building, policy: Policy, batch: Batch) -> Trajectory:
    """`group` samples a prompt and of their chains the clean ends [N,1,*latent], by the policy's own sampler or in fewer steps of
    the deterministic first-order one. Raises BadInput for more steps than the policy has."""
    if method.steps > policy.steps:
        raise BadInput(
            f"method.steps: the pipeline makes a sample in {policy.steps} steps; set {policy.steps} or fewer"
        )
    if not method.steps:
        with policy.merged():
            path = roll(policy, batch, method.group, method.at_once)
        return Trajectory(path.prompts, path.x[:, -1:].clone(), path.log_prob[:, :0], (), path.media, path.seeds)
    levels = [n * policy.steps // method.steps for n in range(method.steps + 1)]
    (prompts, seeds), size = spread(batch, method.group), (method.at_once or len(batch)) * method.group
    ends, media = [], []
    for low in range(0, len(seeds), size):
        few, x = prompts[low : low + size], policy.start(policy.noise(seeds[low : low + size]))
        with policy.merged():
            for i, j in pairwise(levels):
                x = onward(policy, j - 1, policy.predict(x, i, few))  # from level i to level j at once
        ends.append(x)
        media.append(policy.decode(x, few))
    x = torch.cat(ends)[:, None]
    return Trajectory(prompts, x, torch.zeros(len(x), 0, dtype=torch.float64), (), Media.cat(media), seeds)


def built(
    method: Building, reward: Reward, path: Trajectory, g: torch.Generator
) -> tuple[Demonstrations, Tensor, dict]:
    """The demonstrations among these samples; what each sample is worth [N], NaN for what takes no part; and F of all, D+ and D-
    (of a reward of samples: the means)."""
    n = len(path.seeds)
    group, everyone = method.group if method.paired else n, torch.arange(n)
    if reward.spec.scope != "set":
        worth = judge(reward, path, method.group).reward.cpu()
        found, score = ranked(worth, group), lambda rows: worth[rows].nanmean().item()
    else:
        score, everyone = of_sets(reward, path.media, path.prompts)
        worth = torch.full((n,), torch.nan, dtype=torch.float64)
        if method.build == "swap":
            pairs = halves(everyone, group, g)
            found = swapped(score, pairs, g, method.sweeps, method.contrast, across=not method.paired)
            worth[found.up], worth[found.down] = found.gain / 2, -found.gain / 2
        else:
            worth[everyone] = credit(score, everyone)
            found = ranked(worth, group)
    found = found.kept(method.keep)
    sets = {"good": score(found.up), "bad": score(found.down)} if len(found.up) else {}
    return found, worth.float(), {"reward": score(everyone), "swaps": found.swaps} | sets


@torch.no_grad()
def of_sets(reward: Reward, media: Media | Iterable[Media], prompts: Sequence[str]) -> tuple[Score, Tensor]:
    """F of any rows of these media, whole or in parts, and the rows that can be judged.

    A set reward that offers `features` and `of` (and a combination whose `rewards` all do) embeds the media once, so that a
    set costs its statistics alone; another is called for each set. `embedded(media)` of a reward, name -> [N,D], does that
    for all of them: where there are several processes, each its own share.
    """
    chunks = [media] if isinstance(media, Media) else media
    parts, total = getattr(reward, "rewards", {"": reward}), getattr(reward, "total", lambda scores, _: scores[""])
    if not embeds(reward):
        whole = Media.cat(list(chunks))

        def called(rows: Tensor) -> float:
            return float(reward(media=whole[rows.tolist()], prompts=[prompts[n] for n in rows.tolist()]))

        return called, whole.data.flatten(1).isfinite().all(1).nonzero().flatten().cpu()
    look = getattr(reward, "embedded", lambda media: {name: part.features(media) for name, part in parts.items()})
    seen = [look(chunk) for chunk in chunks]
    points = {name: torch.cat([rows[name] for rows in seen]) for name in parts}
    targets = {name: part.target(None, points[name].device) for name, part in parts.items()}
    points = {name: (x.cpu() if x.device.type == "mps" else x).double() for name, x in points.items()}
    fine = torch.stack([x.isfinite().all(1) for x in points.values()]).all(0)

    def remembered(rows: Tensor) -> float:
        scores = {name: part.of(points[name][rows], targets[name]) for name, part in parts.items()}
        return float(total(scores, [prompts[n] for n in rows.tolist()]))

    return remembered, fine.nonzero().flatten().cpu()


def embeds(reward: Reward) -> bool:
    """Whether a set reward embeds media once, however many sets of them it is asked about."""
    return all(hasattr(r, "features") and hasattr(r, "of") for r in getattr(reward, "rewards", {"": reward}).values())
