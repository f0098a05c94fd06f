"""Folders of media that were made elsewhere: their files, and the prompt of each.

A file's prompt is, in this order: what a list of the person's says; the folder's metadata.jsonl (or .csv, .json, .tsv,
.parquet), by `file_name`, or, where it has one row and names no file, for all media beside and below it, as GenEval has
them; the text in a file of its name with .txt; what the program that made it wrote into it; its own name, where that is
PROMPT-NUMBER, as VBench and T2I-CompBench have them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES
from workbench.core.io import folders
from workbench.core.text import one_line, shorten_path
from workbench.core.types import Prompt
from workbench.runs.media_prompts import find_prompt
from workbench.runs.prompt_files import FILE_NAME, READERS, Row, check_prompt
from workbench.runs.prompt_inputs import measure_file, open_input

METADATA = tuple(f"metadata{suffix}" for suffix in (".jsonl", ".csv", ".json", ".tsv", ".parquet"))
SENTENCE_NUMBER = re.compile(r"(.*\S\s\S.*?)[-_ ]+\d{1,6}")  # two words at least, then a number
INDEX_NUMBER = re.compile(r"(\d+)(?:[-_]\d+)?")  # which prompt, and which of its samples
MAX_NAMED = 4  # files that a sentence names


@dataclass(frozen=True)
class MediaRow:
    """One file of a folder."""

    path: Path
    name: str  # relative to the folder, without its suffix
    prompt: str = ""  # with what the sample was made from, where that is known; "": not known
    prompt_source: str = ""  # where the prompt stands: "metadata.jsonl", "the files (ComfyUI)", "their names"


@dataclass(frozen=True)
class MediaFolder:
    """The media of one modality in a folder, in the order in which a person counts their names."""

    folder: Path
    modality: str
    rows: tuple[MediaRow, ...]
    notes: tuple[str, ...] = ()  # sentences on files that are left out, and on where the prompts stand


@dataclass(frozen=True)
class _Metadata:
    """What a row of a metadata file says."""

    prompt: str
    columns: Mapping[str, Any]
    folder: Path  # that its paths are relative to
    name: str  # of the file


class FolderMetadata:
    """What the metadata files of a folder and its subfolders say of the media in them, but for one that is given as the
    list of prompts. Raises BadInput for one that can't be read, or of which it isn't clear whose its rows are."""

    def __init__(self, folder: Path, prompts: Path | None = None):
        self.files = frozenset(path for path in folders.list_files(folder) if path.name in METADATA)
        given = prompts and prompts.resolve()
        rows = {path: _read_rows(path) for path in sorted(self.files) if path.resolve() != given}
        self._by_file, self._by_folder = _sort_metadata(rows)
        # what samples were made from, which is no sample itself
        self.inputs = {row.folder / value for row in self._by_file.values() for _, value in _input_cells(row.columns)}

    def find_prompt(self, path: Path) -> tuple[str, str] | None:
        """(the prompt of a file with its inputs, the name of the file that says it); None where nothing does. Raises
        BadInput for an input that can't be read."""
        row = self._by_file.get(path) or next((self._by_folder[p] for p in path.parents if p in self._by_folder), None)
        return None if row is None else (_with_inputs(row), row.name)


def list_media_rows(folder: str | Path, prompts: Path | None = None) -> MediaFolder:
    """The media of a folder and its subfolders, with their prompts. prompts: a file of any kind that `prompt_files`
    reads, which says them by `file_name`, by `index`, or in the order of the files.

    Raises BadInput for what is no folder, for one without media or with as many of two modalities, and for prompts of
    which it isn't clear whose they are.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadInput(f"media: {one_line(folder)} is no folder; name one with pictures, clips or sounds")
    listing = folders.list_media(folder)
    paths = sorted(listing.files, key=lambda path: order_key(path.relative_to(folder).as_posix()))
    metadata = FolderMetadata(folder, prompts)
    modality, media, others = _choose_modality(folder, [path for path in paths if path not in metadata.inputs])
    prompts_by_file = _match_prompts(prompts, folder, media) if prompts is not None else {}
    rows = []
    for path in media:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path in prompts_by_file:
            rows.append(MediaRow(path, name, prompts_by_file[path], prompts.name if prompts else ""))
        elif (named := metadata.find_prompt(path)) is not None:
            rows.append(MediaRow(path, name, *named))
        else:
            rows.append(MediaRow(path, name, *_own_prompt(path)))
    text_files = {path.with_suffix(".txt") for path in paths}
    left_out = [
        *others,
        *(p for p in listing.left_out if p not in metadata.files and p not in text_files and p != prompts),
    ]
    notes = [f"{_count(rows, 'file')}, prompts from {_name_places(rows)}"]
    if left_out:
        names = ", ".join(one_line(path.name, 60) for path in left_out[:MAX_NAMED])
        more = f" and {len(left_out) - MAX_NAMED} more" if len(left_out) > MAX_NAMED else ""
        notes.append(f"{_count(left_out, 'file')} left out, no {modality}: {names}{more}")
    return MediaFolder(folder, modality, tuple(rows), tuple(notes))


def order_key(name: str) -> tuple:
    """By which a-2 comes before a-10."""
    return tuple((0, int(part), part) if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def _count(things: Sequence, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _name_places(rows: Sequence[MediaRow]) -> str:
    """`metadata.jsonl (3), nowhere (1)`."""
    counts = Counter(row.prompt_source or "nowhere" for row in rows)
    return (
        next(iter(counts)) if len(counts) == 1 else ", ".join(f"{location} ({n:,})" for location, n in counts.items())
    )


def _read_rows(path: Path) -> list[Row]:
    rows = []
    for location, prompt, columns in READERS[path.suffix.lower()](path)[0]:
        check_prompt(prompt, f"{path}{location}")
        rows.append((location, " ".join(prompt.split()), columns))
    return rows


def _sort_metadata(metadata: Mapping[Path, Sequence[Row]]) -> tuple[dict[Path, _Metadata], dict[Path, _Metadata]]:
    """(file -> its row, folder -> the row of all media in it). Raises BadInput for rows that name no file."""
    by_file: dict[Path, _Metadata] = {}
    by_folder: dict[Path, _Metadata] = {}
    for path, rows in metadata.items():
        for location, prompt, columns in rows:
            row = _Metadata(prompt, columns, path.parent, path.name)
            name = columns.get(FILE_NAME)
            if isinstance(name, str) and name.strip():
                by_file[path.parent / name.strip()] = row
            elif len(rows) == 1:
                by_folder[path.parent] = row
            else:
                raise BadInput(f"{path}{location}: names no file; add {FILE_NAME}, or give the file as --prompts")
    return by_file, by_folder


def _input_cells(columns: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, file) of what a sample was made from."""
    yield from ((name, value) for name in NAMES if isinstance(value := columns.get(name), str) and value.strip())


