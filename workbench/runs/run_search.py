"""Runs as rows of a list, and the words that find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.runs.run_notes import read_notes
from workbench.runs.store import RunFolder


def describe_run_row(folder: RunFolder, state: str = "") -> dict[str, Any]:
    """A run for a list: run, title, state, when, pipeline, contestants, tags, note. `state`: as the page knows it; by
    default what its record says."""
    notes = read_notes(folder)
    try:
        record = folder.read() if state != "damaged" else {}
    except BadInput:
        record, state = {}, "damaged"
    pipeline = pipeline_label((record.get("config") or {}).get("pipeline", ""))
    return {
        "run": folder.path.name,
        "title": notes.title,
        "state": state or record.get("status", ""),
        "when": format_date(record.get("created", "")),
        "pipeline": Path(pipeline).name,
        "contestants": ", ".join(record.get("methods", ())),
        "tags": [*notes.tags],
        "note": notes.note,
    }


def format_date(created: str) -> str:
    """24 Dec 2025, 18:00; "" for what is no date."""
    try:
        return datetime.strptime(created, "%Y-%m-%dT%H:%M:%S%z").strftime("%d %b %Y, %H:%M")
    except ValueError:
        return ""


def matches_words(row: Mapping[str, Any], words: Sequence[str]) -> bool:
    """Whether a row has all words anywhere: `#paper` and `tag:paper` in its tags alone, `state:done` in its state, a
    word with a minus before it nowhere."""
    return all(_matches_word(row, word.casefold()) for word in words)


def _matches_word(row: Mapping[str, Any], word: str) -> bool:
    if word.startswith("-") and len(word) > 1:
        return not _matches_word(row, word[1:])
    if word.startswith("#"):
        return word[1:] in (tag.casefold() for tag in row["tags"])
    key, colon, value = word.partition(":")
    if colon and key == "tag":
        return value in (tag.casefold() for tag in row["tags"])
    if colon and key in row:
        return value in str(row[key]).casefold()
    return any(word in (" ".join(cell) if isinstance(cell, list) else str(cell)).casefold() for cell in row.values())
