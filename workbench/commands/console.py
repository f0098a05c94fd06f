"""Consoles for the output of commands, tables and JSON. Prompts, file names and replies of servers may hold anything:
here is the one place where what a terminal would obey is written out."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from workbench.core.text import escape_control, one_line

LONGEST_CELL = 2000  # letters


class Printable:
    """What a renderable prints, control characters of its text written out; rich's own are kept."""

    def __init__(self, renderable: ConsoleRenderable):
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for text, style, control in console.render(self.renderable, options):
            yield Segment(text if control else escape_control(text, keep="\n"), style, control)


class PrintableConsole(Console, RenderHook):
    """Prints everything as Printable."""

    def __init__(self, **settings: Any):
        super().__init__(highlight=False, **settings)
        self.push_render_hook(self)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # workbench.cli says what follows, for all that is printed

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Printable(renderable) for renderable in renderables]


# A table is cut to the terminal's width, but a pipe or a file has none.
out = PrintableConsole(width=None if sys.stdout.isatty() else 140)
err = PrintableConsole(stderr=True)


class Failed(RuntimeError):
    """Raised where the input was valid and the work failed. One sentence; the command line exits with 1."""


def build_table(rows: Sequence[Mapping], title: str | None = None) -> Table:
    """A table of rows (column -> value); brackets in prompts and file names are not read as markup."""
    table = Table(box=None, header_style="bold", title=title, title_justify="left", pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(Text(str(column)), overflow="fold")
    for row in rows:
        words = ("" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        table.add_row(*(Text(one_line(word, LONGEST_CELL)) for word in words))
    return table


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, readable but for what a terminal would obey."""
    print(escape_control(json.dumps(value, ensure_ascii=False), as_json=True))


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows (column -> value) as CSV; line breaks stay, inside quotes."""
    writer = csv.DictWriter(sys.stdout, rows[0])
    writer.writeheader()
    for row in rows:
        cells = {k: escape_control(v, keep="\n\t") if isinstance(v, str) else v for k, v in row.items()}
        writer.writerow(cells)
