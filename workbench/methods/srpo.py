"""SRPO: semantic relative preference optimisation with Direct-Align. Shen et al. 2025, arXiv:2509.06942, Eq. 4-9.

A finished sample is noised with noise eps that is known, so one step at any level i, however noisy, is enough to see a clean
latent again: from x_i the model steps to a neighbouring level j, and the true noise takes it the rest of the way,

    x0 = (x_j - s_j eps) / a_j.

What is judged is relative: the same picture under the prompt with words that are wanted, and with words that are not,

    r = (1 + k) R(x0, good words + c) - R(x0, bad words + c).

A denoising step (j = i + 1) climbs r; an inversion step (j = i - 1, back into noise) climbs it with the words swapped, so that
what both wordings like alike, the reward's own bias, is taken back. For rewards that read the prompt (CLIP and its kin); what
exceeds `enough` teaches no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import BadInput, Batch, Event, NonNegative, Policy, Reward, TrainablePolicy, derive
from .best import gaussian
from .direct import NEEDS
from .steps import level
from .training import roll


@dataclass(frozen=True)
class SRPO:
    """Semantic relative preference optimisation (arXiv:2509.06942): reward gradients at any noise level, good words against
    bad ones."""

    good: str = "Natural-lighting. "  # put before the prompt
    bad: str = "Oil painting. "
    k: tuple[float, float] = (0.1, 0.25)  # of the denoising step, from the noisy end to the clean one
    k_inverse: tuple[float, float] = (0.3, 0.01)  # of the inversion step
    first: NonNegative = 0.1  # levels are drawn from here, as a share of the schedule,
    end: NonNegative = 0.7  # to here: early ones break structure, late ones only repaint
    enough: float = 0.7  # in the reward's units; a large number: no limit
    lr: NonNegative = 5e-6

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
            low = max(1, round(self.first * policy.steps))  # an inversion step ends one level earlier
            count = max(1, round(self.end * policy.steps) - low)
            i = min(low + derive(batch.seeds[0], "level") % count, policy.steps - 1)
            t, x0 = i / max(1, policy.steps - 1), path.x[:, -1].float()
            for j, ks, words in (
                (i + 1, self.k, (self.good, self.bad)),
                (i - 1, self.k_inverse, (self.bad, self.good)),
            ):
                if j < i and not level(policy, j)[0]:
                    continue  # pure noise holds nothing of x0
                media = policy.decode(align(policy, x0, i, j, batch), batch.prompts)
                wanted, other = (reward(media=media, prompts=[w + p for p in batch.prompts]) for w in words)
                r = (1 + ks[0] + t * (ks[1] - ks[0])) * wanted - other
                rows = r.detach() < self.enough  # NaN is not
                if rows.any():
                    policy.backward(-r[rows].sum() / r.isfinite().sum())
            with torch.no_grad():
                plain = reward(media=path.media, prompts=batch.prompts)
            shown = {"reward": plain.nanmean().item(), "grad_norm": policy.update(), "level": float(i)}
            yield Event(step, shown, path.media, batch.prompts, path.seeds, {"reward": plain})


def align(policy: Policy, x0: Tensor, i: int, j: int, batch: Batch) -> Tensor:
    """[B,*latent]: x0 as seen again after one step of the model from level i to j. Direct-Align, Eq. 5."""
    eps = gaussian(batch.seeds, x0.shape[1:], "align").to(x0)
    seen = policy.predict(policy.noised(x0, i, eps), i, batch.prompts)
    if j == policy.steps:
        return seen.x0
    x = policy.noised(seen.x0, j, seen.eps)
    a, s = level(policy, j)
    return (x - s * eps) / a
