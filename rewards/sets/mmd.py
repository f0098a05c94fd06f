"""Maximum mean discrepancy (Gretton et al. 2012): KID, KAD and CMMD are one formula under three kernels and scales.

    MMD^2 = E k(x,x') + E k(y,y') - 2 E k(x,y)

Unbiased (x != x'), so that sets of any size can be compared and the value of equal distributions scatters around 0; it
makes no assumption on the distributions, and is smooth in x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rewards.sets.exemplar import IMAGE_AND_VIDEO, ReferenceReward
from rewards.sets.moments import finite_rows, nan_of
from workbench.core.errors import BadInput
from workbench.core.types import RewardSpec

Kernel = Callable[[Tensor, Tensor], Tensor]  # [n,D], [m,D] -> [n,m]
BLOCK_ROWS = 1024  # rows of a reference's kernel matrix in memory at once
REFERENCE = frozenset({"reference"})


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[n,m]: squared distances, never below 0, with a finite gradient where points coincide."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


@dataclass(frozen=True)
class GaussianKernel:
    """exp(-|x - y|^2 / (2 bandwidth^2))."""

    bandwidth: float

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (-squared_distances(x, y) / (2 * self.bandwidth**2)).exp()


def mean_kernel(x: Tensor, kernel: Kernel, biased: bool = False) -> Tensor:
    """[]: mean kernel of two different rows of x [n,D]; with `biased`, of any two, equal ones included."""
    n, total = len(x), 0.0
    for i in range(0, n, BLOCK_ROWS):
        pairs = kernel(x[i : i + BLOCK_ROWS], x)
        total = total + pairs.sum() - (0.0 if biased else pairs.diagonal(i).sum())
    return total / (n * n if biased else n * (n - 1))


def mmd_squared(x: Tensor, y: Tensor, kernel: Kernel, biased: bool = False, yy: Tensor | None = None) -> Tensor:
    """[]: MMD^2 of the rows of x [n,D] and y [m,D], unbiased (may be below 0) unless `biased`, the V-statistic.

    `yy` is mean_kernel(y, kernel, biased) where it is known already. float64. NaN when a set has fewer than two rows.
    """
    x, y = finite_rows(x), finite_rows(y)
    if min(len(x), len(y)) < 2:
        return nan_of(x)
    yy = mean_kernel(y, kernel, biased) if yy is None else yy
    return mean_kernel(x, kernel, biased) + yy - 2 * kernel(x, y).mean()


def witness_function(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """[n]: how much sample i lowers MMD^2, 2 (mean_j k(x_i,y_j) - mean_{j!=i} k(x_i,x_j)): drawn to y, repelled by x.

    Minus the first variation of MMD^2 with x's distribution, up to a constant. The graph of entry i leads to row i
    alone: the others stand still, so that the gradient of the sum is n times that of -MMD^2. All rows must be finite,
    n > 1.

    It sees a misplaced share of the batch, not one stray sample: where neither set has anything, it is 0. (The unbiased
    MMD^2 of a batch with one outlier has the expectation of the batch without.) The Frechet distance sees both.
    """
    attraction = kernel(x, y).mean(1)
    pairs = kernel(x, x.detach())
    others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return 2 * (attraction - (pairs * others).sum(1) / (len(x) - 1))


def median_distance(y: Tensor, max_rows: int = 4096) -> float:
    """Median distance between two rows of y [m,D]; of `most` evenly spaced rows when there are more."""
    y = finite_rows(y.detach())
    y = y[torch.linspace(0, len(y) - 1, min(max_rows, len(y))).round().long()]
    return torch.pdist(y).median().item() if len(y) > 1 else 0.0


class Target(NamedTuple):
    """A reference set [m,D], the kernel it is seen by, and its own mean kernel []."""

    rows: Tensor
    kernel: Kernel
    yy: Tensor | None


@dataclass(frozen=True)
class KernelReward(ReferenceReward):
    """Minus `scale` times MMD^2 to a reference set."""

    scale: ClassVar[float] = 1.0

    def kernel(self, rows: Tensor) -> Kernel:
        raise NotImplementedError

    def prepare(self, embedded: Tensor) -> Target:
        rows = finite_rows(embedded)
        kernel = self.kernel(rows)
        return Target(rows, kernel, mean_kernel(rows, kernel) if len(rows) > 1 else None)

    def score_rows(self, x: Tensor, target: Target) -> Tensor:
        return -self.scale * mmd_squared(x, target.rows, target.kernel, yy=target.yy)

    def witness(self, x: Tensor, target: Target) -> Tensor:
        """[n] float64: the credit of each row of x, all finite."""
        return self.scale * witness_function(x, target.rows, target.kernel)


def cosine_cubed(x: Tensor, y: Tensor) -> Tensor:
    """(x.y + 1)^3: KID's cubic kernel (x.y/D + 1)^3 on unit vectors scaled by sqrt(D)."""
    return (x @ y.T + 1) ** 3


@dataclass(frozen=True)
class KID(KernelReward):
    """Minus the kernel distance with kernel (cos + 1)^3, of the whole sets at once.

    KID's cubic kernel (x.y/D + 1)^3 on embeddings scaled to norm sqrt(D): Inception's are of that size, unit vectors
    would leave it constant. Published values average over 100 subsets: the same expectation, more scatter.
    """

    spec = RewardSpec("kid", "1", IMAGE_AND_VIDEO, True, scope="set", needs=REFERENCE, paper="arXiv:1801.01401")

    def kernel(self, rows: Tensor) -> Kernel:
        return cosine_cubed


@dataclass(frozen=True)
class KAD(KernelReward):
    """Minus 100 times the kernel distance, its Gaussian kernel as wide as the reference's median pairwise distance."""

    spec = RewardSpec("kad", "1", IMAGE_AND_VIDEO, True, scope="set", needs=REFERENCE, paper="arXiv:2502.15602")
    scale = 100.0

    def kernel(self, rows: Tensor) -> Kernel:
        if len(rows) > 1 and not (width := median_distance(rows)):
            raise BadInput("kad: most reference examples are identical, so their median distance, the bandwidth, is 0")
        return GaussianKernel(width if len(rows) > 1 else 1.0)


@dataclass(frozen=True)
class CMMD(KernelReward):
    """Minus 1000 times the kernel distance with a Gaussian kernel of bandwidth 10 on unit CLIP embeddings.

    The paper's unbiased estimator; its published code computes the biased one, which adds about
    1000 (1 - k) (1/n + 1/m), k the mean kernel inside a set.
    """

    model: str = "openai/clip-vit-large-patch14-336"

    spec = RewardSpec("cmmd", "1", IMAGE_AND_VIDEO, True, scope="set", needs=REFERENCE, paper="arXiv:2401.09603")
    scale = 1000.0

    def kernel(self, rows: Tensor) -> Kernel:
        return GaussianKernel(10.0)
