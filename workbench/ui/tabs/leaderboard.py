"""What the votes say: ratings with what can be trusted of them, which rewards agree with people, and votes put to use.

Nothing here imports torch before a handler asks for it (workbench/ui/widgets/standings.py): the page stands first.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import gradio as gr
import yaml

from workbench.ui.context import AppContext
from workbench.ui.handlers import UNLIMITED, bad_input_shown, on_open
from workbench.ui.widgets import loop_panel
from workbench.ui.widgets.html import TEMPLATES
from workbench.ui.widgets.vote_filters import ALL_RUNS, EVERY_STUDY, MEDIA_KINDS, list_run_choices

EVERYONE = ("Everyone", "")
OVERALL = "overall"  # as in feedback.votes


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab inside the blocks that are open, and wire it. It is drawn anew each time that its tab is chosen, and
    not before, so that a page on which somebody votes names nobody."""
    with gr.Row():
        study = gr.Dropdown([EVERY_STUDY], value=0, label="Study")
        axis = gr.Dropdown([OVERALL], value=OVERALL, label="Criterion")
        run = gr.Dropdown([ALL_RUNS], value=0, label="Prompts")
        kind = gr.Dropdown(MEDIA_KINDS, value="", label="Kind")
        rater = gr.Dropdown([EVERYONE], value="", label="Who voted")
        word = gr.Textbox(label="Word in a reason", placeholder="hands", max_length=80)
    board_css = (TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")
    board = gr.HTML("", css_template=board_css, apply_default_css=False, elem_id="leaderboard")
    with gr.Row(elem_classes="mw-actions"):
        buttons = [
            (gr.Button("Votes to learn from (JSONL)", size="sm"), "votes.jsonl"),
            (gr.Button("The same as Parquet", size="sm"), "votes.parquet"),
            (gr.Button("All that is known of them (CSV)", size="sm"), "votes.csv"),
            (gr.Button("Pairs for DPO", size="sm"), "pairs.jsonl"),
        ]
        fit = gr.Button("Use this reward", size="sm", variant="primary", elem_id="votes-learn")
    message = gr.Textbox(
        label="What became of them", visible=False, lines=2, interactive=False, elem_id="leaderboard-said"
    )
    block = gr.Code(label="In a run's config", language="yaml", visible=False, interactive=False)
    file = gr.File(label="Download", visible=False, interactive=False)

    with gr.Accordion("Train on these votes", open=False, elem_id="votes-loop"):
        panel = gr.Column()
    private, filters = {"api_visibility": "private", **UNLIMITED}, [run, kind, rater, study, axis, word]
    outputs = [message, block, file]
    opened = on_open(page)
    opened(
        lambda: (
            gr.Dropdown(choices=list_run_choices(context)),
            gr.Dropdown(choices=_load_standings().list_raters(context)),
            gr.Dropdown(choices=_load_standings().list_studies(context)),
        ),
        None,
        [run, rater, study],
        **private,
    )

    def refresh(*chosen: Any) -> str:
        with bad_input_shown():
            return _load_standings().draw_leaderboard(context, _select(*chosen))

    def show_criteria(study: int) -> gr.Dropdown:
        criteria = _load_standings().list_criteria(context, int(study or 0))
        return gr.Dropdown(choices=criteria, value=criteria[0])

    opened(refresh, filters, board, **private)
    for choice in filters:
        choice.change(refresh, filters, board, **private)
    study.change(show_criteria, study, axis, **private)
    for button, name in buttons:

        def write(*chosen: Any, name: str = name) -> tuple:
            with bad_input_shown():
                copy, sentence = _load_standings().export_votes(context, name, _select(*chosen))
            block = yaml.safe_dump({"pairs": {"files": str(context.runs / name)}}) if name == "pairs.jsonl" else ""
            return gr.Textbox(sentence, visible=True), gr.Code(block, visible=bool(block)), gr.File(copy, visible=True)

        button.click(write, filters, outputs, **private)

    def learn(*chosen: Any) -> Iterator[tuple]:
        yield gr.Textbox("Waiting for its turn…", visible=True), gr.Code(visible=False), gr.File(visible=False)
        with bad_input_shown():
            job = context.jobs.submit(
                "Learn a reward", lambda stop: _load_standings().learn_reward(context, _select(*chosen))
            )
            for view in filter(None, job.watch()):
                text, block = "\n".join(view["told"]), view["block"]
                yield gr.Textbox(text), gr.Code(block, visible=bool(block)), gr.File()

    fit.click(learn, filters, outputs, **private)

    def read_votes(*chosen: Any) -> tuple[list, str]:
        selection = _select(*chosen)
        return selection.read_votes(context), str(selection)

    with panel:
        loop_panel.draw_panel(context, opened, filters, read_votes)

    def leaderboard(run: int = 0, modality: str = "", rater: str = "") -> list:
        """[{name, rating, low, high, first, last, votes, bad, share, modality}] of the votes that stand, the best of
        each modality first: pictures, clips and sounds are ranked apart."""
        with bad_input_shown():
            return _load_standings().list_ranks(context, _load_standings().Selection(run, modality, rater))

    gr.api(leaderboard, api_name="leaderboard", concurrency_limit=None)


def _select(run: Any, kind: Any, rater: Any, study: Any, axis: Any, word: Any) -> Any:
    """The Selection of the filters' values, which are None where they were emptied."""
    return _load_standings().Selection(
        int(run or 0), kind or "", rater or "", int(study or 0), axis or OVERALL, (word or "").strip()
    )


def _load_standings() -> ModuleType:
    from workbench.ui.widgets import standings

    return standings
