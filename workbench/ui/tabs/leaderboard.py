"""What the votes say: ratings with what can be trusted of them, which rewards agree with people, and votes put to use.

Nothing here imports torch before a handler asks for it (workbench/ui/widgets/standings.py): the page stands first.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import gradio as gr
import yaml

from workbench.ui.context import AppContext
from workbench.ui.handlers import UNLIMITED, bad_input_shown, on_open
from workbench.ui.widgets.html import TEMPLATES
from workbench.ui.widgets.vote_filters import ALL_RUNS, MEDIA_KINDS, list_run_choices

EVERYONE = ("Everyone", "")


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab inside the blocks that are open, and wire it. It is drawn anew each time that its tab is chosen, and
    not before, so that a page on which somebody votes names nobody."""
    with gr.Row():
        run = gr.Dropdown([ALL_RUNS], value=0, label="Prompts")
        kind = gr.Dropdown(MEDIA_KINDS, value="", label="Kind")
        rater = gr.Dropdown([EVERYONE], value="", label="Who voted")
    board_css = (TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")
    board = gr.HTML("", css_template=board_css, apply_default_css=False, elem_id="leaderboard")
    with gr.Row(elem_classes="mw-actions"):
        buttons = [
            (gr.Button("Votes as JSONL", size="sm"), "votes.jsonl"),
            (gr.Button("Votes as Parquet", size="sm"), "votes.parquet"),
            (gr.Button("Pairs for DPO", size="sm"), "pairs.jsonl"),
        ]
        fit = gr.Button("Learn a reward from these votes", size="sm", variant="primary")
    message = gr.Textbox(
        label="What became of them", visible=False, lines=2, interactive=False, elem_id="leaderboard-said"
    )
    block = gr.Code(label="In a run's config", language="yaml", visible=False, interactive=False)
    file = gr.File(label="Download", visible=False, interactive=False)

    private, filters, outputs = {"api_visibility": "private", **UNLIMITED}, [run, kind, rater], [message, block, file]
    opened = on_open(page)
    opened(
        lambda: (
            gr.Dropdown(choices=list_run_choices(context)),
            gr.Dropdown(choices=_load_standings().list_raters(context)),
        ),
        None,
        [run, rater],
        **private,
    )

    def refresh(run: int, kind: str, rater: str) -> str:
        with bad_input_shown():
            return _load_standings().draw_leaderboard(context, int(run or 0), kind or "", rater or "")

    opened(refresh, filters, board, **private)
    for choice in filters:
        choice.change(refresh, filters, board, **private)
    for button, name in buttons:

        def write(run: int, kind: str, rater: str, name: str = name) -> tuple:
            with bad_input_shown():
                copy, sentence = _load_standings().export_votes(context, name, int(run or 0), kind or "", rater or "")
            block = yaml.safe_dump({"pairs": {"files": str(context.runs / name)}}) if name == "pairs.jsonl" else ""
            return gr.Textbox(sentence, visible=True), gr.Code(block, visible=bool(block)), gr.File(copy, visible=True)

        button.click(write, filters, outputs, **private)

    def learn(run: int, rater: str) -> Iterator[tuple]:
        yield gr.Textbox("Waiting for its turn…", visible=True), gr.Code(visible=False), gr.File(visible=False)
        with bad_input_shown():
            job = context.jobs.submit(
                "Learn a reward", lambda stop: _load_standings().learn_reward(context, int(run or 0), rater or "")
            )
            for view in filter(None, job.watch()):
                text, block = "\n".join(view["told"]), view["block"]
                yield gr.Textbox(text), gr.Code(block, visible=bool(block)), gr.File()

    fit.click(learn, [run, rater], outputs, **private)

    def leaderboard(run: int = 0, modality: str = "", rater: str = "") -> list:
        """[{name, rating, low, high, first, last, votes, bad, share}] of the votes that stand, the best first."""
        with bad_input_shown():
            return _load_standings().list_ranks(context, run, modality, rater)

    gr.api(leaderboard, api_name="leaderboard", concurrency_limit=None)


def _load_standings() -> ModuleType:
    from workbench.ui.widgets import standings

    return standings
