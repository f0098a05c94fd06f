"""Prompt files of every usual kind, read by their suffix into a PromptTable.

.txt             a prompt a line; "# …" and "## …" are comments, and "#aesthetic …" is a prompt
.jsonl           a line is a text in quotes, or an object with a key `prompt`
.json            a list of such, or {"prompts": [...]}
.csv .tsv        a header, and in it a column `prompt`
.parquet         the same (needs pyarrow)

In place of `prompt` the key or column may be called `prompts`, `caption` or `text`. Further ones are kept; those in
INPUT_COLUMNS name what comes with each prompt (prompt_inputs.py), and where there is one, the prompt may be missing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, reword_prompt
from workbench.core.io import folders
from workbench.core.io.parsing import parse_json, read_json, read_text, split_lines
from workbench.core.schema import suggest_nearest
from workbench.core.text import one_line, quote_value
from workbench.core.types import prompt_key

PROMPT_NAMES = ("prompt", "prompts", "caption", "text")  # of the key or column, the first that is there
METADATA = ("metadata.jsonl", "metadata.csv")  # in a folder of media, as the datasets library has them
FILE_NAME = "file_name"  # the column of such a file that names the medium of a row
INPUT_COLUMNS = (*NAMES, FILE_NAME)  # files, relative to the prompts'
LIST = "the list"  # as which sentences name prompts that come from no file
MAX_PARQUET_BYTES = 1 << 30  # unpacked
COMMENT = re.compile(r"\s*#(\s|#|$)")


@dataclass(frozen=True)
class Embedded:
    """A cell of a table that holds a medium itself and names no file: known to be there, and not read."""


Row = tuple[str, str, Mapping[str, Any]]  # where it stands, its prompt, its further columns


@dataclass(frozen=True)
class PromptTable:
    """The prompts of a list or file in order, and what else it says of each.

    A prompt stands there twice only where its INPUT_COLUMNS differ, and is empty only where it has one of these.
    """

    prompts: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # lower-case name -> a value, or None, for each
    notes: tuple[str, ...] = ()  # sentences on what was left out, or is not what it may have been meant to be
    folder: Path = Path()  # that the paths in INPUT_COLUMNS are relative to
    name: str = LIST  # or the file's
    places: tuple[str, ...] = ()  # where each stands, for sentences: "edits.csv, line 3"
    repeated: int = 0  # rows left out that say the same as an earlier one
    empty: int = 0  # rows left out that say nothing

    def __len__(self) -> int:
        return len(self.prompts)


def read_prompt_file(path: Path, where: str = "prompts") -> PromptTable:
    """The table in a file. Raises BadInput, naming the line, for what is no such file, and for one without a prompt."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(
            f"{where}: {path}: files of this kind are not read; give {', '.join(filter(None, READERS))}, or rename one "
            "that has a prompt a line to .txt"
        )
    try:
        rows, notes = reader(path)
        return make_table(rows, notes, str(path), path.parent)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def make_table(rows: Iterable[Row], notes: Sequence[str], where: str, folder: Path = Path()) -> PromptTable:
    """The table of rows, without those that are empty or stand there twice. Raises BadInput where none is left."""
    distinct: dict[tuple, tuple[str, str, Mapping[str, Any]]] = {}
    empty = repeated = 0
    for place, prompt, further in rows:
        check_prompt(prompt, f"{where}{place}")
        inputs = [str(further.get(name) or "").strip() for name in INPUT_COLUMNS]
        prompt = reword_prompt(prompt, str(prompt).strip())
        key = (prompt_key(prompt), *inputs)
        if not any(key):
            empty += 1
            continue
        repeated += key in distinct
        distinct.setdefault(key, (f"{where}{place}", prompt, further))
    if not distinct:
        raise BadInput(f"{where} has no prompt in it")
    places, prompts, columns = zip(*distinct.values(), strict=True)
    names = dict.fromkeys(name for further in columns for name in further)
    return PromptTable(
        prompts,
        {name: tuple(further.get(name) for further in columns) for name in names},
        tuple(notes),
        folder,
        where,
        places,
        repeated,
        empty,
    )


