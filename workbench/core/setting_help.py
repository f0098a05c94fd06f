"""Help texts of a dataclass, read from its source: its docstring and the comments at its fields. Standard library
only."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from functools import lru_cache
from typing import Any

from workbench.core.source_trees import PARSING, parse_source


def summarise_class(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line; "" without one."""
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def describe_settings(cls: type) -> list[tuple[str, Any, str]]:
    """(name, default, help) of each setting of a dataclass. A setting's help is the comment beside its field, or above
    it; a subclass that only changes the default inherits the help."""
    help_texts: dict[str, str] = {}
    for c in reversed(cls.__mro__):
        if dataclasses.is_dataclass(c):
            help_texts |= {name: comment for name, comment in _field_comments(c).items() if comment}
    return [(f.name, f.default, help_texts.get(f.name, "")) for f in dataclasses.fields(cls) if f.init]


@lru_cache
def _field_comments(cls: type) -> dict[str, str]:
    """Field -> the comment on the field's own lines (several where the formatter wrapped it), else on the line
    above."""
    with PARSING:
        source = textwrap.dedent(inspect.getsource(cls))
    tokens, lines = tokenize.generate_tokens(io.StringIO(source).readline), source.splitlines()
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}  # by line, 1 the first
    by_field = {}
    (definition,) = parse_source(source).body
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last_line = node.end_lineno or node.lineno
            inline_comments = [comments[n] for n in range(node.lineno, last_line + 1) if n in comments]
            above = comments.get(node.lineno - 1, "") if lines[node.lineno - 2].lstrip().startswith("#") else ""
            by_field[node.target.id] = " ".join(inline_comments) or above
    return by_field
