"""Several runs beside each other: their curves in one chart, their contestants in one table, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.report import across_runs
from workbench.runs.run_notes import read_notes
from workbench.runs.store import RunFolder
from workbench.ui import run_processes
from workbench.ui.widgets import curves
from workbench.ui.widgets.html import error_html, escape_text, hint_html, table_html

MAX_RUNS = 8  # beside each other


def find_runs(runs: Path, names: Sequence[str]) -> list[RunFolder]:
    """The folders of these runs. Raises BadInput."""
    if len(names) > MAX_RUNS:
        raise BadInput(f"at most {MAX_RUNS} runs beside each other")
    return [run_processes.find_run(runs, name) for name in names]


def name_runs(folders: Sequence[RunFolder]) -> dict[str, str]:
    """Folder's name -> what the run is called here: its title, unless another has it too."""
    titles = {folder.path.name: read_notes(folder).title for folder in folders}
    repeated = {title for title in titles.values() if [*titles.values()].count(title) > 1}
    return {name: title if title and title not in repeated else name for name, title in titles.items()}


def overlay_curves(folders: Sequence[RunFolder]) -> str:
    """The curves of several runs in the same panels, a line for each run and contestant."""
    labels, lines, order = name_runs(folders), {}, []
    for folder in folders:
        series = curves.read_series(folder.path / "events.jsonl")
        for metric, by_contestant in series.mean_lines().items():
            for contestant, line in by_contestant.items():
                label = f"{labels[folder.path.name]}: {contestant}"
                lines.setdefault(metric, {})[label] = line
                order.append(label)
    return curves.draw_curves(lines, order) if lines else hint_html("None of these runs has curves.")


def draw_comparison(folders: Sequence[RunFolder]) -> str:
    """The contestants of several runs in one table; a run without results is one sentence above it."""
    finished, sentences = [], []
    for folder in folders:
        if run_processes.run_state(folder).name == "damaged" or not folder.read("summary.json").get("contestants"):
            sentences.append(f"{folder.path.name} has no results yet, so it is not in the table.")
        else:
            finished.append(folder)
    notes = "".join(map(hint_html, sentences))
    if not finished:
        return notes
    try:
        comparison = across_runs.compare_runs(finished)
    except BadInput as error:  # a log that was damaged
        return notes + error_html(error)
    labels = name_runs(finished)
    rows = across_runs.format_estimates(comparison)
    body = [
        [escape_text(labels[row["run"]]), *map(escape_text, cells[1:])]
        for row, cells in zip(comparison["rows"], rows, strict=True)
    ]
    header = (*across_runs.HEAD, *comparison["metrics"], *across_runs.TAIL)
    return notes + table_html(header, body, text_columns=(1,)) + hint_html(across_runs.NOTE)
