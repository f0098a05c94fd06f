"""Studies: people vote on chosen runs, with instructions, criteria and a target, by one link. A study is made once; its
pairs are fixed then, so that what is voted on doesn't change under the raters."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json, read_json_lines
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import Count, Natural
from workbench.feedback.votes import OVERALL, current_time, open_for_writing
from workbench.runs import store

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,58}[a-z0-9])?")  # of a study: it stands in the link
AXIS = re.compile(r"[^\W_][\w ,.()-]{0,38}[^\W_]|[^\W_]")  # a criterion, in words
MAX_AXES, MAX_PAIRS, MAX_INSTRUCTIONS = 6, 100_000, 10_000
GOLD_SEED = 7  # of the choice of samples that are shown damaged
RESERVED = ("enter", "leave", "media", "static")  # parts of addresses beside the names of studies


@dataclass(frozen=True)
class Study:
    """What a study asks, of whom, and what it tells them."""

    name: str  # in its link
    runs: tuple[str, ...]  # folders
    contestants: tuple[str, ...] = ()  # only these; (): all of the runs
    criteria: tuple[str, ...] = (OVERALL,)  # asked on one page; the first is the one that gold pairs are checked by
    votes_per_pair: Count = 3  # raters who vote on the same two samples
    pairs: Literal["adaptive", "round-robin"] = "adaptive"  # which contestants meet: where most is to learn, or evenly
    reveal: Literal["never", "end", "each"] = "never"  # when raters are told who was who
    target: Natural = 0  # votes of each rater; 0: all pairs
    instructions: str = ""
    is_open: bool = False  # whoever has the link may vote, under a name of their choice
    number: int = 0  # in the index
    created: str = ""
    closed: str = ""  # when; "" while it takes votes


SETTINGS = ("runs", "contestants", "criteria", "votes_per_pair", "pairs", "reveal", "target", "instructions", "is_open")


def create_study(runs: Path, settings: Mapping[str, Any], gold: str | Path | int = 0) -> tuple[Study, list[str]]:
    """A new study, and notes for its owner. settings: fields of `Study`.

    gold: so many samples are also shown beside a damaged copy; or a JSONL file whose rows {"better", "worse"} name
    media files of these runs. Raises BadInput.
    """
    study = check_study(build_dataclass(Study, settings, "study"))
    if not (runs / "workbench.db").is_file():
        raise BadInput(f"{runs}: there are no runs here to vote on; make one first")
    with open_for_writing(runs) as db:
        if db.execute("SELECT 1 FROM studies WHERE name = ?", (study.name,)).fetchone():
            raise BadInput(f"study {study.name!r} exists already; choose another name")
        rows = _read_samples(db, runs, study)
        pairs = _list_pairs(rows)
        if not pairs:
            raise BadInput("study: no two contestants of one run have samples of the same prompt that differ")
        if len(pairs) > MAX_PAIRS:
            raise BadInput(f"study: {len(pairs):,} pairs, and at most {MAX_PAIRS:,} are possible; name fewer runs")
        golden = _list_gold(rows, gold, runs)
        values = {key: value for key, value in asdict(study).items() if key in SETTINGS}
        (number,) = db.execute(
            "INSERT INTO studies (name, created, settings) VALUES (?,?,?) RETURNING id",
            (study.name, current_time(), store.dump_json(values)),
        ).fetchone()
        db.executemany(
            "INSERT INTO study_pairs (study, one, other, one_sha256, other_sha256, is_gold) VALUES (?,?,?,?,?,?)",
            [
                (number, one["id"], other["id"], one["sha256"], other["sha256"], is_gold)
                for is_gold, group in enumerate((pairs, golden))
                for one, other in group
            ],
        )
        notes = [
            f"{len(pairs):,} pairs of {len({r['contestant'] for r in rows})} contestants, {len(golden)} gold pairs"
        ]
        notes += _warn_of_names(study, rows)
        return read_study(db, study.name), notes


def check_study(study: Study) -> Study:
    """The study itself. Raises BadInput for settings that no study can have."""
    if not NAME.fullmatch(study.name) or study.name in RESERVED:
        raise BadInput(
            f"study: {quote_value(study.name)} can't be its name, which stands in the link; use up to 60 small "
            "letters, digits and '-'"
        )
    if not study.runs:
        raise BadInput("runs: name at least one run to vote on")
    if not 0 < len(study.criteria) <= MAX_AXES or len(set(study.criteria)) < len(study.criteria):
        raise BadInput(f"criteria: give one to {MAX_AXES}, each once")
    for axis in study.criteria:
        if not AXIS.fullmatch(axis):
            raise BadInput(f"criteria: {quote_value(axis)} is no criterion; write up to 40 letters in words")
    if len(study.instructions) > MAX_INSTRUCTIONS:
        raise BadInput(f"instructions: at most {MAX_INSTRUCTIONS:,} characters, please")
    return study


def _read_samples(db: sqlite3.Connection, runs: Path, study: Study) -> list[sqlite3.Row]:
    """All samples of the study's runs and contestants. Raises BadInput for a run or a contestant that isn't there."""
    folders = [row["folder"] for row in db.execute("SELECT folder FROM runs ORDER BY folder")]
    for folder in study.runs:
        if folder not in folders:
            raise BadInput(f"runs: there is no run {quote_value(folder)} in {runs}; {suggest_nearest(folder, folders)}")
    marks = ",".join("?" * len(study.runs))
    rows = db.execute(
        f"SELECT a.*, runs.folder FROM artefacts a JOIN runs ON runs.id = a.run WHERE runs.folder IN ({marks}) "
        "ORDER BY a.run, a.position, a.k, a.contestant",
        study.runs,
    ).fetchall()
    contestants = {row["contestant"] for row in rows}
    for name in study.contestants:
        if name not in contestants:
            raise BadInput(
                f"contestants: {quote_value(name)} is in none of the runs; {suggest_nearest(name, contestants)}"
            )
    return [row for row in rows if not study.contestants or row["contestant"] in study.contestants]


def _list_pairs(rows: Iterable[sqlite3.Row]) -> list[tuple[sqlite3.Row, sqlite3.Row]]:
    """Samples of two contestants of one run on the same prompt and seed that differ."""
    groups: dict[tuple, list[sqlite3.Row]] = {}
    for row in rows:
        groups.setdefault((row["run"], row["position"], row["k"], row["prompt"], row["inputs"]), []).append(row)
    return [
        (one, other)
        for group in groups.values()
        for one, other in combinations(group, 2)
        if one["sha256"] != other["sha256"]
    ]


def _list_gold(rows: Sequence[sqlite3.Row], gold: str | Path | int, runs: Path) -> list[tuple]:
    """Pairs whose first is known to be better. Raises BadInput."""
    if isinstance(gold, str) and gold.isdigit():
        gold = int(gold)
    if isinstance(gold, int):
        if not 0 <= gold <= len(rows):
            raise BadInput(f"gold: give 0 to {len(rows)}, the number of samples, or a file")
        chosen = np.random.default_rng(GOLD_SEED).choice(len(rows), gold, replace=False)
        return [(rows[n], rows[n]) for n in sorted(chosen)]
    by_path = {(runs / row["folder"] / row["file"]).resolve(): row for row in rows}
    pairs = []
    for line, row in read_json_lines(Path(gold)):
        where = f"{gold}, line {line}"
        sides = []
        for key in ("better", "worse"):
            if not isinstance(value := row.get(key) if isinstance(row, dict) else None, str):
                raise BadInput(f'{where}: {key!r} is missing; a row is {{"better": FILE, "worse": FILE}}')
            path = next(
                (p for p in (Path(value), Path(gold).parent / value, runs / value) if p.resolve() in by_path), None
            )
            if path is None:
                raise BadInput(f"{where}: {quote_value(value)} is no sample of the runs of this study")
            sides.append(by_path[path.resolve()])
        if sides[0]["id"] == sides[1]["id"]:
            raise BadInput(f"{where}: better and worse are the same sample")
        pairs.append(tuple(sides))
    if len({(one["id"], other["id"]) for one, other in pairs}) < len(pairs):
        raise BadInput(f"{gold}: a pair is listed twice")
    return pairs


def _warn_of_names(study: Study, rows: Iterable[sqlite3.Row]) -> list[str]:
    """What the owner's own words give away to raters."""
    names = sorted({row["contestant"] for row in rows})
    texts = {"the link": study.name.replace("-", " "), "the instructions": study.instructions}
    texts["the criteria"] = " ".join(study.criteria)
    return [
        f"warning: {where_read} name the contestant {name!r}, and raters read them"
        for where_read, text in texts.items()
        for name in names
        if re.search(rf"(?<![\w]){re.escape(name.replace('-', ' '))}(?![\w])", text, re.IGNORECASE)
    ]


