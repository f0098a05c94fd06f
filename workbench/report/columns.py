"""The columns of the table of results, all defined in one place.

`COLUMNS` lists them in order. Every view (the console, the two tables of report.html, the app, CSV, LaTeX and Markdown)
is drawn from it, so a new column is one entry here:

    Column("decodes_per_nfe", "decodes per row", lambda results, c: Cell(c["decodes"] / c["nfe"]), help="…"),

`read` takes the results and one finished contestant of summary.json, and gives the cell, or None where there is nothing
to show. `build_table(summary, view)` picks the columns of a view and reads all cells; a view only decides how a cell is
laid out:

    table = build_table(summary, "app")
    for column in table.columns:
        column.heading_in("app"), column.help, column.align
    for row in table.rows:                      # one per contestant; row.failed holds the reason of one that failed
        for column, cell in zip(table.columns, row.cells):      # row.cells is empty where it failed
            column.format_value(cell), column.format_interval(cell, "{} to {}{unit}"), cell and cell.optimised

Columns that depend on the run (one per reward) come from a function `results -> columns` in the same tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, get_args

from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.report.estimates import (
    EQUAL_BUDGET_SHARE,
    base_contestant,
    costs_per_sample,
    estimates_by_metric,
    finished_contestants,
    is_imported,
    is_optimised,
    win_rates,
)
from workbench.report.formatting import MEDIA_NOUNS, decimals_for, format_count, format_number, name_in_sentence

View = Literal["console", "numbers", "costs", "app", "text", "csv"]
# "numbers" and "costs" are the two tables of report.html; "text" is LaTeX and Markdown.
VIEWS: frozenset[View] = frozenset(get_args(View))
EVERYWHERE: frozenset[View] = VIEWS - {"costs"}


to_integer = partial(format_number, digits=0)
to_tenth = partial(format_number, digits=1)


class Results:
    """A summary, and values derived from it that columns need, computed once."""

    def __init__(self, summary: Mapping):
        self.summary = summary

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict]]:
        """metric -> contestant -> estimate, in the order of `estimates_by_metric`."""
        return estimates_by_metric(self.summary)

    @cached_property
    def wins(self) -> dict[str, dict]:
        """contestant -> win rate against the base, by the first metric."""
        rates = win_rates(self.summary)
        return rates[1] if rates else {}

    @cached_property
    def costs(self) -> dict[str, dict]:
        """contestant -> costs per sample."""
        return costs_per_sample(self.summary)

    @cached_property
    def base(self) -> str | None:
        """The contestant that the others are compared with."""
        return (base_contestant(self.summary) or {}).get("name")

    @cached_property
    def judge(self) -> str:
        """The first metric, as a sentence names it."""
        return name_in_sentence(next(iter(self.metrics), ""))

    @cached_property
    def noun(self) -> str:
        """The word for a sample: picture, clip or sound."""
        return MEDIA_NOUNS[self.summary["modality"]]


@dataclass(frozen=True)
class Cell:
    """A value of one contestant."""

    value: float | None
    interval: tuple[float, float] | None = None  # 95 %
    optimised: bool = False  # the contestant itself optimised it
    warning: str = ""  # a word next to the value
    note: str = ""  # small print under the value, in views that have room
    help: str = ""  # a tooltip

    @property
    def estimate(self) -> dict:
        """The value as an estimate, as in summary.json."""
        return {"mean": self.value, "ci95": self.interval}


@dataclass(frozen=True)
class Column:
    """A column of the table of results."""

    key: str  # its name in CSV
    heading: str  # may have "\n"
    read: Callable[[Results, Mapping], Cell | None]  # (results, contestant of summary.json) -> cell
    format: Callable[[float | None], str] = format_number  # of a scaled value
    scale: float = 1.0  # factor on the value of summary.json in all views but CSV
    unit: str = ""  # after a value, except in the console
    help: str = ""  # a tooltip of the heading
    views: frozenset[View] = EVERYWHERE
    headings: Mapping[View, str] = field(default_factory=dict)  # other headings for some views
    optional: frozenset[View] = frozenset()  # views that leave the column out when it is empty
    align: Literal["left", "right"] = "right"
    better: Literal[-1, 0, 1] = 0  # 1: higher is better, -1: lower is, 0: neither, so that none is the best
    held_out: bool | None = None  # a metric that no contestant optimised; None: no metric

    def heading_in(self, view: View) -> str:
        """The heading in a view."""
        return self.headings.get(view, self.heading)

    def format_number(self, value: float | None) -> str:
        """The scaled value without its unit."""
        return self.format(None if value is None else self.scale * value)

    def format_value(self, cell: Cell | None) -> str:
        """The scaled value with its unit; a dash for none."""
        text = self.format_number(cell.value if cell else None)
        return text if text == "–" else text + self.unit

    def format_interval(self, cell: Cell | None, pattern: str = "[{}, {}]") -> str:
        """The scaled interval by a pattern, which may have {unit}; "" for none."""
        if cell is None or cell.interval is None:
            return ""
        return pattern.format(*map(self.format_number, cell.interval), unit=self.unit)


@dataclass(frozen=True)
class Row:
    """A contestant in the table."""

    contestant: Mapping  # of summary.json
    cells: tuple[Cell | None, ...]  # one per column; empty where it failed

    @property
    def name(self) -> str:
        return self.contestant["name"]

    @property
    def failed(self) -> str:
        """Why it failed; empty otherwise."""
        return (self.contestant["failed"] or "for an unknown reason") if "failed" in self.contestant else ""


@dataclass(frozen=True)
class Table:
    """The results in one view: its columns, and a row for each contestant."""

    results: Results
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def cells_of(self, k: int) -> dict[str, Cell | None]:
        """contestant -> cell of column k, without failed contestants."""
        return {row.name: row.cells[k] for row in self.rows if not row.failed}


def build_table(summary: Mapping, view: View, contestants: Sequence[str] = ()) -> Table:
    """The table of a view, with a row for each contestant, failed ones included; contestants: only these, in this
    order. Raises BadInput for one that the run lacks."""
    results = Results(summary)
    columns = tuple(c for c in expand_columns(results) if view in c.views and not _left_out(c, results, view))
    rows = (
        Row(c, () if "failed" in c else tuple(column.read(results, c) for column in columns))
        for c in choose_contestants(summary, contestants)
    )
    return Table(results, columns, tuple(rows))


def choose_contestants(summary: Mapping, names: Sequence[str] = ()) -> list[Mapping]:
    """The contestants of these names, in their order, or all. Raises BadInput for one that the run lacks."""
    by_name = {c["name"]: c for c in summary["contestants"]}
    for name in names:
        if name not in by_name:
            raise BadInput(f"contestants: this run has no {quote_value(name)}; {suggest_nearest(name, by_name)}")
    return [by_name[name] for name in names or by_name]


def expand_columns(results: Results) -> Iterator[Column]:
    """COLUMNS, with the columns of functions that depend on the run in their place."""
    for entry in COLUMNS:
        yield from (entry,) if isinstance(entry, Column) else entry(results)


def _left_out(column: Column, results: Results, view: View) -> bool:
    if column in COSTS and is_imported(results.summary):  # what it cost to make them is not known
        return True
    cells = (column.read(results, c) for c in finished_contestants(results.summary))
    return view in column.optional and all(cell is None or cell.value is None for cell in cells)


def _as_cell(estimate: Mapping | None, **more) -> Cell | None:
    if not estimate:
        return None
    interval = tuple(estimate["ci95"]) if estimate["ci95"] else None
    return Cell(estimate["mean"], interval, estimate["optimised"], **more)


def metric_column(name: str, estimates: Mapping[str, Mapping]) -> Column:
    """The column of a reward; estimates: by contestant."""

    def read_metric(results: Results, contestant: Mapping) -> Cell | None:
        return _as_cell(estimates.get(contestant["name"]))

    lower = any(e.get("lower") for e in estimates.values())
    whole_set = any(e.get("set") for e in estimates.values())
    help_text = "optimised by some contestants" if is_optimised(estimates) else "watched, never optimised"
    help_text += "; one score of all samples as a set" if whole_set else ""
    return Column(
        name,
        name,
        read_metric,
        partial(format_number, digits=decimals_for(estimates.values())),
        help=help_text + ("; lower is better" if lower else ""),
        better=-1 if lower else 1,
        held_out=not is_optimised(estimates),
    )


def first_metric(results: Results) -> list[Column]:
    """The column of the first metric."""
    return [metric_column(name, estimates) for name, estimates in [*results.metrics.items()][:1]]


def other_metrics(results: Results) -> list[Column]:
    """The columns of all other metrics."""
    return [metric_column(name, estimates) for name, estimates in [*results.metrics.items()][1:]]


def read_wins(results: Results, contestant: Mapping) -> Cell | None:
    """The win rate against the base, by the first metric."""
    estimate = results.wins.get(contestant["name"])
    return estimate and _as_cell(estimate, help=f"of {estimate['n']} {results.noun}s that {results.judge} judged")


def wins_column(results: Results, views: frozenset[View]) -> list[Column]:
    """The column of win rates against the base."""
    meaning = (
        f"Wins: the share of {results.noun}s that {results.judge} likes better than {results.base}’s with the same "
        "prompt and seed, a tie counting half; 50\u00a0% is no better."
    )
    headings = {"console": "wins %", "numbers": f"Wins against\n{results.base}"}
    return [
        Column(
            "wins", "wins", read_wins, to_integer, 100.0, " %", meaning, views=views, headings=headings, optional=VIEWS
        )
    ]


def read_total(key: str) -> Callable[[Results, Mapping], Cell]:
    """A reader of a contestant's value under `key` in summary.json."""
    return lambda results, contestant: Cell(contestant.get(key))


