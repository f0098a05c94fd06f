"""Ratings by votes: Bradley-Terry strengths with intervals, and checks of the votes. Pure functions of arrays.

    P(i beats j) = sigmoid(theta_i - theta_j)                                                (Bradley and Terry 1952)

A tie is half a win for each; "both bad" says nothing about who is better and is left out. Every strength has a Gaussian
prior of standard deviation 3 log-odds around 0, worth about half a vote: it gives undefeated contestants a finite
rating, shrinks a rating after thirty votes by one or two percent, and makes the strengths sum to zero. Ratings are on
the Elo scale, 1000 + 400 log10(odds). Intervals are bootstraps over votes; for a contestant that never lost or never
won, whose resamples are all alike, they are those of the posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components

from rewards.people.votes import clopper_pearson
from workbench.evaluation.statistics import FEW_PROMPTS

RESAMPLES = 1000
PRIOR = 1 / 3.0**2  # precision of the Gaussian prior on a strength
POINTS = 400 / np.log(10)  # of a rating, for one log-odds
SCORE_OF_CHOICE = {"left": 1.0, "right": 0.0, "tie": 0.5, "bad": np.nan}
MIN_LISTED_VOTES = 30  # votes below which a rating is only a first guess


def count_wins(lefts: np.ndarray, rights: np.ndarray, score: np.ndarray, n: int) -> np.ndarray:
    """float64 [n,n]: how often row beat column, a tie counting half for each.

    lefts, rights: int [N] contestants; score: [N], 1 where the left one won, 0 where the right one did, 1/2 for a tie,
    NaN for "both bad".
    """
    return _wins_by_group(lefts, rights, score, np.zeros(len(score), int), 1, n)[0]


def _wins_by_group(
    lefts: np.ndarray, rights: np.ndarray, score: np.ndarray, group: np.ndarray, groups: int, n: int
) -> np.ndarray:
    """[groups,n,n]: the wins of each group of votes, group: int [N]."""
    out, is_known = np.zeros((groups, n, n)), np.isfinite(score)
    i, j, s, g = lefts[is_known], rights[is_known], score[is_known], group[is_known]
    np.add.at(out, (g, i, j), s)
    np.add.at(out, (g, j, i), 1 - s)
    return out


def fit_strengths(won: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """float64 [...,n]: the log-odds that maximise the posterior of wins [...,n,n], by Newton's method. Raises
    RuntimeError where it doesn't converge."""
    theta = np.zeros(won.shape[:-1])
    met = won + np.swapaxes(won, -1, -2)
    eye = prior * np.eye(won.shape[-1])
    for _ in range(100):
        p = _sigmoid(theta[..., :, None] - theta[..., None, :])
        slope = (won - met * p).sum(-1) - prior * theta
        if np.abs(slope).max(initial=0) < 1e-8 * (1 + met.max(initial=0)):
            return theta
        step = np.linalg.solve(_laplacian(met * p * (1 - p)) + eye, slope[..., None])[..., 0]
        theta = theta + step / np.maximum(1, np.abs(step).max(-1, keepdims=True) / 2)  # at most 2 at once: no overshoot
    raise RuntimeError("the ratings did not converge")


def _laplacian(weights: np.ndarray) -> np.ndarray:
    n = weights.shape[-1]
    return weights.sum(-1)[..., None] * np.eye(n) - weights


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)


