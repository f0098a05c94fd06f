"""Votes on pairs of media, stored in the index of the runs. pairing.py chooses the pairs.

Votes are appended and never changed: taking one back adds a row. The valid ones (`standing_votes`) and the ratings
(ratings.py) are computed from the rows each time.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.feedback import ratings
from workbench.feedback.contestants import describe_settings, name_contestant, pipeline_of
from workbench.runs import run_inputs, store
from workbench.runs.sample_modality import guess_modality

CHOICES = ("left", "right", "tie", "bad")
MODALITIES = ("image", "video", "audio")
OVERALL = "overall"  # the criterion that is asked where none is named
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{8,100}")
MAX_REASON, MAX_RATER, MAX_DWELL = 2000, 200, 24 * 3600.0  # upper limits: characters, characters, seconds

# SQL of the valid votes: not taken back, on media that have not changed since, and not on a gold pair of a study.
STANDING_VOTES = """
    votes v JOIN battles b ON b.id = v.battle JOIN artefacts l ON l.id = b.left_artefact
    JOIN artefacts r ON r.id = b.right_artefact JOIN runs ON runs.id = l.run
    LEFT JOIN study_pairs p ON p.id = b.pair
    WHERE v.undoes IS NULL AND NOT EXISTS (SELECT 1 FROM votes u WHERE u.undoes = v.id)
    AND l.sha256 = b.left_sha256 AND r.sha256 = b.right_sha256 AND COALESCE(p.is_gold, 0) = 0"""

# SQL of a battle's votes, taken back or not; SQLite would go through all votes otherwise.
VOTES_OF_BATTLE = "FROM votes INDEXED BY one_vote_an_axis WHERE battle = ? AND undoes IS NULL"

_write_lock = threading.Lock()  # faster than SQLite's polling for threads of one process


class Refusal(BadInput):
    """What a voter is told: it names no contestant, no run and no file."""


@dataclass(frozen=True)
class Side:
    """One of two media."""

    artefact: int
    contestant: str
    pipeline: str
    file: str  # relative to the folder of runs
    sha256: str
    settings: str = ""  # as contestants.describe_settings says them
    modality: str = ""  # "": by the file's suffix

    @property
    def label(self) -> str:
        """The contestant's identity across runs."""
        return name_contestant(self.contestant, self.settings, self.pipeline)


@dataclass(frozen=True)
class Pair:
    """Two media of one prompt and seed, on random sides."""

    left: Side
    right: Side
    prompt: str
    folder: str  # of the run

    @property
    def modality(self) -> str:
        return self.left.modality or guess_modality(self.left.file)


@dataclass(frozen=True)
class Vote(Pair):
    """A valid vote."""

    id: int
    battle: str
    choice: str
    rater: str
    reason: str
    dwell: tuple[float, float]  # seconds spent on the left and on the right
    created: str
    axis: str = OVERALL  # the criterion that was asked for
    study: int = 0  # the study's number; 0 for a vote outside of studies
    seeds: tuple[int, int] = (0, 0)


def prompt_of(runs: Path, row: sqlite3.Row) -> str:
    """The prompt of a row with `prompt`, `inputs` and `folder`, with its inputs: one instruction for two pictures is
    two prompts."""
    inputs = parse_json(row["inputs"], row["folder"]) if row["inputs"] else {}
    return run_inputs.restore_prompt(runs / row["folder"], {"prompt": row["prompt"], "inputs": inputs})


def pseudonym_of(rater: str) -> str:
    """The hash that is stored in place of a rater's name. Raises BadInput for an invalid name."""
    if not isinstance(rater, str) or not 0 < len(rater) <= MAX_RATER:
        raise BadInput(f"rater: give a text of 1 to {MAX_RATER} characters that stays the same for the same person")
    return hashlib.blake2b(clean_text(rater, "rater").encode(), person=b"workbench-rater", digest_size=8).hexdigest()


def clean_text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(f"{where}: holds characters that are no text") from None
    return value.replace("\0", "")


@contextmanager
def open_for_writing(runs: Path) -> Iterator[sqlite3.Connection]:
    """The index of the runs, in a transaction; one writer per process at a time."""
    with _write_lock, store.open_index(runs) as db:
        _stay_connected(runs.resolve() / "workbench.db")
        yield db


@lru_cache(maxsize=4)
def _stay_connected(file: Path) -> sqlite3.Connection:
    """A connection that is kept open: closing the last one would checkpoint SQLite's log, 20 ms per vote."""
    db = sqlite3.connect(file, check_same_thread=False)
    db.execute("PRAGMA user_version").fetchone()
    return db


