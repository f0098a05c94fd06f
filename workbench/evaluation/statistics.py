"""Statistics of scores: means with intervals, paired differences from the base, diversity, and the hacking alarm.

Intervals are of 95 % and over PROMPTS (samples of one prompt are not independent): percentile bootstraps, seeded, so
that equal scores give equal tables. With few prompts they are widened, or not given. Where a score is bounded (0 to 1,
say), and prompts are few or nearly all at one end, they are Wilson's: these stay within the bounds, and are right where
a bootstrap of equal values shrinks to a point.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType

import numpy as np
from scipy import special

RESAMPLES = 2000
# up to FEW_PROMPTS, a bootstrap's intervals are too narrow; fewer than FEWEST_PROMPTS can show nothing at 95 %
FEW_PROMPTS, FEWEST_PROMPTS = 10, 6
FEW_HITS = 10  # with fewer prompts' worth of hits, or of misses, a bootstrap of a share is too narrow
Bounds = tuple[float, float] | None  # that no score leaves; None, or an infinite end: it may
SHARE, UNBOUNDED = (0.0, 1.0), (-math.inf, math.inf)
DIVERSITY_LOST = "lost more than half of the base's diversity"


def mean_with_interval(
    values: Sequence[float], clusters: Sequence, strata: Sequence | None = None, bounds: Bounds = None
) -> dict:
    """{"mean", "ci95": [low, high], "n"} of the values that are not NaN; mean and interval are None when there are
    none.

    The interval is a bootstrap over clusters. With up to ten clusters that is too narrow, and it is widened as
    Student's t is (expanded percentiles: Hesterberg 2015, The American Statistician 69:4). With fewer than six it is
    None: nothing can be shown at 95 %, as five agree by chance once in sixteen times. Within `bounds`, with up to ten
    clusters, or fewer than FEW_HITS clusters' worth at one end, it is Wilson's (see `_wilson_interval`).

    values: one number per sample; clusters: the sample's prompt; strata: the prompt's category, where the list has a
    fixed number of prompts of each category: then prompts are drawn within their categories, so that differences
    between categories don't count as uncertainty; bounds: the range that no value can leave. The interval stays in it.
    """
    scores = np.asarray(values, dtype=np.float64)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    is_known = np.isfinite(scores)
    scores, cluster = scores[is_known], cluster[is_known]
    if not len(scores):
        return {"mean": None, "ci95": None, "n": 0}
    stratum = np.asarray(strata)[is_known] if strata is not None else np.zeros(len(scores))
    _, first, cluster = np.unique(cluster, return_index=True, return_inverse=True)
    total = np.bincount(cluster, weights=scores)  # [K] per prompt
    count = np.bincount(cluster)
    if len(count) < FEWEST_PROMPTS:
        return {"mean": float(scores.mean()), "ci95": None, "n": int(len(scores))}
    mean, kinds = float(scores.mean()), stratum[first]
    parts = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    start, end = bounds if bounds and bounds[0] <= scores.min() and scores.max() <= bounds[1] else UNBOUNDED
    wilson = _wilson_interval((total - start * count) / (end - start), count, parts) if end - start < math.inf else None
    low, high = [start + w * (end - start) for w in wilson or ()] or _bootstrap_interval(mean, total, count, parts)
    low, high = max(low, start), min(high, end)
    return {"mean": mean, "ci95": [float(low), float(high)], "n": int(len(scores))}


def _bootstrap_interval(
    mean: float, total: np.ndarray, count: np.ndarray, parts: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Of clusters with these sums and numbers of values [K], drawn within `parts`, the clusters of each stratum."""
    rng = np.random.default_rng(0)
    draw = np.concatenate([part[rng.integers(len(part), size=(RESAMPLES, len(part)))] for part in parts], axis=1)
    means = total[draw].sum(1) / count[draw].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    factor = _widening_factor(len(count))
    return mean + factor * (low - mean), mean + factor * (high - mean)


