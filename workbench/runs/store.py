"""Storage of runs: a folder for each, and one SQLite index over all of them.

A run's folder is authoritative, and the index is updated from it. `events.jsonl` is appended to and synced only after
the media that it names are safely on disk, so a run that was killed at any moment goes on from its last finished batch.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput, DiskFull, is_disk_full, is_read_only
from workbench.core.io.parsing import parse_json, read_json
from workbench.core.paths import remove_temporaries, write_atomic
from workbench.runs import records
from workbench.runs.config import complete_config, current_config
from workbench.runs.index_schema import SCHEMA
from workbench.runs.sample_modality import read_modality

CLAIM = "claim.json"  # name and config of a run that has a folder, but whose record is not written yet
LOOK_SECONDS = 60  # that looking for a run may wait for other processes


@contextmanager
def open_index(runs: Path) -> Iterator[sqlite3.Connection]:
    """The index of a folder of runs, migrated to the newest schema; committed on success, rolled back on error. Where
    nothing can be written, an index of the newest schema can still be read."""
    path = runs / "workbench.db"
    if path.is_file() and not (os.access(runs, os.W_OK) and os.access(path, os.W_OK)):
        yield from _read_index(path)
        return
    runs.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # commits survive a power cut, whatever SQLite's default
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(SCHEMA):
            raise BadInput(f"{path} was written by a newer workbench (schema {version}); update this one")
        for step in SCHEMA[version:]:
            for statement in filter(str.strip, step.split(";")):
                db.execute(statement)
        if version < len(SCHEMA):  # a write, which reading should not cost
            db.execute(f"PRAGMA user_version={len(SCHEMA)}")
        yield db
        db.execute("COMMIT")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # even its messages may be damaged
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise _explain_error(path, error) from error
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    finally:
        db.close()


@contextmanager
def read_index(runs: Path) -> Iterator[sqlite3.Connection]:
    """The index for reading alone, as it was when this began: it waits for no writer, and none for it."""
    path = runs / "workbench.db"
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        db.execute("PRAGMA query_only=ON")
        if version == len(SCHEMA):
            db.execute("BEGIN")
            yield db
            return
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _explain_error(path, error) from error
    finally:
        db.close()
    with open_index(runs) as migrated:
        yield migrated


def _read_index(path: Path) -> Iterator[sqlite3.Connection]:
    """The index, for reading alone: of a file that nobody changes. Raises BadInput for a write, and for an index of an
    older schema, which would have to be migrated."""
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True, isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] != len(SCHEMA):
            raise BadInput(f"{path} is of another version and can't be migrated where it is; copy the runs elsewhere")
        yield db
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _explain_error(path, error) from error
    finally:
        db.close()


def _explain_error(path: Path, error: sqlite3.DatabaseError | UnicodeDecodeError) -> Exception:
    """A BadInput for an index that is damaged or locked by another program; any other error is a bug, and returned as
    it is."""
    message = str(error)
    signs = ("not a database", "malformed", "no such column", "no such table")
    if isinstance(error, UnicodeDecodeError) or any(sign in message for sign in signs):
        return BadInput(
            f"{path} is damaged ({message}); put a copy of it back, or move it away: each run is indexed again by "
            "`workbench run FOLDER`, but the votes in it are lost"
        )
    if is_read_only(error) or "unable to open" in message:
        return BadInput(f"{path}: can't be written here ({message}); copy the runs to a folder of yours")
    if "locked" in message:
        return BadInput(f"{path}: another program holds the index of the runs; close it and run the same command again")
    return error


def dump_json(value: Any) -> str:
    """The text of a JSON file. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class RunFolder:
    """The folder of one run: run.json, events.jsonl (the log), summary.json, media/, latents/, and inputs/ where its
    samples are made from some (run_inputs.py)."""

    def __init__(self, path: Path):
        self.path = path

    @staticmethod
    def open(runs: Path, name: str, config: Mapping, fresh: bool = False) -> RunFolder:
        """The newest unfinished run of the same name and config, or a new folder `<date-time>-<name>`: of processes
        that ask at once, one makes it and the others get the same. Raises BadInput when nothing can be written there.
        """
        try:
            runs.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadInput(
                f"can't make a run folder in {runs}: it is not a folder; choose another with --runs"
            ) from None
        except OSError as error:
            raise BadInput(f"can't make the folder {runs}: {error.strerror}; choose another with --runs") from None
        with lock_folder(runs, timeout=LOOK_SECONDS):
            claimed = [] if fresh else [f for f in list_claimed(runs) if f.matches(name, config, CLAIM)]
            unfinished = [] if fresh else [f for f in list_run_folders(runs) if f.matches(name, config)]
            if claimed or unfinished:
                return (claimed or unfinished)[0]
            folder = RunFolder._make(runs, name)
            folder.write(CLAIM, {"name": name, "config": config})
            return folder

    @staticmethod
    def _make(runs: Path, name: str) -> RunFolder:
        """A new, empty run folder. Raises BadInput."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(100):
            path = runs / (f"{stamp}-{name}" if not attempt else f"{stamp}-{attempt}-{name}")
            try:
                path.mkdir(parents=True)
                (path / "media").mkdir()
                (path / "latents").mkdir()
                return RunFolder(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise BadInput(
                    f"can't make the run folder {path}: {error.strerror}; choose another with --runs"
                ) from None
        raise BadInput(f"can't make a run folder in {runs}: a hundred of this second are there; try again")

    def matches(self, name: str, config: Mapping, file: str = "run.json") -> bool:
        """Whether this is an unfinished run of that name and config, compared as JSON."""
        try:
            run = self.read(file)
        except BadInput:
            if self.path.name.endswith(f"-{name}"):
                raise
            return False  # somebody else's folder, or another run that is damaged, keeps no run from its start
        config, stored = complete_config(json.loads(dump_json(config))), run.get("config")
        stored = complete_config(stored) if isinstance(stored, dict) else None
        return (run.get("name"), stored) == (name, config) and run.get("status") != "done"

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """A lock on the folder. Raises BadInput while another process holds it; one that was just killed gets two
        seconds, for its last threads may hold the lock after it is gone from the list of processes."""
        began = time.time()
        with lock_folder(self.path, timeout=2):
            remove_temporaries(self.path, before=began)
            yield

    def read(self, file: str = "run.json") -> dict:
        """A JSON file of the run, or {} when it isn't there yet; a config in it is returned under current names. Raises
        BadInput for a file that is damaged or can't be read."""
        path = self.path / file
        try:
            path.lstat()
            content = read_json(path, allow_nan=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise BadInput(f"{path}: can't be read ({error.strerror}); name a run folder") from None
        except BadInput as error:
            raise BadInput(f"{error}; remove the run folder, or start anew with --new") from None
        if not isinstance(content, dict):
            raise BadInput(f"{path} is damaged: it is no mapping; remove the run folder, or start anew with --new")
        try:
            if isinstance(content.get("config"), dict):
                content["config"] = current_config(content["config"], announce=False)
            records.check_record(content, path)
        except BadInput as error:
            raise BadInput(f"{error}; {path.name} was edited or damaged") from None
        return content

    def write(self, file: str, value: Mapping) -> None:
        """Write a JSON file of the run, atomically."""
        write_atomic(self.path / file, dump_json(value))

    def events(self) -> list[dict]:
        """The complete lines of the log, without a last one that a crash cut short. Raises BadInput for a damaged
        log."""
        events, damaged = self._read_log()
        if damaged:
            raise BadInput(
                f"{self.path / 'events.jsonl'}, line {damaged[0]} is damaged; what it told of is made again by: "
                f"workbench run {self.path}"
            )
        return events

    def drop_damaged_lines(self) -> list[int]:
        """Remove lines that can't be read from the log; returns their numbers."""
        events, damaged = self._read_log(to_go_on=True)
        if damaged:
            write_atomic(self.path / "events.jsonl", "".join(map(json_line, events)))
        return damaged

    def _read_log(self, to_go_on: bool = False) -> tuple[list[dict], list[int]]:
        """(events, numbers of the lines that are none). `to_go_on` as in `records.is_event`."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise BadInput(f"{self.path / 'events.jsonl'}: can't be read ({error.strerror})") from None
        events, damaged = [], []
        for number, line in enumerate(text.split("\n")[:-1], 1):
            if line:
                event = parse_event(line, to_go_on)
                events += [event] if event is not None else []
                damaged += [number] if event is None else []
        return events, damaged

    def drop_unfinished(self) -> set[tuple[str, int]]:
        """Remove from the log the events of unfinished batches, and failures; returns the finished ones, (contestant,
        batch)."""
        finished = {(e["contestant"], e["batch"]) for e in self.events() if e.get("final") and not e.get("stopped")}
        self.keep_events(lambda event: (event["contestant"], event.get("batch")) in finished)
        return finished

    def keep_events(self, is_wanted: Callable[[dict], bool]) -> None:
        """Remove all other events from the log."""
        write_atomic(self.path / "events.jsonl", "".join(json_line(e) for e in self.events() if is_wanted(e)))

    def append_event(self, event: Mapping) -> None:
        """Append to the log; a batch's final event is synced to disk."""
        with open(self.path / "events.jsonl", "a", encoding="utf-8") as f:
            f.write(json_line(event))
            f.flush()
            if event.get("final"):
                os.fsync(f.fileno())


@contextmanager
def lock_folder(folder: Path, timeout: float = 0) -> Iterator[None]:
    """A lock on a folder, released also when the process dies. Raises BadInput where another process holds it for
    longer than `timeout` seconds, and where nothing can be written.

    The lock is SQLite's, which works on every platform and may be released by another thread.
    """
    db = None
    try:
        db = sqlite3.connect(folder / ".lock", timeout=timeout, isolation_level=None, check_same_thread=False)
        db.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if db is not None:
            db.close()
        if "locked" in str(error):
            raise BadInput(
                f"{folder}: another process works on this run; wait for it, or start another with --new"
            ) from None
        if is_disk_full(error):
            raise DiskFull(f"the disk of {folder} is full; make room and run the same command to go on") from error
        raise BadInput(f"{folder}: can't be written ({error}); choose another folder with --runs") from None
    try:
        yield
    finally:
        db.close()


def parse_event(line: str, to_go_on: bool = False) -> dict | None:
    """The event in a line of the log; None where it is not one that a run has written. `to_go_on` as in
    `records.is_event`."""
    try:
        event = parse_json(line, "events.jsonl")
    except BadInput:
        return None
    return event if records.is_event(event, to_go_on) else None


def json_line(event: Mapping) -> str:
    """A line of events.jsonl. Raises ValueError for NaN and infinity."""
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def list_claimed(runs: Path) -> list[RunFolder]:
    """The folders that processes have just made for runs whose record is not written yet, newest first."""
    paths = [p.parent for p in runs.glob(f"*/{CLAIM}") if not (p.parent / "run.json").exists()]
    return [RunFolder(p) for p in sorted(paths, reverse=True)]


def list_run_folders(runs: Path) -> list[RunFolder]:
    """The run folders, newest first."""
    paths = [p.parent for p in runs.glob("*/run.json")] if runs.is_dir() else []
    return [RunFolder(p) for p in sorted(paths, key=lambda p: p.name, reverse=True)]


def sync_index(runs: Path, folder: RunFolder, status: str = "") -> None:
    """Update the index from a run folder; `status` is the one that the folder is about to get. Safe to repeat."""
    run, summary = folder.read(), folder.read("summary.json")
    versions = run.get("rewards", {})
    pipeline = pipeline_label(run["config"]["pipeline"])
    with open_index(runs) as db:
        values = (folder.path.name, run["name"], run["created"], status or run["status"], pipeline)
        (number,) = db.execute(
            "INSERT INTO runs (folder, name, created, status, pipeline, config) VALUES (?,?,?,?,?,?) "
            "ON CONFLICT (folder) DO UPDATE SET status=excluded.status RETURNING id",
            (*values, json.dumps(run["config"])),
        ).fetchone()
        for event in folder.events():
            for s in (s for s in event.get("samples", ()) if s["file"]):  # one that is no medium can't be voted on
                about = [s[key] for key in ("index", "k", "prompt", "seed", "file", "sha256")]
                inputs = json.dumps(s["inputs"]) if s.get("inputs") else ""
                modality = read_modality(folder.path / s["file"])
                (artefact,) = db.execute(
                    "INSERT INTO artefacts (run, contestant, position, k, prompt, seed, file, sha256, inputs, "
                    "modality) VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (run, contestant, position, k) DO UPDATE SET "
                    "file=excluded.file, sha256=excluded.sha256, inputs=excluded.inputs, modality=excluded.modality "
                    "RETURNING id",
                    (number, event["contestant"], *about, inputs, modality),
                ).fetchone()
                db.executemany(
                    "INSERT OR REPLACE INTO scores VALUES (?,?,?,?)",
                    [(artefact, name, versions.get(name, ""), value) for name, value in s["scores"].items()],
                )
        db.executemany(
            "INSERT OR REPLACE INTO costs VALUES (?,?,?,?,?,?)",
            [
                (number, c["name"], c["method"], c["samples"], c["nfe"], c["seconds"])
                for c in summary.get("contestants", ())
                if "failed" not in c and c.get("pipeline") in (None, pipeline)
            ],
        )


def seconds_per_call(runs: Path, pipeline: str) -> dict[str, float]:
    """Method -> seconds per denoiser row in the finished runs of a pipeline, given by its label."""
    if not (runs / "workbench.db").is_file():
        return {}
    with open_index(runs) as db:
        rows = db.execute(
            "SELECT method, SUM(seconds) / SUM(nfe) AS pace FROM costs JOIN runs ON runs.id = costs.run "
            "WHERE pipeline = ? AND nfe > 0 GROUP BY method",
            (pipeline,),
        ).fetchall()
    return {row["method"]: row["pace"] for row in rows}
