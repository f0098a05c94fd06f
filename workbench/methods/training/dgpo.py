"""DGPO: direct group preference optimisation. Luo et al., ICLR 2026, arXiv:2510.08425.

DPO's weight for whole groups, good against bad, weighed by advantage. With l the denoising loss of a sample,

    S = beta / G sum_i A_i (l_i - l_ref,i),        w = sigmoid(S) without gradient,        L = w A l + kl |v - v_ref|^2:

a group whose good samples are already denoised better than the reference does, and whose bad ones worse, counts for
little. All samples of a group meet the same noise. A sample that has gone past the clip since the old copy (PPO's rule,
with exp(l_old - l) as ratio) gives no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import NonNegative
from workbench.methods.common import losses
from workbench.methods.common.advantage_method import AdvantageMethod
from workbench.methods.common.noised_batch import NoisedBatch
from workbench.methods.common.rollout import Advantage


@dataclass(frozen=True)
class DGPO(AdvantageMethod):
    """Direct group preference optimisation (arXiv:2510.08425): DPO between the good and the bad of each group."""

    beta: NonNegative = 100.0  # how soon a group counts as learnt
    clip_range: NonNegative = 1e-3  # PPO's clip; 1e-5 to 1e-4 without guidance in sampling, up to 5e-2 with it
    kl: NonNegative = 1e-3  # weight of |v - v_ref|^2
    old_decay_slope: NonNegative = 0.001  # the old copy keeps min(slope k, max) of itself after batch k
    old_decay_max: NonNegative = 0.3  # the most that the old copy keeps
    schedule_fraction: NonNegative = 0.6
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling (the paper: none)
    advantage: Advantage = "group"

    paper = "arXiv:2510.08425"
    same_eps = True
    former_names = AdvantageMethod.former_names | {
        "clip": "clip_range",
        "slow": "old_decay_slope",
        "most": "old_decay_max",
    }

    def copies(self) -> dict[str, float | None]:
        return {"old": self.guidance, "reference": self.guidance}

    def decay(self, k: int) -> float:
        return min(self.old_decay_slope * k, self.old_decay_max)

    def loss(self, batch: NoisedBatch) -> Tensor:
        a, error = batch.weight, batch.error(batch.live)
        gain = self.beta * a * (error - batch.error(batch.reference)).detach()
        w = torch.sigmoid(losses.group_mean(gain, batch.group))  # [n]
        ratio = (batch.error(batch.old) - error).exp().detach()
        beyond = (a > 0) & (ratio > 1 + self.clip_range) | (a < 0) & (ratio < 1 - self.clip_range)
        return w * a * torch.where(beyond, error.detach(), error) + self.kl * batch.drift(batch.reference)
