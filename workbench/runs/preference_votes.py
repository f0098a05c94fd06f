"""Files of preference pairs of every kind as votes, for rewards that learn from votes alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES
from workbench.core.io.parsing import read_text
from workbench.core.text import one_line
from workbench.runs.preference_files import READERS, TIE, Comparison, Layout, read_rows

log = logging.getLogger(__name__)
VOTERS = ("voter", "user_id", "rater")  # columns that say who preferred
WINNERS = {0: "a", 1: "b", TIE: "tie"}


def translate_to_votes(
    file: Path, folder: Path, known: Collection[str], suffixes: Collection[str] = (".jsonl",)
) -> Path:
    """A file of pairs as JSON lines of votes {prompt, a_path, b_path, winner, voter, source, …} in `folder`, beside the
    media that the file holds in itself.

    It stays the file as it is where its suffix is one of `suffixes` and it has one of the `known` columns, so that the
    reader knows it, and where nobody can read it: then the reader says why. Rows that prefer nothing or can't be used
    are left out, and a warning says how many. Raises BadInput.
    """
    suffix = file.suffix.lower()
    if not file.is_file() or suffix not in READERS or (suffix in suffixes and _names_any(file, known)):
        return file
    votes, left_out = [], []
    try:
        rows = list(read_rows(file))
    except BadInput:
        if suffix in suffixes:
            return file
        raise
    for where, layout, row in rows:
        try:
            comparisons = layout.compare(row, 0, where)
            votes += [_vote_of(layout, row, comparison, file.parent, folder) for comparison in comparisons]
        except BadInput as error:
            left_out.append(f"{where}: {error}")
    if left_out:
        log.warning("%s: %d rows can't be used, the first: %s", one_line(file), len(left_out), left_out[0])
    if not votes:
        raise BadInput(left_out[0] if left_out else f"{file}: no row prefers anything")
    target = folder / "votes.jsonl"
    target.write_text("".join(json.dumps(vote, ensure_ascii=False) + "\n" for vote in votes), encoding="utf-8")
    return target


def _names_any(file: Path, columns: Collection[str]) -> bool:
    """Whether the first line names one of these columns."""
    try:
        first = next((line for line in read_text(file).split("\n") if line.strip()), "")
    except BadInput:  # the reader says why
        return True
    return any(f'"{column}"' in first or column in first.strip().split(",") for column in columns)


def _vote_of(layout: Layout, row: dict, comparison: Comparison, home: Path, folder: Path) -> dict[str, Any]:
    a, b = (_path_of(layout.read_cell(row, side), home, folder) for side in comparison.sides)
    vote = {"prompt": layout.read_prompt(row), "a_path": a, "b_path": b, "winner": WINNERS[comparison.winner]}
    who = next((str(row[key]) for key in VOTERS if row.get(key)), "")
    inputs = {n: str(home.resolve() / value) for n in NAMES if isinstance(value := row.get(n), str) and value.strip()}
    return vote | ({"voter": who} if who else {}) | inputs


def _path_of(cell: Any, home: Path, folder: Path) -> str:
    """Raises BadInput for a cell that holds no medium."""
    if isinstance(cell, bytes) and cell:
        file = folder / hashlib.sha256(cell).hexdigest()
        if not file.exists():
            file.write_bytes(cell)
        return str(file.resolve())
    if not isinstance(cell, str) or not cell.strip():
        raise BadInput("a side holds no medium")
    return str(home.resolve() / cell)
