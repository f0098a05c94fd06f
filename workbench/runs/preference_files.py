"""Files of preference pairs: which columns they have, and how a row becomes a comparison of two media.

Parquet, JSON lines, CSV and TSV, by the columns that they have:

    caption, jpg_0, jpg_1, label_0, label_1       Pick-a-Pic (arXiv:2305.01569), whose pictures are in the file; a row
                                                  whose has_label is false is passed over; where jpg_0 is empty, as
                                                  of clips and sounds, image_0 names the file
    prompt, image_path, human_preference          HPDv2 (arXiv:2306.09341), two lists, of which each pair with different
                                                  preferences counts
    prompt, a_path, b_path, winner                votes, as the app and rewards.people.votes have them: a, b or tie
    prompt, left_file, right_file, choice         votes of a study, as `workbench study export` writes them
    prompt, pos_path, neg_path                    what a public preferred, as `workbench social curate` writes it
    prompt or caption, chosen, rejected           as datasets of the hub have them

A medium is a path, relative to the file, or the bytes of a picture, also in the datasets library's {bytes, path}. What
the pipeline makes its samples from is in columns of the inputs' names: source, mask, and so on.
Labels are read at once, media on access. Rows are counted from 0, lines from 1. A row that can't be used is left out,
and a sentence says why.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput
from workbench.core.io import image as pictures
from workbench.core.io import media
from workbench.core.io.parsing import parse_json, read_text
from workbench.core.text import one_line, quote_value
from workbench.core.types import Input, Media, Prompt
from workbench.runs.prompt_inputs import check_mask, measure_file, open_input

TIE = -1
BLOCK = 1000  # rows of a text file that are shuffled together; of a Parquet file, a row group
MAX_TEXT_BYTES = 1 << 31
WINNERS = {"a": 0, "b": 1, "tie": TIE}
CHOICES = {"left": 0, "right": 1, "tie": TIE, "bad": None}  # "both bad" prefers nothing
PREFERENCES = {(1.0, 0.0): 0, (0.0, 1.0): 1, (0.5, 0.5): TIE}


@dataclass(frozen=True)
class Comparison:
    """One comparison of two media: its place in the file, and which one won."""

    row: int  # in its block
    sides: tuple[int, int]  # the two media
    winner: int  # 0, 1, or TIE
    where: str  # for sentences


PairReader = Callable[[Comparison], tuple[str, Media, Media]]  # a comparison's prompt, and its two media, one row each


@dataclass(frozen=True)
class Block:
    """Comparisons whose media are read from the same part of a file, and sentences on rows that can't be used."""

    choices: tuple[Comparison, ...]
    load: Callable[[], PairReader]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Columns of a file of pairs. prompts: of which it has one; sides: the columns of the media; labels: what says who
    won."""

    prompts: tuple[str, ...]
    sides: tuple[str, ...]
    labels: tuple[str, ...]
    winner: Callable[[Mapping], int | None]  # of a row: 0, 1 or TIE; None: it has no label. Raises BadInput
    spare: tuple[str, str] | tuple[()] = ()  # columns of paths that count where those of the media are empty

    def fits(self, columns: set[str]) -> bool:
        return bool(columns.intersection(self.prompts)) and {*self.sides, *self.labels} <= columns

    def compare(self, row: Mapping, n: int, where: str) -> list[Comparison]:
        """The comparisons in row n of a block. Raises BadInput."""
        check_prompt(self.read_prompt(row))
        winner = self.winner(row)
        return [] if winner is None else [Comparison(n, (0, 1), winner, where)]

    def read_prompt(self, row: Mapping) -> Any:
        return next((row[key] for key in self.prompts if key in row), None)

    def read_media(self, row: Mapping, side: int, folder: Path) -> Media:
        """The medium of one side. Raises BadInput."""
        return decode_medium(self.read_cell(row, side), self.sides[side], folder)

    def read_cell(self, row: Mapping, side: int) -> Any:
        """The path or the bytes of one side."""
        cell = _unpack_cell(row.get(self.sides[side]))
        return cell or (_unpack_cell(row.get(self.spare[side])) if self.spare else cell)

    def paths(self, row: Mapping, inputs: Sequence[str]) -> list[str]:
        """The paths of media that a row names, also of these inputs."""
        return [value for key in (*self.sides, *self.spare, *inputs) if isinstance(value := row.get(key), str)]


class ListLayout(Layout):
    """HPDv2's: a row has several media, and any two of them with different preferences are compared."""

    def compare(self, row: Mapping, n: int, where: str) -> list[Comparison]:
        check_prompt(self.read_prompt(row))
        paths, likes = (v if isinstance(v := row.get(key), list) else [] for key in ("image_path", "human_preference"))
        if not (len(paths) == len(likes) > 1 and all(isinstance(x, (int, float)) for x in likes)):
            raise BadInput("image_path and human_preference must be lists of the same length, 2 or more")
        return [
            Comparison(n, (i, j), TIE if likes[i] == likes[j] else int(likes[j] > likes[i]), where)
            for i, j in combinations(range(len(likes)), 2)
        ]

    def read_media(self, row: Mapping, side: int, folder: Path) -> Media:
        return decode_medium(self.read_cell(row, side), "image_path", folder)

    def read_cell(self, row: Mapping, side: int) -> Any:
        return _unpack_cell(row["image_path"][side])

    def paths(self, row: Mapping, inputs: Sequence[str]) -> list[str]:
        paths = row.get("image_path")
        sides = [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
        return sides + [value for key in inputs if isinstance(value := row.get(key), str)]


def _picked(row: Mapping) -> int | None:
    if row.get("has_label") is False:
        return None
    labels = row.get("label_0"), row.get("label_1")
    try:
        return PREFERENCES[float(labels[0]), float(labels[1])]  # type: ignore[arg-type]  # None is a TypeError
    except (KeyError, TypeError, ValueError):
        values = f"label_0 and label_1 are {quote_value(labels[0])} and {quote_value(labels[1])}"
        raise BadInput(f"{values}; they must be 1 and 0, 0 and 1, or both 0.5") from None


def _voted(row: Mapping) -> int:
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in WINNERS:
        raise BadInput(f"`winner` must be a, b or tie, got {quote_value(winner)}")
    return WINNERS[winner]


def _chosen(row: Mapping) -> int | None:
    choice = row.get("choice")
    if choice not in CHOICES:
        raise BadInput(f"`choice` must be left, right, tie or bad, got {quote_value(choice)}")
    return CHOICES[choice]


LAYOUTS = (
    Layout(("caption",), ("jpg_0", "jpg_1"), ("label_0", "label_1"), _picked, ("image_0", "image_1")),
    ListLayout(("prompt",), ("image_path",), ("human_preference",), lambda row: TIE),
    Layout(("prompt",), ("a_path", "b_path"), ("winner",), _voted),
    Layout(("prompt",), ("left_file", "right_file"), ("choice",), _chosen),
    Layout(("prompt",), ("pos_path", "neg_path"), (), lambda row: 0),
    Layout(("prompt", "caption"), ("chosen", "rejected"), (), lambda row: 0),
)


def read_blocks(file: Path, inputs: Sequence[str] = ()) -> list[Block]:
    """The comparisons in a file, whose prompts come with these inputs. Raises BadInput for a file that is none of the
    above."""
    return READERS[file.suffix.lower()](file, inputs)


def named_media(file: Path, inputs: Sequence[str] = ()) -> set[Path]:
    """The files of media and of inputs that a file of pairs names. Raises BadInput as `read_blocks` does."""
    if file.suffix.lower() != ".parquet":
        layout, rows, _ = _read_text_rows(file)
        return {file.parent / path for _, row in rows for path in layout.paths(row, inputs)}
    from pyarrow import parquet as pq

    table = pq.ParquetFile(file)
    sides = {*inputs, *(side for layout in LAYOUTS for side in (*layout.sides, *layout.spare))}
    texts = ("string", "large_string", "list")
    columns = [f.name for f in table.schema_arrow if f.name in sides and str(f.type).startswith(texts)]
    parquet_rows = table.read(columns=columns).to_pylist() if columns else []
    return {file.parent / path for row in parquet_rows for layout in LAYOUTS for path in layout.paths(row, inputs)}


def digest_inputs(file: Path, name: str) -> set[str]:
    """The digests of the inputs in a column of a file of pairs, of those that can be read."""
    if file.suffix.lower() != ".parquet":
        values = [row.get(name) for _, row in _read_text_rows(file)[1]]
        return _digest_values(values, file.parent)
    from pyarrow import parquet as pq

    table = pq.ParquetFile(file)
    if name not in table.schema_arrow.names:
        return set()
    groups = (table.read_row_group(n, columns=[name]).column(0) for n in range(table.num_row_groups))
    return {digest for group in groups for digest in _digest_values(group.to_pylist(), file.parent)}


def _digest_values(values: Sequence[Any], folder: Path) -> set[str]:
    digests = set()
    for value in map(_unpack_cell, values):
        if isinstance(value, bytes):
            digests.add(hashlib.sha256(value).hexdigest())
        elif isinstance(value, str) and value.strip():
            with suppress(BadInput):  # it costs its pair, whose sentence says why
                digests.add(measure_file(folder / value, decode=False).digest)
    return digests


def _unpack_cell(value: Any) -> Any:
    """A path or bytes, also out of the datasets library's form of pictures."""
    return value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value


def find_layout(columns: set[str], file: Path) -> Layout:
    """The layout that has these columns. Raises BadInput, naming those of the nearest."""
    if layout := next((layout for layout in LAYOUTS if layout.fits(columns)), None):
        return layout
    if {"a_features", "b_features"} & columns:
        raise BadInput(f"{file}: a vote on features has no media to learn from; give `a_path` and `b_path`")
    known = "; ".join(", ".join((layout.prompts[0], *layout.sides, *layout.labels)) for layout in LAYOUTS)
    raise BadInput(f"{file}: its columns, {one_line(', '.join(sorted(columns)), 150)}, are none of: {known}")


def read_rows(file: Path) -> Iterator[tuple[str, Layout, dict]]:
    """(file and line or row, the file's layout, row) of each row that can be read. Raises BadInput for a file that is
    none of the above."""
    if file.suffix.lower() != ".parquet":
        layout, rows, _ = _read_text_rows(file)
        yield from ((where, layout, row) for where, row in rows)
        return
    groups = len(_read_parquet(file, ()))  # which also checks it
    from pyarrow import parquet as pq

    table, count = pq.ParquetFile(file), 0
    layout = find_layout(set(table.schema_arrow.names), file)
    for group in range(groups):
        for row in table.read_row_group(group).to_pylist():
            yield f"{file}, row {count}", layout, row
            count += 1


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(file: Path, inputs: Sequence[str]) -> list[Block]:
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as pq
    except ImportError:
        raise BadInput(f"{file}: reading Parquet needs pyarrow; pip install pyarrow, or give .jsonl") from None
    try:
        table = pq.ParquetFile(file)
        columns = set(table.schema_arrow.names)
        layout = find_layout(columns, file)
        wanted = [*layout.prompts, *layout.labels, *(["image_path"] if isinstance(layout, ListLayout) else [])]
        labels = [c for c in (*wanted, "has_label") if c in columns]
        blocks, first = [], 0
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group, columns=labels).to_pylist()
            named = [(f"{file}, row {first + n}", row) for n, row in enumerate(rows)]
            blocks.append(_make_block(named, layout, partial(_load_row_group, file, group, layout, columns, inputs)))
            first += len(rows)
        return blocks
    except (OSError, ArrowException) as error:
        raise BadInput(f"{file}: can't be read as Parquet ({one_line(error, 200)})") from None


