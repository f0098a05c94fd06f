"""Blind votes on what runs have made. Who made what is told by the answer to a vote, and by nothing before it.

Three calls, which gradio_client makes too: `battle(rater)` asks for a pair, `vote(battle, choice, key)` answers and
reveals, `undo(battle, key)` takes a vote back. `key` is the caller's own, new for each vote and the same when a call is
repeated: it is then still one vote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui.context import AppContext
from workbench.ui.handlers import UNLIMITED, bad_input_shown, on_open
from workbench.ui.limits import INPUTS
from workbench.ui.widgets.html import TEMPLATES
from workbench.ui.widgets.vote_filters import ALL_RUNS, MEDIA_KINDS, list_run_choices

EMPTY_HINT = (
    "Nothing to vote on yet. Compare two contestants or more in the first tab, or run workbench demo in a terminal; "
    "their media then appear here, two at a time and without names."
)


def ask_pair(context: AppContext, rater: str, run: int = 0, modality: str = "") -> dict | None:
    """{battle, prompt, modality, seconds, left, right: files, inputs: [{name, label, modality, file}]}; None when there
    is nothing."""
    from workbench.feedback import blinding, pairing  # and torch with them, here as below: not before the page stands

    battle_and_files = pairing.ask_next_pair(
        context.runs,
        rater,
        lambda pair: blinding.prepare_blind_pair(pair, context.runs, context.temp / "votes"),
        modality,
        run,
    )
    if battle_and_files is None:
        return None
    battle, pair, files = battle_and_files
    view = {"battle": battle, "prompt": str(pair.prompt), "modality": pair.modality, "seconds": round(files.seconds, 2)}
    inputs = [
        {"name": i.name, "label": INPUTS[i.name][0], "modality": i.modality, "file": _served_file(i.file)}
        for i in files.inputs
    ]
    return view | {"inputs": inputs, "left": _served_file(files.left), "right": _served_file(files.right)}


def record_vote(context: AppContext, *values: Any, **named_values: Any) -> dict:
    from workbench.feedback import votes

    return votes.record_vote(context.runs, *values, **named_values)


def undo_vote(context: AppContext, **values: Any) -> dict:
    from workbench.feedback import votes

    return votes.undo_vote(context.runs, **values)


def _served_file(path: Path) -> dict:
    """What Gradio serves as a file."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab inside the blocks that are open, and wire it."""
    html, js, css = ((TEMPLATES / f"vote.{kind}").read_text(encoding="utf-8") for kind in ("html", "js", "css"))
    with gr.Accordion("What to vote on", open=False), gr.Row():
        run = gr.Dropdown([ALL_RUNS], value=0, label="Prompts", elem_id="vote-run")
        kind = gr.Dropdown(MEDIA_KINDS, value="", label="Kind", elem_id="vote-kind")
    arena = gr.HTML({"phase": "wait"}, html_template=html, css_template=css, js_on_load=js, apply_default_css=False,
                    elem_id="vote-arena")  # fmt: skip
    # trigger_mode: an answer that is lost must not block the next
    private = {"api_visibility": "private", "trigger_mode": "multiple", **UNLIMITED}
    on_open(page)(lambda: gr.Dropdown(choices=list_run_choices(context)), None, run, **private)

    def next_pair(event: gr.EventData, run: int, kind: str, request: gr.Request) -> dict:
        def next_view() -> dict:
            rater = name_rater(request, _event_values(event).get("rater"))
            pair = ask_pair(context, rater, int(run or 0), kind or "")
            view = {"phase": "battle"} | pair if pair else {"phase": "empty", "told": EMPTY_HINT}
            return view | {"asked": _event_values(event).get("asked")}

        return _answer_page(next_view)

    def decide(event: gr.EventData) -> dict:
        values = {key: _event_values(event).get(key) for key in ("battle", "choice", "key", "reason", "dwell")}
        return _answer_page(lambda: {"phase": "revealed"} | record_vote(context, **values))

    def take_back(event: gr.EventData) -> dict:
        values = {key: _event_values(event).get(key) for key in ("battle", "key")}
        return _answer_page(lambda: {"phase": "undone"} | undo_vote(context, **values))

    arena.ask(next_pair, [run, kind], arena, **private)
    arena.decide(decide, None, arena, **private)
    arena.undo(take_back, None, arena, **private)
    for choice in (run, kind):
        choice.change(lambda: {"phase": "wait", "since": time.time_ns()}, None, arena, **private)
    _add_api(context)


def _add_api(context: AppContext) -> None:
    def battle(request: gr.Request, rater: str, run: int = 0, modality: str = "") -> dict:
        """A pair to vote on: {battle, prompt, modality, seconds, left, right, inputs}: the two as files, and inputs is
        what both were made from, [{name, label, modality, file}]; {} when there is none.

        rater: any text that stays the same for the same person (a digest is kept); where people log in, the login
        counts instead. run: its number, 0 for any.
        modality: image, video, audio, or "" for any.
        """
        with bad_input_shown():
            return ask_pair(context, name_rater(request, rater), run, modality) or {}

    def vote(
        battle: str, choice: str, key: str, reason: str = "", dwell_left: float = 0.0, dwell_right: float = 0.0
    ) -> dict:
        """Keep a vote (left, right, tie or bad) and tell who the two were; answered once it is safely on disk.

        key: 8 to 100 letters, digits, - or _, new for each vote and the same on a retry.
        """
        with bad_input_shown():
            return record_vote(context, battle, choice, key, reason, (dwell_left, dwell_right))

    def back(battle: str, key: str) -> dict:
        """Take the vote of a battle back. key: as for `vote`, another one."""
        with bad_input_shown():
            return undo_vote(context, battle=battle, key=key)

    for name, call in {"battle": battle, "vote": vote, "undo": back}.items():
        gr.api(call, api_name=name, concurrency_limit=None)


def name_rater(request: gr.Request | None, said: Any) -> Any:
    """Who votes: whoever logged in; where nobody has to, who the client says that it is."""
    return getattr(request, "username", None) or said


def _answer_page(work: Callable[[], dict]) -> dict:
    """For the page, which shows a refusal where it shows everything else."""
    try:
        return work()
    except BadInput as error:
        return {"phase": "refused", "told": f"Refused: {error}"}


def _event_values(event: gr.EventData) -> dict:
    return event._data if isinstance(event._data, dict) else {}