def record_vote(
    runs: Path, battle: str, choice: str, key: str, reason: str = "", dwell: Sequence[float] = (0, 0)
) -> dict:
    """Append one vote and, once it is safely on disk, return it with the names of both sides (`_reveal_names`).

    key: an idempotency key of the client's choice: repeated calls with the same key are one vote with one answer. As
    the answer reveals the names, a battle takes one vote, and a rater votes only once on the same two media. Raises
    BadInput.
    """
    check_choice(choice)
    check_key(key)
    reason, dwell = check_reason(reason), check_dwell(dwell)
    with open_for_writing(runs) as db:
        battle_row = read_battle(db, battle)
        vote_id = find_row_of_key(db, key, battle, choice)
        if vote_id is None:
            if db.execute(f"SELECT 1 {VOTES_OF_BATTLE}", (battle,)).fetchone():
                raise BadInput("this pair has its vote already; ask for the next one")
            sides = {"who": battle_row["asker"], "a": battle_row["left_artefact"], "b": battle_row["right_artefact"]}
            if db.execute(f"SELECT 1 WHERE {sql_has_voted(':who', ':a', ':b')}", sides).fetchone():
                raise BadInput("you were told who these two are when you voted on them before; ask for the next pair")
            vote_id = db.execute(
                "INSERT INTO votes (battle, choice, key, reason, dwell_left, dwell_right, rater, created) "
                "VALUES (?,?,?,?,?,?,?,?) RETURNING id",
                (battle, choice, key, reason, *dwell, battle_row["asker"], current_time()),
            ).fetchone()["id"]
        answer = {"vote": vote_id, "battle": battle, "choice": choice} | _reveal_names(db, battle_row)
    return answer


def undo_vote(runs: Path, battle: str, key: str) -> dict:
    """Take back the vote of a battle, by a new row. Idempotent by key, as `record_vote`. Raises BadInput."""
    check_key(key)
    with open_for_writing(runs) as db:
        battle_row = read_battle(db, battle)
        vote_id = find_row_of_key(db, key, battle, None)
        if vote_id is None:
            vote = db.execute(f"SELECT id {VOTES_OF_BATTLE}", (battle,)).fetchone()
            if vote is None:
                raise BadInput("this pair has no vote to take back")
            if db.execute("SELECT 1 FROM votes WHERE undoes = ?", (vote["id"],)).fetchone():
                raise BadInput("this vote has been taken back already")
            vote_id = db.execute(
                "INSERT INTO votes (battle, key, reason, dwell_left, dwell_right, rater, created, undoes) "
                "VALUES (?,?,'',0,0,?,?,?) RETURNING id",
                (battle, key, battle_row["asker"], current_time(), vote["id"]),
            ).fetchone()["id"]
    return {"vote": vote_id, "battle": battle, "undone": True}


def sql_has_voted(asker: str, one: str, other: str) -> str:
    """SQL: whether a rater has voted on two artefacts, on either sides. Votes that were taken back count, because their
    answers revealed the names."""
    rows = (
        "EXISTS (SELECT 1 FROM battles past JOIN votes said ON said.battle = past.id AND said.undoes IS NULL "
        f"WHERE past.asker = {asker} AND past.left_artefact = {a} AND past.right_artefact = {b})"
        for a, b in ((one, other), (other, one))
    )
    return f"({' OR '.join(rows)})"


def check_choice(choice: str) -> None:
    if choice not in CHOICES:
        raise Refusal(f"choice: {str(choice)[:40]!r} is none of {', '.join(CHOICES)}")


def check_reason(reason: str) -> str:
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise Refusal(f"reason: at most {MAX_REASON:,} characters, please")
    return clean_text(reason, "reason").strip()


def check_dwell(dwell: Sequence[float]) -> tuple[float, float]:
    is_pair = isinstance(dwell, (list, tuple)) and len(dwell) == 2
    if not is_pair or not all(isinstance(s, (int, float)) and 0 <= s <= MAX_DWELL for s in dwell):
        raise Refusal("dwell: give the seconds spent on the left and on the right, from 0 to a day")
    return float(dwell[0]), float(dwell[1])


def check_key(key: str) -> None:
    if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
        raise Refusal("key: give 8 to 100 letters, digits, '-' or '_', new for each vote and the same on a retry")


def read_battle(db: sqlite3.Connection, battle: str) -> sqlite3.Row:
    is_valid = isinstance(battle, str) and KEY_PATTERN.fullmatch(battle)
    if not is_valid or not (row := db.execute("SELECT * FROM battles WHERE id = ?", (battle,)).fetchone()):
        raise Refusal("battle: there is no such pair; ask for one first")
    return row


