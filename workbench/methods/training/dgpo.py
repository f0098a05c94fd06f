"""DGPO: direct group preference optimisation. Luo et al., ICLR 2026, arXiv:2510.08425.

DPO's weight for whole groups, good against bad, weighed by advantage. With l the denoising loss of a sample,

    S = beta / G sum_i A_i (l_i - l_ref,i),        w = sigmoid(S) without gradient,        L = w A l + kl |v - v_ref|^2:

a group whose good samples are already denoised better than the reference does, and whose bad ones worse, counts for little.
All samples of a group meet the same noise. A sample that has gone past the clip since the old copy (PPO's rule, with
exp(l_old - l) as ratio) gives no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common import forward_process, losses
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS, Advantage


@dataclass(frozen=True)
class DGPO:
    """Direct group preference optimisation (arXiv:2510.08425): DPO between the good and the bad of each group."""

    group: Count = 24  # samples a prompt
    beta: NonNegative = 100.0  # how soon a group counts as learnt
    clip: NonNegative = 1e-3  # PPO's clip; 1e-5 to 1e-4 without guidance in sampling, up to 5e-2 with it
    kl: NonNegative = 1e-3  # weight of |v - v_ref|^2
    slow: NonNegative = 0.001  # the old copy keeps min(slow k, most) of itself after batch k
    most: NonNegative = 0.3  # the most that the old copy keeps
    lr: NonNegative = 3e-4  # step size of AdamW
    updates: Count = 1  # per batch
    times: Natural = 0  # noise levels a sample meets in an update; 0: all
    share: NonNegative = 0.6  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling (the paper: none)
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "group"

    needs = NEEDS
    scales = ""
    paper = "arXiv:2510.08425"
    samples, same_eps = "train", True
    calls, __call__ = forward_process.calls, forward_process.train

    def weigh(self, advantage: Tensor) -> Tensor:
        return advantage

    def copies(self) -> dict[str, float | None]:
        return {"old": self.guidance, "reference": self.guidance}

    def decay(self, k: int) -> float:
        return min(self.slow * k, self.most)

    def loss(self, seen: Seen) -> Tensor:
        a, error = seen.weight, seen.error(seen.live)
        gained = self.beta * a * (error - seen.error(seen.reference)).detach()
        w = torch.sigmoid(losses.group_mean(gained, seen.group))  # [n]
        ratio = (seen.error(seen.old) - error).exp().detach()
        past = (a > 0) & (ratio > 1 + self.clip) | (a < 0) & (ratio < 1 - self.clip)
        return w * a * torch.where(past, error.detach(), error) + self.kl * seen.drift(seen.reference)
