"""A run as it is watched on a terminal: its plan, its bars, and how it is stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from workbench.commands.console import err, out
from workbench.runs import config


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets, so that what is being made is delivered and a training saves; the second
    interrupts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(number, frame):
        stop.set()
        for either in before:
            signal.signal(either, signal.default_int_handler)
        err.print("workbench: stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(progress, plan, quiet: bool = False) -> None:
    """One bar a contestant, and one a training, on stderr: elapsed, remaining, and the reward as it rises."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, disable=quiet) as bars:
        loading = bars.add_task("loading", total=None, note="")
        tasks = {
            ("train", name): bars.add_task(f"train {name}", total=plan.recipe.updates, note="", start=False)
            for name in plan.trained
        }
        tasks |= {
            ("sample", name): bars.add_task(name, total=len(plan.rows), note="", start=False) for name in plan.methods
        }
        for p in progress:
            bars.update(loading, visible=False)
            task = tasks["sample" if p.phase == "sample" else "train", p.contestant]
            bars.start_task(task)
            if p.failed:
                bars.update(task, note=f"[red]failed: {escape(p.failed)}")
            elif p.phase == "told":
                bars.console.print(f"{p.contestant}: {escape(p.note)}", soft_wrap=True)
            elif p.phase == "watch":
                bars.console.print(f"{p.contestant} at {p.batch}: {escape(p.note)}", soft_wrap=True)
            else:
                done = (
                    p.batch
                    if p.phase == "train"
                    else (p.batch + (p.event is None or p.event.final)) * plan.config.batch
                )
                value = p.event.metrics.get("reward") if p.event else None
                note = f"step {p.event.step} · reward {value:.3f}" if value is not None else ""
                bars.update(task, completed=min(bars.tasks[task].total, done), note=note)


def dry_run(driver, plan, runs: Path, as_json: bool) -> int:
    """Checks, denoiser calls, and time and memory from what earlier runs of the same pipeline took on this machine."""
    rows = [_foreseen(plan, runs, name) for name in plan.methods]
    weights = driver.weights_mb(plan)
    if as_json:
        print(json.dumps({"checks": [*plan.checks], "weights_mb": weights, "contestants": rows}))
        return 0
    for check in plan.checks:
        mark = "[yellow]![/]" if check.startswith("warning: ") else "[green]✓[/]"
        out.print(f"{mark} {escape(check.removeprefix('warning: '))}")
    out.print(
        f"weights on disk: {weights:.0f} MB (memory is at least that)"
        if weights
        else "weights: on the hub, size not known here"
    )
    table = Table(box=None, header_style="bold")
    for column in (
        "contestant",
        "denoiser calls",
        *(["drawn to train", "memory"] if plan.trained else []),
        "time",
        "settings",
    ):
        table.add_column(column, justify="right" if "calls" in column or "drawn" in column else "left")
    for r in rows:
        time = f"≈ {r['seconds']:.0f} s" if r["seconds"] else "not yet known: no finished run to go by"
        drawn = f"{r['samples']:,}" if r.get("samples") else "–"
        memory = f"≈ {r['peak_mb']:,.0f} MB" if r.get("peak_mb") else "–" if "samples" not in r else "not yet known"
        settings = escape(", ".join(f"{k} {v}" for k, v in r["settings"].items()))
        table.add_row(
            r["contestant"], f"{r['denoiser_calls']:,}", *([drawn, memory] if plan.trained else []), time, settings
        )
    out.print(table)
    return 0


def _foreseen(plan, runs: Path, name: str) -> dict:
    from workbench.methods import name_of
    from workbench.runs.store import seconds_per_call
    from workbench.training import training_runs

    method, calls, here = plan.methods[name], plan.calls(name), config.repos(plan.config)[name] == plan.config.pipeline
    row = {"contestant": name, "settings": dataclasses.asdict(method), "denoiser_calls": calls}
    if name in plan.trained:
        return row | training_runs.foreseen(plan, runs, name)
    pace = seconds_per_call(runs, plan.config.pipeline).get(name_of(method)) if here else None
    return row | {"seconds": round(calls * pace, 1) if pace else None}
