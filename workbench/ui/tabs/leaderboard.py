"""What the votes say: ratings with what can be trusted of them, which rewards agree with people, and votes put to use.

Nothing here imports torch before a handler asks for it (workbench/ui/widgets/standings.py): the page stands first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import yaml
from gradio.context import get_render_context

from workbench.ui.context import Place
from workbench.ui.tabs.vote import ANY, FREE, KINDS, runs_of

HERE = Path(__file__).parents[1] / "templates"
EVERYONE = ("Everyone", "")


def build(page: gr.Blocks, place: Place) -> None:
    """Draw the tab inside the blocks that are open, and wire it. It is drawn anew each time that its tab is chosen, and
    not before, so that a page on which somebody votes names nobody."""
    with gr.Row():
        run = gr.Dropdown([ANY], value=0, label="Prompts")
        kind = gr.Dropdown(KINDS, value="", label="Kind")
        rater = gr.Dropdown([EVERYONE], value="", label="Who voted")
    board = gr.HTML("", css_template=(HERE / "leaderboard.css").read_text(encoding="utf-8"), apply_default_css=False,
                    elem_id="leaderboard")  # fmt: skip
    with gr.Row(elem_classes="mw-actions"):
        buttons = [(gr.Button("Votes as JSONL", size="sm"), "votes.jsonl"), (gr.Button("Votes as Parquet", size="sm"), "votes.parquet"),
                   (gr.Button("Pairs for DPO", size="sm"), "pairs.jsonl")]  # fmt: skip
        fit = gr.Button("Learn a reward from these votes", size="sm", variant="primary")
    said = gr.Textbox(
        label="What became of them", visible=False, lines=2, interactive=False, elem_id="leaderboard-said"
    )
    block = gr.Code(label="In a run's config", language="yaml", visible=False, interactive=False)
    file = gr.File(label="Download", visible=False, interactive=False)

    private, filters, told = {"api_visibility": "private", **FREE}, [run, kind, rater], [said, block, file]
    here = get_render_context()
    seen = here.select if isinstance(here, gr.Tab) else page.load
    seen(
        lambda: (gr.Dropdown(choices=runs_of(place)), gr.Dropdown(choices=_standings().raters(place))),
        None,
        [run, rater],
        **private,
    )

    def refresh(run, kind, rater):
        return _once(lambda: _standings().draw(place, int(run or 0), kind or "", rater or ""))

    seen(refresh, filters, board, **private)
    for choice in filters:
        choice.change(refresh, filters, board, **private)
    for button, name in buttons:

        def write(run, kind, rater, name=name):
            copy, sentence = _once(lambda: _standings().export(place, name, int(run or 0), kind or "", rater or ""))
            block = yaml.safe_dump({"pairs": {"files": str(place.runs / name)}}) if name == "pairs.jsonl" else ""
            return gr.Textbox(sentence, visible=True), gr.Code(block, visible=bool(block)), gr.File(copy, visible=True)

        button.click(write, filters, told, **private)

    def fitted(run, rater):
        yield gr.Textbox("Waiting for its turn…", visible=True), gr.Code(visible=False), gr.File(visible=False)
        for view in _each(
            lambda: place.desk.submit(
                "Learn a reward", lambda stop: _standings().learn(place, int(run or 0), rater or "")
            ).watch()
        ):
            if view:
                yield (
                    gr.Textbox("\n".join(view["told"])),
                    gr.Code(view["block"], visible=bool(view["block"])),
                    gr.File(),
                )

    fit.click(fitted, [run, rater], told, **private)

    def leaderboard(run: int = 0, modality: str = "", rater: str = "") -> list:
        """[{name, rating, low, high, first, last, votes, bad, share}] of the votes that stand, the best first."""
        return _once(lambda: _standings().ranked(place, run, modality, rater))

    gr.api(leaderboard, api_name="leaderboard", concurrency_limit=None)


def _standings():
    from workbench.ui.widgets import standings

    return standings


def _once(work):
    from workbench.core.types import BadInput

    try:
        return work()
    except BadInput as error:
        raise gr.Error(str(error), print_exception=False) from None


def _each(work) -> Iterator:
    from workbench.core.types import BadInput

    try:
        yield from work()
    except BadInput as error:
        raise gr.Error(str(error), print_exception=False) from None
