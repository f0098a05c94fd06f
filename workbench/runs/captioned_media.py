"""Media with their prompts, from a folder: what a training begins from in place of samples of its own.

The prompt of a medium is, in this order: its `text`, `prompt` or `caption` in the folder's metadata.jsonl or
metadata.csv, by `file_name`; the text of a file of its name with .txt; what the program that made it wrote into it. A
medium without one is left out, and a warning says so. For a pipeline that edits, the metadata also name what a medium
was made from, in a column `source` (or that of another input), relative to the folder; and how good it is, in `scores`,
by axis: {"file_name": "0.png", "text": "…", "scores": {"done": 5, "kept": 2}}.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import BEST_LEVEL, NAMES, FileInput, prompt_inputs
from workbench.core.io import folders, media
from workbench.core.io.parsing import read_json_lines, read_text
from workbench.core.text import one_line, quote_value
from workbench.core.types import Media, Prompt, prompt_key
from workbench.runs.media_prompts import find_prompt
from workbench.runs.preference_data import fit_to_size
from workbench.runs.prompt_files import METADATA
from workbench.runs.prompt_inputs import measure_file

log = logging.getLogger(__name__)
CAPTIONS = ("text", "prompt", "caption")


@dataclass(frozen=True)
class CaptionedFile:
    """A medium of a folder, with the files that it was made from and its row in the metadata."""

    path: Path
    inputs: Mapping[str, Path]
    row: Mapping[str, Any]


class CaptionedFolder:
    """The media of a folder, by prompt. Raises BadInput where none has a prompt."""

    setting = "clips"  # of the method, that names the folder

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise BadInput(f"{self.setting}: {one_line(folder)} is no folder")
        listing, captions = folders.list_media(self.folder), _read_metadata(self.folder)
        self.files: dict[str, list[CaptionedFile]] = {}  # by text
        self.matches: dict[str, list[CaptionedFile]] = {}  # by the keys of prompts that were asked for
        nameless, named_inputs = [], {path for row in captions.values() for path in self._inputs_of(row).values()}
        for path in listing.files:
            row = captions.get(path.relative_to(self.folder).as_posix())
            inputs = self._inputs_of(row or {})
            if (prompt := self._find_prompt(path, row)) or inputs:
                self.files.setdefault(prompt, []).append(CaptionedFile(path, inputs, row or {}))
            elif path not in named_inputs:
                nameless.append(path)
        if not self.files:
            raise BadInput(
                f"{self.setting}: no medium in {self.folder} has a prompt; give metadata.jsonl (file_name, text), or a "
                "text beside each, NAME.txt"
            )
        if nameless:
            log.warning("%s: %d of %s have no prompt and are left out", self.setting, len(nameless), self.folder)

    def __repr__(self) -> str:
        return str(self.folder)

    def count(self, prompt: str) -> int:
        """How many media there are of a prompt: of its text, and made from its inputs where it has any."""
        return len(self._find_media(prompt))

    def read(self, prompt: str, n: int, size: Sequence[int]) -> Media:
        """The n-th medium of a prompt, fitted to a policy's size; one row. Raises BadInput."""
        path = self._find_media(prompt)[n].path
        try:
            return fit_to_size(media.read_media(path), size)
        except BadInput as error:
            raise BadInput(f"{self.setting}: {path.name}: {error}") from None

    def _find_media(self, prompt: str) -> list[CaptionedFile]:
        if (key := prompt_key(prompt)) not in self.matches:
            digests = {name: value.digest for name, value in prompt_inputs(prompt).items()}
            self.matches[key] = [
                file
                for file in self.files.get(str(prompt), ())
                if all(name in file.inputs and _digest(file.inputs[name]) == d for name, d in digests.items())
            ]
        return self.matches[key]

    def _inputs_of(self, row: Mapping[str, Any]) -> dict[str, Path]:
        """Name -> file of the inputs that a row of the metadata names."""
        return {n: self.folder / value for n in NAMES if isinstance(value := row.get(n), str) and value.strip()}

    def input_files(self) -> list[Path]:
        """The files that are read."""
        files = [file for files in self.files.values() for file in files]
        inputs = {path for file in files for path in file.inputs.values() if os.path.isfile(path)}
        metadata = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        return [file.path for file in files] + sorted(inputs) + metadata

    def _find_prompt(self, path: Path, row: Any) -> str:
        if row is not None:
            return next((text.strip() for key in CAPTIONS if isinstance(text := row.get(key), str)), "")
        try:
            return find_prompt(path)[0]
        except BadInput as error:
            raise BadInput(f"{self.setting}: {error}") from None


class ScoredFolder(CaptionedFolder):
    """The media of a folder with their scores, 0 to 5 on each of `axes`; () where the folder has none. Raises BadInput,
    naming the file, for scores that are none."""

    setting = "examples"

    def __init__(self, folder: str):
        super().__init__(folder)
        files = [file for files in self.files.values() for file in files]
        self.axes = tuple(sorted({axis for file in files for axis in self._read_scores(file)}))

    def list_prompts(self) -> list[str]:
        """The distinct prompts, with their inputs. Raises BadInput for an input that can't be read."""
        prompts = [
            Prompt(text, {name: FileInput.at(path) for name, path in file.inputs.items()}) if file.inputs else text
            for text, files in self.files.items()
            for file in files
        ]
        return list(dict.fromkeys(prompts))

    def name(self, prompt: str, n: int) -> str:
        """Of the n-th medium of a prompt."""
        return str(self._find_media(prompt)[n].path)

    def scores(self, prompt: str, n: int) -> dict[str, float]:
        """Axis -> level of the n-th medium of a prompt; an axis that its row doesn't name is missing."""
        return self._read_scores(self._find_media(prompt)[n])

    def _read_scores(self, file: CaptionedFile) -> dict[str, float]:
        scores, where = file.row.get("scores") or {}, f"{self.setting}: {file.path.name}: scores"
        if not isinstance(scores, Mapping):
            raise BadInput(f"{where}: expected a level for each axis, got {quote_value(scores)}")
        for axis, level in scores.items():
            if not axis or type(level) not in (int, float) or not 0 <= level <= BEST_LEVEL:
                raise BadInput(f"{where}: {axis} is a number from 0 to {BEST_LEVEL}, and not {quote_value(level)}")
        return {axis: float(level) for axis, level in scores.items()}


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
