"""The table of results for a terminal, and as LaTeX, Markdown and CSV. Columns are defined in columns.py."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table as ConsoleTable
from rich.text import Text

from workbench.report.columns import Cell, Column, Table, build_table
from workbench.report.estimates import compare_intervals, set_metrics
from workbench.report.findings import failure_sentences
from workbench.report.formatting import join_words, name_in_sentence

INTERVALS = "95 % intervals; * this contestant optimised it"
ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "\n": " "}
    | {"−": "$-$", "–": "--", "’": "'", "·": r"$\cdot$", "×": r"$\times$"}
)  # fmt: skip


def console_table(summary: Mapping) -> ConsoleTable:
    """The table for a terminal. An asterisk marks a mean of what the contestant itself optimised."""
    table = build_table(summary, "console")
    intervals = INTERVALS if any(c.optimised for row in table.rows for c in row.cells if c) else "95 % intervals"
    notes = "\n".join([intervals, *explain_columns(table, "wins %"), *failure_sentences(summary)])
    out = ConsoleTable(title=Text(summary["run"]), caption=Text(notes), caption_justify="left")
    out.add_column(Text("contestant"), justify="left")
    for column in table.columns:
        out.add_column(Text(column.heading_in("console")), justify=column.align)
    for row in table.rows:
        if row.failed:
            out.add_row(Text(row.name), Text("failed", style="red"))
        else:
            cells = zip(table.columns, row.cells, strict=True)
            out.add_row(Text(row.name), *(Text(_console_cell(column, cell)) for column, cell in cells))
    return out


def _console_cell(column: Column, cell: Cell | None) -> str:
    """The value and its interval, without the unit, which is in the heading."""
    if cell is None:
        return "–"
    interval = cell.interval and " [{}, {}]".format(*map(column.format_number, cell.interval))
    return column.format_number(cell.value) + "*" * cell.optimised + (interval or "")


def explain_columns(table: Table, wins_heading: str) -> list[str]:
    """Notes on win rates and set rewards, one line each. wins_heading: the heading of the win rate."""
    lines = []
    if any(column.key == "wins" for column in table.columns):
        judge = table.results.judge
        rival = table.results.base
        whose = "the base’s" if rival == "base" else f"those of {rival}"
        lines.append(f"{wins_heading}: samples that {judge} likes better than {whose}, a tie counting half")
    if whole_sets := set_metrics(table.results.summary):
        lines.append(
            f"{join_words(whole_sets)}: one score of all samples as a set, its interval from halves of the prompts"
        )
    return lines


def latex_table(summary: Mapping, contestants: Sequence[str] = ()) -> str:
    """A booktabs tabular: intervals in brackets, a dagger at metrics that nobody optimised, an asterisk at means that
    the contestant itself optimised, and the best of a column in bold if its interval lies apart from the base's. The
    contestants as `build_table` takes them."""
    table = build_table(summary, "text", contestants)
    best = [find_best(table, k) for k in range(len(table.columns))]
    heads = [escape_latex(c.heading_in("text")) + r"$^{\dagger}$" * bool(c.held_out) for c in table.columns]
    lines = [
        f"% {' '.join(summary['run'].split())}: \\usepackage{{booktabs}}",
        rf"\begin{{tabular}}{{l{''.join(column.align[0] for column in table.columns)}}}",
        r"\toprule",
        " & ".join(["contestant", *heads]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        name = escape_latex(row.name)
        if row.failed:
            lines.append(rf"{name} & \multicolumn{{{len(table.columns)}}}{{l}}{{failed}} \\")
            continue
        cells = []
        for column, cell, winner in zip(table.columns, row.cells, best, strict=True):
            value = escape_latex(column.format_value(cell)) + r"$^{*}$" * bool(cell and cell.optimised)
            value = rf"\textbf{{{value}}}" if winner == row.name else value
            cells.append(f"{value} {escape_latex(column.format_interval(cell))}".strip())
        lines.append(" & ".join([name, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *(f"% {' '.join(line.split())}" for line in _text_notes(table, "dagger: "))]) + "\n"


def escape_latex(text: str) -> str:
    """The text with LaTeX's special characters escaped."""
    return text.translate(ESCAPES)


