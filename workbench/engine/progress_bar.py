"""A progress bar on stderr for work that takes longer than two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from workbench.runs.progress import Progress

PATIENCE = 2.0  # seconds before a bar is drawn


class DelayedBar:
    """A progress bar that is drawn once the work has taken PATIENCE seconds."""

    def __init__(self, enabled: bool = True):
        self.enabled, self.started, self.bars, self.tasks = enabled, time.monotonic(), None, {}

    def update(self, name: str, completed: float, total: float | None, note: str = "") -> None:
        """Show that `completed` of `total` of the task `name` is done, and a note."""
        if not self.enabled or time.monotonic() - self.started < PATIENCE:
            return
        if self.bars is None:
            self.bars = make_bars()
            if not (self.bars.console.is_terminal or self.bars.console.is_jupyter):  # a log has no use for it
                self.enabled = False
                return
            self.bars.start()
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, note="")
        self.bars.update(self.tasks[name], completed=completed, total=total, note=note)

    def close(self) -> None:
        """Remove the bar."""
        if self.bars is not None:
            self.bars.stop()


def make_bars() -> Any:
    """A rich.progress.Progress on stderr, not started."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn())
    return Bars(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)


@contextmanager
def delayed_bar(enabled: bool = True) -> Iterator[DelayedBar]:
    """A DelayedBar that is removed afterwards."""
    bar = DelayedBar(enabled)
    try:
        yield bar
    finally:
        bar.close()


def watch_run(stream: Iterable[Progress], rounds: int, enabled: bool = True) -> list[Progress]:
    """Consume the progress of a run, showing a bar; returns the reports of failures. rounds: of a training, else 0."""
    failures = []
    with delayed_bar(enabled) as bar:
        for progress in stream:
            if progress.failed:
                failures.append(progress)
            elif progress.phase == "sample":
                finished = progress.batch + (progress.event is None or progress.event.final)
                bar.update(progress.contestant, finished, progress.batches, describe_event(progress))
            elif progress.phase == "train":
                bar.update(f"train {progress.contestant}", progress.batch, rounds or None, describe_event(progress))
    return failures


def describe_event(progress: Progress) -> str:
    """Step and reward as text, such as step 3 · reward 0.512; "" without a reward."""
    value = progress.event.metrics.get("reward") if progress.event else None
    return f"step {progress.event.step} · reward {value:.3f}" if value is not None else ""
