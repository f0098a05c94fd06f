"""Fréchet distance of two sets as if both were normal: FID (arXiv:1706.08500), FAD (arXiv:1812.08466),
in any embedding.

    F^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With S = A^T A the last trace is the nuclear norm |A1 A2^T|_*: the singular values of A1 A2^T are the square roots of
the eigenvalues of S1 S2 (`nuclear_norm`). So no square root of a D x D matrix is taken, fewer rows than dimensions are
no special case, no epsilon is added, and the gradient is finite.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rewards.sets.exemplar import IMAGE_AND_VIDEO, ReferenceReward
from rewards.sets.moments import Moments, finite_rows, nan_of
from workbench.core.types import RewardSpec

log = logging.getLogger(__name__)


class Normal(NamedTuple):
    """A normal distribution by its mean [D] and a root [R,D] of its covariance: covariance = root^T root."""

    mean: Tensor
    root: Tensor


def fit_normal(x: Tensor) -> Normal:
    """Of the rows of x [N,D], with the unbiased covariance. Fewer than two rows leave no root: R is 0."""
    x = finite_rows(x)
    mean = x.mean(0)
    return Normal(mean, (x - mean) / (len(x) - 1) ** 0.5 if len(x) > 1 else x[:0])


def normal_from_moments(m: Moments) -> Normal:
    """Of streamed moments: R is the rank of the covariance, at most D."""
    if m.count < 2:
        return Normal(m.mean, m.scatter[:0])
    values, vectors = torch.linalg.eigh(m.covariance)  # [D] ascending, [D,D]
    is_positive = values > values[-1] * torch.finfo(values.dtype).eps * len(values)
    return Normal(m.mean, (vectors[:, is_positive] * values[is_positive].sqrt()).T)


def frechet_distance(p: Normal, q: Normal) -> Tensor:
    """[]: the squared distance F^2, in float64, at least 0 up to rounding. NaN when a root is empty."""
    if not len(p.root) or not len(q.root):
        return nan_of(p.mean.nan_to_num())
    shift, spread = (p.mean - q.mean).square().sum(), p.root.square().sum() + q.root.square().sum()
    return shift + spread - 2 * nuclear_norm(p.root, q.root)


def nuclear_norm(a: Tensor, b: Tensor) -> Tensor:
    """[]: the nuclear norm of A B^T from A [R,D] and B [S,D], float64.

    With R, S >= D its singular values are the square roots of the eigenvalues of the D x D matrix B A^T A B^T, B
    brought to D rows: faster. An eigenvalue is known to about 1e-16 of the largest, so where the smallest is under
    1e-10 of it its root would be too coarse, and the singular values are taken of A B^T itself; without a gradient of
    its D x D core, as the rotations of two QR decompositions change none. Either way the sum is good to 1e-8.
    """
    shorter, longer = sorted((a, b), key=len)
    if len(shorter) >= a.shape[1]:
        failed = False
        if len(shorter) > a.shape[1]:
            shorter, failed = torch.linalg.cholesky_ex(shorter.T @ shorter, upper=True)
        if not failed:
            values = torch.linalg.eigvalsh(shorter @ (longer.T @ longer) @ shorter.T)  # [D] ascending
            if values[0] > 1e-10 * values[-1]:
                return values.sqrt().sum()
    if not (a.requires_grad or b.requires_grad):  # QR has no finite gradient where a root has lost its rank
        a, b = (torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in (a, b))
    return torch.linalg.svdvals(a @ b.T).sum()


class Extrapolated(NamedTuple):
    """The line F^2(n) = value + slope / n through distances of subsets, and the share of their variance it explains."""

    value: Tensor
    slope: Tensor
    r2: Tensor


def extrapolate_distance(x: Tensor, q: Normal, points: int = 15, seed: int = 0) -> Extrapolated:
    """F^2 of an infinite set, by least squares in 1/n: FID-infinity (arXiv:1911.07023),
    FAD-infinity (arXiv:2311.01616).

    `points` subsets of x [N,D], of N/10 rows (or D, or N/2, whichever is between) up to N, drawn WITHOUT replacement:
    a bootstrap's duplicates shrink the covariance and leave a bias at 1/n = 0. The reference's own bias stays.
    Differentiable; NaN for fewer than 8 rows.
    """
    x = finite_rows(x)
    n, d = x.shape
    if n < 8:
        return Extrapolated(*[nan_of(x)] * 3)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(max(n // 10, min(d, n // 2), 4), n, points).round().long().tolist()
    subsets = [x[torch.randperm(n, generator=generator)[:size].to(x.device)] for size in sizes]
    y = torch.stack([frechet_distance(fit_normal(subset), q) for subset in subsets])  # [P]
    t = 1 / y.new_tensor(sizes)
    slope = ((t - t.mean()) * y).sum() / (t - t.mean()).square().sum()
    value = y.mean() - slope * t.mean()
    residual, total = (y - value - slope * t).square().sum(), (y - y.mean()).square().sum()
    return Extrapolated(value, slope, (1 - residual / total).detach())


@dataclass(frozen=True)
class Frechet(ReferenceReward):
    """Minus the Fréchet distance between the batch and a reference set, squared as FID and FAD report it.

    Biased upward for small sets, by about 1/n: compare equal sizes only, or extrapolate.
    """

    infinity: bool = False  # extrapolate to a set of infinite size; for evaluation: it needs hundreds of samples

    spec = RewardSpec(
        "frechet", "1", IMAGE_AND_VIDEO, True, scope="set", needs=frozenset({"reference"}), paper="arXiv:1706.08500"
    )
    keeps = "moments"

    def prepare(self, embedded: Tensor | Moments) -> Normal:
        return normal_from_moments(embedded) if isinstance(embedded, Moments) else fit_normal(embedded)

    def score_rows(self, x: Tensor, target: Normal) -> Tensor:
        if not self.infinity:
            return -frechet_distance(fit_normal(x), target)
        line = extrapolate_distance(x, target)
        if line.r2 < 0.9:
            log.warning(
                "frechet: distance is not linear in 1/n here (R2 %.2f); %d samples are too few", line.r2, len(x)
            )
        return -line.value
