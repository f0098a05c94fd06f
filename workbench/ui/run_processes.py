"""Runs in processes of their own: they outlive the page that started them, and a later page finds them again.

`process.json` in a run's folder names the process that works on it by its number AND the moment it began, since numbers
are used again; `process.log` is what it printed. The process is `workbench run FOLDER`, in a group of its own: a signal
meant for the page does not reach it, and one meant for it reaches its children too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json
from workbench.core.paths import CONFIGS, write_atomic
from workbench.engine.plan import check_disk, plan_run
from workbench.engine.run_record import describe_run
from workbench.runs import config
from workbench.runs.store import RunFolder, dump_json, list_run_folders
from workbench.ui.overrides import check_overrides

RECORD, LOG = "process.json", "process.log"
STOP_GRACE = 30.0  # seconds between the request to stop and the end
CLOCK_TOLERANCE = 5.0  # seconds by which two accounts of when a process began may differ: clocks are set right at times
LIVE_STATES = frozenset({"starting", "running", "stopping"})
CONTROL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_starting = threading.Lock()


@dataclass(frozen=True)
class RunState:
    """How a run is doing: starting, running, stopping, stopped, crashed, failed, done or damaged; one sentence why."""

    name: str
    reason: str = ""
    started_here: bool = False  # its process was started by a page, so a page can stop it

    @property
    def is_live(self) -> bool:
        return self.name in LIVE_STATES


def find_run(
    runs: Path, name: object, refusal: str = "there is no run of this name; reload the list and choose one of it"
) -> RunFolder:
    """The run folder of this very name among those that there are: what was typed never becomes a path.

    Raises BadInput with the refusal."""
    for folder in list_run_folders(runs):
        if folder.path.name == name:
            return folder
    raise BadInput(refusal)


def start_run(runs: Path, name: str, overrides: Sequence[str] = ()) -> RunFolder:
    """A new run of config `name`, checked in full before its process begins. Raises BadInput, in one sentence."""
    if name not in {path.stem for path in (CONFIGS / "runs").glob("*.yaml")}:
        raise BadInput("there is no config of this name; choose one of the list")
    check_overrides(overrides)
    run_config = config.read_run_config(name, overrides)
    plan = plan_run(run_config, " ".join(["workbench run", name, *overrides]))
    check_disk(plan, runs)
    with _starting:
        _check_device_free(runs, run_config.device)
        folder = RunFolder.open(runs, run_config.name, dataclasses.asdict(run_config), fresh=True)
        folder.write("run.json", describe_run(plan) | {"status": "starting"})
        _launch_process(folder)
    return folder


def resume_run(runs: Path, name: str) -> RunFolder:
    """Go on with a run that is not finished. Raises BadInput for one that is, or that is being worked on."""
    with _starting:
        folder = find_run(runs, name)
        current = run_state(folder)
        if current.is_live:
            raise BadInput("this run is being worked on already")
        if current.name in ("done", "damaged"):
            raise BadInput(current.reason or "this run is finished; start it anew to have it again")
        record = folder.read()
        _check_device_free(runs, record.get("config", {}).get("device", "auto"))
        folder.write("run.json", record | {"status": "starting"})
        _launch_process(folder)
    return folder


def stop_run(runs: Path, name: str, grace: float = STOP_GRACE) -> RunFolder:
    """Ask a run's process to stop, as Ctrl-C does; what is left of its group after `grace` seconds is killed, at once
    when it was asked before and they are over. Raises BadInput when there is nothing to stop."""
    folder = find_run(runs, name)
    current, record = run_state(folder), _read_record(folder)
    if not current.is_live:
        raise BadInput("this run is not at work, so there is nothing to stop")
    if not current.started_here:
        raise BadInput("this run was not started from here; stop it where it was started")
    stop_asked_at = record.get("stop")
    if stop_asked_at is None:
        write_atomic(folder.path / RECORD, dump_json(record | {"stop": time.time()}))
        _send_signal(record, signal.SIGINT)
        timer = threading.Timer(grace, _send_signal, (record, signal.SIGKILL))
        timer.daemon = True
        timer.start()
    elif time.time() - stop_asked_at >= grace:  # whoever asked is gone
        _send_signal(record, signal.SIGKILL)
    return folder


def run_state(folder: RunFolder) -> RunState:
    """What the run's own record says, held against whether anybody works on it."""
    try:
        run_record, record = folder.read(), _read_record(folder)
    except BadInput:
        return RunState("damaged", "its records can't be read; remove the run folder")
    status = run_record.get("status", "")
    if status not in ("starting", "running"):
        return RunState(status or "damaged", started_here=bool(record))
    if _is_alive(record):
        return RunState("stopping" if record.get("stop") else status, started_here=True)
    if _is_locked(folder):
        return RunState("running", "started elsewhere")
    if record.get("stop"):
        return RunState("stopped", "its process was ended before it could say so", started_here=True)
    last = next((line for line in reversed(log_tail(folder).splitlines()) if line.strip()), "")
    word = f"the last line of its log: {last.strip()[:300]}" if last else "it left no word"
    return RunState("crashed", f"its process is gone; {word}", started_here=bool(record))