def _load_row_group(file: Path, group: int, layout: Layout, columns: set[str], inputs: Sequence[str]) -> PairReader:
    from pyarrow import ArrowException
    from pyarrow import parquet as pq

    names = [c for c in (*layout.prompts, *layout.sides, *layout.spare, *inputs) if c in columns]
    try:
        rows = pq.ParquetFile(file).read_row_group(group, columns=names)
    except (OSError, ArrowException) as error:
        raise BadInput(f"{file}: row group {group} can't be read ({one_line(error, 150)})") from None
    return lambda choice: _read_pair(rows.slice(choice.row, 1).to_pylist()[0], choice, layout, file.parent, inputs)


# --- text ------------------------------------------------------------------------------------------------------------


def _read_text_blocks(file: Path, inputs: Sequence[str]) -> list[Block]:
    layout, rows, left_out = _read_text_rows(file)
    parts = [rows[low : low + BLOCK] for low in range(0, len(rows), BLOCK)]
    blocks = [_make_block(part, layout, partial(_load_rows, part, layout, file.parent, inputs)) for part in parts]
    return [*blocks, Block((), partial(_load_rows, [], layout, file.parent, inputs), tuple(left_out))]


def _read_text_rows(file: Path) -> tuple[Layout, list[tuple[str, dict]], list[str]]:
    """(the layout, (file and line, row) of each row, sentences on lines that are none)."""
    rows, left_out = [], []
    for where, line in _iterate_lines(file):
        try:
            row = parse_json(line, where) if isinstance(line, str) else line
            if not isinstance(row, dict):
                raise BadInput(f"{where}: not a JSON object")
            rows.append((where, row))
        except BadInput as error:
            left_out.append(str(error))
    if not rows:
        raise BadInput(left_out[0] if left_out else f"{file}: there is no pair in it")
    usual = next((row for _, row in rows if any(layout.fits(set(row)) for layout in LAYOUTS)), rows[0][1])
    return find_layout(set(usual), file), rows, left_out


