"""What is watched while a model trains: prompts set apart, judges that are not optimised, and numbers that must stay numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines import sharding
from workbench.core.io import media
from workbench.core.types import BadInput, Batch, Event, Media, derive
from workbench.evaluation import set_rewards, statistics
from workbench.evaluation.summary import margins
from workbench.runs.progress import judge, number

SEEDS = 2  # samples of a watched prompt: two, so that there is a diversity
SHOWN = 8  # of them are kept as files at each evaluation
ROUNDING = 1e-3  # of a log-density, mean over dimensions
PATIENCE = 20  # gradients in a row that may overflow while a loss scaler finds its scale


class Halted(RuntimeError):  # noqa: N818
    """Training can't go on; one sentence says why."""


def look(plan, sampler, method, place: Path | None) -> list[dict]:
    """Samples of the watched prompts at their fixed seeds, by `method`, judged by every reward: the rows of a table. A few are
    written into `place`. A reward of whole sets says the same in every row, and in each what one random half is worth."""
    rows = [(n, p, k) for n, p in enumerate(plan.held) for k in range(SEEDS)]
    oracle = (plan.watch.rewards if plan.watch else {}).get("oracle") or plan.reward.rewards.get("oracle")
    made, scores, size = [], {}, max(1, plan.config.batch // SEEDS) * SEEDS
    for low in range(0, len(rows), size):
        few = rows[low : low + size]
        prompts, seeds = [p for _, p, _ in few], [derive(plan.config.seed, "watch", p, k) for _, p, k in few]
        with torch.no_grad():
            (event,) = method(sampler, plan.reward, [Batch(tuple(prompts), tuple(seeds))])
            got = media.quantise(event.media)
        for name, values in judge(plan, got, prompts).items():
            scores.setdefault(name, []).append(values)
        made.append(got)
    made, prompts = Media.cat(made), [p for _, p, _ in rows]
    scores = {name: torch.cat(parts) for name, parts in scores.items()}
    categories = oracle.categories(prompts) if oracle else [None] * len(rows)
    if place is not None:
        _write(place, rows, made, scores)
    wholes = {
        name: set_rewards.whole(reward, made, prompts, len(rows)) for name, reward in set_rewards.sets(plan).items()
    }
    scores |= {name: torch.full((len(rows),), found.value) for name, found in wholes.items()}
    total = plan.reward.total({n: scores[n] for n in plan.reward.rewards}, prompts)
    spread = [
        statistics.diversity([made.data[n * SEEDS : (n + 1) * SEEDS].cpu().numpy()]) for n in range(len(plan.held))
    ]
    return [
        {"index": n, "k": k, "prompt": p, "category": categories[b], "reward": number(total[b]), "diversity": spread[n]}
        | {"scores": {name: number(values[b]) for name, values in scores.items()}}
        | {"halves": {name: number(found.halves[b]) for name, found in wholes.items() if found.halves}}
        for b, (n, p, k) in enumerate(rows)
    ]


def _write(place: Path, rows: Sequence[tuple[int, str, int]], made: Media, scores: Mapping[str, torch.Tensor]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for b, (n, prompt, k) in enumerate(rows):
        if k == 0 and n < SHOWN:
            story = {"prompt": prompt, "scores": {name: number(values[b]) for name, values in scores.items()}}
            media.write(made[b], place / f"{n:04d}-{k}", meta=story)


def verdict(plan, name: str, base: Sequence[Mapping], now: Sequence[Mapping]) -> tuple[dict[str, float], str | None]:
    """(held-out numbers, the hacking alarm's sentence or None) of the watched prompts, against what the base made of them."""
    optimised, wholes = plan.reward.weights, {n: _wholes(plan, rows) for n, rows in (("base", base), (name, now))}
    parts = []
    for n, rows in (("base", base), (name, now)):
        part = statistics.contestant(rows, base if n != "base" else None, optimised)
        parts.append({"name": n, **set_rewards.amended(part, wholes[n], wholes["base"], optimised)})
        parts[-1]["diversity"] = mean(rows, "diversity")
    told = {f"held {n}": r["mean"] for n, r in parts[1]["rewards"].items() if r["mean"] is not None}
    told |= {"held diversity": parts[1]["diversity"], "held reward": mean(now, "reward")}
    return told, statistics.alarm(parts, "base", margins(plan))


def _wholes(plan, rows: Sequence[Mapping]) -> dict[str, set_rewards.Whole]:
    """What rewards of whole sets said of these rows."""
    halves = {
        n: [statistics.nan(r["halves"][n]) for r in rows if n in r.get("halves", {})] for n in set_rewards.sets(plan)
    }
    return {n: set_rewards.Whole(statistics.nan(rows[0]["scores"][n]), tuple(h), len(rows)) for n, h in halves.items()}


def score(plan, rows: Sequence[Mapping], base: Sequence[Mapping], update: int) -> float:
    """By what the best weights are picked: `train.best`, else the first judge of `watch`, else the reward; a control, whose
    reward is not the reward, ends with its last weights. Where less than half as many samples could be judged as of the base,
    these are not the best, whatever the few are worth."""
    by = plan.recipe.best or (
        "last" if plan.config.control != "none" else next(iter(plan.watch.rewards), "") if plan.watch else "reward"
    )
    if by == "last":
        return float(update)

    def judged(rows: Sequence[Mapping]) -> list[float]:
        found = [statistics.nan(r["reward"] if by == "reward" else r["scores"][by]) for r in rows]
        return [value for value in found if not math.isnan(value)]

    values = judged(rows)
    if not values and not update:
        raise BadInput(
            f"train.best: {by} could judge none of the watched prompts, so it can't pick the best weights; name another judge"
        )
    return sum(values) / len(values) if values and 2 * len(values) >= len(judged(base)) else -math.inf


def mean(rows: Sequence[Mapping], key: str) -> float:
    values = [r[key] for r in rows if r[key] is not None]
    return sum(values) / len(values) if values else 0.0


# --- numbers that must stay numbers ----------------------------------------------------------------------------------


def first(event: Event, method: Any) -> None:
    """What must hold of the first round. Raises BadInput."""
    r = event.scores.get("reward", torch.zeros(0)).double()  # pairs are not judged
    seen = r[r.isfinite()]
    if len(r) and not len(seen):
        raise BadInput("reward: none of the first samples could be judged, so there is nothing to learn from")
    if len(r) > 1 and float(seen.max() - seen.min()) == 0.0:
        raise BadInput(
            f"reward: all {len(seen)} samples of the first round score {float(seen[0]):g}, so there is nothing to learn from; "
            "check the reward with: workbench score"
        )
    if getattr(method, "updates", 1) == 1 and event.metrics.get("log_ratio", 0.0) != 0.0:
        raise Halted(
            f"the log-ratio before the first update is {event.metrics['log_ratio']:.2g} and must be 0: steps are not scored as "
            "they were drawn; report this pipeline"
        )


@torch.no_grad()
def replayed(policy: Any, prompts: Sequence[str]) -> float:
    """The largest log-ratio between random steps as they were drawn and as they are scored, with the same weights; 0 if all is
    well. Raises Halted where it is more than rounding: the weights would be taught by steps that nobody took."""
    path, far = policy.sample(prompts, seeds=range(len(prompts))), 0.0
    for i in path.stochastic:
        now = policy.transition(path.x[:, i], i, prompts).log_prob(path.x[:, i + 1])
        far = max(far, (now - path.log_prob[:, i]).abs().max().item())
    if not far < ROUNDING:
        raise Halted(
            f"steps are not scored as they were drawn: the log-ratio before the first update is {far:.2g}, not 0; report this pipeline"
        )
    return far


def sound(policy: Any, scaled: bool) -> None:
    """Raises Halted where too many gradients in a row were not finite, and for weights that are not finite."""
    if policy.overflows > (PATIENCE if scaled else 0):
        raise Halted("a gradient was not finite; lower the learning rate, or the gradient's `clip`")
    if not sharding.finite(policy.adapters.parameters):
        raise Halted("a weight is not finite; lower the learning rate")
