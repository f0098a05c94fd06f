"""From rewards to advantages: pure functions of tensors, shared by the methods.

Scores are [B], with the `group` samples of each prompt as neighbours. NaN, a sample that could not be scored, is left
out of all statistics and stays NaN. Rewards are shaped (log-sigmoid, ensembles) before this: a z-score removes a
reward's scale and keeps its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor


def zscore(scores: Tensor, group: int, spread: Literal["group", "batch"] = "group") -> Tensor:
    """[B]: (score - mean of its group) / standard deviation of the group; 0 for a group of equal scores.

    spread "batch" divides by the standard deviation of all B scores (Flow-GRPO, arXiv:2505.05470), which doesn't
    amplify a group whose scores hardly differ. Raises ValueError unless B is a multiple of `group`.
    """
    x, valid = _split_groups(scores, group)
    centred = x - x.nanmean(1, keepdim=True)
    deviation = _row_std(x if spread == "group" else x.view(1, -1))
    # A spread below float32's resolution is rounding; divided by it, noise would become an advantage.
    level = x.nan_to_num(0).abs().amax(1, keepdim=True) * torch.finfo(torch.float32).eps
    flat = _row_std(x) <= level
    return (centred / deviation).masked_fill(flat & valid, 0.0).flatten().to(scores.dtype)


def centre_groups(scores: Tensor, group: int) -> Tensor:
    """[B]: score - mean of its group, not normalised (Dr. GRPO, arXiv:2503.20783). Raises ValueError as `zscore`."""
    x, _ = _split_groups(scores, group)
    return (x - x.nanmean(1, keepdim=True)).flatten().to(scores.dtype)


def leave_one_out(scores: Tensor, group: int) -> Tensor:
    """[B]: score - mean of the other scores of its group, an unbiased baseline (RLOO, arXiv:2402.14740); 0 for a sample
    without others. Raises ValueError as `zscore`."""
    x, valid = _split_groups(scores, group)
    others = valid.sum(1, keepdim=True) - 1
    mean = (x.nansum(1, keepdim=True) - x) / others.clamp(min=1)
    return torch.where(valid & (others < 1), 0.0, x - mean).flatten().to(scores.dtype)


def gdpo_advantages(scores: Mapping[str, Tensor], weights: Mapping[str, float], group: int) -> Tensor:
    """[B]: each reward z-scored in its prompt's group, then the weighted sum z-scored over the batch (GDPO,
    arXiv:2601.05242).

    So the scale of a reward doesn't matter. A sample that one reward could not score is NaN in all, and a group with
    equal scores in all rewards stays 0, whatever the batch's mean.
    """
    unjudged = torch.stack([values.isnan() for values in scores.values()]).any(0)
    parts = (weights[name] * zscore(values.masked_fill(unjudged, math.nan), group) for name, values in scores.items())
    total = sum(parts, start=torch.zeros(()))
    flat = (total.view(-1, group).nan_to_num(0) == 0).all(1).repeat_interleave(group)
    return zscore(total, len(total)).masked_fill(flat & ~unjudged, 0.0)


def _split_groups(scores: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Scores float64 [B/group, group], and where they are not NaN. Raises ValueError as `zscore`."""
    if scores.dim() != 1 or scores.shape[0] % group:
        raise ValueError(f"{list(scores.shape)} scores are not whole groups of {group}")
    x = scores.double().view(-1, group)
    return x, ~x.isnan()


def _row_std(x: Tensor) -> Tensor:
    """[N,1]: population standard deviation of each row, without NaN."""
    centred = (x - x.nanmean(1, keepdim=True)).nan_to_num(0)
    return (centred.square().sum(1, keepdim=True) / (~x.isnan()).sum(1, keepdim=True).clamp(min=1)).sqrt()
