"""A table of scores on its way to a file. Rows are kept in a journal beside it as they come, so that a stop loses none:
the same request goes on from there. The file itself is written at the end, in one piece."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.core.paths import sync_folder

ROWS_PER_WRITE = 1000  # rows of a Parquet file that are in memory at once
TEXTS = ("file", "prompt", "note", "error")  # columns that hold no number


class ScoreTable:
    """Rows of these columns for `file`, of these media in their order; None stands for several of them together.
    request: all that the scores depend on beside the media; rows of another request are not taken over. Raises BadInput
    for a file that can't be written."""

    def __init__(self, file: Path, columns: Sequence[str], media: Sequence[Path | None], request: Mapping[str, Any]):
        check_file(file)
        self.file, self.columns = file, list(columns)
        self.journal = file.with_name(f".{file.name}.partial")
        self.keys = [_file_key(path) if path else f"|{n}" for n, path in enumerate(media)]
        self.head = hashlib.sha256(json.dumps([request, self.columns], sort_keys=True).encode()).hexdigest()
        self.places = self._read_journal()  # key of a file -> where its row begins

    @property
    def finished(self) -> frozenset[int]:
        """The numbers of the media that have a row already, without a fault."""
        return frozenset(n for n, key in enumerate(self.keys) if key in self.places and not _is_together(key))

    def _read_journal(self) -> dict[str, int]:
        """Of the rows without a fault; {} where there is no journal of this request."""
        if not self.journal.is_file():
            return {}
        places: dict[str, int] = {}
        with self.journal.open("rb") as f:
            if f.readline().decode(errors="replace").strip() != self.head:
                return {}
            while line := f.readline():
                if not line.endswith(b"\n"):  # cut off by the stop
                    break
                entry = parse_json(line.decode(errors="replace"), str(self.journal))
                if not entry["row"]["error"]:
                    places[entry["key"]] = f.tell() - len(line)
        return places

    def write(self, rows: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
        """Write rows, numbered as the media, to the journal as they come, and at the end all to the file; yields all of
        them in order, also those that were finished before."""
        try:
            mode = "r+b" if self.places else "wb"
            with self.journal.open(mode) as journal:
                if self.places:
                    journal.seek(0, io.SEEK_END)
                    if not _ends_in_newline(self.journal):
                        journal.write(b"\n")
                else:
                    journal.write(f"{self.head}\n".encode())
                for n, row in rows:
                    self.places[self.keys[n]] = journal.tell()
                    entry = {"key": self.keys[n], "row": row}
                    journal.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
                    journal.flush()
            with self.journal.open("rb") as journal:
                WRITERS[self.file.suffix.lower()](self._read_rows(journal), self.columns, self.file)
                yield from enumerate(self._read_rows(journal))
        except OSError as error:
            raise BadInput(f"--out {self.file}: can't be written ({error.strerror}); name another file") from None
        self.journal.unlink(missing_ok=True)

    def _read_rows(self, journal: BinaryIO) -> Iterator[dict]:
        for key in self.keys:
            journal.seek(self.places[key])
            yield json.loads(journal.readline())["row"]


def check_file(file: Path) -> None:
    """Raises BadInput for a file that no table can be written to."""
    if file.suffix.lower() not in WRITERS:
        raise BadInput(f"--out {file}: name a file that ends in {', '.join(WRITERS)}")
    if not file.absolute().parent.is_dir():
        raise BadInput(f"--out {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise BadInput(f"--out {file}: is a folder; name a file")
    if file.suffix.lower() == ".parquet":
        _import_parquet()


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise BadInput("writing Parquet needs pyarrow; run: pip install pyarrow, or name a .csv or .jsonl") from None
    return pyarrow


def _file_key(path: Path) -> str:
    """What tells a file from another one of its name."""
    try:
        stat = path.stat()
    except OSError:
        return f"{path}|"
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _is_together(key: str) -> bool:
    return key.startswith("|")


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as f:
        f.seek(-1, io.SEEK_END)
        return f.read(1) == b"\n"


def inert_text(value: object) -> object:
    """What a spreadsheet would take for a formula, as text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


@contextmanager
def _replace_file(file: Path) -> Iterator[Path]:
    """A path that becomes `file` once the block has ended well."""
    temp = file.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temp
        with temp.open("rb") as f:
            os.fsync(f.fileno())
        os.replace(temp, file)
        sync_folder(file.parent)
    finally:
        temp.unlink(missing_ok=True)


def write_csv(rows: Iterable[dict], columns: Sequence[str], file: Path) -> None:
    with _replace_file(file) as temp, temp.open("w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, columns)
        table.writeheader()
        table.writerows({key: inert_text(value) for key, value in row.items()} for row in rows)


def write_json_lines(rows: Iterable[dict], columns: Sequence[str], file: Path) -> None:
    with _replace_file(file) as temp, temp.open("w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(rows: Iterable[dict], columns: Sequence[str], file: Path) -> None:
    with _replace_file(file) as temp, temp.open("w", encoding="utf-8") as f:
        for n, row in enumerate(rows):
            f.write((",\n " if n else "[") + json.dumps(row, ensure_ascii=False))
        f.write("]\n")


def write_parquet(rows: Iterable[dict], columns: Sequence[str], file: Path) -> None:
    pa = _import_parquet()
    schema = pa.schema([(name, pa.string() if name in TEXTS else pa.float64()) for name in columns])
    with _replace_file(file) as temp, pa.parquet.ParquetWriter(temp, schema) as out:
        for part in _take_parts(rows):
            out.write_table(pa.Table.from_pylist(part, schema))


def _take_parts(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    while part := list(islice(rows, ROWS_PER_WRITE)):
        yield part


WRITERS: dict[str, Callable[[Iterable[dict], Sequence[str], Path], None]] = {
    ".csv": write_csv,
    ".jsonl": write_json_lines,
    ".json": write_json,
    ".parquet": write_parquet,
}
