"""What a run will cost, by the finished runs in the same folder. What none of them tells is unknown, not guessed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pipelines
from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.engine.plan import weights_mb
from workbench.methods import name_of
from workbench.runs.plan import Plan
from workbench.runs.store import list_run_folders, seconds_per_call
from workbench.training import training_runs


@dataclass(frozen=True)
class CostEstimate:
    """A run's cost before it begins."""

    denoiser_calls: int  # a guided call counted once
    contestants: int
    seconds: float  # of the contestants whose pace is known
    unknown: tuple[str, ...]  # contestants whose time no finished run tells
    peak_mb: float | None  # most memory that a finished run of these pipelines took; None where there is none
    weights_mb: float  # of weights in local folders; 0 where they are on the hub

    def describe(self) -> str:
        """`6 contestants, 1,440 denoiser calls, about 12 s, memory 900 MB`, saying what is unknown."""
        count_known = self.contestants - len(self.unknown)
        time = f"about {describe_seconds(self.seconds)}" if count_known else "time unknown: no finished run to go by"
        if count_known and self.unknown:
            time += f" for {count_known} of them, unknown for the others"
        memory = f"memory {self.peak_mb:,.0f} MB" if self.peak_mb else "memory unknown"
        if not self.peak_mb and self.weights_mb:
            memory += f", at least the {self.weights_mb:,.0f} MB of the weights"
        count = f"{self.contestants} contestant{'s' if self.contestants != 1 else ''}"
        return f"{count}, {self.denoiser_calls:,} denoiser calls, {time}, {memory}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"unknown": [*self.unknown]}


def describe_seconds(seconds: float) -> str:
    """9 s, 12 min, 3.5 h"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate_cost(plan: Plan, runs: Path) -> CostEstimate:
    """The cost of a whole run, by the finished runs in the folder `runs`."""
    if plan.imported:
        return CostEstimate(0, len(plan.methods), 0.0, (), None, 0.0)
    rows = estimate_contestants(plan, runs)
    peaks = [row["peak_mb"] for row in rows if row.get("peak_mb")]
    if not plan.trained_contestants:
        peaks += _recorded_peaks(plan, runs)
    return CostEstimate(
        sum(row["denoiser_calls"] for row in rows),
        len(rows),
        sum(row["seconds"] or 0.0 for row in rows),
        tuple(row["contestant"] for row in rows if row["seconds"] is None),
        max(peaks, default=None),
        weights_mb(plan),
    )


def estimate_contestants(plan: Plan, runs: Path) -> list[dict[str, Any]]:
    """Of each contestant its settings, denoiser calls and estimated seconds; of one that trains, samples and memory
    too."""
    base = pipelines.read_config(plan.config.pipeline)
    pace, rows = seconds_per_call(runs, pipeline_label(plan.config.pipeline)), []
    for name, method in plan.methods.items():
        calls = plan.denoiser_calls(name)
        row = {"contestant": name, "settings": dataclasses.asdict(method), "denoiser_calls": calls}
        if name in plan.trained_contestants:
            rows.append(row | training_runs.estimate_training(plan, runs, name))
            continue
        method_pace = pace.get(name_of(method)) if costs_alike(plan.pipelines[name], base) else None
        rows.append(row | {"seconds": round(calls * method_pace, 1) if method_pace else None})
    return rows


def costs_alike(other: pipelines.PipelineConfig, base: pipelines.PipelineConfig) -> bool:
    """Whether a denoiser call costs the same with two pipelines: they differ in how many steps they take, and in the
    strength of a LoRA, alone."""
    return replace(other, steps=base.steps, lora_weight=base.lora_weight, name=base.name) == base


def _recorded_peaks(plan: Plan, runs: Path) -> list[float]:
    """The memory of finished contestants of this run's pipeline and method, at no smaller batch, of the newest run that
    has any."""
    methods = {name_of(method) for method in plan.methods.values()}
    for folder in list_run_folders(runs):
        try:
            record, summary = folder.read(), folder.read("summary.json")
        except BadInput:
            continue  # an estimate does without what somebody damaged
        config = record.get("config", {})
        if config.get("pipeline") != plan.config.pipeline or config.get("batch") != plan.config.batch:
            continue
        peaks = [
            c["peak_mb"] for c in summary.get("contestants", ()) if c.get("method") in methods and c.get("peak_mb")
        ]
        if peaks:
            return [max(peaks)]
    return []
