"""The tab of studies: a form that makes one, and what came of each. Raters never see it; their pages are in
ui/study_pages.py.

Nothing here imports torch before a handler asks for it (workbench/ui/widgets/study_view.py): the page stands first.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gradio as gr

from workbench.ui.context import AppContext
from workbench.ui.handlers import UNLIMITED, bad_input_shown, on_open
from workbench.ui.widgets.html import TEMPLATES, hint_html

HINT = (
    "Others vote by one link, on a page that names nobody. Whoever logs in as a rater sees that page and nothing else "
    "of this app (workbench app --auth admins.txt --raters raters.txt)."
)
REVEALS = [("never", "never"), ("when they are done", "end"), ("after each vote", "each")]
WAYS = [("where most is to be learnt", "adaptive"), ("equally often", "round-robin")]


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab inside the blocks that are open, and wire it."""
    gr.HTML(hint_html(HINT))
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            name = gr.Textbox(label="Name, which stands in the link", max_length=60, placeholder="sharpness")
            runs = gr.Dropdown([], multiselect=True, label="Runs", info="imports too")
            instructions = gr.Textbox(label="Instructions", lines=3, max_length=10_000)
            criteria = gr.Textbox("overall", label="Criteria", info="asked on one page, with commas between them")
            with gr.Row():
                target = gr.Number(50, precision=0, minimum=0, label="Votes of each rater", info="0: all pairs")
                per_pair = gr.Number(3, precision=0, minimum=1, label="Raters for each pair")
                gold = gr.Number(5, precision=0, minimum=0, label="Gold pairs", info="beside a damaged copy")
            pairs = gr.Radio(WAYS, value="adaptive", label="Contestants meet")
            reveal = gr.Radio(REVEALS, value="never", label="Raters are told who was who")
            is_open = gr.Checkbox(label="Whoever has the link may vote, under a name of their choice")
            make = gr.Button("Make the study", variant="primary")
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                chosen = gr.Dropdown([], label="Study", elem_id="study-chosen")
                close = gr.Button("Close it", size="sm", scale=0)
            css = (TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")
            results = gr.HTML("", css_template=css, apply_default_css=False, elem_id="study-results")

    private = {"api_visibility": "private", **UNLIMITED}

    def refresh() -> tuple:
        names = _load_view().list_studies(context)
        first = names[0] if names else None
        return (
            gr.Dropdown(choices=_load_view().list_runs(context)),
            gr.Dropdown(choices=names, value=first),
            _load_view().draw_study(context, first or ""),
        )

    def create(name: str, runs: list, criteria: str, *values: Any) -> tuple:
        target, per_pair, gold, pairs, reveal, instructions, is_open = values
        settings = {
            "name": (name or "").strip(),
            "runs": tuple(runs or ()),
            "criteria": tuple(part.strip() for part in (criteria or "").split(",") if part.strip()),
            "target": int(target or 0),
            "votes_per_pair": int(per_pair or 0),
            "pairs": pairs,
            "reveal": reveal,
            "instructions": (instructions or "").strip(),
            "is_open": bool(is_open),
        }
        with bad_input_shown():
            notes = _load_view().make_study(context, settings, int(gold or 0))
            names = _load_view().list_studies(context)
            return gr.Dropdown(choices=names, value=settings["name"]), _load_view().draw_study(context, names[0], notes)

    def show(name: str | None) -> str:
        with bad_input_shown():
            return _load_view().draw_study(context, name or "")

    def end(name: str | None) -> str:
        with bad_input_shown():
            if name:
                _load_view().close_study(context, name)
            return _load_view().draw_study(context, name or "")

    on_open(page)(refresh, None, [runs, chosen, results], **private)
    fields = [name, runs, criteria, target, per_pair, gold, pairs, reveal, instructions, is_open]
    make.click(create, fields, [chosen, results], **private)
    chosen.input(show, chosen, results, **private)
    close.click(end, chosen, results, **private)


def _load_view() -> ModuleType:
    from workbench.ui.widgets import study_view

    return study_view
