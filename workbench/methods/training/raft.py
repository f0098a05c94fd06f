"""RAFT: reward-ranked fine-tuning. Dong et al., TMLR 2023, arXiv:2304.06767, Algorithm 1.

Of a prompt's samples the best are kept and the model is fine-tuned on them by its own denoising loss, |v - u|^2: best-of-G
distilled into the weights. Only the order of rewards matters. Collapse is slowed by kl |v - v_ref|^2. Samples carry the guidance
they were drawn with: to train on guided ones and guide again later counts it twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import BadInput, Count, Natural, NonNegative
from workbench.methods.common import forward_process
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS, Learnt


@dataclass(frozen=True)
class RAFT:
    """Reward-ranked fine-tuning (arXiv:2304.06767): the denoising loss on the best of one's own samples."""

    group: Count = 10  # samples a prompt
    keep: Count = 1  # of which the best so many are learnt from
    kl: NonNegative = 0.0  # weight of |v - v_ref|^2
    lr: NonNegative = 1e-4  # step size of AdamW
    updates: Count = 1  # per batch
    times: Natural = 0  # noise levels a sample meets in an update; 0: all
    share: NonNegative = 1.0  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts whose samples go through the denoiser together; 0: all
    samples: Learnt = "train"  # whose are learnt from: its own of each round, or the base's

    needs = NEEDS
    scales = ""
    paper = "arXiv:2304.06767"
    same_eps, advantage = False, "centre"
    __call__ = forward_process.train

    def __post_init__(self):
        if self.keep > self.group:
            raise BadInput(f"method.keep: {self.keep} of {self.group} samples can't be kept; set keep to at most group")

    def calls(self, steps: int) -> int:
        return self.group * steps + self.keep * (forward_process.calls(self, steps) // self.group - steps)

    def weigh(self, advantage: Tensor) -> Tensor:
        """1 for the best `keep` of each group, NaN for the rest."""
        a = advantage.view(-1, self.group)
        rows = a.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)[:, : self.keep]
        kept = torch.full_like(a, torch.nan).scatter(1, rows, 1.0)
        return kept.masked_fill(a.isnan(), torch.nan).flatten()

    def copies(self) -> dict[str, float | None]:
        return {"reference": self.guidance} if self.kl else {}

    def decay(self, k: int) -> float:
        return 1.0

    def loss(self, seen: Seen) -> Tensor:
        return seen.error(seen.live) + self.kl * seen.drift(seen.reference)
