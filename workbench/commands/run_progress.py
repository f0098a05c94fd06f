"""A run on a terminal: its plan, its progress bars, and how signals stop it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from workbench.commands.console import err, out, print_json
from workbench.runs import progress as run_events

if TYPE_CHECKING:
    from workbench.runs.plan import Plan


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that is set by the first SIGINT or SIGTERM, on which a run delivers its batch and a training saves; a
    second signal interrupts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle_first_signal(number: int, frame: object) -> None:
        stop.set()
        for handled in previous_handlers:
            signal.signal(handled, signal.default_int_handler)
        err.print("workbench: stopping after this step; once more to stop at once")

    previous_handlers = {
        number: signal.signal(number, handle_first_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


class ProgressBars:
    """A bar for each contestant and each training, on stderr: elapsed and remaining time, and the reward."""

    def __init__(self, plan: Plan, quiet: bool = False):
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.plan, self.bars = plan, Progress(*columns, console=err, disable=quiet)

    def __enter__(self) -> ProgressBars:
        self.bars.start()
        self.loading = self.bars.add_task("loading", total=None, note="")
        self.tasks = {
            ("train", name): self.add_bar(f"train {name}", self.plan.train_config.rounds)
            for name in self.plan.trained_contestants
        }
        self.tasks |= {("sample", name): self.add_bar(name, len(self.plan.rows)) for name in self.plan.methods}
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def add_bar(self, description: str, total: int) -> TaskID:
        """Add a bar that has not started."""
        return self.bars.add_task(description, total=total, note="", start=False)

    def show(self, progress: run_events.Progress) -> None:
        """Update the bar of a progress report, or print its message."""
        event, contestant = progress.event, progress.contestant
        if progress.phase == "message":
            self.bars.console.print(f"{contestant}: {escape(progress.note)}", soft_wrap=True)
            return
        self.bars.update(self.loading, visible=False)
        task = self.tasks["sample" if progress.phase == "sample" else "train", contestant]
        self.bars.start_task(task)
        if progress.failed:
            self.bars.update(task, note=f"[red]failed: {escape(progress.failed)}")
        elif progress.phase == "watch":
            self.bars.console.print(f"{contestant} at {progress.batch}: {escape(progress.note)}", soft_wrap=True)
        else:
            batches = progress.batch + (event is None or event.final)
            completed = progress.batch if progress.phase == "train" else batches * self.plan.config.batch
            value = event.metrics.get("reward") if event else None
            note = f"step {event.step} · reward {value:.3f}" if value is not None else ""
            self.bars.update(task, completed=min(self.bars.tasks[task].total, completed), note=note)


def print_plan(plan: Plan, runs: Path, as_json: bool) -> int:
    """Print a plan: its checks, and each contestant's denoiser calls, time and memory as estimated by earlier runs."""
    from workbench.engine.cost_estimates import estimate_contestants
    from workbench.engine.plan import weights_mb

    rows, weights = estimate_contestants(plan, runs) if not plan.imported else [], weights_mb(plan)
    if as_json:
        print_json({"checks": [*plan.checks], "weights_mb": weights, "contestants": rows})
        return 0
    for check in plan.checks:
        mark = "[yellow]![/]" if check.startswith("warning: ") else "[green]✓[/]"
        out.print(f"{mark} {escape(check.removeprefix('warning: '))}")
    if plan.imported:
        return 0
    out.print(
        f"weights on disk: {weights:.0f} MB (memory is at least that)"
        if weights
        else "weights: on the hub, size not known here"
    )
    table = Table(box=None, header_style="bold")
    for column in (
        "contestant",
        "denoiser calls",
        *(["drawn to train", "memory"] if plan.trained_contestants else []),
        "time",
        "settings",
    ):
        table.add_column(column, justify="right" if "calls" in column or "drawn" in column else "left")
    for r in rows:
        time = f"≈ {r['seconds']:.0f} s" if r["seconds"] else "not yet known: no finished run to go by"
        samples = f"{r['samples']:,}" if r.get("samples") else "–"
        memory = f"≈ {r['peak_mb']:,.0f} MB" if r.get("peak_mb") else "–" if "samples" not in r else "not yet known"
        settings = escape(", ".join(f"{k} {v}" for k, v in r["settings"].items()))
        table.add_row(
            r["contestant"],
            f"{r['denoiser_calls']:,}",
            *([samples, memory] if plan.trained_contestants else []),
            time,
            settings,
        )
    out.print(table)
    return 0
