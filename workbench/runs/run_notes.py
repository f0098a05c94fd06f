"""What people say about a run: a title, a note and tags. They lie in the run's folder (notes.json), so that they travel
with it, and nothing of a run depends on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json
from workbench.core.text import quote_value
from workbench.runs.store import RunFolder

FILE = "notes.json"
MAX_TITLE, MAX_NOTE, MAX_TAGS = 120, 10_000, 20
TAG = re.compile(r"[\w][\w.+-]{0,39}")


@dataclass(frozen=True)
class RunNotes:
    """A run's title, note and tags; "" and () where there are none."""

    title: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()


def read_notes(folder: RunFolder) -> RunNotes:
    """The notes of a run; none where their file is missing. A file that was damaged is said in the note."""
    if not (folder.path / FILE).is_file():
        return RunNotes()
    try:
        return check_notes(read_json(folder.path / FILE))
    except BadInput as error:
        return RunNotes(note=f"{FILE} can't be read: {error}")


def write_notes(
    folder: RunFolder, title: str | None = None, note: str | None = None, tags: Iterable[str] | None = None
) -> RunNotes:
    """Change what is given of a run's notes, and leave the rest. Raises BadInput for a text that is too long, and for
    what is no tag."""
    notes = read_notes(folder)
    changes = {"title": title, "note": note, "tags": None if tags is None else [*tags]}
    values = asdict(notes) | {key: value for key, value in changes.items() if value is not None}
    changed = check_notes(values)
    folder.write(FILE, asdict(changed))
    return changed


def check_notes(values: object) -> RunNotes:
    """The notes in a mapping. Raises BadInput."""
    if not isinstance(values, Mapping):
        raise BadInput(f"notes: expected title, note and tags, got {quote_value(values)}")
    title, note, tags = (values.get(key, default) for key, default in (("title", ""), ("note", ""), ("tags", [])))
    for name, text, longest in (("title", title, MAX_TITLE), ("note", note, MAX_NOTE)):
        if not isinstance(text, str) or len(text) > longest:
            raise BadInput(f"{name}: a text of at most {longest:,} letters, got {quote_value(text)}")
    if not isinstance(tags, list | tuple) or len(tags) > MAX_TAGS:
        raise BadInput(f"tags: at most {MAX_TAGS}")
    return RunNotes(" ".join(title.split()), note.strip(), tuple(dict.fromkeys(map(check_tag, tags))))


def check_tag(tag: object) -> str:
    """Raises BadInput for what is no tag: one word of letters, digits, '.', '_', '+' and '-'."""
    if not isinstance(tag, str) or not TAG.fullmatch(tag):
        raise BadInput(f"tag {quote_value(tag)}: one word of at most 40 letters, digits, '.', '_', '+' and '-'")
    return tag
