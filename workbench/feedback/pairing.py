"""Choosing the next pair of media to ask a voter about, by the expected information gain of a vote."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.feedback import ratings
from workbench.feedback.contestants import describe_settings, name_contestant, pipeline_of
from workbench.feedback.votes import (
    MODALITIES,
    OVERALL,
    STANDING_VOTES,
    Pair,
    Side,
    current_time,
    open_for_writing,
    prompt_of,
    pseudonym_of,
    sql_has_voted,
)
from workbench.runs import store
from workbench.runs.sample_modality import guess_modality

MAX_TRIES = 16  # pairs that are tried before giving up
RECENT_VOTES = 1000  # votes that the choice depends on: more would cost time and change little


@dataclass(frozen=True)
class RunContestant:
    """A contestant of one run."""

    run: int
    folder: str
    contestant: str
    pipeline: str
    modality: str
    settings: str

    @property
    def label(self) -> str:
        """The contestant's identity across runs."""
        return name_contestant(self.contestant, self.settings, self.pipeline)


def read_contestants(db: sqlite3.Connection) -> list[RunContestant]:
    """All contestants of all runs in the index."""
    rows = db.execute(
        "SELECT a.run, a.contestant, MIN(a.file) AS file, a.modality, runs.folder, runs.config FROM artefacts a "
        "JOIN runs ON runs.id = a.run GROUP BY a.run, a.contestant"
    ).fetchall()
    configs = {row["run"]: parse_json(row["config"], row["folder"]) for row in rows}
    return [
        RunContestant(
            row["run"],
            row["folder"],
            row["contestant"],
            pipeline_of(configs[row["run"]], row["contestant"]),
            row["modality"] or guess_modality(row["file"]),
            describe_settings(configs[row["run"]], row["contestant"]),
        )
        for row in rows
    ]


@dataclass(frozen=True)
class VotableRun:
    """A run with at least two contestants to vote on."""

    id: int
    folder: str
    modality: str
    prompts: int  # how many
    first: str  # the first prompt
    created: str


def votable_runs(runs: Path) -> list[VotableRun]:
    """All runs to vote on, the newest first."""
    if not (runs / "workbench.db").is_file():
        return []
    with store.open_index(runs) as db:
        contestants = read_contestants(db)
        numbers = [e.run for e in contestants]
        several = {e.run: e for e in contestants if numbers.count(e.run) > 1 and (runs / e.folder).is_dir()}
        rows = [
            db.execute(
                "SELECT COUNT(DISTINCT a.prompt || a.inputs) AS prompts, (SELECT prompt FROM artefacts WHERE "
                "run = a.run ORDER BY position LIMIT 1) AS first, runs.created FROM artefacts a JOIN runs ON "
                "runs.id = a.run WHERE a.run = ?",
                (number,),
            ).fetchone()
            for number in several
        ]
    stock = [VotableRun(e.run, e.folder, e.modality, *row) for e, row in zip(several.values(), rows, strict=True)]
    return sorted(stock, key=lambda s: s.folder, reverse=True)


def ask_next_pair(
    runs: Path,
    rater: str,
    present: Callable[[Pair], Any],
    modality: str = "",
    run: int = 0,
    rng: np.random.Generator | None = None,
) -> tuple[str, Pair, Any] | None:
    """(id of a new battle, pair, what `present` returned for it) for a rater; None when there is nothing to vote on.

    A pair is of two contestants of one run on the same prompt and seed. Pairs of contestants are drawn in proportion to
    the information that another vote would give (ratings.expected_gain); pairs of media that the rater has not seen
    come before those that they have skipped. A pair that they have voted on is never asked again, even if the vote was
    taken back, because its answer gave the names away. `present` returns None for a pair that can't be shown. modality,
    run (its number, 0 for all): restrict the choice. Raises BadInput.
    """
    asker, rng = pseudonym_of(rater), rng or np.random.default_rng()
    if modality not in ("", *MODALITIES):
        raise BadInput(f"modality: {modality!r} is none of {', '.join(MODALITIES)}")
    if not isinstance(run, int) or not 0 <= run < 2**63:
        raise BadInput("run: give the number of a run, or 0 for any")
    if not (runs / "workbench.db").is_file():
        return None
    for pair in _candidate_pairs(runs, asker, modality, run, rng):
        if (presented := present(pair)) is None:
            continue
        battle = secrets.token_urlsafe(16)
        with open_for_writing(runs) as db:
            db.execute(
                "INSERT INTO battles (id, left_artefact, right_artefact, left_sha256, right_sha256, asker, created, "
                "prompt) VALUES (?,?,?,?,?,?,?,?)",
                (battle, pair.left.artefact, pair.right.artefact, pair.left.sha256, pair.right.sha256, asker,
                 current_time(), pair.prompt),
            )  # fmt: skip
        return battle, pair, presented
    return None


