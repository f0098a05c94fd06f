"""Votes put to use on the page: train on them, then ask people whether it helped.

Nothing here imports torch before a handler asks for it (workbench/ui/widgets/loop_work.py): the page stands first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import gradio as gr

from workbench.ui.context import AppContext
from workbench.ui.handlers import UNLIMITED, bad_input_shown
from workbench.ui.widgets.html import hint_html

HINT = (
    "What people preferred is learnt, and the pipeline that made these samples is trained on it. Base and trained are "
    "sampled on prompts that nobody voted on; then people vote again, blind."
)
METHODS = [("the pairs (DPO)", "dpo"), ("likes and dislikes (KTO)", "kto"), ("the taste learnt from them", "reward")]


def draw_panel(
    context: AppContext, opened: Callable, filters: Sequence[Any], read_votes: Callable[..., tuple[list, str]]
) -> None:
    """Draw the panel inside the blocks that are open, and wire it. read_votes: the filters' values -> (votes, and where
    they are from)."""
    gr.HTML(hint_html(HINT))
    with gr.Row():
        method = gr.Radio(METHODS, value="dpo", label="Train on")
        test = gr.Dropdown([], value="", label="Judged on")
        train = gr.Button("Train on these votes", variant="primary", elem_id="votes-train")
    with gr.Row():
        run = gr.Dropdown([], label="Trained on votes", elem_id="votes-trained")
        ask = gr.Button("Ask whether it helped", elem_id="votes-ask")
    outcome = gr.Textbox(label="What came of it", lines=3, interactive=False, elem_id="votes-said")
    private = {"api_visibility": "private", **UNLIMITED}

    def list_choices() -> tuple:
        return gr.Dropdown(choices=_load_work().list_tests()), gr.Dropdown(choices=_load_work().list_trainings(context))

    def begin(method: str, test: str, *chosen: Any) -> Iterator[tuple]:
        yield "Waiting for its turn…", gr.Dropdown()
        with bad_input_shown():
            vote_list, source = read_votes(*chosen)
            work = _load_work()
            job = context.jobs.submit(
                "Learn from votes",
                lambda stop: work.train_on_votes(context, vote_list, method or "dpo", test or "", source),
            )
            for view in filter(None, job.watch()):
                yield "\n".join(view), gr.Dropdown()
            trained = work.list_trainings(context)
            yield gr.Textbox(), gr.Dropdown(choices=trained, value=trained[0])

    def show(run: str | None) -> str:
        with bad_input_shown():
            return "\n".join(_load_work().describe_training(context, run)) if run else ""

    def follow_up(run: str | None) -> str:
        with bad_input_shown():
            study = _load_work().ask_follow_up(context, run or "")
            return f"People vote at /vote/{study}; results are under Studies, and here once they have voted."

    opened(list_choices, None, [test, run], **private)
    train.click(begin, [method, test, *filters], [outcome, run], **private)
    run.input(show, run, outcome, **private)
    ask.click(follow_up, run, outcome, **private)


def _load_work() -> ModuleType:
    from workbench.ui.widgets import loop_work

    return loop_work