def log_tail(folder: RunFolder, size: int = 8000) -> str:
    """The end of what the run's process printed, without a terminal's control characters."""
    try:
        with open(folder.path / LOG, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - size))
            return CONTROL_CODES.sub("", f.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return ""


def _launch_process(folder: RunFolder) -> None:
    """Begin, and write down who it is before anybody can ask."""
    env = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "120"}
    with open(folder.path / LOG, "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder.path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
        )
    began = psutil.Process(child.pid).create_time()
    write_atomic(folder.path / RECORD, dump_json({"pid": child.pid, "began": began, "stop": None}))
    threading.Thread(target=child.wait, daemon=True).start()  # a child that ended is no zombie


def _read_record(folder: RunFolder) -> dict:
    """{} for a run that no page started, or whose record is not one."""
    try:
        value = read_json(folder.path / RECORD)
    except BadInput:
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("pid"), int) and "began" in value else {}


def _is_alive(record: dict) -> bool:
    """Whether the very process of the record runs: not one that got its number later, nor one that only awaits
    burial."""
    if not record:
        return False
    try:
        process = psutil.Process(record["pid"])
        return (
            abs(process.create_time() - record["began"]) < CLOCK_TOLERANCE and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, ValueError, OverflowError, TypeError):
        return False


def _send_signal(record: dict, number: int) -> None:
    if _is_alive(record) and record["pid"] != os.getpid():
        with contextlib.suppress(ProcessLookupError):  # it ended in between
            os.killpg(record["pid"], number)


def _is_locked(folder: RunFolder) -> bool:
    """Whether a process holds the run (see RunFolder.alone). Looks, and takes nothing."""
    path = folder.path / ".lock"
    if not path.exists():
        return False
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=0)
    try:
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    finally:
        db.close()
    return False


def _check_device_free(runs: Path, device: str) -> None:
    """Raises BadInput while another run works on the same device."""
    for folder, current in _runs_of_pages(runs):
        other = folder.read().get("config", {}).get("device", "auto")
        if current.is_live and (device == other or "auto" in (device, other)):
            raise BadInput(f"{folder.path.name} is at work on this device; stop it, or wait until it is done")


def _runs_of_pages(runs: Path) -> Iterator[tuple[RunFolder, RunState]]:
    yield from ((f, run_state(f)) for f in list_run_folders(runs) if (f.path / RECORD).is_file())


def main() -> None:
    """The process itself: `workbench run FOLDER`, which both signals stop, even if whoever started the page ignored
    them (as a shell does for what it puts into the background)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.argv = ["workbench", "run", sys.argv[1]]
    try:
        runpy.run_module("workbench.cli", run_name="__main__")
    except KeyboardInterrupt:  # before there was anything to stop
        sys.exit(130)


if __name__ == "__main__":
    main()
