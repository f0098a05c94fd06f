"""The one queue of everything that works a device: comparisons, imports and scoring in this process, runs and trainings
in processes of their own. In its order, never two at once on one device; everyone sees it, and the page never waits.

What can go on after a restart says so (`saved`), and stands in a file too: see run_queue.py.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic

MAX_WAITING = 16  # jobs of this process that may wait; runs wait in any number
THIS_PROCESS = "here"  # the device of jobs of this process, until it is known which one that is


@dataclass(eq=False)
class Job:
    """One piece of work: an iterator of views, of which the newest is kept for whoever watches."""

    title: str
    work: Callable[[threading.Event], Iterator[Any]]  # given the flag that asks it to stop
    device: str = THIS_PROCESS
    # what another server would go on from: {"run": folder's name, "config": of a run whose record is not written yet};
    # None: it ends with this one
    saved: dict[str, Any] | None = None
    has_process: bool = False  # `work` waits for a process, and can begin again where it was stopped
    key: str = field(default_factory=lambda: secrets.token_hex(6))
    stop: threading.Event = field(default_factory=threading.Event)
    state: str = "waiting"  # waiting, paused, working, done, stopped, failed
    latest: Any = None
    error: BaseException | None = None
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    ended_at: float = 0.0
    changes: int = 0
    pause_asked: bool = False
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
    """Jobs in the order in which they will begin, those at work among them; each works in a thread of its own."""

    def __init__(self):
        self._jobs: list[Job] = []
        self._lock = threading.RLock()
        self._file: Path | None = None
        self.device = THIS_PROCESS  # of the jobs of this process

    def submit(
        self,
        title: str,
        work: Callable[[threading.Event], Iterator[Any]],
        *,
        device: str = THIS_PROCESS,
        saved: dict[str, Any] | None = None,
        has_process: bool = False,
        paused: bool = False,
    ) -> Job:
        """A new job at the end of the queue. Raises BadInput when too many wait already."""
        with self._lock:
            self._drop_stopped()
            if not has_process and sum(not job.has_process for job in self._jobs) > MAX_WAITING:
                raise BadInput(f"{MAX_WAITING} jobs wait already; try again when some are done")
            job = Job(title, work, device, saved, has_process)
            job.state = "paused" if paused else "waiting"
            self._jobs.append(job)
            self._begin_ready()
        return job

    def jobs_ahead(self, job: Job) -> int:
        """How many jobs come before this one on its device."""
        with self._lock:
            self._drop_stopped()
            ahead = self._jobs[: self._jobs.index(job)] if job in self._jobs else []
            return sum(other.state != "paused" and self._share_device(other, job) for other in ahead)

    def stop(self, job: Job) -> None:
        """Ask it to stop; one that still waits is over at once."""
        job.pause_asked = False
        job.stop.set()
        with self._lock:
            self._drop_stopped()
            self._begin_ready()

    def pause(self, job: Job) -> None:
        """Keep it from beginning; a run at work is stopped, and goes on from there when it is resumed. Raises BadInput
        for a job at work that can't."""
        with self._lock:
            if job.state == "waiting":
                job.change(state="paused")
                self._begin_ready()
            elif job.state == "working" and job.has_process:
                job.pause_asked = True
                job.stop.set()
            elif job.state == "working":
                raise BadInput("what this page works on can't be paused; stop it: what is there by then is kept")

    def resume(self, job: Job) -> None:
        """Let a paused job begin when its turn comes."""
        with self._lock:
            if job.state == "paused":
                job.change(state="waiting")
                self._begin_ready()

    def move(self, job: Job, places: int) -> None:
        """Move a job that has not begun towards the front (negative) or the end of those that have not."""
        with self._lock:
            waiting = [other for other in self._jobs if other.state in ("waiting", "paused")]
            if job not in waiting:
                return
            at = waiting.index(job)
            waiting.insert(max(0, min(len(waiting) - 1, at + places)), waiting.pop(at))
            order = iter(waiting)
            self._jobs = [next(order) if other.state in ("waiting", "paused") else other for other in self._jobs]
            self._begin_ready()

    def list_jobs(self) -> list[Job]:
        with self._lock:
            self._drop_stopped()
            return list(self._jobs)

    def find_job(self, key: object) -> Job:
        """The job of this key. Raises BadInput for one that is not in the queue any more."""
        for job in self.list_jobs():
            if job.key == key:
                return job
        raise BadInput("this job is not in the queue any more")

    def save_to(self, file: Path) -> list[dict[str, Any]]:
        """Keep the queue in a file from now on; returns what another server had left in it. Raises BadInput for a file
        that is damaged."""
        with self._lock:
            entries: Any = []
            if file.is_file():
                from workbench.core.io.parsing import read_json

                content = read_json(file)
                entries = content.get("jobs") if isinstance(content, dict) else None
                if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                    raise BadInput(f"{file} is damaged; remove it: runs that waited are resumed in the tab Runs")
            self._file = file
            return entries

    def save(self) -> None:
        """Write what can go on after a restart to the file, if there is one."""
        with self._lock:
            if self._file is not None:
                jobs = [job for job in self._jobs if job.saved is not None]
                entries = [{"title": job.title, "paused": job.state == "paused", **(job.saved or {})} for job in jobs]
                try:
                    write_atomic(self._file, json.dumps({"jobs": entries}, indent=1, ensure_ascii=False) + "\n")
                except OSError as error:  # the jobs go on; what is lost is their place after a restart
                    print(f"workbench: the queue can't be written to {self._file}: {error}", file=sys.stderr)

    def _share_device(self, one: Job, other: Job) -> bool:
        devices = [self.device if job.device == THIS_PROCESS else job.device for job in (one, other)]
        return devices[0] == devices[1] or THIS_PROCESS in devices

    def _drop_stopped(self) -> None:
        """Those that were asked to stop while they waited, as by a tab that closed: they are over and never begin."""
        stopped = [job for job in self._jobs if job.state in ("waiting", "paused") and job.stop.is_set()]
        for job in stopped:
            self._jobs.remove(job)
            job.change(state="stopped", ended_at=time.monotonic())
        if stopped:
            self.save()

    def _begin_ready(self) -> None:
        """Begin each job whose device is free of those before it."""
        self._drop_stopped()
        for n, job in enumerate(self._jobs):
            before: Sequence[Job] = [
                other
                for m, other in enumerate(self._jobs)
                if other.state == "working" or (m < n and other.state == "waiting")
            ]
            if job.state == "waiting" and not any(self._share_device(job, other) for other in before):
                job.change(state="working", started_at=time.monotonic())
                threading.Thread(target=self._work_on, args=(job,), name="job", daemon=True).start()
        self.save()

    def _work_on(self, job: Job) -> None:
        state = "stopped"
        try:
            for view in job.work(job.stop):
                job.change(latest=view)
            state = "stopped" if job.stop.is_set() else "done"
        except Exception as error:  # whoever watches the job gets it; the queue goes on with the next
            if not isinstance(error, BadInput):
                traceback.print_exc()
            job.error, state = error, "failed"
        with self._lock:
            if state == "stopped" and job.pause_asked:
                job.pause_asked = False
                job.stop.clear()
                job.change(state="paused")
            else:
                self._jobs.remove(job)
                job.change(state=state, ended_at=time.monotonic())
            self._begin_ready()