def read_study(db: sqlite3.Connection, name: str) -> Study:
    """A study by its name. Raises BadInput."""
    row = db.execute("SELECT * FROM studies WHERE name = ?", (name,)).fetchone()
    if row is None:
        names = [r["name"] for r in db.execute("SELECT name FROM studies")]
        raise BadInput(f"there is no study {quote_value(name)}; {suggest_nearest(name, names)}")
    return _study_of_row(row)


def _study_of_row(row: sqlite3.Row) -> Study:
    values = parse_json(row["settings"], f"study {row['name']}")
    more = {"name": row["name"], "number": row["id"], "created": row["created"], "closed": row["closed"] or ""}
    return build_dataclass(Study, {**values, **more}, f"study {row['name']}")


def list_studies(runs: Path) -> list[Study]:
    """All studies, the newest first."""
    if not (runs / "workbench.db").is_file():
        return []
    with store.read_index(runs) as db:
        return [_study_of_row(row) for row in db.execute("SELECT * FROM studies ORDER BY id DESC")]


def find_study(runs: Path, name: str) -> Study:
    """A study by its name. Raises BadInput."""
    if not (runs / "workbench.db").is_file():
        raise BadInput(f"{runs}: there are no runs here, and no study {quote_value(name)}")
    with store.read_index(runs) as db:
        return read_study(db, name)


def close_study(runs: Path, name: str) -> Study:
    """Let a study take no more votes; its pages say so. Raises BadInput."""
    find_study(runs, name)
    with open_for_writing(runs) as db:
        db.execute("UPDATE studies SET closed = ? WHERE name = ? AND closed IS NULL", (current_time(), name))
        return read_study(db, name)
