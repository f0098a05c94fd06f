"""SRPO: semantic relative preference optimisation with Direct-Align. Shen et al. 2025, arXiv:2509.06942, Eq. 4-9.

A finished sample is noised again with a noise eps, that which it was made of or another. As that is known, one step to
any level j, however noisy, is enough to see a clean latent again: where the model steps to x_j, the true noise takes it
the rest of the way,

    x0 = (x_j - s_j eps) / a_j.

What is judged is relative: the same picture under the prompt with words that are wanted, and with words that are not,

    r = (1 + k) R(x0, good words + c) - R(x0, bad words + c).

A denoising step, from level j - 1, climbs r; an inversion step, from j + 1 back into noise, climbs it with the words
swapped, so that what both wordings like alike, the reward's own bias, is taken back. For rewards that read the prompt
(CLIP and its kin); what exceeds `reward_threshold` teaches no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.inputs import reword_prompt
from workbench.core.types import Batch, Event, NonNegative, Policy, Reward, TrainablePolicy, derive_seed
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.reward_gradient import NEEDS, GradientMethod
from workbench.methods.common.rollout import count_batches, sample_groups
from workbench.methods.common.schedule import alpha_sigma


@dataclass(frozen=True)
class SRPO(GradientMethod):
    """Semantic relative preference optimisation (arXiv:2509.06942): reward gradients at any noise level,
    good words against bad ones."""

    positive_words: str = "Natural-lighting. "  # words that are wanted, put before the prompt
    negative_words: str = "Oil painting. "  # words that are not, put there in turn
    k: tuple[float, float] = (0.25, 0.1)  # of the denoising step, from the noisy end to the clean one
    k_inverse: tuple[float, float] = (0.01, 0.3)  # of the inversion step
    start: NonNegative = 0.1  # j is drawn from here, as a share of the schedule
    end: NonNegative = 0.7  # to here: early levels break structure, late ones only repaint
    # eps: what the sample was made of, as in the authors' code, or other noise
    injected_noise: Literal["own", "fresh"] = "own"
    reward_threshold: float = 0.7  # an r above this teaches no more, in the reward's units; a large number: no limit
    lr: NonNegative = 5e-6

    needs = NEEDS | {"stochastic"}
    paper = "arXiv:2509.06942"
    former_names = {
        "good": "positive_words",
        "bad": "negative_words",
        "first": "start",
        "known": "injected_noise",
        "enough": "reward_threshold",
    }

    def __post_init__(self):
        if not self.start < self.end <= 1 or len(self.k) != 2 or len(self.k_inverse) != 2:
            raise BadInput(
                "method: set start < end <= 1, shares of the schedule, and two numbers each for k and k_inverse"
            )

    def calls(self, steps: int) -> int:
        return steps + 2

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for step, batch in count_batches(batches):
            with policy.merged():
                path = sample_groups(policy, batch, 1)
            j, x0 = self.draw_level(policy, batch), path.x[:, -1].float()
            t = j / max(1, policy.steps - 1)
            eps = self.align_noise(policy, path.x[:, 0].float(), batch)
            for i, ks, words in (
                (j - 1, self.k, (self.positive_words, self.negative_words)),
                (j + 1, self.k_inverse, (self.negative_words, self.positive_words)),
            ):
                if i == policy.steps:
                    continue  # where the noise ends, nothing steps back into it
                x = direct_align(policy, x0, eps, i, j, batch.prompts)
                media = policy.decode(x, batch.prompts)
                positive, negative = (
                    reward(media=media, prompts=[reword_prompt(p, w + p) for p in batch.prompts]) for w in words
                )
                r = (1 + ks[0] + t * (ks[1] - ks[0])) * positive - negative
                rows = r.detach() < self.reward_threshold  # NaN is not
                if rows.any():
                    policy.backward(-r[rows].sum() / r.isfinite().sum())
            with torch.no_grad():
                plain = reward(media=path.media, prompts=batch.prompts)
            metrics = {"reward": plain.nanmean().item(), "grad_norm": policy.update(), "level": float(j)}
            yield Event(step, metrics, path.media, batch.prompts, path.seeds, {"reward": plain})

    def align_noise(self, policy: Policy, first: Tensor, batch: Batch) -> Tensor:
        """[B,*latent], of samples that began in `first`."""
        if self.injected_noise == "own":
            return first / alpha_sigma(policy, 0)[1]
        return seeded_normal(batch.seeds, first.shape[1:], "align").to(first)

    def draw_level(self, policy: Policy, batch: Batch) -> int:
        """The level j of a batch. The step from j - 1 does not begin in pure noise, which holds nothing of x0."""
        levels = [j for j in range(1, policy.steps) if alpha_sigma(policy, j - 1)[0] > 1e-6]
        if not levels:
            raise BadInput("pipeline: srpo needs a level between noise and data; take one of three steps or more")
        window = [j for j in levels if self.start * policy.steps <= j < self.end * policy.steps] or levels[:1]
        return window[derive_seed(batch.seeds[0], "level") % len(window)]


def direct_align(policy: Policy, x0: Tensor, eps: Tensor, i: int, j: int, prompts: Sequence[str]) -> Tensor:
    """[B,*latent]: x0, noised by eps, as seen again after one step of the model from level i to j.
    Direct-Align, Eq. 5."""
    prediction = policy.predict(policy.noised(x0, i, eps), i, prompts)
    a, s = alpha_sigma(policy, j)
    return (policy.noised(prediction.x0, j, prediction.eps) - s * eps) / a
