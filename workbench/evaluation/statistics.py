"""Scores become a summary: means with intervals, paired differences from the base, diversity, and the hacking alarm.

Intervals are 95 % percentile bootstraps over PROMPTS (samples of one prompt are not independent), seeded, so that equal
scores give an equal table; of few prompts they are widened, or not given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy import special

RESAMPLES = 2000
FEW, FEWEST = 10, 6  # prompts: a bootstrap over so few is too sure of itself; fewer yet can show nothing at 95 %


def interval(values: Sequence[float], clusters: Sequence, strata: Sequence | None = None) -> dict:
    """{"mean", "ci95": [low, high], "n"} of the values that are not NaN; mean and interval are None when none is left.

    A bootstrap over clusters, which of a few is too narrow: up to ten, it is widened as Student's t is (Hesterberg 2015, The
    American Statistician 69:4, expanded percentiles), and fewer than six show nothing at 95 %: that all of five agree is chance once
    in sixteen. Then the interval is None.

    values: one number a sample; clusters: the sample's prompt; strata: the prompt's category, where the list has a set number
    of prompts of each: then prompts are drawn within their categories, and differences between categories are no uncertainty.
    """
    values = np.asarray(values, dtype=np.float64)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    keep = np.isfinite(values)
    values, cluster = values[keep], cluster[keep]
    if not len(values):
        return {"mean": None, "ci95": None, "n": 0}
    stratum = np.asarray(strata)[keep] if strata is not None else np.zeros(len(values))
    _, first, cluster = np.unique(cluster, return_index=True, return_inverse=True)
    total = np.bincount(cluster, weights=values)  # [K] per prompt
    count = np.bincount(cluster)
    if len(count) < FEWEST:
        return {"mean": float(values.mean()), "ci95": None, "n": int(len(values))}
    rng, kinds = np.random.default_rng(0), stratum[first]
    parts = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    draw = np.concatenate([part[rng.integers(len(part), size=(RESAMPLES, len(part)))] for part in parts], axis=1)
    means = total[draw].sum(1) / count[draw].sum(1)
    mean, (low, high) = float(values.mean()), np.percentile(means, [2.5, 97.5])
    wider = _widened(len(count))
    low, high = mean + wider * (low - mean), mean + wider * (high - mean)
    return {"mean": mean, "ci95": [float(low), float(high)], "n": int(len(values))}


def _widened(clusters: int) -> float:
    if clusters > FEW:
        return 1.0
    return float(special.stdtrit(clusters - 1, 0.975) / special.ndtri(0.975) * math.sqrt(clusters / (clusters - 1)))


def diversity(groups: Iterable[Sequence[np.ndarray]]) -> float | None:
    """Mean root-mean-square distance between two samples of one prompt; None with one seed. In units of the media."""
    pairs = [np.sqrt(np.square(a - b).mean()) for group in groups for a, b in combinations(group, 2)]
    return float(np.mean(pairs)) if pairs else None


def contestant(samples: Sequence[Mapping], base: Sequence[Mapping] | None, optimised: Mapping[str, float]) -> dict:
    """One contestant's part of the summary, from its samples' rows (see the run folder's events); `optimised`: rewards and their
    weights, of which a negative one pays for less."""
    prompts = [s["index"] for s in samples]
    rewards, oracle = {}, {}
    for name in samples[0]["scores"]:
        values = [nan(s["scores"][name]) for s in samples]
        if name == "oracle":
            oracle["overall"] = interval(values, prompts)
            for category in dict.fromkeys(s["category"] for s in samples if s.get("category")):
                rows = [n for n, s in enumerate(samples) if s["category"] == category]
                oracle[category] = interval([values[n] for n in rows], [prompts[n] for n in rows])
        rewards[name] = interval(values, prompts) | aim(name, optimised)
    part = {"samples": len(samples), "rewards": rewards}
    if oracle:
        part["oracle"] = oracle
    if base is not None:
        part["versus_base"] = versus(samples, base)
        part["wins"] = versus(samples, base, lambda now, then: np.heaviside(now - then, 0.5))
    return part


def aim(name: str, optimised: Mapping[str, float]) -> dict:
    """Whether a judge was optimised, and whether it was to fall."""
    return {"optimised": name in optimised} | ({"lower": True} if optimised.get(name, 1.0) < 0 else {})


def versus(samples: Sequence[Mapping], base: Sequence[Mapping], compare: Callable = operator.sub) -> dict:
    """Paired difference from the base (or win rate, a tie counting half), sample by sample: same prompt, same seed."""
    before = {(s["index"], s["k"]): s["scores"] for s in base}
    paired = [(s["index"], s["scores"], before[s["index"], s["k"]]) for s in samples if (s["index"], s["k"]) in before]
    return {
        name: interval(
            [compare(nan(now[name]), nan(then.get(name))) for _, now, then in paired], [p for p, _, _ in paired]
        )
        for name in samples[0]["scores"]
    }


def alarm(contestants: Sequence[Mapping], base: str, margins: Mapping[str, float]) -> str | None:
    """A sentence when a contestant's optimised reward went where it was to go while a held-out judge fell or diversity collapsed.

    A judge fell when its whole interval lies further below the base than `margins[judge]`, 0 unless given.
    """
    start = next((c for c in contestants if c["name"] == base and "failed" not in c), None)
    found = []
    for c in contestants:
        if c is start or "failed" in c or start is None:
            continue
        gain = {n: c["versus_base"][n]["ci95"] or (math.nan, math.nan) for n in c["rewards"]}
        rose = [n for n, r in c["rewards"].items() if r["optimised"] and not r.get("lower") and gain[n][0] > 0]
        sank = [n for n, r in c["rewards"].items() if r["optimised"] and r.get("lower") and gain[n][1] < 0]
        fell = [n for n, r in c["rewards"].items() if not r["optimised"] and gain[n][1] < -margins.get(n, 0.0)]
        moved = [f"{verb} {', '.join(names)}" for verb, names in (("raised", rose), ("lowered", sank)) if names]
        if moved and fell:
            found.append(f"{c['name']} {' and '.join(moved)}, which it optimised, while {', '.join(fell)} fell")
        spread = start.get("diversity") and c.get("diversity") is not None and c["diversity"] / start["diversity"]
        if moved and spread and spread < 0.5:
            found.append(f"{c['name']} lost more than half of the base's diversity")
    return "; ".join(found) + "." if found else None


def nan(value: float | None) -> float:
    """What JSON keeps as null."""
    return float("nan") if value is None else value