def _iterate_lines(file: Path) -> Iterator[tuple[str, str | dict]]:
    text = read_text(file, MAX_TEXT_BYTES)
    if file.suffix.lower() == ".jsonl":
        lines = enumerate(text.split("\n"), 1)  # JSON may hold U+2028, an end of line to splitlines()
        yield from ((f"{file}, line {n}", line) for n, line in lines if line.strip())
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    try:
        for row in reader:
            yield f"{file}, line {reader.line_num}", {k: v for k, v in row.items() if isinstance(k, str)}
    except csv.Error as error:
        raise BadInput(f"{file}, line {reader.line_num}: can't be read as CSV ({one_line(error, 150)})") from None


def _load_rows(rows: Sequence[tuple[str, dict]], layout: Layout, folder: Path, inputs: Sequence[str]) -> PairReader:
    return lambda choice: _read_pair(rows[choice.row][1], choice, layout, folder, inputs)


# --- rows ------------------------------------------------------------------------------------------------------------


def _make_block(rows: Sequence[tuple[str, dict]], layout: Layout, load: Callable[[], PairReader]) -> Block:
    choices: list[Comparison] = []
    left_out = []
    for n, (where, row) in enumerate(rows):
        try:
            choices += layout.compare(row, n, where)
        except BadInput as error:
            left_out.append(f"{where}: {error}")
    return Block(tuple(choices), load, tuple(left_out))


