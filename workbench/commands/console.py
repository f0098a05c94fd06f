"""Consoles for the output of commands, and tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

# A table is cut to the terminal's width, but a pipe or a file has none.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)


class Failed(RuntimeError):
    """Raised where the input was valid and the work failed. One sentence; the command line exits with 1."""


def build_table(rows: Sequence[Mapping], title: str | None = None) -> Table:
    """A table of rows (column -> value); brackets in prompts and file names are not read as markup."""
    table = Table(box=None, header_style="bold", title=title, title_justify="left", pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(Text(str(column)), overflow="fold")
    for row in rows:
        words = ("" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        table.add_row(*map(Text, words))
    return table
