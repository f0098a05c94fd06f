"""Votes on pairs of media, in the index of the runs; which pair is asked next is pairs.py's business.

A vote is appended and never changed: taking one back is a row of its own. What counts is worked out from the rows each
time (`effective`), and so are the ratings (ratings.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workbench.core.types import BadInput
from workbench.feedback import ratings
from workbench.runs import store

CHOICES = ("left", "right", "tie", "bad")
MODALITY = {".png": "image", ".apng": "video", ".wav": "audio"}  # by what a run writes
KEY = re.compile(r"[A-Za-z0-9_-]{8,100}")
REASON, RATER, DWELL = 2000, 200, 24 * 3600.0  # characters, characters, seconds: the most that is taken

# What of the rows counts: not taken back, and about media that are still the ones that were seen.
STANDING = """
    votes v JOIN battles b ON b.id = v.battle JOIN artefacts l ON l.id = b.left_artefact
    JOIN artefacts r ON r.id = b.right_artefact JOIN runs ON runs.id = l.run
    WHERE v.undoes IS NULL AND NOT EXISTS (SELECT 1 FROM votes u WHERE u.undoes = v.id)
    AND l.sha256 = b.left_sha256 AND r.sha256 = b.right_sha256"""

_turn = threading.Lock()  # voters of one process queue here, not in SQLite's waiting loop


@dataclass(frozen=True)
class Side:
    """One of two media."""

    artefact: int
    contestant: str
    pipeline: str
    file: str  # relative to the folder of runs
    sha256: str

    @property
    def label(self) -> str:
        """Who a contestant is across runs."""
        return f"{self.contestant} · {self.pipeline}"


@dataclass(frozen=True)
class Pair:
    """Two media of one prompt and seed, the sides drawn by lot."""

    left: Side
    right: Side
    prompt: str
    folder: str  # of the run

    @property
    def modality(self) -> str:
        return modality_of(self.left.file)


@dataclass(frozen=True)
class Vote(Pair):
    """A vote that stands."""

    id: int
    battle: str
    choice: str
    rater: str
    reason: str
    dwell: tuple[float, float]
    created: str


def modality_of(file: str) -> str:
    return MODALITY.get(Path(file).suffix, "")


def pipeline_of(config: Mapping, contestant: str) -> str:
    """The run's own, unless the contestant's block names another."""
    block = (config.get("contestants") or {}).get(contestant)
    return block.get("pipeline", config["pipeline"]) if isinstance(block, Mapping) else config["pipeline"]


def pseudonym(rater: str) -> str:
    """What is kept of who voted. Raises BadInput."""
    if not isinstance(rater, str) or not 0 < len(rater) <= RATER:
        raise BadInput(f"rater: give a text of 1 to {RATER} characters that stays the same for the same person")
    return hashlib.blake2b(_text(rater, "rater").encode(), person=b"workbench-rater", digest_size=8).hexdigest()


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{where}: holds characters that are no text") from None
    return value.replace("\0", "")


@contextmanager
def writing(runs: Path) -> Iterator[sqlite3.Connection]:
    with _turn, store.index(runs) as db:
        _kept_open(runs.resolve() / "workbench.db")
        yield db


@lru_cache(maxsize=4)
def _kept_open(file: Path) -> sqlite3.Connection:
    """A connection that only stays: whoever closes the last one moves the whole log into the file, 20 ms a vote."""
    db = sqlite3.connect(file, check_same_thread=False)
    db.execute("PRAGMA user_version").fetchone()
    return db


def record(runs: Path, battle: str, choice: str, key: str, reason: str = "", dwell: Sequence[float] = (0, 0)) -> dict:
    """Append one vote and, once it is safely on disk, tell who the two were (see `_reveal`).

    key: chosen by whoever asks, the same when it asks again: the same key is one vote and one answer. A battle takes one
    vote, for its answer gives the names away, and so do two media one vote of a rater. Raises BadInput.
    """
    if choice not in CHOICES:
        raise BadInput(f"choice: {str(choice)[:40]!r} is none of {', '.join(CHOICES)}")
    _check_key(key)
    if not isinstance(reason, str) or len(reason) > REASON:
        raise BadInput(f"reason: at most {REASON:,} characters, please")
    reason = _text(reason, "reason").strip()
    listed = isinstance(dwell, (list, tuple)) and len(dwell) == 2
    if not listed or not all(isinstance(s, (int, float)) and 0 <= s <= DWELL for s in dwell):
        raise BadInput("dwell: give the seconds spent on the left and on the right, from 0 to a day")
    with writing(runs) as db:
        asked = _battle(db, battle)
        kept = _by_key(db, key, battle, choice)
        if kept is None:
            if db.execute("SELECT 1 FROM votes WHERE battle = ?", (battle,)).fetchone():
                raise BadInput("this pair has its vote already; ask for the next one")
            sides = {"who": asked["asker"], "a": asked["left_artefact"], "b": asked["right_artefact"]}
            if db.execute(f"SELECT 1 WHERE {voted(':who', ':a', ':b')}", sides).fetchone():
                raise BadInput("you were told who these two are when you voted on them before; ask for the next pair")
            kept = db.execute(
                "INSERT INTO votes (battle, choice, key, reason, dwell_left, dwell_right, rater, created) "
                "VALUES (?,?,?,?,?,?,?,?) RETURNING id",
                (battle, choice, key, reason, *map(float, dwell), asked["asker"], now()),
            ).fetchone()["id"]
        answer = {"vote": kept, "battle": battle, "choice": choice} | _reveal(db, asked)
    return answer


def undo(runs: Path, battle: str, key: str) -> dict:
    """Take the vote of a battle back, by a new row. Idempotent by key, as `record`. Raises BadInput."""
    _check_key(key)
    with writing(runs) as db:
        asked = _battle(db, battle)
        kept = _by_key(db, key, battle, None)
        if kept is None:
            vote = db.execute("SELECT id FROM votes WHERE battle = ? AND undoes IS NULL", (battle,)).fetchone()
            if vote is None:
                raise BadInput("this pair has no vote to take back")
            if db.execute("SELECT 1 FROM votes WHERE undoes = ?", (vote["id"],)).fetchone():
                raise BadInput("this vote has been taken back already")
            kept = db.execute(
                "INSERT INTO votes (battle, key, reason, dwell_left, dwell_right, rater, created, undoes) "
                "VALUES (?,?,'',0,0,?,?,?) RETURNING id",
                (battle, key, asked["asker"], now(), vote["id"]),
            ).fetchone()["id"]
    return {"vote": kept, "battle": battle, "undone": True}


def voted(asker: str, one: str, other: str) -> str:
    """SQL: whether a rater has voted on two artefacts, either way round; a vote that was taken back is one too, for it was
    answered with the names."""
    rows = (
        "EXISTS (SELECT 1 FROM battles past JOIN votes said ON said.battle = past.id AND said.undoes IS NULL "
        f"WHERE past.asker = {asker} AND past.left_artefact = {left} AND past.right_artefact = {right})"
        for left, right in ((one, other), (other, one))
    )
    return f"({' OR '.join(rows)})"


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise BadInput("key: give 8 to 100 letters, digits, '-' or '_', new for each vote and the same on a retry")


def _battle(db: sqlite3.Connection, battle: str) -> sqlite3.Row:
    known = isinstance(battle, str) and KEY.fullmatch(battle)
    if not known or not (row := db.execute("SELECT * FROM battles WHERE id = ?", (battle,)).fetchone()):
        raise BadInput("battle: there is no such pair; ask for one first")
    return row


def _by_key(db: sqlite3.Connection, key: str, battle: str, choice: str | None) -> int | None:
    """The row that this key made. Raises BadInput when it made another one than is asked for."""
    row = db.execute("SELECT id, battle, choice FROM votes WHERE key = ?", (key,)).fetchone()
    if row and (row["battle"], row["choice"]) != (battle, choice):
        raise BadInput("key: it belongs to another vote; use a new one for each")
    return row["id"] if row else None


def _reveal(db: sqlite3.Connection, asked: sqlite3.Row) -> dict:
    """{left, right: {contestant, pipeline, run, seed, scores: {reward: value}}}."""
    told = {}
    for side in ("left", "right"):
        row = db.execute(
            "SELECT a.*, runs.folder, runs.config FROM artefacts a JOIN runs ON runs.id = a.run WHERE a.id = ?",
            (asked[f"{side}_artefact"],),
        ).fetchone()
        scores = db.execute("SELECT reward, value FROM scores WHERE artefact = ? ORDER BY reward", (row["id"],))
        told[side] = {"contestant": row["contestant"], "pipeline": pipeline_of(json.loads(row["config"]), row["contestant"]),
                      "run": row["folder"], "seed": row["seed"], "scores": {s["reward"]: s["value"] for s in scores}}  # fmt: skip
    return told


def effective(runs: Path, modality: str = "", run: int = 0, rater: str = "") -> list[Vote]:
    """The votes that stand, oldest first: not taken back, and about media that have not been made anew since.

    modality, run (0: all): only of these; rater: a name as it was given, or as it is kept.
    """
    if not (runs / "workbench.db").is_file():
        return []
    who = {rater, pseudonym(rater)} if rater else set()
    with store.index(runs) as db:
        rows = db.execute(
            "SELECT v.*, b.prompt, runs.folder, runs.config, l.id AS l_id, l.contestant AS l_who, l.file AS l_file, "
            "l.sha256 AS l_sha, r.id AS r_id, r.contestant AS r_who, r.file AS r_file, r.sha256 AS r_sha "
            f"FROM {STANDING} AND :run IN (0, runs.id) ORDER BY v.id",
            {"run": run},
        ).fetchall()
    configs: dict[str, dict] = {}
    votes = []
    for row in rows:
        config = configs.get(row["folder"]) or configs.setdefault(row["folder"], json.loads(row["config"]))
        left, right = (
            Side(row[f"{x}_id"], row[f"{x}_who"], pipeline_of(config, row[f"{x}_who"]), f"{row['folder']}/{row[f'{x}_file']}",
                 row[f"{x}_sha"]) for x in "lr"
        )  # fmt: skip
        vote = Vote(left, right, row["prompt"], row["folder"], row["id"], row["battle"], row["choice"], row["rater"],
                    row["reason"], (row["dwell_left"], row["dwell_right"]), row["created"])  # fmt: skip
        if modality in ("", vote.modality) and (not who or vote.rater in who):
            votes.append(vote)
    return votes


def board(votes: Sequence[Vote]) -> ratings.Board:
    """The leaderboard of these votes, a contestant of a pipeline being the same one in every run."""
    return ratings.board(
        [v.left.label for v in votes],
        [v.right.label for v in votes],
        [v.choice for v in votes],
        [v.prompt for v in votes],
    )


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
