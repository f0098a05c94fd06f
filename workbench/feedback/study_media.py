"""What raters of studies see and hear: blind copies, made once for each pair and told by an address that each page has
for itself."""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.feedback.blind_clips import draw_sheet, strip_films
from workbench.feedback.blinding import BlindInput, prepare_blind_pair
from workbench.feedback.study_battles import Battle, read_pair

MAX_ADDRESSES, MAX_PAIRS = 20_000, 2_000  # remembered at once
TYPES = {".png": "image/png", ".apng": "image/apng", ".wav": "audio/wav", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class PreparedPair:
    """The copies of one pair of a study, `one` first."""

    prompt: str
    kind: str  # image, sound, film (a file that a browser plays), frames (sheets that the page steps through)
    files: tuple[Path, Path]
    sheets: tuple[dict | None, dict | None]
    seconds: float
    inputs: tuple[BlindInput, ...]


class StudyMedia:
    """The copies of an app's studies, and under which address each page gets them."""

    def __init__(self, runs: Path, folder: Path):
        self.runs, self.folder = runs, folder
        self._lock = threading.Lock()
        self._pairs: OrderedDict[int, PreparedPair | None] = OrderedDict()
        self._making: dict[int, threading.Lock] = {}
        self._addresses: OrderedDict[str, tuple[str, Path]] = OrderedDict()  # -> (whose, file)

    def show(self, battle: Battle, rater: str) -> dict[str, Any] | None:
        """What a page draws of a battle: {battle, prompt, kind, seconds, left, right: {url, sheet}, inputs}; None where
        the pair's files are gone, were changed or can't be shown."""
        pair = self._prepare(battle.pair)
        if pair is None:
            return None
        sides = [
            {"url": self._address(file, rater), "sheet": sheet}
            for file, sheet in zip(pair.files, pair.sheets, strict=True)
        ]
        sides = sides[::-1] if battle.is_swapped else sides
        inputs = [{"name": i.name, "kind": i.modality, "url": self._address(i.file, rater)} for i in pair.inputs]
        view = {"battle": battle.id, "prompt": pair.prompt, "kind": pair.kind, "seconds": round(pair.seconds, 2)}
        return view | {"left": sides[0], "right": sides[1], "inputs": inputs}

    def find_file(self, address: str, rater: str) -> tuple[Path, str] | None:
        """(file, its type) at an address that was told to this rater."""
        with self._lock:
            owner, file = self._addresses.get(address, ("", Path()))
        if owner != rater or not file.is_file():
            return None
        return file, TYPES[file.suffix]

    def _address(self, file: Path, rater: str) -> str:
        address = f"{secrets.token_urlsafe(16)}{file.suffix}"
        with self._lock:
            self._addresses[address] = (rater, file)
            while len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        return address

    def _prepare(self, number: int) -> PreparedPair | None:
        """The copies of a pair, made by the first who needs them; others of the same pair wait for them."""
        with self._lock:
            making = self._making.setdefault(number, threading.Lock())
        with making:
            pair = self._pairs.get(number)
            if pair is None or not all(file.is_file() for file in pair.files):
                pair = self._make(number)
            else:
                for file in (*pair.files, *(i.file for i in pair.inputs if i.file.is_file())):
                    os.utime(file)  # they are still in use
        with self._lock:
            if pair is not None:
                self._pairs[number] = pair
                self._pairs.move_to_end(number)
                while len(self._pairs) > MAX_PAIRS:
                    self._pairs.popitem(last=False)
            self._making.pop(number, None)
        return pair

    def _make(self, number: int) -> PreparedPair | None:
        pair, is_damaged = read_pair(self.runs, number)
        blind = prepare_blind_pair(pair, self.runs, self.folder, "right" if is_damaged else "")
        if blind is None:
            return None
        files, kind = (blind.left, blind.right), {"audio": "sound"}.get(pair.modality, "image")
        sheets: tuple[dict | None, dict | None] = (None, None)
        if pair.modality == "video":
            try:
                kind, files, sheets = self._make_playable(files)
            except BadInput:
                return None
        return PreparedPair(str(pair.prompt), kind, files, sheets, blind.seconds, blind.inputs)

    def _make_playable(
        self, files: tuple[Path, Path]
    ) -> tuple[str, tuple[Path, Path], tuple[dict | None, dict | None]]:
        """Clips as sheets of frames where both are small enough, else as films: a page can keep either in step."""
        sheets_of_clips = [draw_sheet(file) for file in files]
        if all(sheets_of_clips):
            paths = [self._write(sheet.data, ".png") for sheet in sheets_of_clips if sheet]
            described = [sheet.describe() for sheet in sheets_of_clips if sheet]
            return "frames", (paths[0], paths[1]), (described[0], described[1])
        if files[0].suffix != ".mp4":
            films = strip_films([*files], self.folder)
            files = (self._write(films[0], ".mp4"), self._write(films[1], ".mp4"))
        return "film", files, (None, None)

    def _write(self, data: bytes, suffix: str) -> Path:
        file = self.folder / f"{secrets.token_urlsafe(16)}{suffix}"
        file.write_bytes(data)
        return file
