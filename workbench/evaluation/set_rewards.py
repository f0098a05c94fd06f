"""The reward as a training sees it: counted, shared out among processes, and, in a control that must fail, turned round. And what a
reward of whole sets says of the samples of a contestant, of which none has a score of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.core.types import BadInput, Media, Reward, derive
from workbench.evaluation import statistics
from workbench.methods.common.demonstrations import embeds, of_sets

HALVES = 100  # random halves of the prompts
LEAST = 8  # prompts, under which halves of them say nothing


class Judging:
    """`reward`, a compose.Weighted, whose rows are judged by the processes of `rows`, each its own; what compares the samples
    of a prompt sees all of them. `judged` counts this process's."""

    def __init__(self, reward, rows, config, prompts: Sequence[str]):
        self.reward, self.rows, self.spec, self.judged = reward, rows, reward.spec, 0
        self.rewards = reward.rewards
        self.sign = -1.0 if config.control == "negated" else 1.0
        self.weights = reward.weights
        self.single = all(r.spec.scope == "sample" for r in reward.rewards.values())
        self.other: dict[str, str] = {}
        if config.control == "shuffled":
            ring = sorted(set(prompts), key=lambda p: derive(config.seed, "shuffle", p))
            self.other = dict(zip(ring, ring[1:] + ring[:1], strict=True))  # no prompt keeps its own

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self.total(self.breakdown(media=media, prompts=prompts), prompts)

    def breakdown(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> dict[str, Tensor]:
        asked = [self.asked(p) for p in prompts]

        def some(n: list[int]) -> dict[str, Tensor]:
            self.judged += len(n)
            return self.reward.breakdown(media=media[n], prompts=[asked[k] for k in n])

        return self.rows.judge(some, len(media)) if self.single else some([*range(len(media))])

    def asked(self, prompt: str) -> str:
        """What the reward is told that this prompt is; a method's own words before it stay. Raises BadInput for a prompt that
        is not of the list, where prompts are shuffled: the control would be judged by the truth."""
        if not self.other or prompt in self.other:
            return self.other.get(prompt, prompt)
        known = max((p for p in self.other if prompt.endswith(p)), key=len, default=None)
        if known is None:
            raise BadInput(f"control: shuffled can't be had of a method that asks the reward about {prompt!r}")
        return prompt.removesuffix(known) + self.other[known]

    def embedded(self, media: Media) -> dict[str, Tensor]:
        """name -> [N,D], what rewards of whole sets see in each sample."""

        def some(n: list[int]) -> dict[str, Tensor]:
            self.judged += len(n)
            return {name: part.features(media[n]) for name, part in self.rewards.items()}

        return self.rows.judge(some, len(media))

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor:
        return self.sign * self.reward.total(scores, prompts)

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        return {name: self.sign * values for name, values in self.reward.shaped(scores, prompts).items()}


@dataclass(frozen=True)
class Whole:
    """What a reward says of a whole set, and of random halves of its prompts: the same ones for all who answered these prompts."""

    value: float
    halves: tuple[float, ...]
    n: int  # samples

    def estimate(self, base: Whole | None = None) -> dict:
        """{"mean", "ci95", "n"} of the value, or of its difference from the base's. The interval is the delete-half jackknife's
        (Shao and Wu, Annals of Statistics 1989): the value's own deviation is that of its halves. No prompt counts twice, as
        it would in a bootstrap, which a distance of sets takes for a smaller spread. None where there are no halves."""
        zero = (0.0,) * len(self.halves)
        value = self.value - (base.value if base else 0.0)
        gaps = np.subtract(self.halves, base.halves if base else zero)
        known = math.isfinite(value)
        sure = known and len(gaps) > 1 and bool(np.isfinite(gaps).all())
        reach = 1.96 * float(np.std(gaps)) if sure else 0.0
        ends = [value - reach, value + reach] if sure else None
        return {"mean": value if known else None, "ci95": ends, "n": self.n, "set": True}


def sets(plan) -> dict[str, Reward]:
    """The rewards of a run that judge whole sets."""
    everyone = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {name: reward for name, reward in everyone.items() if reward.spec.scope == "set"}


def whole(reward: Reward, media: Media | Iterable[Media], prompts: Sequence[str], count: int = HALVES) -> Whole:
    """Of all media [N]; with no halves of few prompts, or where a reward would have to look at each half anew."""
    score, fine = of_sets(reward, media, prompts)
    names = {p: n for n, p in enumerate(dict.fromkeys(prompts))}
    owner, draw, halves = torch.tensor([names[p] for p in prompts])[fine], np.random.default_rng(0), []
    for _ in range(count if len(names) >= LEAST and embeds(reward) else 0):
        chosen = torch.from_numpy(draw.permutation(len(names))[: len(names) // 2])
        halves.append(score(fine[torch.isin(owner, chosen)]))
    return Whole(score(fine), tuple(halves), len(fine))


def amended(
    part: Mapping, found: Mapping[str, Whole], base: Mapping[str, Whole] | None, optimised: Mapping[str, float]
) -> dict:
    """A contestant's part of a summary (evaluate.contestant) with the rewards of whole sets: their value, and what it is more than
    the base's. No sample wins or loses by them."""
    told = {n: w.estimate() | statistics.aim(n, optimised) for n, w in found.items()}
    out = {**part, "rewards": part["rewards"] | told}
    if "versus_base" in part:
        out["versus_base"] = part["versus_base"] | {n: w.estimate((base or {}).get(n)) for n, w in found.items()}
        out["wins"] = {n: e for n, e in part["wins"].items() if n not in found}
    return out
