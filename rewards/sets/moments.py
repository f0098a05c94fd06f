"""Count, mean and scatter of any number of rows in O(D^2) memory: Chan, Golub and LeVeque (1979), pairwise update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def finite_rows(x: Tensor) -> Tensor:
    """The rows of x [N,D] without NaN or infinity, in float64 (on the CPU where a device has none), graph attached.

    Raises ValueError unless x is a matrix.
    """
    if x.dim() != 2:
        raise ValueError(f"a set is a matrix of one row an item, [N,D]; got {list(x.shape)}")
    x = (x.cpu() if x.device.type == "mps" else x).double()
    if x.detach().sum(1).isfinite().all():  # the usual case, found in one pass and without a copy
        return x
    return x[x.isfinite().all(1)]


def nan_of(x: Tensor) -> Tensor:
    """NaN [], of a set too small to say anything, with a graph whose gradient is zero."""
    return (x * 0).sum() + torch.nan


@dataclass(frozen=True)
class Moments:
    """What a normal distribution needs to know of a set. `a + b` is exactly the moments of both sets together."""

    count: int
    mean: Tensor  # [D] float64
    scatter: Tensor  # [D,D] float64: sum of (x - mean)(x - mean)^T

    @staticmethod
    def from_rows(x: Tensor) -> Moments:
        """Of the finite rows of x [N,D]."""
        x = finite_rows(x.detach())
        mean = x.sum(0) / max(len(x), 1)
        centred = x - mean
        return Moments(len(x), mean, centred.T @ centred)

    @staticmethod
    def from_chunks(chunks: Iterable[Tensor]) -> Moments:
        """Of the rows of all chunks [n_i,D], one chunk in memory at a time. Raises ValueError for no chunk."""
        total = None
        for chunk in chunks:
            moments = Moments.from_rows(chunk)
            total = moments if total is None else total + moments
        if total is None:
            raise ValueError("no rows to take moments of")
        return total

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        share = other.count / max(count, 1)
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * share)
        return Moments(count, self.mean + shift * share, scatter)

    @property
    def covariance(self) -> Tensor:
        """[D,D], unbiased (count - 1); NaN for fewer than two rows."""
        return self.scatter / (self.count - 1 or torch.nan)