def find_best(table: Table, k: int) -> str | None:
    """The contestant with the best value of column k, if its interval lies apart from the base's on the better side."""
    better = table.columns[k].better
    cells = {name: cell for name, cell in table.cells_of(k).items() if cell and cell.value is not None}
    base = cells.get(table.results.base or "")
    if not better or base is None:
        return None
    name = max(cells, key=lambda n: better * cells[n].value)
    return name if compare_intervals(cells[name].estimate, base.estimate) == better else None


def markdown_table(summary: Mapping, contestants: Sequence[str] = ()) -> str:
    """A pipe table with intervals; metrics that nobody optimised are marked as held out."""
    table = build_table(summary, "text", contestants)
    heads = [escape_markdown(c.heading_in("text")) + " (held out)" * bool(c.held_out) for c in table.columns]
    rules = ["---:" if column.align == "right" else "---" for column in table.columns]
    lines = [_pipes(["contestant", *heads]), _pipes(["---", *rules])]
    for row in table.rows:
        cells = [_markdown_cell(column, cell) for column, cell in zip(table.columns, row.cells, strict=False)]
        failed = [f"failed: {escape_markdown(row.failed)}"] + [""] * (len(table.columns) - 1)
        lines.append(_pipes([escape_markdown(row.name), *(failed if row.failed else cells)]))
    notes = [f"- {escape_markdown(note)}" for note in _text_notes(table, "held out: ")]
    return "\n".join([*lines, "", *notes]) + "\n"


def _markdown_cell(column: Column, cell: Cell | None) -> str:
    mark = r"\*" * bool(cell and cell.optimised)
    return f"{column.format_value(cell)}{mark} {column.format_interval(cell)}".strip()


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape_markdown(text: str) -> str:
    """The text in one line, with Markdown's special characters escaped."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for character in "|*_`<>[]":
        text = text.replace(character, f"\\{character}")
    return text


def _text_notes(table: Table, held_out: str) -> list[str]:
    marked = [column.heading for column in table.columns if column.held_out]
    notes = (
        [f"{held_out}no contestant optimised {join_words([name_in_sentence(name) for name in marked])}"]
        if marked
        else []
    )
    return [INTERVALS, *notes, *explain_columns(table, "wins"), *failure_sentences(table.results.summary)]


def csv_table(summary: Mapping, contestants: Sequence[str] = ()) -> str:
    """All columns with unrounded values; `NAME_low` and `NAME_high` are the ends of an interval, `optimised` names the
    metrics that the contestant itself optimised. A failed contestant only has the reason of its failure."""
    table = build_table(summary, "csv", contestants)
    fixed = {"contestant", "method", "pipeline", "optimised", "failed"}
    fixed |= {column.key for column in table.columns if column.held_out is None}
    keys = [f"reward_{c.key}" if c.held_out is not None and c.key in fixed else c.key for c in table.columns]
    ranged = [any(cell and cell.interval for cell in table.cells_of(k).values()) for k in range(len(table.columns))]
    header = ["contestant", "method", "pipeline"]
    for key, has_interval in zip(keys, ranged, strict=True):
        header += [key, *([f"{key}_low", f"{key}_high"] if has_interval else [])]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, "optimised", "failed"])
    for row in table.rows:
        values = [row.name, row.contestant.get("method"), row.contestant.get("pipeline")]
        for cell, has_interval in zip(row.cells or [None] * len(ranged), ranged, strict=True):
            values.append(cell and cell.value)
            values += ((cell and cell.interval) or (None, None)) if has_interval else ()
        optimised = ";".join(key for key, cell in zip(keys, row.cells, strict=False) if cell and cell.optimised)
        writer.writerow([*values, optimised, row.failed])
    return out.getvalue()


Writer = Callable[[Mapping, Sequence[str]], str]
FORMATS: dict[str, Writer] = {"latex": latex_table, "markdown": markdown_table, "csv": csv_table}