def read_prompt_folder(folder: Path, prompt: str | None = None, where: str = "prompts") -> PromptTable:
    """The table of a folder of media: its metadata.jsonl or metadata.csv, whose `file_name` names a medium, or all its
    media with one prompt. Raises BadInput for a folder that has both or neither."""
    try:
        metadata = next((path for name in METADATA if (path := folder / name).is_file()), None)
        if metadata is not None and prompt is not None:
            raise BadInput(f"{metadata} says the prompts; leave `prompt` out, or move the file away")
        if metadata is not None:
            rows, notes = READERS[metadata.suffix](metadata)
            return make_table(rows, notes, str(metadata), folder)
        if prompt is None:
            raise BadInput(
                f"{folder} is a folder without {' or '.join(METADATA)}; name a file in it, or write "
                f"{{folder: {folder}, prompt: one for all}}"
            )
        listing = folders.list_media(folder)
        if not listing.files:
            raise BadInput(f"{folder}: no media files in this folder")
        names = [path.relative_to(folder).as_posix() for path in listing.files]
        notes = [sentence] if (sentence := listing.left_out_sentence()) else []
        return make_table(((f"/{name}", prompt, {FILE_NAME: name}) for name in names), notes, str(folder), folder)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def read_prompt_list(items: Sequence[Any], where: str = "prompts") -> PromptTable:
    """The table of a list of texts, and of mappings with the keys of a file; paths are relative to where the program
    runs. Raises BadInput."""

    def rows() -> Iterator[Row]:
        for n, item in enumerate(items, 1):
            place = f", prompt {n}" if isinstance(item, Mapping) else ""
            yield from _rows_of_values([(place, item)], LIST)

    try:
        return make_table(rows(), (), LIST)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def check_prompt(prompt: Any, where: str) -> None:
    """Raises BadInput for what is no text, or can't be written as text."""
    if not isinstance(prompt, str):
        raise BadInput(f"{where}: a prompt is a text, got {quote_value(prompt)}; put quotes around it")
    text = str(prompt)
    if "\0" in text or text.encode(errors="replace").decode() != text:
        raise BadInput(f"{where}: {quote_value(prompt)} holds a zero or half a surrogate pair, which are no text")


def _read_lines(path: Path) -> tuple[Iterator[Row], list[str]]:
    text = read_text(path)
    if "\0" in text:
        raise BadInput(f"{path}: not a text file; give one prompt a line, in UTF-8")
    lines = [(n, line.strip()) for n, line in enumerate(split_lines(text), 1) if not COMMENT.match(line)]
    hashes = sum(line.startswith("#") for _, line in lines)
    notes = [f"{hashes} that begin with # are prompts; a comment begins with # and a space"] if hashes else []
    return ((f", line {n}", line, {}) for n, line in lines if line), notes


def _read_json_lines(path: Path) -> tuple[Iterator[Row], list[str]]:
    lines = enumerate(read_text(path).split("\n"), 1)  # U+2028 may stand inside JSON
    values = ((f", line {n}", parse_json(line, f"{path}, line {n}")) for n, line in lines if line.strip())
    return _rows_of_values(values, path), []


def _read_json(path: Path) -> tuple[Iterator[Row], list[str]]:
    value = read_json(path)
    if isinstance(value, Mapping) and isinstance(value.get("prompts"), list):
        value = value["prompts"]
    if not isinstance(value, list):
        raise BadInput(f'{path}: expected a list of prompts, or {{"prompts": […]}}, got {quote_value(value)}')
    return _rows_of_values(((f", prompt {n}", item) for n, item in enumerate(value, 1)), path), []


def _rows_of_values(values: Iterable[tuple[str, Any]], path: Path | str) -> Iterator[Row]:
    for place, value in values:
        if isinstance(value, Mapping):
            further = {str(name).strip().lower(): item for name, item in value.items()}
            name = _prompt_name(further, f"{path}{place}")
            yield place, further.pop(name) if name else "", further
        else:
            yield place, value, {}


