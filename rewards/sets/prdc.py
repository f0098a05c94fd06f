"""Do two sets cover each other? Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797).

The manifold of a set is the union of balls around its points, each as wide as the distance to its k-th neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rewards.sets.exemplar import IMAGE_AND_VIDEO, ReferenceReward
from rewards.sets.moments import finite_rows
from workbench.core.types import Count, RewardSpec

BLOCK_ROWS = 1024  # rows of a distance matrix in memory at once


class Balls(NamedTuple):
    """Points [N,D] and their radii [N]."""

    points: Tensor
    radii: Tensor


def fit_balls(x: Tensor, k: int = 5) -> Balls:
    """The finite rows of x [N,D], each with the distance to its k-th nearest other row; infinite when N <= k."""
    x = finite_rows(x.detach())
    if len(x) <= k:
        return Balls(x, x.new_full((len(x),), torch.inf))
    radii = [torch.cdist(part, x).kthvalue(k + 1, dim=1).values for part in x.split(BLOCK_ROWS)]  # itself is the first
    return Balls(x, torch.cat(radii))


def prdc_metrics(x: Tensor | Balls, y: Tensor | Balls, k: int = 5) -> dict[str, Tensor]:
    """`precision`, `recall`, `density` and `coverage`, each [], of generated x [N,D] against real y [M,D].

    precision: share of x inside y's manifold; recall: share of y inside x's; density: mean number of y's balls around
    an x, over k, may exceed 1; coverage: share of y's balls that hold an x. No gradient. NaN unless N > k and M > k.
    """
    x, y = (s if isinstance(s, Balls) else fit_balls(s, k) for s in (x, y))
    if min(len(x.points), len(y.points)) <= k:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), x.points.new_tensor(torch.nan))
    distances = torch.cdist(x.points, y.points)  # [N,M]
    in_y = distances < y.radii
    return {
        "precision": in_y.any(1).double().mean(),
        "recall": (distances < x.radii[:, None]).any(0).double().mean(),
        "density": in_y.double().sum(1).mean() / k,
        "coverage": in_y.any(0).double().mean(),
    }


@dataclass(frozen=True)
class PRDC(ReferenceReward):
    """Precision, recall, density or coverage of the batch against a reference set, by nearest neighbours."""

    metric: Literal["precision", "recall", "density", "coverage"] = "coverage"
    k: Count = 5  # neighbours; both sets need more samples than that

    spec = RewardSpec(
        "prdc",
        "1",
        IMAGE_AND_VIDEO,
        differentiable=False,
        scope="set",
        needs=frozenset({"reference"}),
        typical=(0.0, 1.0),
        paper="arXiv:2002.09797",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.metric != "density":
            object.__setattr__(self, "spec", replace(self.spec, bounds=(0.0, 1.0)))

    @property
    def min_examples(self) -> int:
        return self.k + 1

    def prepare(self, embedded: Tensor) -> Balls:
        return fit_balls(embedded, self.k)

    def score_rows(self, x: Tensor, target: Balls) -> Tensor:
        return prdc_metrics(x, target, self.k)[self.metric]
