"""Reading summary.json for reports: estimates by metric, differences from the base, win rates, costs.

An estimate is {"mean", "ci95": [low, high] or None, "n", "optimised"}; `versus_base` and the like are paired
differences.
"""

from __future__ import annotations

from collections.abc import Mapping

from workbench.report.formatting import is_finite
from workbench.runs.imported_media import ImportedMedia

EQUAL_BUDGET_SHARE = 0.95  # budgets are called equal when the smaller one is at least this share of the larger one
PER_SAMPLE = ("nfe", "reward_calls", "decodes", "seconds")
BEST_OF_N = "best_of_n"  # the baseline of any search
ORACLES = ("oracle", "edit_oracle")  # metrics that say of a sample whether it is right


def read_estimate(part: Mapping) -> dict | None:
    """{mean, ci95 or None, n, optimised}, or None where there is no finite mean."""
    if not is_finite(part.get("mean")):
        return None
    has_interval = part.get("ci95") and all(map(is_finite, part["ci95"]))
    return {"n": 0, "optimised": False, **part, "ci95": part["ci95"] if has_interval else None}


def read_verdict(scores: Mapping[str, float | None]) -> bool | None:
    """Whether the oracle among a sample's scores calls it right; None where none of them judged it."""
    verdict = next((scores[name] for name in ORACLES if scores.get(name) is not None), None)
    return None if verdict is None else verdict >= 1


def estimates_by_metric(summary: Mapping) -> dict[str, dict[str, dict]]:
    """metric -> contestant -> estimate: the oracle first, then held-out rewards, then optimised ones.

    "optimised" is false for a contestant that neither called the reward nor was trained.
    """
    table: dict[str, dict[str, dict]] = {}
    for c in finished_contestants(summary):
        rewards = dict(c.get("rewards", {}))
        if "oracle" in c:
            rewards = {"oracle": {**rewards.pop("oracle", {}), **c["oracle"]["overall"]}} | rewards
        for name, part in rewards.items():
            if e := read_estimate(part):
                e["optimised"] &= c.get("reward_calls") != 0 or "training" in c
                table.setdefault(name, {})[c["name"]] = e
    return dict(sorted(table.items(), key=lambda item: (item[0] != "oracle", is_optimised(item[1]))))


def set_metrics(summary: Mapping) -> list[str]:
    """The metrics with one score for all samples of a contestant."""
    return [
        name
        for name, estimates in estimates_by_metric(summary).items()
        if any(e.get("set") for e in estimates.values())
    ]


def is_optimised(estimates: Mapping[str, Mapping]) -> bool:
    """Whether a contestant optimised the metric; estimates: by contestant."""
    return any(e.get("optimised") for e in estimates.values())


def is_imported(summary: Mapping) -> bool:
    """Whether all samples were made elsewhere, at a cost that is not known."""
    return all(c.get("method") == ImportedMedia.name for c in summary.get("contestants", ())) and bool(
        summary["contestants"]
    )


def finished_contestants(summary: Mapping) -> list[Mapping]:
    """The contestants that did not fail."""
    return [c for c in summary["contestants"] if "failed" not in c]


def base_contestant(summary: Mapping) -> Mapping | None:
    """The base, with which others are compared: the first finished contestant without differences from another."""
    return next((c for c in finished_contestants(summary) if "versus_base" not in c), None)


def difference_from_base(summary: Mapping, name: str, metric: str) -> tuple[int, Mapping | None]:
    """(-1: lower, 0: no difference shown, +1: higher than the base; the paired difference, if the summary has one).

    Without a paired difference, the two intervals must not overlap.
    """
    c = next(c for c in finished_contestants(summary) if c["name"] == name)
    paired = c.get("versus_base", {}).get(metric)
    if paired and paired.get("ci95"):
        low, high = paired["ci95"]
        return (low > 0) - (high < 0), paired
    base, estimates = base_contestant(summary), estimates_by_metric(summary).get(metric, {})
    return (
        compare_intervals(estimates[name], estimates[base["name"]])
        if base and {name, base["name"]} <= estimates.keys()
        else 0
    ), None


def compare_intervals(a: Mapping, b: Mapping) -> int:
    """+1 where a's interval lies above b's, -1 below, 0 where they overlap or one is unknown."""
    if not a.get("ci95") or not b.get("ci95"):
        return 0
    return (a["ci95"][0] > b["ci95"][1]) - (a["ci95"][1] < b["ci95"][0])


def best_of_n_contestant(summary: Mapping) -> Mapping | None:
    """The best-of-n with the largest budget, unless it is the base."""
    candidates = [
        c for c in finished_contestants(summary) if c.get("method") == BEST_OF_N and c is not base_contestant(summary)
    ]
    return max(candidates, key=lambda c: c.get("nfe") or 0, default=None)


def costs_per_sample(summary: Mapping) -> dict[str, dict]:
    """contestant -> {nfe, reward_calls, decodes, seconds: per sample; peak_mb; share: of the largest budget in rows}.

    None for what was not counted, and for the share of plain sampling, which has no budget.
    """
    out = {}
    for c in finished_contestants(summary):
        n = c.get("samples") or summary["prompts"] * summary["seeds"]
        out[c["name"]] = {unit: c[unit] / n if is_finite(c.get(unit)) else None for unit in PER_SAMPLE}
        out[c["name"]]["peak_mb"] = c.get("peak_mb")
    rows_by_name = {
        c["name"]: out[c["name"]]["nfe"] for c in finished_contestants(summary) if c.get("method") != "sample"
    }
    max_rows = max((rows for rows in rows_by_name.values() if rows), default=None)
    for name, part in out.items():
        part["share"] = rows_by_name[name] / max_rows if max_rows and rows_by_name.get(name) is not None else None
    return out


def win_rates(summary: Mapping) -> tuple[str, dict[str, dict]] | None:
    """(first metric, contestant -> estimate of its win rate: the share of samples that score higher than the base's
    with the same prompt and seed, a tie counting half). None when the summary has none."""
    judge = next(iter(estimates_by_metric(summary)), None)
    rates = {c["name"]: read_estimate(c.get("wins", {}).get(judge, {})) for c in finished_contestants(summary)}
    rates = {name: e for name, e in rates.items() if e}
    return (judge, rates) if rates else None


def contestants_by_pipeline(summary: Mapping) -> dict[str, list[str]]:
    """pipeline -> its finished contestants; empty unless there are several pipelines."""
    groups: dict[str, list[str]] = {}
    for c in finished_contestants(summary):
        if c.get("pipeline"):
            groups.setdefault(c["pipeline"], []).append(c["name"])
    return groups if len(groups) > 1 else {}
