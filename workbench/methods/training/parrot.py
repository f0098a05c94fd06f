"""Parrot: several rewards by Pareto-optimal selection. Lee et al., ECCV 2024, arXiv:2401.05675, Algorithm 1 and Eq. 2.

Of a prompt's samples only the non-dominated ones P teach: those that no other sample matches in every reward and beats
in one. Then a policy-gradient step on the denoising chain (grpo's),

    grad J = 1/|P| sum_{n in P} R_n sum_i grad log p(x_{i+1} | x_i),

so no weighing of rewards decides what is good, and what is good in one reward only is not averaged away. R_n is the
weighted sum of the rewards, each standardised in its group and counted from its lowest: 0 for a dominated sample is
then never more than a prize. With few samples and many rewards hardly any is dominated: take 64 a prompt, or two or
three rewards. Not here: the paper's reward-specific prompt tokens, and the prompt expander that it trains along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Count, NonNegative
from workbench.methods.common.advantages import zscore
from workbench.methods.common.rollout import ScoredSamples
from workbench.methods.training.grpo import GRPO

ONE_REWARD = "reward: parrot chooses between rewards and was given one; name two, or use grpo"


@dataclass(frozen=True)
class Parrot(GRPO):
    """Batch-wise Pareto selection (arXiv:2401.05675): learn from the samples that no other beats on every reward."""

    group: Count = 64
    kl: NonNegative = 0.0
    ratio: Literal["guard", "raw"] = "raw"
    # grpo's, which have no part here: R_n takes the advantage's place
    advantage_clip: float = field(default=0.0, init=False)
    advantage: str = field(default="", init=False)  # type: ignore[assignment]  # none of grpo's: it has no part

    paper = "arXiv:2401.05675"
    former_names = {old: new for old, new in GRPO.former_names.items() if new != "advantage_clip"}

    def check(self, pipeline, reward, lora) -> None:
        super().check(pipeline, reward, lora)
        if len(reward.rewards) < 2:
            raise BadInput(ONE_REWARD)

    def advantages(self, scored: ScoredSamples) -> Tensor:
        if len(scored.parts) < 2:
            raise BadInput(ONE_REWARD)
        a = scored.reward.new_full(scored.reward.shape, torch.nan)
        for low in range(0, len(a), self.group):
            rows = slice(low, low + self.group)
            columns = [scored.weights[name] * zscore(v[rows], self.group) for name, v in scored.parts.items()]
            z = torch.stack(columns)  # [K,G]
            prize = (z - z.nan_to_num(torch.inf).amin(1, keepdim=True)).sum(0)
            flat = (z.nan_to_num(0) == 0).all()
            a[rows] = prize.masked_fill(~non_dominated(z) | flat, torch.nan)
        return a


def non_dominated(values: Tensor) -> Tensor:
    """bool [G]: the samples that no other is at least as good as in all K rewards, values [K,G], and better than in
    one. A NaN neither beats nor belongs."""
    ours, theirs = values[:, :, None], values[:, None, :]
    beaten = ((theirs >= ours).all(0) & (theirs > ours).any(0)).any(1)
    return ~beaten & ~values.isnan().any(0)
