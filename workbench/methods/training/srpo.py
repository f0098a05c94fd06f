"""SRPO: semantic relative preference optimisation with Direct-Align. Shen et al. 2025, arXiv:2509.06942, Eq. 4-9.

A finished sample is noised again with a noise eps, that which it was made of or another. As that is known, one step to any
level j, however noisy, is enough to see a clean latent again: where the model steps to x_j, the true noise takes it the rest of
the way,

    x0 = (x_j - s_j eps) / a_j.

What is judged is relative: the same picture under the prompt with words that are wanted, and with words that are not,

    r = (1 + k) R(x0, good words + c) - R(x0, bad words + c).

A denoising step, from level j - 1, climbs r; an inversion step, from j + 1 back into noise, climbs it with the words swapped, so
that what both wordings like alike, the reward's own bias, is taken back. For rewards that read the prompt (CLIP and its kin); what
exceeds `enough` teaches no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Event, NonNegative, Policy, Reward, TrainablePolicy, derive
from workbench.methods.common.best_sample import gaussian
from workbench.methods.common.rollout import roll
from workbench.methods.common.schedule import level
from workbench.methods.training.direct import NEEDS


@dataclass(frozen=True)
class SRPO:
    """Semantic relative preference optimisation (arXiv:2509.06942): reward gradients at any noise level, good words against
    bad ones."""

    good: str = "Natural-lighting. "  # words that are wanted, put before the prompt
    bad: str = "Oil painting. "  # words that are not, put there in turn
    k: tuple[float, float] = (0.25, 0.1)  # of the denoising step, from the noisy end to the clean one
    k_inverse: tuple[float, float] = (0.01, 0.3)  # of the inversion step
    first: NonNegative = 0.1  # j is drawn from here, as a share of the schedule
    end: NonNegative = 0.7  # to here: early levels break structure, late ones only repaint
    known: Literal["own", "fresh"] = "own"  # eps: what the sample was made of, as in the authors' code, or other noise
    enough: float = 0.7  # an r above this teaches no more, in the reward's units; a large number: no limit
    lr: NonNegative = 5e-6  # step size of AdamW

    needs = NEEDS | {"stochastic"}
    scales = ""
    paper = "arXiv:2509.06942"

    def __post_init__(self):
        if not self.first < self.end <= 1 or len(self.k) != 2 or len(self.k_inverse) != 2:
            raise BadInput(
                "method: set first < end <= 1, shares of the schedule, and two numbers each for k and k_inverse"
            )

    def calls(self, steps: int) -> int:
        return steps + 2

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for step, batch in enumerate(batches, getattr(batches, "first", 0)):
            with policy.merged():
                path = roll(policy, batch, 1)
            j, x0 = self.where(policy, batch), path.x[:, -1].float()
            t = j / max(1, policy.steps - 1)
            eps = self.noise(policy, path.x[:, 0].float(), batch)
            for i, ks, words in (
                (j - 1, self.k, (self.good, self.bad)),
                (j + 1, self.k_inverse, (self.bad, self.good)),
            ):
                if i == policy.steps:
                    continue  # where the noise ends, nothing steps back into it
                x = align(policy, x0, eps, i, j, batch.prompts)
                media = policy.decode(x, batch.prompts)
                wanted, other = (reward(media=media, prompts=[w + p for p in batch.prompts]) for w in words)
                r = (1 + ks[0] + t * (ks[1] - ks[0])) * wanted - other
                rows = r.detach() < self.enough  # NaN is not
                if rows.any():
                    policy.backward(-r[rows].sum() / r.isfinite().sum())
            with torch.no_grad():
                plain = reward(media=path.media, prompts=batch.prompts)
            shown = {"reward": plain.nanmean().item(), "grad_norm": policy.update(), "level": float(j)}
            yield Event(step, shown, path.media, batch.prompts, path.seeds, {"reward": plain})

    def noise(self, policy: Policy, first: Tensor, batch: Batch) -> Tensor:
        """[B,*latent], of samples that began in `first`."""
        if self.known == "own":
            return first / level(policy, 0)[1]
        return gaussian(batch.seeds, first.shape[1:], "align").to(first)

    def where(self, policy: Policy, batch: Batch) -> int:
        """The level j of a batch. The step from j - 1 does not begin in pure noise, which holds nothing of x0."""
        found = [j for j in range(1, policy.steps) if level(policy, j - 1)[0] > 1e-6]
        if not found:
            raise BadInput("pipeline: srpo needs a level between noise and data; take one of three steps or more")
        share = [j for j in found if self.first * policy.steps <= j < self.end * policy.steps] or found[:1]
        return share[derive(batch.seeds[0], "level") % len(share)]


def align(policy: Policy, x0: Tensor, eps: Tensor, i: int, j: int, prompts: Sequence[str]) -> Tensor:
    """[B,*latent]: x0, noised by eps, as seen again after one step of the model from level i to j. Direct-Align, Eq. 5."""
    seen = policy.predict(policy.noised(x0, i, eps), i, prompts)
    a, s = level(policy, j)
    return (policy.noised(seen.x0, j, seen.eps) - s * eps) / a