def fit_posterior(won: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strengths [n] and their covariance [n,n] by Laplace's approximation, the inverse of the Hessian."""
    theta, met = fit_strengths(won), won + won.T
    p = _sigmoid(theta[:, None] - theta[None, :])
    return theta, np.linalg.inv(_laplacian(met * p * (1 - p)) + PRIOR * np.eye(len(won)))


def expected_gain(won: np.ndarray) -> np.ndarray:
    """float64 [n,n]: the expected information, in nats, of one more vote on the difference of two contestants:
    log(1 + p (1 - p) Var(theta_i - theta_j)) / 2. Zero on the diagonal.
    """
    theta, cov = fit_posterior(won)
    p = _sigmoid(theta[:, None] - theta[None, :])
    spread = np.diag(cov)[:, None] + np.diag(cov)[None, :] - 2 * cov
    return 0.5 * np.log1p(p * (1 - p) * np.maximum(spread, 0))


def bootstrap_strengths(
    lefts: np.ndarray, rights: np.ndarray, score: np.ndarray, prompts: Sequence, n: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """float64 [resamples,n]: strengths of resampled votes, seeded. Prompts are resampled where there are at least
    FEW_PROMPTS, as votes on one prompt are not independent; else single votes. Equal votes are drawn as counts, so the
    cost does not grow with their number.
    """
    is_known = np.isfinite(score)
    lefts, rights, score = lefts[is_known], rights[is_known], score[is_known]
    if not len(score):
        return np.zeros((resamples, n))
    _, group = np.unique(np.asarray(prompts)[is_known], return_inverse=True)
    rng = np.random.default_rng(0)
    if group.max() + 1 >= FEW_PROMPTS:
        parts = _wins_by_group(lefts, rights, score, group, group.max() + 1, n)
        times = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=resamples)
    else:
        kinds, group, count = np.unique(
            np.stack([lefts, rights, 2 * score]), axis=1, return_inverse=True, return_counts=True
        )
        i, j, double_score = kinds.astype(int)
        parts = _wins_by_group(i, j, double_score / 2, np.arange(len(i)), len(i), n)
        times = rng.multinomial(len(score), count / count.sum(), size=resamples)
    return fit_strengths((times @ parts.reshape(len(parts), -1)).reshape(resamples, n, n))


def find_islands(won: np.ndarray) -> list[list[int]]:
    """The connected groups of contestants; ratings of different groups can't be compared."""
    count, where = connected_components((won + won.T) > 0, directed=False)
    return [np.flatnonzero(where == c).tolist() for c in range(count)]


@dataclass(frozen=True)
class Rating:
    """One row of the leaderboard."""

    name: str
    rating: float
    low: float  # 95 % interval
    high: float
    first: int  # rank interval, 95 %
    last: int
    votes: int  # decided or tied
    bad: int  # both sides called bad
    share: float  # of its votes won, a tie counting half; NaN without votes


@dataclass(frozen=True)
class Bias:
    """Position bias: how often the left side won among votes without a tie. As sides are random, half without a
    bias."""

    left_wins: int
    votes: int
    low: float  # 95 % interval, exact (Clopper and Pearson)
    high: float

    @property
    def share(self) -> float:
        return self.left_wins / self.votes if self.votes else np.nan

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes one half."""
        return self.votes > 0 and not self.low <= 0.5 <= self.high

    def __str__(self) -> str:
        if not self.votes:
            return "no vote without a tie yet, so nothing is known of a position bias"
        share, low, high = (f"{100 * x:.0f} %" for x in (self.share, self.low, self.high))
        on = f"the left side won {share} [{low}, {high}] of {self.votes} votes without a tie"
        if self.is_shown:
            side = "left" if self.share > 0.5 else "right"
            return f"position bias: {on}, where chance is 50 %; votes lean to the {side}, whatever stands there"
        return f"no position bias shown: {on}, where chance is 50 %"


def position_bias(score: np.ndarray) -> Bias:
    """The position bias of votes; score: [N] as in `count_wins`. At most 5 % of unbiased sets of votes are called
    biased."""
    decided = score[np.isfinite(score) & (score != 0.5)]
    k, n = int(decided.sum()), len(decided)
    return Bias(k, n, *(clopper_pearson(k / n, n) if n else (0.0, 1.0)))


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """Ratings of contestants, and statistics of the votes that they are based on."""

    rows: tuple[Rating, ...]  # the best first
    won: np.ndarray  # [n,n] in the order of rows: how often row beat column
    bias: Bias
    islands: tuple[tuple[str, ...], ...]  # connected groups of contestants; more than one: a warning
    one_sided: tuple[str, ...]  # contestants that never lost or never won: the prior decides their ratings
    prompts: int  # of votes other than "both bad"
    by: str  # what the bootstrap resampled: "prompts" or "votes"

    @property
    def met(self) -> np.ndarray:
        """[n,n]: how many votes row and column had against each other."""
        return self.won + self.won.T

    @property
    def rates(self) -> np.ndarray:
        """[n,n]: the share of their votes that row won against column; NaN without any."""
        return np.divide(self.won, self.met, out=np.full_like(self.won, np.nan), where=self.met > 0)


def build_leaderboard(
    lefts: Sequence[str], rights: Sequence[str], choices: Sequence[str], prompts: Sequence[str]
) -> Leaderboard:
    """The leaderboard of N votes: labels of the left and right contestants, choices (SCORE_OF_CHOICE), prompts."""
    names = sorted({*lefts, *rights})
    number = {name: n for n, name in enumerate(names)}
    i, j = (np.array([number[x] for x in side], dtype=int) for side in (lefts, rights))
    score = np.array([SCORE_OF_CHOICE[c] for c in choices], dtype=np.float64)
    won, is_known = count_wins(i, j, score, len(names)), np.isfinite(score)
    theta, cov = fit_posterior(won)
    draws, met = bootstrap_strengths(i, j, score, prompts, len(names)), won.sum(1) + won.sum(0)
    extreme = (won.sum(1) == 0) | (won.sum(0) == 0)
    noise = np.random.default_rng(1).standard_normal(draws.shape) * np.sqrt(np.diag(cov))
    draws = np.where(extreme, theta + noise, draws)
    low, high = 1000 + POINTS * np.quantile(draws, [0.025, 0.975], axis=0)
    ranks = 1 + (draws[:, None, :] > draws[:, :, None] + 1e-9).sum(-1)  # [R,n]
    first, last = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest").astype(int)
    bad = np.bincount(np.concatenate([i[~is_known], j[~is_known]]), minlength=len(names))
    rows = [
        Rating(name, float(1000 + POINTS * theta[n]), float(low[n]), float(high[n]), int(first[n]), int(last[n]),
              int(met[n]), int(bad[n]), float(won[n].sum() / met[n]) if met[n] else np.nan)
        for n, name in enumerate(names)
    ]  # fmt: skip
    order = sorted(range(len(names)), key=lambda n: (-rows[n].rating, names[n]))
    count = len({p for p, k in zip(prompts, is_known, strict=True) if k})
    return Leaderboard(
        tuple(rows[n] for n in order),
        won[np.ix_(order, order)],
        position_bias(score),
        tuple(tuple(names[n] for n in group) for group in find_islands(won)),
        tuple(names[n] for n in order if extreme[n] and met[n]),
        count,
        "prompts" if count >= FEW_PROMPTS else "votes",
    )