def _wilson_interval(total: np.ndarray, count: np.ndarray, parts: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Wilson's score interval (1927) of a mean of values in 0...1, by the arguments of `_bootstrap_interval`. None
    where clusters are many and far from both ends: there a bootstrap is as good.

    The number of trials is the effective one, p (1 - p) / var(p), of the variance between clusters, with Student's
    quantile for it (Korn and Graubard 1998, Survey Methodology 24:2). Where all values are 0, or all 1, a cluster is a
    trial.
    """
    clusters, p = len(count), float(total.sum() / count.sum())
    residual = (total - p * count) / count.mean()  # of the ratio's linearisation
    var = sum(len(part) * float(np.var(residual[part], ddof=1)) for part in parts if len(part) > 1) / clusters**2
    if p * (1 - p) <= 0:
        trials, z = float(clusters), float(special.ndtri(0.975))
    else:
        trials = p * (1 - p) / var if var > 1e-18 else math.inf
        z = float(special.stdtrit(max(clusters - len(parts), 1), 0.975))
    if trials == math.inf or (clusters > FEW_PROMPTS and trials * min(p, 1 - p) >= FEW_HITS):
        return None
    middle, half = p + z**2 / (2 * trials), z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    low, high = ((middle + sign * half) / (1 + z**2 / trials) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def _widening_factor(clusters: int) -> float:
    if clusters > FEW_PROMPTS:
        return 1.0
    return float(special.stdtrit(clusters - 1, 0.975) / special.ndtri(0.975) * math.sqrt(clusters / (clusters - 1)))


def measure_diversity(groups: Iterable[Sequence[np.ndarray]]) -> float | None:
    """Mean root-mean-square distance between two samples of one prompt and one size; None with one seed. In units of
    the media."""
    pairs = [
        np.sqrt(np.square(a - b).mean()) for group in groups for a, b in combinations(group, 2) if a.shape == b.shape
    ]
    return float(np.mean(pairs)) if pairs else None


def summarise_contestant(
    samples: Sequence[Mapping],
    base: Sequence[Mapping] | None,
    optimised: Mapping[str, float],
    bounds: Mapping[str, Bounds] = MappingProxyType({}),
) -> dict:
    """One contestant's part of the summary, by the rows of its samples in the run's log. base: rows of the base, if the
    contestant is another; optimised: reward -> weight (negative: to be lowered) of what the contestant optimised;
    bounds: reward -> the range that its scores can't leave."""
    prompts = [s["index"] for s in samples]
    rewards, oracle = {}, {}
    for name in samples[0]["scores"]:
        values = [none_to_nan(s["scores"][name]) for s in samples]
        if name == "oracle":
            oracle["overall"] = mean_with_interval(values, prompts, bounds=bounds.get(name))
            for category in dict.fromkeys(s["category"] for s in samples if s.get("category")):
                rows = [n for n, s in enumerate(samples) if s["category"] == category]
                oracle[category] = mean_with_interval(
                    [values[n] for n in rows], [prompts[n] for n in rows], bounds=bounds.get(name)
                )
        estimate = mean_with_interval(values, prompts, bounds=bounds.get(name))
        rewards[name] = estimate | optimisation_flags(name, optimised)
    part = {"samples": len(samples), "rewards": rewards}
    if oracle:
        part["oracle"] = oracle
    if base is not None:
        part["versus_base"] = compare_paired(samples, base, bounds)
        part["wins"] = win_rates(samples, base)
    return part


def optimisation_flags(name: str, optimised: Mapping[str, float]) -> dict:
    """{"optimised": whether the reward was; "lower": True, if it was to be lowered}."""
    return {"optimised": name in optimised} | ({"lower": True} if optimised.get(name, 1.0) < 0 else {})


def compare_paired(
    samples: Sequence[Mapping], base: Sequence[Mapping], bounds: Mapping[str, Bounds] = MappingProxyType({})
) -> dict:
    """Paired difference from the base, sample by sample: same prompt, same seed. bounds: of the scores, by reward."""
    reach = {name: (ends[0] - ends[1], ends[1] - ends[0]) for name, ends in bounds.items() if ends}
    return _estimate_pairs(samples, base, operator.sub, reach.get)


def win_rates(samples: Sequence[Mapping], base: Sequence[Mapping]) -> dict:
    """Share of samples that score higher than the base's of the same prompt and seed, a tie counting half."""
    return _estimate_pairs(samples, base, lambda score, other: np.heaviside(score - other, 0.5), lambda name: SHARE)


def _estimate_pairs(
    samples: Sequence[Mapping], base: Sequence[Mapping], compare: Callable, bounds: Callable[[str], Bounds]
) -> dict:
    base_scores = {(s["index"], s["k"]): s["scores"] for s in base}
    paired = [
        (s["index"], s["scores"], base_scores[s["index"], s["k"]])
        for s in samples
        if (s["index"], s["k"]) in base_scores
    ]
    return {
        name: mean_with_interval(
            [compare(none_to_nan(scores[name]), none_to_nan(other.get(name))) for _, scores, other in paired],
            [p for p, _, _ in paired],
            bounds=bounds(name),
        )
        for name in samples[0]["scores"]
    }


def hacking_alarm(contestants: Sequence[Mapping], base: str, margins: Mapping[str, float]) -> str | None:
    """The sentence of the reward-hacking alarm, or None. It is raised when a contestant improved the reward that it
    optimised, while a held-out reward fell, or diversity to less than half of the base's.

    A reward fell when the whole interval of its difference from the base lies below -margins[reward] (default 0).
    """
    base_part = next((c for c in contestants if c["name"] == base and "failed" not in c), None)
    sentences = []
    for c in contestants:
        if c is base_part or "failed" in c or base_part is None:
            continue
        gain = {n: c["versus_base"][n]["ci95"] or (math.nan, math.nan) for n in c["rewards"]}
        raised = [n for n, r in c["rewards"].items() if r["optimised"] and not r.get("lower") and gain[n][0] > 0]
        lowered = [n for n, r in c["rewards"].items() if r["optimised"] and r.get("lower") and gain[n][1] < 0]
        fallen_judges = [n for n, r in c["rewards"].items() if not r["optimised"] and gain[n][1] < -margins.get(n, 0.0)]
        changes = [f"{verb} {', '.join(names)}" for verb, names in (("raised", raised), ("lowered", lowered)) if names]
        if changes and fallen_judges:
            sentences.append(
                f"{c['name']} {' and '.join(changes)}, which it optimised, while {', '.join(fallen_judges)} fell"
            )
        diversity_ratio = (
            base_part.get("diversity") and c.get("diversity") is not None and c["diversity"] / base_part["diversity"]
        )
        if changes and diversity_ratio and diversity_ratio < 0.5:
            sentences.append(f"{c['name']} {DIVERSITY_LOST}")
    return "; ".join(sentences) + "." if sentences else None


def none_to_nan(value: float | None) -> float:
    """NaN for None, by which JSON files stand for NaN."""
    return float("nan") if value is None else value
