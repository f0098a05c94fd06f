"""What the tab of studies shows: how far each is, its results, and what the form chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.feedback import pairing, studies, study_results
from workbench.ui.context import AppContext
from workbench.ui.widgets.html import escape_text, hint_html, placeholder_html, table_html

EMPTY = (
    "A study asks others which of two samples is better: by one link, with your instructions and criteria. Choose runs "
    "in the form, or import what you made elsewhere, and make one."
)


def list_studies(context: AppContext) -> list[str]:
    return [study.name for study in studies.list_studies(context.runs)]


def list_runs(context: AppContext) -> list[tuple[str, str]]:
    """(what a run is about, its folder) of the runs that can be voted on."""
    return [
        (f"{s.folder}: {s.prompts} prompts, {s.first[:50]}{'…' if len(s.first) > 50 else ''}", s.folder)
        for s in pairing.votable_runs(context.runs)
    ]


def make_study(context: AppContext, settings: Mapping[str, Any], gold: int) -> list[str]:
    """Sentences on the study that was made. Raises BadInput."""
    _, notes = studies.create_study(context.runs, settings, gold)
    return notes


def close_study(context: AppContext, name: str) -> None:
    studies.close_study(context.runs, name)


def draw_study(context: AppContext, name: str, notes: list[str] | None = None) -> str:
    """A study's link, progress, ratings, agreement and raters as HTML. Raises BadInput for no such study."""
    if not name:
        return placeholder_html(EMPTY)
    results = study_results.read_results(context.runs, name)
    view = study_results.describe_results(results)
    link = f"/vote/{escape_text(name)}"
    who = "anybody who has it" if results.study.is_open else "raters who log in"
    parts = [
        *(hint_html(note) for note in notes or ()),
        f'<p class="wb-links">The link for {who}: <a href="{link}" target="_blank">{link}</a></p>',
        *(hint_html(line) for line in view["progress"]),
    ]
    for standing in view["standings"]:
        parts.append(f"<h3>{escape_text(standing['criterion'])}, {escape_text(standing['modality'])}</h3>")
        parts += [_draw_rows(standing["rows"]), *(hint_html(note) for note in standing["notes"])]
    parts += ["<h3>Do raters agree?</h3>", _draw_rows(view["agreement"], (1, 2))]
    if view["raters"]:
        parts += ["<h3>Raters</h3>", _draw_rows(view["raters"], (4,))]
    return f'<section class="mw-board">{"".join(parts)}</section>'


def _draw_rows(rows: list[dict], text_columns: tuple[int, ...] = ()) -> str:
    cells = [["–" if value is None else escape_text(value) for value in row.values()] for row in rows]
    return table_html([*rows[0]], cells, text_columns)
