"""Media with their prompts, from a folder: what a training begins from in place of samples of its own.

The prompt of a medium is, in this order: its `text`, `prompt` or `caption` in the folder's metadata.jsonl or
metadata.csv, by `file_name`; the text of a file of its name with .txt; what the file itself carries, as samples of a
run do. A medium without one is left out, and a warning says so. For a pipeline that edits, the metadata also name what
a medium was made from, in a column `source` (or that of another input), relative to the folder.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, prompt_inputs
from workbench.core.io import folders, media
from workbench.core.io.parsing import read_json_lines, read_text
from workbench.core.text import one_line
from workbench.core.types import Media
from workbench.runs.preference_data import fit_to_size
from workbench.runs.prompt_files import METADATA
from workbench.runs.prompt_inputs import measure_file

log = logging.getLogger(__name__)
CAPTIONS = ("text", "prompt", "caption")


class CaptionedFolder:
    """The media of a folder, by prompt. Raises BadInput where none has a prompt."""

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise BadInput(f"clips: {one_line(folder)} is no folder")
        listing, captions = folders.list_media(self.folder), _read_metadata(self.folder)
        self.files: dict[str, list[tuple[Path, dict[str, Path]]]] = {}  # text -> media, each with its inputs
        nameless, named_inputs = [], {path for row in captions.values() for path in self._inputs_of(row).values()}
        for path in listing.files:
            row = captions.get(path.relative_to(self.folder).as_posix())
            inputs = self._inputs_of(row or {})
            if (prompt := _find_prompt(path, row)) or inputs:
                self.files.setdefault(prompt, []).append((path, inputs))
            elif path not in named_inputs:
                nameless.append(path)
        if not self.files:
            raise BadInput(
                f"clips: no medium in {self.folder} has a prompt; give metadata.jsonl (file_name, text), or a text "
                "beside each, NAME.txt"
            )
        if nameless:
            log.warning("clips: %d of %s have no prompt and are left out", len(nameless), self.folder)

    def __repr__(self) -> str:
        return str(self.folder)

    def count(self, prompt: str) -> int:
        """How many media there are of a prompt: of its text, and made from its inputs where it has any."""
        return len(self._find_media(prompt))

    def read(self, prompt: str, n: int, size: Sequence[int]) -> Media:
        """The n-th medium of a prompt, fitted to a policy's size; one row. Raises BadInput."""
        path = self._find_media(prompt)[n]
        try:
            return fit_to_size(media.read_media(path), size)
        except BadInput as error:
            raise BadInput(f"clips: {path.name}: {error}") from None

    def _find_media(self, prompt: str) -> list[Path]:
        digests = {name: value.digest for name, value in prompt_inputs(prompt).items()}
        return [
            path
            for path, inputs in self.files.get(str(prompt), ())
            if all(name in inputs and _digest(inputs[name]) == digest for name, digest in digests.items())
        ]

    def _inputs_of(self, row: Mapping[str, Any]) -> dict[str, Path]:
        """Name -> file of the inputs that a row of the metadata names."""
        return {n: self.folder / value for n in NAMES if isinstance(value := row.get(n), str) and value.strip()}

    def input_files(self) -> list[Path]:
        """The files that are read."""
        entries = [entry for entries in self.files.values() for entry in entries]
        inputs = {path for _, inputs in entries for path in inputs.values() if os.path.isfile(path)}
        metadata = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        return [path for path, _ in entries] + sorted(inputs) + metadata


def _digest(path: Path) -> str:
    """Of an input's file; "" for one that can't be read, which no prompt has."""
    try:
        return measure_file(path, decode=False).digest
    except BadInput:
        return ""


def _read_metadata(folder: Path) -> dict[str, Any]:
    """File name -> its row."""
    for name in METADATA:
        if not (path := folder / name).is_file():
            continue
        if path.suffix == ".jsonl":
            rows = [row for _, row in read_json_lines(path)]
        else:
            rows = [*csv.DictReader(io.StringIO(read_text(path), newline=""))]
        return {
            row["file_name"]: row for row in rows if isinstance(row, dict) and isinstance(row.get("file_name"), str)
        }
    return {}


def _find_prompt(path: Path, row: Any) -> str:
    if row is not None:
        return next((text.strip() for key in CAPTIONS if isinstance(text := row.get(key), str)), "")
    if (beside := path.with_suffix(".txt")).is_file():
        return " ".join(read_text(beside).split())
    try:
        prompt = media.read_meta(path).get("prompt", "")
    except BadInput as error:
        raise BadInput(f"clips: {error}") from None
    return prompt.strip() if isinstance(prompt, str) else ""
