"""How far raters agree: Krippendorff's alpha, and who agrees with what is known. Pure functions of arrays.

    alpha = 1 - D_o / D_e, observed over expected disagreement        (Krippendorff 2011, Computing Krippendorff's
                                                                      Alpha-Reliability)

1: all agree; 0: as if by chance. It takes any number of raters, and pairs that only some of them voted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 1000
FEWEST_UNITS = 2  # with two values or more, below which nothing is said


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha with a 95 % interval, by resampling units."""

    alpha: float  # NaN where nobody voted on what somebody else did, and where all values are equal
    low: float
    high: float
    units: int  # voted on by two raters or more
    raters: int

    def __str__(self) -> str:
        if not self.units:
            return "no pair has votes of two raters yet"
        if np.isnan(self.alpha):
            return f"all votes are alike (pairs: {self.units}), so agreement can't be told from a habit"
        return f"alpha {self.alpha:.2f} [{self.low:.2f}, {self.high:.2f}], pairs: {self.units}, raters: {self.raters}"


def measure_alpha(values: np.ndarray, level: Literal["nominal", "ordinal"]) -> Agreement:
    """Krippendorff's alpha of values float [R,U], raters by units: small whole numbers from 0, NaN where a rater did
    not vote. level: whether values that differ are just different, or further apart the more lie between them."""
    values = values[:, (~np.isnan(values)).sum(0) >= FEWEST_UNITS]
    raters = int((~np.isnan(values)).any(1).sum()) if values.size else 0
    if not values.shape[1]:
        return Agreement(np.nan, np.nan, np.nan, 0, raters)
    parts = _coincidences(values)
    times = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=RESAMPLES)
    draws = _alpha(np.tensordot(times, parts, 1), level)
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return Agreement(float(_alpha(parts.sum(0)[None], level)[0]), float(low), float(high), len(parts), raters)


def _coincidences(values: np.ndarray) -> np.ndarray:
    """float64 [U,C,C]: how often two raters gave values c and k to a unit, each rater counting once in all."""
    kinds = int(np.nanmax(values)) + 1
    counts = np.stack([(values == c).sum(0) for c in range(kinds)], axis=1).astype(float)  # [U,C]
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, np.arange(kinds), np.arange(kinds)] -= counts
    return pairs / (counts.sum(1) - 1)[:, None, None]


def _alpha(coincidences: np.ndarray, level: str) -> np.ndarray:
    """[B] of coincidences [B,C,C]."""
    totals = coincidences.sum(2)  # [B,C]
    n = totals.sum(1)
    kinds = totals.shape[1]
    if level == "nominal":
        distance = np.broadcast_to(1.0 - np.eye(kinds), coincidences.shape)
    else:
        before = np.cumsum(totals, axis=1) - totals / 2  # the middle of each value's ranks
        distance = (before[:, :, None] - before[:, None, :]) ** 2
    observed = (coincidences * distance).sum((1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum((1, 2)) / np.maximum(n - 1, 1)
    return 1 - np.divide(observed, expected, out=np.full(len(n), np.nan), where=expected > 0)