def _with_inputs(row: _Metadata) -> str:
    """The prompt of a row, with what the sample was made from. Raises BadInput for a file that can't be read."""
    try:
        inputs = {name: open_input(value, name, "", row.folder) for name, value in _input_cells(row.columns)}
    except BadInput as error:
        raise BadInput(f"{row.folder / row.name}: {error}") from None
    return Prompt(row.prompt, inputs) if inputs else row.prompt


def _own_prompt(path: Path) -> tuple[str, str]:
    """(prompt, where it stands) of a file that no list tells of; ("", "") for none."""
    try:
        prompt, location = find_prompt(path)
    except BadInput:  # a graph with several prompts, or a broken file: that costs this file's prompt alone
        return "", "unclear"
    if prompt:
        program = re.fullmatch(r"the file(.*)", location or "the file")
        return prompt, f"the files{program[1]}" if program else "texts beside them"
    sentence = prompt_in_name(path)
    return sentence, "their names" if sentence else ""


def prompt_in_name(path: Path) -> str:
    """The prompt of a file that is called PROMPT-NUMBER; "" for another."""
    sentence = SENTENCE_NUMBER.fullmatch(path.stem)
    return sentence[1].strip() if sentence else ""


def _choose_modality(folder: Path, paths: Sequence[Path]) -> tuple[str, list[Path], list[Path]]:
    """(modality, its files, other files). A file that can't be read counts as what its name says, and costs its row.
    Raises BadInput where there is none, or as many of two modalities."""
    kinds = {path: _modality_of(path) for path in paths}
    counts = Counter(kind for kind in kinds.values() if kind).most_common()
    if not counts:
        raise BadInput(f"{folder}: no media files in this folder")
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        words = " and ".join(f"{count} of {kind}" for kind, count in counts[:2])
        raise BadInput(f"{folder}: {words}; name a folder that holds one of these")
    modality = counts[0][0]
    return modality, [p for p in paths if kinds[p] == modality], [p for p in paths if kinds[p] != modality]


def _modality_of(path: Path) -> str | None:
    try:
        return measure_file(path, decode=False).modality
    except BadInput:
        return folders.modality_of(path)


def _match_prompts(file: Path, folder: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """File -> its prompt in a list: by `file_name`, by `index`, by the number in the file's name, or, of as many, in
    order; a single prompt is that of all. Raises BadInput where none of these fits."""
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise BadInput(f"--prompts {file}: files of this kind are not read; give {', '.join(filter(None, READERS))}")
    rows = _read_rows(file)
    names = {str(columns.get(FILE_NAME) or "").strip(): prompt for _, prompt, columns in rows}
    if any(names):
        relative = {path: path.relative_to(folder).as_posix() for path in paths}
        return {path: p for path in paths if (p := names.get(relative[path]) or names.get(path.name))}
    if len(rows) == 1:
        return dict.fromkeys(paths, rows[0][1])
    numbers = [match and int(match[1]) for path in paths for match in [INDEX_NUMBER.fullmatch(path.stem)]]
    if None not in numbers and len(numbers) > 0:
        by_index = _by_index(rows, [number for number in numbers if number is not None])
        if by_index:
            return dict(zip(paths, by_index, strict=True))
    if len(rows) == len(paths):
        return {path: prompt for path, (_, prompt, _) in zip(paths, rows, strict=True)}
    raise BadInput(
        f"--prompts {file.name}: {len(rows)} prompts for the {len(paths)} files of {shorten_path(folder)}; add a "
        f"column {FILE_NAME}, or name the files by the number of their prompt: 0000-0.png"
    )


def _by_index(rows: Sequence[Row], numbers: Sequence[int]) -> list[str]:
    """The prompts with these numbers: those of a column `index`, or counted from 0 or, where none is 0, from 1; []
    where one is missing. Raises BadInput for a number of which either may be meant."""
    if all("index" in columns for _, _, columns in rows):
        prompts = {str(columns["index"]).strip(): prompt for _, prompt, columns in rows}
        indexed = [prompts.get(str(number), "") for number in numbers]
        return indexed if all(indexed) else []
    first = 0 if 0 in numbers else 1
    if first and max(numbers) < len(rows):
        raise BadInput(
            f"--prompts: the files are numbered from {min(numbers)} to {max(numbers)} and there are {len(rows)} "
            f"prompts, so it isn't clear whether 0 or 1 is the first; add a column index or {FILE_NAME}"
        )
    prompts_in_order = [prompt for _, prompt, _ in rows]
    if max(numbers) - first >= len(rows):
        return []
    return [prompts_in_order[number - first] for number in numbers]
