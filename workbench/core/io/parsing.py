"""One reader for every text that comes from outside: JSON, YAML and lines, each within bounds.

Whatever is wrong raises BadInput with one sentence of one line that names the source. The bounds are on bytes, nesting,
digits, and what YAML's aliases expand to: no input costs more than a few seconds, nor memory beyond a multiple of its
size. Refused besides: NaN, infinity and numbers that a float can't hold; a key given twice, whose first value would be
lost; half a surrogate pair, which is no text and can't be written again. Text is UTF-8, or UTF-16 or UTF-32 that begins
with its byte order mark.

Imports the standard library and yaml only.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import BadInput
from workbench.core.text import one_line

__all__ = [
    "decode_text",
    "one_line",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_text",
    "read_yaml",
    "split_lines",
]

MAX_BYTES = 1 << 26  # 64 MiB, of one JSON text or text file
MAX_YAML_BYTES = 1 << 22  # YAML is read ten times as slowly
MAX_LINES_BYTES = 1 << 31  # of a file of lines
MAX_DEPTH = 100  # lists and mappings in one another; more overflows the stack of whatever works on the value
MAX_DIGITS = 100  # of a number: Python itself refuses 4,300
MAX_NODES = 500_000  # of a YAML text, aliases written out

SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file. Raises BadInput for one that is missing, can't be read, is too large, or is no file:
    a folder, a device, a pipe, on which reading would wait for ever."""
    where, is_file = one_line(path, 150), True
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            is_file = stat.S_ISREG(about.st_mode)
            data = file.read(max_bytes + 1) if is_file and about.st_size <= max_bytes else None
    except FileNotFoundError:
        raise BadInput(f"{where}: no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{where}: can't be read, for it is a folder; name a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadInput(f"{where}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not is_file:
        raise BadInput(f"{where}: not a regular file but a pipe or a device; name a file")
    if data is None or len(data) > max_bytes:
        raise BadInput(f"{where}: larger than {_size_words(max_bytes)}, the most that is read here")
    return data


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file, its line breaks as they are. Raises BadInput as `read_bytes` and `decode_text` do."""
    return decode_text(read_bytes(path, max_bytes), str(path))


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES, allow_nan: bool = False) -> Any:
    """The value in a JSON file, as `parse_json` reads it. Raises BadInput, also for a missing file."""
    return parse_json(read_bytes(path, max_bytes), str(path), max_bytes=max_bytes, allow_nan=allow_nan)


def read_yaml(path: str | Path, *, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The value in a YAML file. Raises BadInput, also for a missing file."""
    return parse_yaml(read_bytes(path, max_bytes), str(path), max_bytes=max_bytes)


def read_json_lines(
    path: str | Path, *, max_bytes: int = MAX_LINES_BYTES, drop_last: bool = False, allow_nan: bool = False
) -> list[tuple[int, Any]]:
    """(line number from 1, value) of every line that isn't empty. Raises BadInput, naming the line.

    drop_last: leave out a last line without a line break at its end: a writer died in it.
    """
    lines = read_text(path, max_bytes).split("\n")  # U+2028 may stand inside a JSON string
    if drop_last:
        lines[-1] = ""
    source = one_line(path, 150)
    return [
        (n, parse_json(line, f"{source}, line {n}", allow_nan=allow_nan))
        for n, line in enumerate(lines, 1)
        if line.strip()
    ]


def split_lines(text: str) -> list[str]:
    """The lines of a text as an editor counts them: U+2028, U+0085, form feeds and the like split none."""
    return re.split(r"\r\n|\n|\r", text)


def decode_text(data: bytes, source: str) -> str:
    """The text in `data`, without its byte order mark. Raises BadInput, naming line and byte, for another encoding."""
    mark, encoding = next(((m, e) for m, e in MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where, byte = one_line(source, 150), data[len(mark) + error.start]
        if not mark and b"\0" in data:
            raise BadInput(f"{where}: not a text file in UTF-8; give one") from None
        hint = "" if mark else "; perhaps it is Latin-1 or Windows-1252"
        name = encoding[:6].upper().rstrip("-")
        raise BadInput(f"{where}, line {line}: not {name} text (byte 0x{byte:02x}){hint}; save it as UTF-8") from None


def parse_json(data: str | bytes, source: str, *, max_bytes: int = MAX_BYTES, allow_nan: bool = False) -> Any:
    """The value of a JSON text. `source` names it in messages: a file, a server, a line. Raises BadInput.

    allow_nan: read NaN and Infinity, as Python's writer writes them.
    """
    text, where = _bounded_text(data, source, max_bytes), one_line(source, 150)
    try:
        value = json.loads(
            text,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=float if allow_nan else _refuse_constant,
            object_pairs_hook=_unique_pairs,
        )
    except RecursionError:
        raise BadInput(f"{where}: nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        if _bracket_depth(text[: error.pos]) > MAX_DEPTH:  # where another library has raised Python's recursion limit
            raise BadInput(f"{where}: nested more than {MAX_DEPTH} deep") from None
        place = f"line {error.lineno}, " * ("\n" in text.strip()) + f"column {error.colno}"
        raise BadInput(f"{where}: not valid JSON ({place}: {error.msg})") from None
    except _Unreadable as error:
        raise BadInput(f"{where}: {error}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise BadInput(f"{where}: nested more than {MAX_DEPTH} deep")
    if SURROGATE_ESCAPE.search(text):
        _check_text(json.dumps(value, ensure_ascii=False), where)
    return value


def parse_yaml(data: str | bytes, source: str, *, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The value of a YAML text, of plain types alone; dates stay text. `source` names it in messages. Raises
    BadInput."""
    text, where = _bounded_text(data, source, max_bytes), one_line(source, 150)
    try:
        _count_nodes(text)
        return yaml.load(text, BoundedLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        last = text.rstrip().count("\n") + 1  # an end of the file that comes too early is found after it
        line = f", line {min(mark.line + 1, last)}" if mark else ""
        reason = one_line(getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable", 100)
        raise BadInput(f"{where}{line}: not valid YAML ({reason})") from None
    except _Unreadable as error:
        raise BadInput(f"{where}{error.place}: {error}") from None
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # a wrong tag: `!!int x`, `!!bool x`
        raise BadInput(f"{where}: not valid YAML ({one_line(error, 100)})") from None


class _Unreadable(Exception):
    """What is wrong with a value, to be completed by its source; `place` is `, line 3` or nothing."""

    def __init__(self, reason: str, mark: Any = None):
        super().__init__(reason)
        self.place = f", line {mark.line + 1}" if mark is not None else ""


def _bounded_text(data: str | bytes, source: str, max_bytes: int) -> str:
    if len(data) > max_bytes:
        raise BadInput(f"{one_line(source, 150)}: larger than {_size_words(max_bytes)}, the most that is read here")
    if isinstance(data, str):
        _check_text(data, one_line(source, 150))
        return data
    return decode_text(data, source)


def _bracket_depth(text: str) -> int:
    """How deep the brackets of a text are nested, those in strings included."""
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _size_words(count: int) -> str:
    return f"{count >> 20:,} MiB" if count >= 1 << 20 else f"{count:,} bytes"


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where}: holds half a surrogate pair (\\u{ord(text[error.start]):04x}), which is not text"
        ) from None


def _depth(value: Any) -> int:
    """How deep lists and mappings are nested, counted without recursion, up to one more than allowed."""
    depth, level = 0, [value]
    while depth <= MAX_DEPTH:
        level = [v for v in level if type(v) in (dict, list)]
        if not level:
            break
        depth += 1
        level = [v for block in level for v in (block.values() if type(block) is dict else block)]
    return depth


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Unreadable(f"a number of {len(text):,} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Unreadable(f"the number {one_line(text, 40)} is too large")
    return value


def _refuse_constant(text: str) -> float:
    raise _Unreadable(f"{text} is no finite number")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _Unreadable(f"the key {one_line(repeated, 60)!r} is given twice; keep one")
    return mapping


def _count_nodes(text: str) -> None:
    """Refuse a YAML text that is nested too deep, or that its aliases expand beyond MAX_NODES, from its events alone:
    a chain of ten aliases of aliases stands for billions of nodes."""
    count, open_blocks = 0, []  # blocks: (anchor, nodes before it)
    sizes: dict[str | None, int] = {}  # anchor -> nodes
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_blocks.append((event.anchor, count))
            sizes.pop(event.anchor, None)  # inside its own block it is not yet known
            if len(open_blocks) > MAX_DEPTH:
                raise _Unreadable(f"nested more than {MAX_DEPTH} deep", event.start_mark)
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_blocks.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_blocks):
                raise _Unreadable(f"the alias *{one_line(event.anchor, 40)} stands inside itself", event.start_mark)
            count += sizes.get(event.anchor, 1)
        if count > MAX_NODES:
            raise _Unreadable(f"more than {MAX_NODES:,} values, aliases written out", event.start_mark)


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BoundedLoader(LOADER):  # the C loader, where PyYAML has it
    """YAML's safe loader, which also refuses keys given twice and numbers that aren't finite or too long."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise _Unreadable(f"the key {one_line(key.value, 60)!r} is given twice; keep one", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        if len(node.value) > MAX_DIGITS:
            raise _Unreadable(f"a number of {len(node.value):,} digits; at most {MAX_DIGITS} are read", node.start_mark)
        value = self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise _Unreadable(f"expected a number, got {node.value}", node.start_mark)
        return value


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_number)
BoundedLoader.add_constructor("tag:yaml.org,2002:float", BoundedLoader.construct_number)
for _tag in ("binary", "timestamp", "omap", "pairs", "set"):  # JSON has none of them, so a run couldn't store them
    BoundedLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", BoundedLoader.construct_undefined)
BoundedLoader.yaml_implicit_resolvers = {  # a date in a prompt or a name is meant as text
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for letter, resolvers in LOADER.yaml_implicit_resolvers.items()
}