def find_row_of_key(db: sqlite3.Connection, key: str, battle: str, choice: str | None) -> int | None:
    """The id of the vote that was recorded with this key, or None. Raises BadInput if it was another vote."""
    row = db.execute("SELECT id, battle, choice FROM votes WHERE key = ?", (key,)).fetchone()
    if row and (row["battle"], row["choice"]) != (battle, choice):
        raise Refusal("key: it belongs to another vote; use a new one for each")
    return row["id"] if row else None


def _reveal_names(db: sqlite3.Connection, battle_row: sqlite3.Row) -> dict:
    """{"left", "right": {"contestant", "pipeline", "run", "seed", "scores": {reward: value}}} of a battle."""
    names = {}
    for side in ("left", "right"):
        row = db.execute(
            "SELECT a.*, runs.folder, runs.config FROM artefacts a JOIN runs ON runs.id = a.run WHERE a.id = ?",
            (battle_row[f"{side}_artefact"],),
        ).fetchone()
        scores = db.execute("SELECT reward, value FROM scores WHERE artefact = ? ORDER BY reward", (row["id"],))
        names[side] = {
            "contestant": row["contestant"],
            "pipeline": pipeline_of(parse_json(row["config"], row["folder"]), row["contestant"]),
            "run": row["folder"],
            "seed": row["seed"],
            "scores": {s["reward"]: s["value"] for s in scores},
        }
    return names


def standing_votes(
    runs: Path, modality: str = "", run: int = 0, rater: str = "", *, study: int = 0, axis: str = OVERALL
) -> list[Vote]:
    """The valid votes, oldest first: not taken back, on media that have not changed since, not on gold pairs.

    modality, run (0: all), rater (a name, or its pseudonym), study (0: of all, and those outside of studies), axis ("":
    every criterion): only votes of these.
    """
    if not (runs / "workbench.db").is_file():
        return []
    raters = {rater, pseudonym_of(rater)} if rater else set()
    with store.read_index(runs) as db:
        rows = db.execute(
            "SELECT v.*, b.prompt, l.inputs, runs.folder, runs.config, COALESCE(p.study, 0) AS study, l.id AS l_id, "
            "l.contestant AS l_who, l.file AS l_file, l.sha256 AS l_sha, l.modality AS l_kind, l.seed AS l_seed, "
            "r.id AS r_id, r.contestant AS r_who, r.file AS r_file, r.sha256 AS r_sha, r.modality AS r_kind, "
            f"r.seed AS r_seed FROM {STANDING_VOTES} AND :run IN (0, runs.id) AND :study IN (0, p.study) AND "
            ":axis IN ('', v.axis) ORDER BY v.id",
            {"run": run, "study": study, "axis": axis},
        ).fetchall()
    configs: dict[str, dict] = {}
    sides: dict[int, Side] = {}
    prompts: dict[tuple, str] = {}
    votes = []
    for row in rows:
        folder = row["folder"]
        if folder not in configs:
            configs[folder] = parse_json(row["config"], folder)
        left_side, right_side = (_read_side(row, x, configs[folder], sides) for x in "lr")
        asked = (row["prompt"], row["inputs"], folder)
        if asked not in prompts:
            prompts[asked] = prompt_of(runs, row)
        vote = Vote(
            left_side,
            right_side,
            prompts[asked],
            folder,
            row["id"],
            row["battle"],
            row["choice"],
            row["rater"],
            row["reason"],
            (row["dwell_left"], row["dwell_right"]),
            row["created"],
            row["axis"],
            row["study"],
            (row["l_seed"], row["r_seed"]),
        )
        if modality in ("", vote.modality) and (not raters or vote.rater in raters):
            votes.append(vote)
    return votes


def _read_side(row: sqlite3.Row, x: str, config: Mapping, sides: dict[int, Side]) -> Side:
    """A side of a row of votes. Samples are voted on many times: each is described once."""
    number, who = row[f"{x}_id"], row[f"{x}_who"]
    if number not in sides:
        sides[number] = Side(
            number,
            who,
            pipeline_of(config, who),
            f"{row['folder']}/{row[f'{x}_file']}",
            row[f"{x}_sha"],
            describe_settings(config, who),
            row[f"{x}_kind"],
        )
    return sides[number]


def rate_contestants(votes: Sequence[Vote]) -> ratings.Leaderboard:
    """The leaderboard of these votes, of one modality; contestants of the same name, settings and pipeline are one
    across runs."""
    return ratings.build_leaderboard(
        [v.left.label for v in votes],
        [v.right.label for v in votes],
        [v.choice for v in votes],
        [v.prompt for v in votes],
    )


def current_time() -> str:
    """ISO 8601, to seconds, with the time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
