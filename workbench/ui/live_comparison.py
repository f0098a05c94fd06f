"""A comparison while it is made: its previews, its costs and how far it has come."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pipelines
from workbench.core.types import Media
from workbench.engine import run
from workbench.runs import config, store
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress

MAX_PREVIEWS = 6  # samples of a contestant that are previewed


class PipelineCache:
    """Loads as pipelines.load does, and keeps the last one: the next comparison begins at once."""

    def __init__(self):
        self._cached: tuple[Any, Any] | None = None

    def __call__(self, source: Any, **options: Any) -> Any:
        key = (source, options)
        if self._cached is None or self._cached[0] != key:
            self._cached = None  # one in memory at a time
            self._cached = (key, pipelines.load(source, **options))
        return self._cached[1]


@dataclass(eq=False)
class ContestantProgress:
    """One contestant while it works."""

    name: str
    steps: int  # denoiser calls that it will make, all samples together, guided ones counted once
    pipeline: str
    state: str = "waiting"  # waiting, working, done, failed, stopped, not begun
    rows: int = 0  # that went through the denoiser so far
    started_at: float = 0.0
    ended_at: float = 0.0
    mean_reward: float | None = None  # of what it delivered
    reward: float | None = None  # the newest it said
    frames: dict[int, Media] = field(default_factory=dict)  # sample -> its newest media
    preview_updates: int = 0  # times that the frames changed
    note: str = ""


class LiveComparison:
    """A comparison while it is made: filled by the job queue's thread, read by whoever watches."""

    def __init__(self, plan: Plan, reserved: store.RunFolder):
        self.plan, self.key, self.job = plan, secrets.token_hex(8), None
        self.reserved = reserved  # where it is made: known from the click on, by which its address is
        self.folder: store.RunFolder | None = None  # the same, once it has begun
        self.is_dropped = False  # whether that folder was removed
        repos = config.pipeline_labels(plan.config)
        self.contestants = {n: ContestantProgress(n, plan.denoiser_calls(n), repos[n]) for n in plan.methods}
        self._policy, self._nfe_at_start, self._rows_per_step = None, 0, {}

    def make_job(self, load: PipelineCache) -> Callable[[threading.Event], Iterator[LiveComparison]]:
        """The work for the job queue."""

        def load_counted(*args: Any, **options: Any) -> Any:
            self._policy = None  # or the last one would be in memory beside it
            self._policy = load(*args, **options)
            self._nfe_at_start = self._policy.nfe
            return self._policy

        def run_comparison(stop: threading.Event) -> Iterator[LiveComparison]:
            self.folder = self.reserved
            plan = dataclasses.replace(self.plan, command=f"workbench run {self.folder.path}")
            self._begin_next()
            try:
                yield self
                for progress in run.execute_run(plan, self.folder, stop, load_counted):
                    self._take_progress(progress)
                    yield self
            finally:
                self._close_unfinished()

        return run_comparison

    def drop_reserved(self) -> None:
        """Remove the folder of a comparison that was stopped before it began; once, for another may then have its
        name."""
        if self.folder is None and not self.is_dropped and not (self.reserved.path / "run.json").exists():
            self.is_dropped = True
            shutil.rmtree(self.reserved.path, ignore_errors=True)

    def _begin_next(self) -> None:
        part = next((p for p in self.contestants.values() if p.state == "waiting"), None)
        if part:
            part.state, part.started_at = "working", time.monotonic()

    def _take_progress(self, p: Progress) -> None:
        if p.phase == "message":
            return
        part = self.contestants[p.contestant]
        part.rows = self._rows_spent()
        if p.failed:
            part.note = p.failed
        elif p.event is not None:
            value = p.event.metrics.get("reward")
            part.reward = part.reward if value is None else float(value)
            self._keep_previews(part, p)
        if p.failed or (p.batch == p.batches - 1 and (p.event is None or p.event.final)):
            self._finish_contestant(part, "failed" if p.failed else "done")

    def _keep_previews(self, part: ContestantProgress, p: Progress) -> None:
        if p.event.media is None:
            return
        first = p.batch * self.plan.config.batch
        for b, row in enumerate(range(first, first + len(p.event.prompts))):
            if row in self.preview_rows:
                part.frames[row] = dataclasses.replace(p.event.media[b], data=p.event.media.data[[b]].detach().cpu())
        part.preview_updates += 1

    def _finish_contestant(self, part: ContestantProgress, state: str) -> None:
        part.state, part.ended_at = state, time.monotonic()
        if part.rows and part.steps:
            self._rows_per_step[part.pipeline] = max(1, round(part.rows / part.steps))
        self._nfe_at_start = self._policy.nfe if self._policy is not None else 0
        scores = [
            s["scores"] for e in self.folder.events() if e["contestant"] == part.name for s in e.get("samples", ())
        ]
        part.mean_reward = mean_reward(scores, self.plan.reward.weights)
        self._begin_next()

    def _close_unfinished(self) -> None:
        for part in self.contestants.values():
            if part.state in ("waiting", "working"):
                part.rows, part.ended_at = self._rows_spent() if part.state == "working" else 0, time.monotonic()
                part.state = "stopped" if part.state == "working" else "not begun"
        self._policy = None  # a pipeline is held by who loads it alone

    def _rows_spent(self) -> int:
        return self._policy.nfe - self._nfe_at_start if self._policy is not None else 0

    @property
    def preview_rows(self) -> list[int]:
        """Which samples are shown on the way: the first of each prompt."""
        return [n for n, row in enumerate(self.plan.rows) if row[2] == 0][:MAX_PREVIEWS]

    def count_rows(self, part: ContestantProgress) -> tuple[int, int]:
        """(rows that went through the denoiser, about how many there will be)."""
        rows = self._rows_spent() if part.state == "working" else part.rows
        factor = max(self._rows_per_step.get(part.pipeline, 1), -(-rows // part.steps) if part.steps else 1)
        return rows, rows if part.state in ("done", "failed") else part.steps * factor

    def estimate_seconds(self, part: ContestantProgress) -> tuple[float, float | None]:
        """(at work so far, about how long it will still take, None while nothing is known)."""
        if not part.started_at:
            return 0.0, None
        seconds = (part.ended_at or time.monotonic()) - part.started_at
        rows, total = self.count_rows(part)
        return seconds, None if part.ended_at or not rows else seconds * max(0, total - rows) / rows


def mean_reward(scores: Sequence[Mapping[str, float | None]], weights: Mapping[str, float]) -> float | None:
    """The mean weighted sum over samples; None where there is none."""
    complete = [s for s in scores if weights and all(s.get(n) is not None for n in weights)]
    return sum(w * s[n] for s in complete for n, w in weights.items()) / len(complete) if complete else None


def format_duration(seconds: float) -> str:
    """4.2 s, 1 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, leftover_seconds = divmod(round(seconds), 60)
    return f"{minutes} min {leftover_seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
