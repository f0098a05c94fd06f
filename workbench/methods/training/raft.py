"""RAFT: reward-ranked fine-tuning. Dong et al., TMLR 2023, arXiv:2304.06767, Algorithm 1.

Of a prompt's samples the best are kept and the model is fine-tuned on them by its own denoising loss, |v - u|^2:
best-of-G distilled into the weights. Only the order of rewards matters. Collapse is slowed by kl |v - v_ref|^2. Samples
carry the guidance they were drawn with: to train on guided ones and guide again later counts it twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Count, NonNegative
from workbench.methods.common.forward_process import ForwardProcessMethod
from workbench.methods.common.noised_batch import NoisedBatch
from workbench.methods.common.rollout import SampledBy


@dataclass(frozen=True)
class RAFT(ForwardProcessMethod):
    """Reward-ranked fine-tuning (arXiv:2304.06767): the denoising loss on the best of one's own samples."""

    group: Count = 10
    keep_best: Count = 1  # so many samples of a prompt are learnt from
    kl: NonNegative = 0.0  # weight of |v - v_ref|^2
    lr: NonNegative = 1e-4
    samples: SampledBy = "train"  # whose are learnt from: its own of each round, or the base's

    paper = "arXiv:2304.06767"
    former_names = ForwardProcessMethod.former_names | {"keep": "keep_best"}

    def __post_init__(self):
        if self.keep_best > self.group:
            raise BadInput(
                f"method.keep_best: {self.keep_best} of {self.group} samples can't be kept; "
                "set keep_best to at most group"
            )

    def calls(self, steps: int) -> int:
        return self.group * steps + self.keep_best * (super().calls(steps) // self.group - steps)

    def weigh(self, advantage: Tensor) -> Tensor:
        """1 for the best `keep_best` of each group, NaN for the rest."""
        a = advantage.view(-1, self.group)
        rows = a.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)[:, : self.keep_best]
        weight = torch.full_like(a, torch.nan).scatter(1, rows, 1.0)
        return weight.masked_fill(a.isnan(), torch.nan).flatten()

    def copies(self) -> dict[str, float | None]:
        return {"reference": self.guidance} if self.kl else {}

    def loss(self, batch: NoisedBatch) -> Tensor:
        return batch.error(batch.live) + self.kl * batch.drift(batch.reference)
