"""The queue in which the app's models work, one job at a time: everyone sees it, jobs can be stopped, and the page
never waits. Training runs are not made here; they have processes of their own (workbench/ui/run_processes.py)."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import BadInput

MAX_WAITING = 16  # jobs that may wait


@dataclass(eq=False)
class Job:
    """One piece of work: an iterator of views, of which the newest is kept for whoever watches."""

    title: str
    work: Callable[[threading.Event], Iterator[Any]]  # given the flag that asks it to stop
    stop: threading.Event = field(default_factory=threading.Event)
    state: str = "waiting"  # waiting, working, done, stopped, failed
    latest: Any = None
    error: BaseException | None = None
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    ended_at: float = 0.0
    changes: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def seconds(self) -> float:
        """At work so far."""
        return (self.ended_at or time.monotonic()) - self.started_at if self.started_at else 0.0

    def change(self, **values: Any) -> None:
        with self._changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.changes += 1
            self._changed.notify_all()

    def watch(self, interval: float = 1.0, leaving_stops: bool = True) -> Iterator[Any]:
        """The newest view each time that there is one, and again every so many seconds so that a clock can tick; None
        while the job waits. Leaving early asks the job to stop, unless one only looks on. Raises what the job raised.
        """
        last_change = -1
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda last_change=last_change: self.changes != last_change or self.is_over, timeout=interval
                    )
                    last_change, view, is_over = self.changes, self.latest, self.is_over
                yield view
                if is_over:
                    break
        finally:
            if leaving_stops and not self.is_over:
                self.stop.set()
        if self.error is not None:
            raise self.error


class JobQueue:
    """One worker thread and its queue, first come first served."""

    def __init__(self):
        self._jobs: list[Job] = []  # the one at work, then those that wait
        self._job_added = threading.Condition()
        threading.Thread(target=self._run_jobs, name="jobs", daemon=True).start()

    def submit(self, title: str, work: Callable[[threading.Event], Iterator[Any]]) -> Job:
        """Raises BadInput when too many wait already."""
        with self._job_added:
            self._drop_stopped()
            if len(self._jobs) > MAX_WAITING:
                raise BadInput(f"{MAX_WAITING} jobs wait already; try again when some are done")
            job = Job(title, work)
            self._jobs.append(job)
            self._job_added.notify()
        return job

    def jobs_ahead(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._job_added:
            self._drop_stopped()
            return self._jobs.index(job) if job in self._jobs else 0

    def stop(self, job: Job) -> None:
        """Ask it to stop; one that still waits is over at once."""
        job.stop.set()
        with self._job_added:
            self._drop_stopped()

    def list_jobs(self) -> list[Job]:
        with self._job_added:
            self._drop_stopped()
            return list(self._jobs)

    def _drop_stopped(self) -> None:
        """Those that were asked to stop while they waited, as by a tab that closed: they are over and never begin."""
        for job in [job for job in self._jobs if job.state == "waiting" and job.stop.is_set()]:
            self._jobs.remove(job)
            job.change(state="stopped", ended_at=time.monotonic())

    def _run_jobs(self) -> None:
        while True:
            with self._job_added:
                self._job_added.wait_for(lambda: self._drop_stopped() or self._jobs)
                job = self._jobs[0]
                job.change(state="working", started_at=time.monotonic())
            try:
                for view in job.work(job.stop):
                    job.change(latest=view)
                state = "stopped" if job.stop.is_set() else "done"
            except Exception as error:  # whoever watches the job gets it; the queue goes on with the next
                if not isinstance(error, BadInput):
                    traceback.print_exc()
                job.error, state = error, "failed"
            with self._job_added:
                self._jobs.remove(job)
            job.change(state=state, ended_at=time.monotonic())
