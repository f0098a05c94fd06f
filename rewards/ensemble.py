"""Several rewards' scores as one: `combine: NAME` or `combine: {how: NAME, ...}` in a reward block.

A combination is a frozen dataclass that takes values [K,B], shaped by `shape` unless the block says otherwise, weights
[K] and prompts to scores [B]. A sample with a NaN value is NaN, and no other is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.core.types import NonNegative

from .pareto import Pareto, Parrot
from .transforms import Cosine, Raw, Typical

TINY = 1e-8


@dataclass(frozen=True)
class Sum:
    """The weighted sum."""

    differentiable: ClassVar[bool] = True
    scope: ClassVar[Literal["sample", "group"]] = "sample"
    weighted: ClassVar[bool] = True  # False: it has no use for weights other than 1
    shape: ClassVar[type] = Raw

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        return (weights[:, None] * values).sum(0)


@dataclass(frozen=True)
class Mean(Sum):
    """The weighted mean of rewards on one scale: an ensemble (arXiv:2312.09244)."""

    shape = Typical

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        return (weights[:, None] * values).sum(0) / weights.sum()


@dataclass(frozen=True)
class Worst(Sum):
    """The lowest of rewards on one scale (worst-case optimisation, arXiv:2310.02743); the gradient is that one's."""

    weighted = False
    shape = Typical

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        return values.min(0).values


@dataclass(frozen=True)
class Lower(Sum):
    """Mean minus k standard deviations of rewards on one scale: where they disagree, none is believed. With two rewards
    and k = 1 it is the lower of them (after arXiv:2310.02743, with the deviation for their variance)."""

    k: NonNegative = 1.0  # how many standard deviations

    shape = Typical

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        share = (weights / weights.sum())[:, None]
        mean = (share * values).sum(0)
        variance = (share * (values - mean).square()).sum(0)
        differs = variance > 0
        # The root has no slope at 0: where all agree the deviation is left out of the graph.
        return mean - self.k * torch.where(differs, variance, 1.0).sqrt() * differs


@dataclass(frozen=True)
class Harmonic(Sum):
    """The weighted harmonic mean, 1 / sum_k(w_k / r_k) with weights that sum to 1: RPO's lambda-Harmonic reward of two
    (arXiv:2407.12164). It asks for all at once; a value of 0 or less makes the whole 0."""

    shape = Cosine

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        return weights.sum() / (weights[:, None] / values.clamp(min=TINY)).sum(0)


COMBINATIONS: dict[str, type] = {
    "sum": Sum,
    "mean": Mean,
    "worst": Worst,
    "lower": Lower,
    "harmonic": Harmonic,
    "pareto": Pareto,
    "parrot": Parrot,
}
