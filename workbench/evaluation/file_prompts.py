"""Which prompt and which inputs (source, mask, …) belong to each of the files that are to be scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, FileInput
from workbench.core.io import folders
from workbench.core.text import quote_value, shorten_path
from workbench.core.types import Input
from workbench.runs.prompt_files import FILE_NAME, PromptTable
from workbench.runs.prompt_inputs import open_input
from workbench.runs.prompts import read_prompt_table
from workbench.runs.run_inputs import find_input


@dataclass(frozen=True)
class FilePrompt:
    """What is known of how a file was made."""

    text: str | None = None  # None: what the file itself says
    inputs: Mapping[str, Input] = field(default_factory=dict)
    problem: str = ""  # why an input can't be read


def pair_files(
    files: Sequence[Path],
    needed: Collection[str],
    *,
    prompt: str | None = None,
    prompts: str | None = None,
    source: Path | None = None,
) -> list[FilePrompt]:
    """The prompt of each file, with those inputs that are needed.

    prompt: a text for all. prompts: a file of prompts; its column `file_name` names the scored files, and without one
    its rows go with them in order, or one row with all. source: a medium for all, or a folder, whose media go with the
    files of the same names, or in order. Raises BadInput where it isn't clear what belongs together.
    """
    if prompt is not None and prompts is not None:
        raise BadInput("--prompt and --prompts: both say the prompts; give one of them")
    if source is not None and "source" not in needed:
        raise BadInput("--source: none of these rewards compares with a source; leave it out")
    if prompts is None:
        origins = [FilePrompt(prompt)] * len(files)
    else:
        origins = _read_rows(files, read_prompt_table(prompts, "--prompts"), needed)
    if source is None:
        return origins
    if any("source" in origin.inputs for origin in origins):
        raise BadInput("--source and --prompts: both say the sources; give one of them")
    return [
        FilePrompt(origin.text, {**origin.inputs, "source": value}, origin.problem)
        for origin, value in zip(origins, _read_sources(files, source), strict=True)
    ]


def _read_rows(files: Sequence[Path], table: PromptTable, needed: Collection[str]) -> list[FilePrompt]:
    """The row of each file. Raises BadInput."""
    if any(table.columns.get(FILE_NAME, ())):
        by_name = {str(name): n for n, name in enumerate(table.columns[FILE_NAME])}
        numbers = [by_name.get(_relative_name(path, table.folder), by_name.get(path.name)) for path in files]
        for path, number in zip(files, numbers, strict=True):
            if number is None:
                raise BadInput(f"--prompts: no row of {shorten_path(table.name)} has the {FILE_NAME} {path.name}")
    elif len(table) == 1:
        numbers = [0] * len(files)
    elif len(table) == len(files) and not table.repeated:
        numbers = [*range(len(files))]
    else:
        repeated = f" and {table.repeated} repeated" if table.repeated else ""
        raise BadInput(
            f"--prompts: {len(table)} rows{repeated} for {len(files)} files; say which belongs to which in a column "
            f"`{FILE_NAME}`"
        )
    return [_read_row(table, n, needed) for n in numbers if n is not None]


def _relative_name(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""


def _read_row(table: PromptTable, n: int, needed: Collection[str]) -> FilePrompt:
    inputs: dict[str, Input] = {}
    for name in needed:
        if name in table.columns and (value := table.columns[name][n]):
            try:
                inputs[name] = open_input(value, name, "", table.folder)
            except BadInput as error:
                return FilePrompt(table.prompts[n], inputs, f"{shorten_path(table.places[n])}: {error}")
    return FilePrompt(table.prompts[n], inputs)


def _read_sources(files: Sequence[Path], source: Path) -> list[Input]:
    """The source of each file. Raises BadInput."""
    if not source.is_dir():
        return [open_input(str(source), "source", "", Path())] * len(files)
    media = folders.list_media(source).files
    by_name = {path.stem: path for path in media}
    if len(by_name) == len(media) and all(path.stem in by_name for path in files):
        media = tuple(by_name[path.stem] for path in files)
    elif len(media) != len(files):
        strange = next((p.name for p in files if p.stem not in by_name), "")
        raise BadInput(
            f"--source: {source} holds {len(media)} media for {len(files)} files, and none is called like "
            f"{quote_value(strange)}; give them the files' names, or as many in the files' order"
        )
    return [open_input(str(path), "source", "", Path()) for path in media]


def restore_inputs(path: Path, story: Mapping[str, Any]) -> dict[str, Input]:
    """What a sample of a run was made from, by its file's metadata and the inputs that the run's folder keeps; {} for
    a file from elsewhere."""
    digests = story.get("inputs")
    if not isinstance(digests, Mapping):
        return {}
    folder = path.absolute().parent.parent.parent  # RUN/media/CONTESTANT/FILE
    files = {name: find_input(folder, str(digests[name])) for name in NAMES if name in digests}
    return {name: FileInput(str(file), str(digests[name])) for name, file in files.items() if file is not None}