def _candidate_pairs(runs: Path, asker: str, modality: str, run: int, rng: np.random.Generator) -> list[Pair]:
    """At most MAX_TRIES pairs to try, in order."""
    with open_for_writing(runs) as db:
        if run and not db.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone():
            raise BadInput(f"run: there is no run {run} here; 0 asks for any")
        contestants = [e for e in read_contestants(db) if modality in ("", e.modality) and run in (0, e.run)]
        contestants = sorted((e for e in contestants if (runs / e.folder).is_dir()), key=lambda e: e.label)
        meetings = [(a, b) for a, b in combinations(contestants, 2) if a.run == b.run]
        if not meetings:
            return []
        gains = _expected_gains(db, meetings)
        order = np.argsort(-(np.log(gains) + rng.gumbel(size=len(gains))))  # a draw without replacement
        pairs: list[Pair] = []
        for already_shown in (False, True):
            for n in order:
                pairs += _pairs_of_media(runs, db, *meetings[n], asker, already_shown, rng)
                if len(pairs) >= MAX_TRIES:
                    return pairs
        return pairs


def _expected_gains(db: sqlite3.Connection, meetings: Sequence[tuple[RunContestant, RunContestant]]) -> np.ndarray:
    """float64 [M]: the information gain of a vote on each pair of contestants, divided by the runs that have the
    pair."""
    pairs = [(a.label, b.label) for a, b in meetings]
    names = {name: n for n, name in enumerate(dict.fromkeys(x for pair in pairs for x in pair))}
    label = {(e.run, e.contestant): names[e.label] for pair in meetings for e in pair}
    rows = db.execute(
        f"SELECT l.run, l.contestant AS a, r.contestant AS b, v.choice, COUNT(*) AS n FROM {STANDING_VOTES} AND "
        f"v.axis = '{OVERALL}' AND v.id > (SELECT MAX(id) FROM votes) - {RECENT_VOTES} GROUP BY 1, 2, 3, 4"
    ).fetchall()
    won = np.zeros((len(names), len(names)))
    for row in rows:
        i, j = label.get((row["run"], row["a"])), label.get((row["run"], row["b"]))
        if i is not None and j is not None and row["choice"] != "bad":
            won[i, j] += row["n"] * ratings.SCORE_OF_CHOICE[row["choice"]]
            won[j, i] += row["n"] * (1 - ratings.SCORE_OF_CHOICE[row["choice"]])
    gains = ratings.expected_gain(won)
    return np.array([gains[names[a], names[b]] / pairs.count((a, b)) for a, b in pairs])


def _pairs_of_media(
    runs: Path,
    db: sqlite3.Connection,
    a: RunContestant,
    b: RunContestant,
    asker: str,
    already_shown: bool,
    rng: np.random.Generator,
) -> list[Pair]:
    """A few pairs of media of two contestants that this rater has (`already_shown`) or has not been shown, in random
    order, without equal files and without pairs that this rater has voted on."""
    met = "SELECT 1 FROM battles WHERE asker = :who AND left_artefact = {} AND right_artefact = {}"
    rows = db.execute(
        "SELECT a.id AS a, b.id AS b, a.prompt, a.inputs, :folder AS folder, a.file AS a_file, b.file AS b_file, "
        "a.sha256 AS a_sha, b.sha256 AS b_sha FROM artefacts a JOIN artefacts b ON b.run = a.run AND "
        "b.contestant = :b AND b.position = a.position AND b.k = a.k AND b.prompt = a.prompt AND b.inputs = a.inputs "
        "WHERE a.run = :run AND a.contestant = :a AND a.sha256 <> b.sha256 AND "
        f"(EXISTS ({met.format('a.id', 'b.id')}) OR EXISTS ({met.format('b.id', 'a.id')})) = :seen AND NOT "
        f"{sql_has_voted(':who', 'a.id', 'b.id')} ORDER BY RANDOM() LIMIT 8",
        {"run": a.run, "folder": a.folder, "a": a.contestant, "b": b.contestant, "who": asker,
         "seen": int(already_shown)},
    ).fetchall()  # fmt: skip
    pairs = []
    for row in rows:
        sides = [Side(row[x], e.contestant, e.pipeline, f"{e.folder}/{row[f'{x}_file']}", row[f"{x}_sha"],
                      e.settings, e.modality) for x, e in (("a", a), ("b", b))]  # fmt: skip
        first = int(rng.integers(2))
        pairs.append(Pair(sides[first], sides[1 - first], prompt_of(runs, row), a.folder))
    return pairs