def _read_pair(
    row: Mapping, choice: Comparison, layout: Layout, folder: Path, inputs: Sequence[str]
) -> tuple[str, Media, Media]:
    try:
        a, b = (layout.read_media(row, side, folder) for side in choice.sides)
        text, values = check_prompt(layout.read_prompt(row)), {n: _decode_input(row.get(n), n, folder) for n in inputs}
        check_mask(values)
        return Prompt(text, values) if values else text, a, b
    except BadInput as error:
        raise BadInput(f"{choice.where}: {error}") from None


def _decode_input(value: Any, name: str, folder: Path) -> Input:
    """The input that a cell holds or names. Raises BadInput."""
    value = _unpack_cell(value)
    if isinstance(value, str) and value.strip():
        return open_input(value, name, "", folder, decode=False)
    picture = decode_medium(value, name, folder)
    return MediaInput(picture, hashlib.sha256(value).hexdigest())


def check_prompt(text: Any) -> str:
    """The prompt itself. Raises BadInput unless it is a text with something in it."""
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"the prompt must be a text, got {quote_value(text)}")
    return text


def decode_medium(value: Any, column: str, folder: Path) -> Media:
    """The medium that a cell holds or names. Raises BadInput."""
    value = _unpack_cell(value)
    if isinstance(value, bytes) and value:
        return Media(pictures.decode_image(value, column)[None], "image")
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{column} holds no picture that can be read")
    return media.read_media(folder / value)


READERS = {".parquet": _read_parquet, ".jsonl": _read_text_blocks, ".csv": _read_text_blocks, ".tsv": _read_text_blocks}