def _prompt_name(names: Iterable[str], where: str) -> str:
    """The key or column of the prompts; "" where there is none but inputs."""
    names = list(names)
    if not (usable := [name for name in PROMPT_NAMES if name in names]):
        if any(name in names for name in INPUT_COLUMNS):
            return ""
        raise BadInput(f"{where}: no {' or '.join(PROMPT_NAMES)} among its keys; {suggest_nearest('prompt', names)}")
    return usable[0]


def _read_csv(path: Path) -> tuple[Iterator[Row], list[str]]:
    text = read_text(path)
    header = split_lines(text)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","  # where a comma stands in numbers
    return _rows_of_table(path, _parse_table(path, text, delimiter=delimiter)), []


def _read_tsv(path: Path) -> tuple[Iterator[Row], list[str]]:
    text = read_text(path)
    try:
        return _rows_of_table(path, _parse_table(path, text, delimiter="\t")), []
    except BadInput:  # by the standard there are no quotes: `"A" is for apple` is a whole cell
        return _rows_of_table(path, _parse_table(path, text, delimiter="\t", quoting=csv.QUOTE_NONE)), []


def _parse_table(path: Path, text: str, **style: Any) -> list[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **style)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: not such a table ({error})") from None


def _rows_of_table(path: Path, rows: Sequence[tuple[int, list[str]]]) -> Iterator[Row]:
    if not rows:
        raise BadInput(f"{path}: empty; its first line names the columns")
    header = [name.strip().lower() for name in rows[0][1]]
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise BadInput(f"{path}, line 1: two columns are called {quote_value(repeated[0])}")
    prompt_name = _prompt_name(header, f"{path}, line 1")
    for line, cells in rows[1:]:
        if len(cells) > len(header):
            raise BadInput(f"{path}, line {line}: {len(cells)} cells where the header has {len(header)}")
        further = {name: cell or None for name, cell in zip(header, cells, strict=False) if name}
        yield f", line {line}", further.pop(prompt_name, None) or "", further


def _read_parquet(path: Path) -> tuple[Iterator[Row], list[str]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet as pq
    except ImportError:
        raise BadInput(f"{path}: reading .parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        named = {name.strip().lower(): name for name in schema.names}
        prompt_name = _prompt_name(named, str(path))
        bulky = [n for n in named if _holds_bytes(schema.field(named[n]).type)]
        wanted = [name for name in named if name not in bulky]
        if prompt_name in bulky:
            raise BadInput(f"{path}: the column {prompt_name!r} holds no text")
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        sizes = (group.column(c) for group in groups for c in range(group.num_columns))
        if (
            sum(s.total_uncompressed_size for s in sizes if s.path_in_schema in map(named.get, wanted))
            > MAX_PARQUET_BYTES
        ):
            raise BadInput(f"{path}: its texts are larger than {MAX_PARQUET_BYTES >> 20:,} MiB")
        columns = {name: file.read(columns=[named[name]]).column(0).to_pylist() for name in wanted}
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: can't be read as Parquet ({one_line(error, 100)})") from None
    columns |= {name: [Embedded()] * file.metadata.num_rows for name in bulky if name in INPUT_COLUMNS}
    rows = ({name: values[n] for name, values in columns.items()} for n in range(file.metadata.num_rows))
    notes = [f"columns left out, which hold bytes: {', '.join(bulky)}"] if bulky else []
    return ((f", row {n}", row.pop(prompt_name, None) or "", row) for n, row in enumerate(rows, 1)), notes


def _holds_bytes(kind: Any) -> bool:
    """Whether the type of a column of Parquet holds bytes, or is one that JSON has no word for."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    return not any(test(kind) for test in (*tests, pa.types.is_boolean, pa.types.is_null))


READERS: dict[str, Callable[[Path], tuple[Iterator[Row], list[str]]]] = {
    ".txt": _read_lines,
    "": _read_lines,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
