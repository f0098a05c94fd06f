"""Runs in the queue: they wait for their turn, work in processes of their own, and are found again by the next server.

`queue/queue.json` in the folder of runs holds what waits and what is at work; a lock beside it keeps a second server of
the same folder from working on it too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.loading import resolve_device
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.engine.plan import plan_run
from workbench.runs.config import RunConfig
from workbench.runs.store import RunFolder, list_claimed, list_run_folders, lock_folder
from workbench.ui import run_processes
from workbench.ui.context import AppContext
from workbench.ui.jobs import Job

FOLDER, FILE = "queue", "queue.json"
LOOK_SECONDS = 0.4  # between looks at a process
_locks = contextlib.ExitStack()  # held as long as this server lives


def start_run(context: AppContext, name: str, *settings: Any) -> tuple[RunFolder, Job]:
    """A new run of a config that is offered, at the end of the queue; `settings` as in `run_processes.plan_config`.
    Raises BadInput."""
    folder = run_processes.prepare_run(context.runs, name, *settings)
    return folder, submit_run(context, folder)


def resume_run(context: AppContext, name: str) -> tuple[RunFolder, Job]:
    """Go on with a run, when its turn comes; one that is paused in the queue gets its turn. Raises BadInput for a run
    that is finished, at work, or in the queue already."""
    job = find_job(context, name)
    if job is not None and job.state == "paused":
        context.jobs.resume(job)
        return run_processes.find_run(context.runs, name), job
    if job is not None and (job.state == "waiting" or not job.has_process):
        raise BadInput("this run is being worked on already, or waits for its turn in the queue")
    folder = run_processes.prepare_resume(context.runs, name)  # refuses one that is at work
    return folder, submit_run(context, folder)


def stop_run(context: AppContext, name: str) -> RunFolder:
    """Stop a run that is at work, or take one that waits out of the queue. Raises BadInput where there is nothing to
    stop."""
    folder = run_processes.find_run(context.runs, name)
    if (job := find_job(context, name)) is None:
        return run_processes.stop_run(context.runs, name)
    cancel_job(context, job)
    return folder


def cancel_job(context: AppContext, job: Job) -> None:
    """Stop a job, or take one that waits out of the queue; a run of it can go on later."""
    waits = job.state in ("waiting", "paused")
    context.jobs.stop(job)
    name = (job.saved or {}).get("run")
    if waits and job.has_process and name:
        folder = run_processes.find_run(context.runs, name)
        if run_processes.run_state(folder).name == run_processes.QUEUED:
            run_processes.write_status(folder, "stopped")


def find_job(context: AppContext, name: str) -> Job | None:
    """The job of a run in the queue."""
    return next((job for job in context.jobs.list_jobs() if (job.saved or {}).get("run") == name), None)


def submit_run(context: AppContext, folder: RunFolder, paused: bool = False) -> Job:
    """Put a run that has a folder into the queue."""
    record = folder.read()
    device = name_device((record.get("config") or {}).get("device", "auto"))
    title = f"{folder.path.name}: {', '.join(record.get('methods', ()))}"
    work, saved = make_work(context.runs, folder), {"run": folder.path.name}
    return context.jobs.submit(title, work, device=device, saved=saved, has_process=True, paused=paused)


def make_work(runs: Path, folder: RunFolder) -> Any:
    """The work of a job: begin the run's process, unless it is alive, and wait for its end."""

    def work(stop: threading.Event) -> Iterator[run_processes.RunState]:
        if not run_processes.run_state(folder).is_live:
            run_processes.launch_run(folder)
        is_asked = False
        while (state := run_processes.run_state(folder)).is_live:
            if stop.is_set() and not is_asked:
                is_asked = True
                with contextlib.suppress(BadInput):  # it has ended in between
                    run_processes.stop_run(runs, folder.path.name)
            yield state
            time.sleep(LOOK_SECONDS)
        yield state

    return work


def name_device(device: str) -> str:
    """The device that a config's text means on this machine: cpu, cuda:0."""
    try:
        where = resolve_device(device)
    except BadInput:
        return device  # its process says why it can't be used
    return f"{where.type}:{where.index or 0}" if where.type == "cuda" else where.type


def restore_queue(context: AppContext) -> None:
    """Go on with the queue that an earlier server of this folder has left, and keep it in its file from now on. A
    process that outlived the server is waited for."""
    folder = context.runs / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _locks.enter_context(lock_folder(folder))
        entries = context.jobs.save_to(folder / FILE)
    except (BadInput, OSError) as error:
        print(f"workbench: the queue is not kept over a restart: {error}", file=sys.stderr)
        return
    context.jobs.device = name_device("auto")
    names = {entry.get("run") for entry in entries}
    for live in run_processes.list_live(context.runs):
        if live.path.name not in names:
            submit_run(context, live)
    for entry in entries:
        try:
            restore_entry(context, entry)
        except BadInput as error:
            print(f"workbench: left out of the queue: {entry.get('title')}: {error}", file=sys.stderr)


def restore_entry(context: AppContext, entry: Mapping[str, Any]) -> None:
    """Put what an earlier server had in its queue into this one's, as a run with a process of its own. Raises
    BadInput."""
    paused, name = entry.get("paused") is True, entry.get("run")
    if name not in {folder.path.name for folder in list_run_folders(context.runs)} and "config" in entry:
        plan = plan_run(build_dataclass(RunConfig, entry["config"], "queue.json"))
        claimed = (folder for folder in list_claimed(context.runs) if folder.path.name == name)
        folder = run_processes.open_queued(plan, context.runs, next(claimed, None))
    else:
        folder = run_processes.find_run(context.runs, name, "its run is gone")
        state = run_processes.run_state(folder)
        if state.name in ("done", "damaged"):
            return
        if not state.is_live and not paused:
            run_processes.write_status(folder, run_processes.QUEUED)
    submit_run(context, folder, paused)