def read_per_sample(key: str) -> Callable[[Results, Mapping], Cell]:
    """A reader of a contestant's cost per sample under `key`."""
    return lambda results, contestant: Cell(results.costs[contestant["name"]][key])


def read_rows_in_all(results: Results, contestant: Mapping) -> Cell:
    """Denoiser rows in all, with those per sample as a note."""
    return Cell(contestant.get("nfe"), note=f"{format_count(results.costs[contestant['name']]['nfe'])} a sample")


def read_share(results: Results, contestant: Mapping) -> Cell:
    """The share of the largest budget, with a warning where it is not equal."""
    share = results.costs[contestant["name"]]["share"]
    return Cell(share, warning="fell short" if share is not None and share < EQUAL_BUDGET_SHARE else "")


COSTS = (
    Column(
        "nfe",
        "denoiser rows",
        read_rows_in_all,
        to_integer,
        help="forward passes for one sample each, in all; a guided call counts twice",
        headings={"console": "calls"},
        views=frozenset({"console", "app", "csv"}),
    ),
    Column(
        "nfe_per_sample",
        "rows per sample",
        read_per_sample("nfe"),
        format_count,
        help="forward passes for one sample; a guided call counts twice",
        headings={"numbers": "Denoiser rows\nper sample", "costs": "Denoiser rows\nper sample"},
        views=frozenset({"numbers", "costs", "text", "csv"}),
    ),
    Column(
        "share_of_largest_budget",
        "Of the largest\nbudget",
        read_share,
        to_integer,
        scale=100.0,
        unit=" %",
        help="denoiser rows, of those of the contestant that had most; plain sampling has no budget to fall short of",
        views=frozenset({"costs", "csv"}),
    ),
    Column("reward_calls", "judged", read_total("reward_calls"), to_integer, views=frozenset({"console", "csv"})),
    Column(
        "reward_calls_per_sample",
        "Reward calls\nper sample",
        read_per_sample("reward_calls"),
        format_count,
        help="samples that the reward has judged for the method; watching judges are not counted",
        views=frozenset({"costs", "csv"}),
    ),
    Column(
        "decodes_per_sample",
        "Decodes\nper sample",
        read_per_sample("decodes"),
        format_count,
        help="latents that were turned into media",
        views=frozenset({"costs", "csv"}),
    ),
    Column(
        "seconds_per_sample",
        "seconds per sample",
        read_per_sample("seconds"),
        headings={"costs": "Seconds\nper sample"},
        views=frozenset({"costs", "text", "csv"}),
    ),
    Column("seconds", "seconds", read_total("seconds"), to_integer, views=frozenset({"console"})),
    Column(
        "seconds",
        "seconds",
        read_total("seconds"),
        to_tenth,
        help="without loading, watching judges and writing files",
        headings={"costs": "Seconds\nin all"},
        views=frozenset({"costs", "app", "csv"}),
    ),
    Column(
        "peak_mb",
        "Peak MB",
        read_total("peak_mb"),
        to_integer,
        help="the most memory in use at once",
        headings={"console": "MB"},
        views=frozenset({"console", "costs", "csv"}),
    ),
)

COLUMNS: tuple[Column | Callable[[Results], list[Column]], ...] = (
    first_metric,
    partial(wins_column, views=EVERYWHERE - {"console"}),  # next to the metric by which they are counted
    other_metrics,
    partial(wins_column, views=frozenset({"console"})),
    Column(
        "diversity",
        "diversity",
        read_total("diversity"),
        help="the distance between samples of one prompt",
        headings={"numbers": "Diversity"},
        optional=frozenset({"app", "text"}),
    ),
    *COSTS,
)
