"""Media with their prompts, from a folder: what a training begins from in place of samples of its own.

The prompt of a medium is, in this order: its `text`, `prompt` or `caption` in the folder's metadata.jsonl or
metadata.csv, by `file_name`; the text of a file of its name with .txt; what the file itself carries, as samples of a
run do. A medium without one is left out, and a warning says so.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.io import folders, media
from workbench.core.io.parsing import read_json_lines, read_text
from workbench.core.text import one_line
from workbench.core.types import Media
from workbench.runs.preference_data import fit_to_size

log = logging.getLogger(__name__)
METADATA, CAPTIONS = ("metadata.jsonl", "metadata.csv"), ("text", "prompt", "caption")


class CaptionedFolder:
    """The media of a folder, by prompt. Raises BadInput where none has a prompt."""

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise BadInput(f"clips: {one_line(folder)} is no folder")
        listing, captions = folders.list_media(self.folder), _read_metadata(self.folder)
        self.files: dict[str, list[Path]] = {}
        nameless = []
        for path in listing.files:
            if prompt := _find_prompt(path, captions.get(path.relative_to(self.folder).as_posix())):
                self.files.setdefault(prompt, []).append(path)
            else:
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
        """How many media there are of a prompt."""
        return len(self.files.get(prompt, ()))

    def read(self, prompt: str, n: int, size: Sequence[int]) -> Media:
        """The n-th medium of a prompt, fitted to a policy's size; one row. Raises BadInput."""
        path = self.files[prompt][n]
        try:
            return fit_to_size(media.read_media(path), size)
        except BadInput as error:
            raise BadInput(f"clips: {path.name}: {error}") from None

    def input_files(self) -> list[Path]:
        """The files that are read."""
        return [path for paths in self.files.values() for path in paths] + [
            self.folder / name for name in METADATA if (self.folder / name).is_file()
        ]


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
