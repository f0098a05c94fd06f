"""From rewards to advantages, and how long to trust them: pure functions of tensors, shared by the methods.

Scores are [B] with the samples of one prompt as neighbours, `group` of them. NaN, a sample that could not be judged,
takes no part and stays NaN. Shaping (log-sigmoid, ensembles) comes before any of this: a z-score undoes a reward's scale
and keeps its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def zscore(scores: Tensor, group: int, spread: Literal["group", "batch"] = "group") -> Tensor:
    """[B]: each group less its mean, over its standard deviation; equal scores become 0.

    spread `batch` divides by the standard deviation of all B scores (Flow-GRPO, arXiv:2505.05470): a group whose scores
    hardly differ is then not blown up. Raises ValueError unless B is a multiple of `group`.
    """
    x, there = _grouped(scores, group)
    centred = x - x.nanmean(1, keepdim=True)
    deviation = _std(x if spread == "group" else x.view(1, -1))
    # Below float32's own resolution a spread is rounding, and dividing by it would make noise into an advantage.
    level = x.nan_to_num(0).abs().amax(1, keepdim=True) * torch.finfo(torch.float32).eps
    flat = _std(x) <= level
    return (centred / deviation).masked_fill(flat & there, 0.0).flatten().to(scores.dtype)


def centre(scores: Tensor, group: int) -> Tensor:
    """[B]: each group less its mean and on its own scale (Dr. GRPO, arXiv:2503.20783). Raises ValueError as `zscore`."""
    x, _ = _grouped(scores, group)
    return (x - x.nanmean(1, keepdim=True)).flatten().to(scores.dtype)


def leave_one_out(scores: Tensor, group: int) -> Tensor:
    """[B]: each score less the mean of the others of its group, an unbiased baseline (RLOO, arXiv:2402.14740); 0 for a
    sample without others. Raises ValueError as `zscore`."""
    x, there = _grouped(scores, group)
    others = there.sum(1, keepdim=True) - 1
    mean = (x.nansum(1, keepdim=True) - x) / others.clamp(min=1)
    return torch.where(there & (others < 1), 0.0, x - mean).flatten().to(scores.dtype)


def gdpo(scores: Mapping[str, Tensor], weights: Mapping[str, float], group: int) -> Tensor:
    """[B]: each reward z-scored in its prompt's group, weighted, summed, and the batch z-scored (GDPO, arXiv:2601.05242).

    A large-scaled reward no longer drowns the others. A sample that one reward could not judge takes no part in any, and a
    group that is equal in all stays 0, wherever the batch's mean lies.
    """
    unjudged = sum(values.isnan() for values in scores.values()) > 0
    total = sum(
        weights[name] * zscore(values.masked_fill(unjudged, math.nan), group) for name, values in scores.items()
    )
    flat = (total.view(-1, group).nan_to_num(0) == 0).all(1).repeat_interleave(group)
    return zscore(total, len(total)).masked_fill(flat & ~unjudged, 0.0)


def _grouped(scores: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """float64 [B/group, group], and where it is not NaN."""
    if scores.dim() != 1 or scores.shape[0] % group:
        raise ValueError(f"{list(scores.shape)} scores are not whole groups of {group}")
    x = scores.double().view(-1, group)
    return x, ~x.isnan()


def _std(x: Tensor) -> Tensor:
    """[N,1]: population standard deviation of each row, without its NaN."""
    centred = (x - x.nanmean(1, keepdim=True)).nan_to_num(0)
    return (centred.square().sum(1, keepdim=True) / (~x.isnan()).sum(1, keepdim=True).clamp(min=1)).sqrt()


# The chi-square rule (Laidlaw et al., arXiv:2403.03185). Let a proxy reward correlate with the true one by rho on the
# base model's samples. Whatever part of the proxy is not the true reward has variance 1 - rho^2 there, so a policy at
# chi-square distance X from the base can raise that part alone by up to sqrt((1 - rho^2) X) (Cauchy-Schwarz).


def chi_square(log_ratio: Tensor) -> float:
    """Estimate of chi2(policy || base) = E_policy[policy / base] - 1 from log(policy / base) [N] of the policy's own
    samples. NaN is left out. Its variance is vast where the two are far apart: use few dimensions."""
    x = log_ratio.double()[~log_ratio.isnan()]
    if not len(x):
        return math.nan
    return math.expm1(min(float(x.logsumexp(0)) - math.log(len(x)), 700.0))


def chi_square_of_kl(kl: float) -> float:
    """chi2 of two Gaussians of equal variance from their KL, exp(2 KL) - 1: exact, and of `Transition.kl`, which is a mean
    over dimensions, the surrogate per dimension."""
    return math.expm1(min(2 * kl, 700.0))


def chi_square_of_best(n: int) -> float:
    """chi2 of best-of-n against the base, (n - 1)^2 / (2n - 1): exact for a reward without ties (the density ratio is
    n F^(n-1))."""
    return (n - 1) ** 2 / (2 * n - 1)


def sure_gain(gain: float, chi2: float, correlation: float) -> float:
    """Lower bound on the true reward's gain over the base, in its standard deviations there (arXiv:2403.03185):

        ( gain - sqrt((1 - rho^2) chi2) ) / rho

    gain: of the proxy, in ITS standard deviations on the base. Raises ValueError unless 0 < correlation <= 1.
    """
    if not 0 < correlation <= 1:
        raise ValueError(f"the correlation of proxy and true reward must be in (0, 1], got {correlation}")
    return (gain - math.sqrt((1 - correlation**2) * max(chi2, 0.0))) / correlation


@dataclass
class ChiSquareStop:
    """Says when to stop: the proxy's gain no longer proves any true gain, `patience` times in a row.

    correlation: of proxy and a held-out judge on the base model's samples; `base` are the proxy's scores there.
    """

    correlation: float
    base: Tensor  # [N], the proxy on the un-aligned model
    patience: int = 1
    spent: int = 0  # how often in a row nothing was proved

    def __post_init__(self):
        there = self.base.double()[~self.base.isnan()]
        self._mean, self._std = there.mean().item(), there.std(correction=0).item()
        if len(there) < 2 or self._std == 0:
            raise ValueError("the chi-square rule needs base scores that differ")
        sure_gain(0.0, 0.0, self.correlation)

    def __call__(self, scores: Tensor, chi2: float) -> bool:
        """True: stop. scores: the proxy [B] on what the policy makes now; chi2: how far it has come."""
        gain = (scores.double().nanmean().item() - self._mean) / self._std
        proved = sure_gain(gain, chi2, self.correlation) > 0
        self.spent = 0 if proved or chi2 <= 0 else self.spent + 1
        return self.spent >= self.patience
