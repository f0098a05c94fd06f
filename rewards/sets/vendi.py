"""Vendi score: the effective number of different items in a set (arXiv:2210.02410; orders q: arXiv:2310.12952)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.sets.exemplar import IMAGE_AND_VIDEO, SetReward
from rewards.sets.moments import finite_rows, nan_of
from workbench.core.types import NonNegative, RewardSpec


def vendi_score(x: Tensor, q: float = 1.0) -> Tensor:
    """[]: exp of the order-q Renyi entropy of the eigenvalues of K/N, K the cosine similarities of the rows of x [N,D].

    From 1 (all alike) to N (all orthogonal). q = 1: Shannon; 2: 1/|K/N|_F^2, without eigenvalues; inf: 1/largest; 0:
    the rank, without gradient; large q listens to the common, small q to the rare. K/N has the non-zero eigenvalues
    of X^T X/N, so the smaller of N x N and D x D is decomposed: O(min(N,D)^2 max(N,D)). float64. NaN for no row.
    """
    x = F.normalize(finite_rows(x), dim=1)
    if not len(x):
        return nan_of(x)
    gram = (x.T @ x if len(x) > x.shape[1] else x @ x.T) / len(x)
    if q == 2:
        return 1 / gram.square().sum()
    values = torch.linalg.eigvalsh(gram)
    if q == math.inf:
        return 1 / values[-1]
    # What is below the rounding of the largest is a zero eigenvalue, whose logarithm would have an infinite slope.
    values = values[values > values[-1].detach() * torch.finfo(values.dtype).eps * len(values)]
    if q == 1:
        return torch.special.entr(values).sum().exp()
    return values.pow(q).sum().pow(1 / (1 - q))


@dataclass(frozen=True)
class Vendi(SetReward):
    """The effective number of different samples in the batch. Noise is diverse too: pair it with a reward of quality.

    Grows with the batch: compare equal sizes only.
    """

    q: NonNegative = 1.0  # order: 2 is the cheapest, and has a gradient where all samples have collapsed into one

    spec = RewardSpec("vendi", "1", IMAGE_AND_VIDEO, True, scope="set", paper="arXiv:2210.02410")

    def score_rows(self, x: Tensor, target: None) -> Tensor:
        return vendi_score(x, self.q)
