"""The contestants of several runs in one table, and which of these runs had the same prompts and noises."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.errors import BadInput
from workbench.report.estimates import costs_per_sample, estimates_by_metric, finished_contestants
from workbench.report.formatting import decimals_for, format_number
from workbench.runs.run_notes import read_notes
from workbench.runs.store import RunFolder


def compare_runs(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """{"metrics": [name], "rows": [{run, title, contestant, samples, prompts, estimates: {metric: {mean, ci95, …}},
    calls, seconds}]}. `prompts` is a letter: runs of the same letter had the same prompts and noises, so that their
    numbers can be compared; others differ in the prompts too. Raises BadInput for a run without results."""
    rows, letters = [], _Letters()
    metrics: dict[str, None] = {}
    for folder in folders:
        summary = folder.read("summary.json")
        if not summary.get("contestants"):
            raise BadInput(f"{folder.path.name}: has no results yet; compare it when it has ended")
        letter, costs = letters.find(folder), costs_per_sample(summary)
        estimates = estimates_by_metric(summary)
        metrics |= dict.fromkeys(estimates)
        for contestant in finished_contestants(summary):
            name = contestant["name"]
            rows.append(
                {
                    "run": folder.path.name,
                    "title": read_notes(folder).title,
                    "contestant": name,
                    "samples": contestant.get("samples"),
                    "prompts": letter,
                    "estimates": {metric: by_name[name] for metric, by_name in estimates.items() if name in by_name},
                    "calls": costs[name]["nfe"],
                    "seconds": costs[name]["seconds"],
                }
            )
    return {"metrics": [*metrics], "rows": rows}


class _Letters:
    """A letter for each set of prompts and noises."""

    def __init__(self):
        self.by_digest: dict[str, str] = {}

    def find(self, folder: RunFolder) -> str:
        samples = (s for event in folder.events() if event.get("final") for s in event["samples"])
        keys = sorted({repr((s["prompt"], s["seed"], s.get("inputs"))) for s in samples})
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        return self.by_digest.setdefault(digest, chr(ord("A") + len(self.by_digest) % 26))


def format_estimates(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The table as texts: a row for each contestant, its metrics as `0.83 [0.80, 0.86]`, in the order of `metrics`."""
    digits = {
        metric: decimals_for([row["estimates"][metric] for row in comparison["rows"] if metric in row["estimates"]])
        for metric in comparison["metrics"]
    }
    table = []
    for row in comparison["rows"]:
        cells = [row["title"] or row["run"], row["contestant"], row["prompts"]]
        for metric in comparison["metrics"]:
            cells.append(_format_estimate(row["estimates"].get(metric), digits[metric]))
        cells += [format_number(row["calls"], 0), format_number(row["seconds"], 2)]
        table.append(cells)
    return table


def _format_estimate(estimate: Mapping | None, digits: int) -> str:
    if estimate is None:
        return "–"
    mean = format_number(estimate["mean"], digits) + ("*" if estimate.get("optimised") else "")
    if not estimate.get("ci95"):
        return mean
    low, high = (format_number(end, digits) for end in estimate["ci95"])
    return f"{mean} [{low}, {high}]"


HEAD = ("run", "contestant", "prompts")  # the columns before the metrics
TAIL = ("calls a sample", "seconds a sample")  # and after them
NOTE = (
    "Runs with the same letter had the same prompts and noises; numbers of different letters differ in those too. "
    "Means with 95 % intervals over prompts; * marks what a contestant was paid for."
)
