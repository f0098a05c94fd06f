"""Runs in processes of their own: they outlive the page that started them, and a later page finds them again.

`process.json` in a run's folder names the process that works on it by its number AND the moment it began, since numbers
are used again; `process.log` is what it printed. The process is `workbench run FOLDER`, in a group of its own: a signal
meant for the page does not reach it, and one meant for it reaches its children too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import psutil

from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json, read_yaml
from workbench.core.paths import write_atomic
from workbench.engine.plan import check_disk, plan_run
from workbench.engine.run_record import describe_run
from workbench.runs import config, grids
from workbench.runs.plan import Plan
from workbench.runs.store import RunFolder, dump_json, list_run_folders
from workbench.ui import run_choices
from workbench.ui.overrides import check_overrides

RECORD, LOG = "process.json", "process.log"
STOP_GRACE = 30.0  # seconds between the request to stop and the end
CLOCK_TOLERANCE = 5.0  # seconds by which two accounts of when a process began may differ: clocks are set right at times
LIVE_STATES = frozenset({"starting", "running", "stopping"})
QUEUED = "queued"  # the status of a run that waits for its turn
CONTROL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class RunState:
    """How a run is doing: queued, starting, running, stopping, stopped, crashed, failed, done or damaged; one sentence
    why."""

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


def plan_config(
    runs: Path,
    name: str,
    overrides: Sequence[str] = (),
    axes: Mapping[str, str] = MappingProxyType({}),
    varied: str = "",
) -> Plan:
    """The plan of a new run of a config that is offered here. axes: x, y, z -> `SETTING=VALUE,VALUE` of a grid over it;
    varied: the contestant that it varies, of a config with several. Raises BadInput, in one sentence."""
    file = run_choices.find_config(runs, name)
    check_overrides(overrides)
    words = [str(run_choices.short_path(file)), *overrides]
    if not axes:
        return plan_run(config.read_run_config(file, overrides), " ".join(["workbench run", *words]))
    blocks = {side: read_page_axis(text) for side, text in axes.items()}
    values = read_yaml(file)
    if not isinstance(values, Mapping):
        raise BadInput(f"{file}: a run is a mapping of settings; see configs/runs for examples")
    values = grids.take_contestant({"name": file.stem, **config.current_config(values)}, varied or None)
    values["grid"] = {**(values.get("grid") or {}), **blocks}
    words += [f"--{side} {text}" for side, text in axes.items()] + ([f"--contestant {varied}"] if varied else [])
    return plan_run(config.make_config(values, overrides, file.name), " ".join(["workbench grid", *words]))


def read_page_axis(text: str) -> dict[str, list]:
    """{setting: values} of `SETTING=VALUE,VALUE`, each of which a page may set. Raises BadInput."""
    setting, values = grids.read_axis(text)
    if setting.startswith("lora") and setting != "lora_weight":
        raise BadInput("grid: from here no files of LoRAs; use workbench grid, or a file in configs/grids")
    for value in values:
        check_overrides([f"{grids.SHORT.get(setting, setting)}={json.dumps(value, default=str)}"])
    return {setting: values}


def prepare_run(runs: Path, name: str, *settings: Any) -> RunFolder:
    """The folder of a new run of config `name`, checked in full, which waits for its turn (run_queue.py); `settings` as
    in `plan_config`. Raises BadInput, in one sentence."""
    plan = plan_config(runs, name, *settings)
    check_disk(plan, runs)
    return open_queued(plan, runs)


def open_queued(plan: Plan, runs: Path, folder: RunFolder | None = None) -> RunFolder:
    """A folder, by default a new one, for a planned run that waits for its turn."""
    folder = folder or RunFolder.open(runs, plan.config.name, dataclasses.asdict(plan.config), fresh=True)
    folder.write("run.json", describe_run(plan) | {"status": QUEUED})
    return folder


def prepare_resume(runs: Path, name: str) -> RunFolder:
    """The folder of a run that is to go on, which waits for its turn. Raises BadInput for one that is finished, or that
    is being worked on."""
    folder = find_run(runs, name)
    current = run_state(folder)
    if current.is_live:
        raise BadInput("this run is being worked on already")
    if current.name in ("done", "damaged"):
        raise BadInput(current.reason or "this run is finished; start it anew to have it again")
    write_status(folder, QUEUED)
    return folder


def write_status(folder: RunFolder, status: str) -> None:
    """Write how a run is doing into its record."""
    folder.write("run.json", folder.read() | {"status": status})


def launch_run(folder: RunFolder) -> None:
    """Begin to work on a run, in a process of its own."""
    write_status(folder, "starting")
    _launch_process(folder)


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
    if status == QUEUED and not _is_alive(record):
        return RunState(QUEUED, "waits for its turn", started_here=bool(record))
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


def list_live(runs: Path) -> list[RunFolder]:
    """The runs whose processes a page started, and which are at work, in the order of their names."""
    folders = (folder for folder in list_run_folders(runs) if (folder.path / RECORD).is_file())
    return [folder for folder in folders if run_state(folder).is_live][::-1]


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
