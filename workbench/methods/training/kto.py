"""Diffusion-KTO: single judgements instead of pairs. Li et al., NeurIPS 2024, arXiv:2404.04465, Eq. 11.

A sample above its group's mean is liked (y = 1), one below is not (y = -1); so are the winner and the loser of a pair
that comes with the batch (workbench.runs.preference_data). With g = |v_ref - u|^2 - |v - u|^2, how much better than the
reference it is denoised, and the baseline z = max(0, mean g), over a prompt's samples at one level and without
gradient,

    L = w_y ( 1 - U( y beta (g - z) ) ),

where w_y lets the liked and the others of a prompt weigh alike however many there are of each, as KTO's authors advise
(arXiv:2402.01306); else what every sample shares, the sampler's own error, would be learnt along. The utility U is the
sigmoid of prospect theory, or averse to losses (log sigmoid), or indifferent to them (linear). With pairs the baseline
is the pair's own mean, so each is judged beside the other. Errors are means over dimensions, and beta belongs to that
convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.core.types import Count, NonNegative
from workbench.methods.common import losses
from workbench.methods.common.forward_process import ForwardProcessMethod
from workbench.methods.common.noised_batch import NoisedBatch

UTILITY = {"sigmoid": torch.sigmoid, "averse": F.logsigmoid, "linear": lambda x: x}


@dataclass(frozen=True)
class KTO(ForwardProcessMethod):
    """Diffusion-KTO (arXiv:2404.04465): each of one's own samples is liked or not; no pairs."""

    group: Count = 8
    beta: NonNegative = 1000.0  # on g - z: the higher, the sooner U is flat, which stays nearer to the reference
    utility: Literal["sigmoid", "averse", "linear"] = "sigmoid"  # U: of prospect theory, averse to losses, indifferent
    desirable_weight: NonNegative = 1.0  # of all that are liked
    undesirable_weight: NonNegative = 1.0  # and of all others

    paper = "arXiv:2404.04465"
    learns_from_pairs = True
    former_names = ForwardProcessMethod.former_names | {"liked": "desirable_weight", "disliked": "undesirable_weight"}

    def weigh(self, advantage: Tensor) -> Tensor:
        """y / (2 share of those with this y in the prompt's group), NaN for what is neither."""
        y = advantage.view(-1, self.group).nan_to_num(0).sign()
        likes, dislikes = ((y == side).sum(1, keepdim=True) for side in (1, -1))
        share = torch.where(y > 0, likes, dislikes) / (likes + dislikes)
        return (y / (2 * share)).masked_fill(y == 0, torch.nan).flatten()

    def loss(self, batch: NoisedBatch) -> Tensor:
        g = batch.error(batch.reference) - batch.error(batch.live)  # [n]
        z = losses.group_mean(g.detach(), batch.group).clamp(min=0)
        y, weight = batch.weight.sign(), batch.weight.abs()
        weight = weight * torch.where(y > 0, self.desirable_weight, self.undesirable_weight)
        return weight * (1 - UTILITY[self.utility](y * self.beta * (g - z)))
