"""How plausible a tensor is as Gaussian noise, by concentration inequalities (DNO: Tang et al., arXiv:2405.18881,
section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def noise_implausibility(z: Tensor, k: int, permutations: int = 0, seed: int = 0) -> Tensor:
    """[B]: -log min(p1, 1) - log min(p2, 1) of z [B,m], split into m // k vectors of k numbers, plus the mean of the
    same over `permutations` random orders of the numbers, equal for all rows. 0 for plausible noise. The last m mod k
    numbers are left out."""
    n, shuffle = z.shape[1] // k, torch.Generator().manual_seed(seed)

    def deviation_of(z: Tensor) -> Tensor:
        parts = z[:, : n * k].view(len(z), n, k)
        mean = parts.mean(1).square().sum(1)  # M1^2
        deviation = torch.linalg.matrix_norm(parts.mT @ parts / n - torch.eye(k).to(z), ord=2)  # M2
        excess = ((1 + deviation).sqrt() - 1 - math.sqrt(k / n)).clamp(min=0)
        return (n * mean / (2 * k) - math.log(2)).clamp(min=0) + (n * excess.square() / 2 - math.log(2)).clamp(min=0)

    orders = [torch.randperm(z.shape[1], generator=shuffle) for _ in range(permutations)]
    return deviation_of(z) + sum(deviation_of(z[:, order]) for order in orders) / max(permutations, 1)
