"""Blind votes on what runs have made. Who made what is told by the answer to a vote, and by nothing before it.

Three calls, which gradio_client makes too: `battle(rater)` asks for a pair, `vote(battle, choice, key)` answers and
reveals, `undo(battle, key)` takes a vote back. `key` is the caller's own, new for each vote and the same when a call is
repeated: it is then still one vote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.context import get_render_context

from workbench.ui.context import Place

HERE = Path(__file__).parents[1] / "templates"
NOTHING = (
    "Nothing to vote on yet. Compare two contestants or more in the first tab, or run workbench demo in a terminal; their media then "
    "appear here, two at a time and without names."
)
ANY = ("Everything", 0)
KINDS = [("Pictures, clips and sounds", ""), ("Pictures", "image"), ("Clips", "video"), ("Sounds", "audio")]
FREE = {"concurrency_limit": None, "show_progress": "hidden"}  # voters wait for nobody's models


def ask(place: Place, rater: str, run: int = 0, modality: str = "") -> dict | None:
    """{battle, prompt, modality, seconds, left, right: files}; None when there is nothing."""
    from workbench.feedback import (
        blinding,
        pairing,  # and torch with them, here as below: not before the page stands
    )

    found = pairing.ask(
        place.runs, rater, lambda pair: blinding.show(pair, place.runs, place.temp / "votes"), modality, run
    )
    if found is None:
        return None
    battle, pair, shown = found
    told = {"battle": battle, "prompt": pair.prompt, "modality": pair.modality, "seconds": round(shown.seconds, 2)}
    return told | {"left": _file(shown.left), "right": _file(shown.right)}


def record(place: Place, *said, **more) -> dict:
    from workbench.feedback import votes

    return votes.record(place.runs, *said, **more)


def undo(place: Place, **said) -> dict:
    from workbench.feedback import votes

    return votes.undo(place.runs, **said)


def _file(path: Path) -> dict:
    """What Gradio serves as a file."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def runs_of(place: Place) -> list[tuple[str, int]]:
    """Choices by prompts and date: a run's name may say whose it is."""
    from workbench.feedback import pairing

    return [ANY] + [
        (f"{s.first[:60]}{'…' if len(s.first) > 60 else ''} ({s.prompts} prompts, {s.created[:16].replace('T', ' ')})", s.id)
        for s in pairing.stock(place.runs)
    ]  # fmt: skip


def build(page: gr.Blocks, place: Place) -> None:
    """Draw the tab inside the blocks that are open, and wire it."""
    html, js, css = ((HERE / f"vote.{kind}").read_text(encoding="utf-8") for kind in ("html", "js", "css"))
    with gr.Accordion("What to vote on", open=False), gr.Row():
        run = gr.Dropdown([ANY], value=0, label="Prompts", elem_id="vote-run")
        kind = gr.Dropdown(KINDS, value="", label="Kind", elem_id="vote-kind")
    arena = gr.HTML({"phase": "wait"}, html_template=html, css_template=css, js_on_load=js, apply_default_css=False,
                    elem_id="vote-arena")  # fmt: skip
    private = {"api_visibility": "private", "trigger_mode": "multiple", **FREE}  # a lost answer must not block the next
    seen = get_render_context()
    seen = seen.select if isinstance(seen, gr.Tab) else page.load
    seen(lambda: gr.Dropdown(choices=runs_of(place)), None, run, **private)

    def next_pair(event: gr.EventData, run, kind):
        def asked():
            found = ask(place, _said(event).get("rater"), int(run or 0), kind or "")
            told = {"phase": "battle"} | found if found else {"phase": "empty", "told": NOTHING}
            return told | {"asked": _said(event).get("asked")}

        return _answer(asked)

    def decide(event: gr.EventData):
        said = {key: _said(event).get(key) for key in ("battle", "choice", "key", "reason", "dwell")}
        return _answer(lambda: {"phase": "revealed"} | record(place, **said))

    def take_back(event: gr.EventData):
        said = {key: _said(event).get(key) for key in ("battle", "key")}
        return _answer(lambda: {"phase": "undone"} | undo(place, **said))

    arena.ask(next_pair, [run, kind], arena, **private)
    arena.decide(decide, None, arena, **private)
    arena.undo(take_back, None, arena, **private)
    for choice in (run, kind):
        choice.change(lambda: {"phase": "wait", "since": time.time_ns()}, None, arena, **private)
    _api(place)


def _api(place: Place) -> None:
    def battle(rater: str, run: int = 0, modality: str = "") -> dict:
        """A pair to vote on: {battle, prompt, modality, seconds, left, right}, the last two as files; {} when there is none.

        rater: any text that stays the same for the same person (a digest is kept). run: its number, 0 for any. modality:
        image, video, audio, or "" for any.
        """
        return _plain(partial(ask, place, rater, run, modality)) or {}

    def vote(
        battle: str, choice: str, key: str, reason: str = "", dwell_left: float = 0.0, dwell_right: float = 0.0
    ) -> dict:
        """Keep a vote (left, right, tie or bad) and tell who the two were; answered once it is safely on disk.

        key: 8 to 100 letters, digits, - or _, new for each vote and the same on a retry.
        """
        return _plain(partial(record, place, battle, choice, key, reason, (dwell_left, dwell_right)))

    def back(battle: str, key: str) -> dict:
        """Take the vote of a battle back. key: as for `vote`, another one."""
        return _plain(partial(undo, place, battle=battle, key=key))

    for name, call in {"battle": battle, "vote": vote, "undo": back}.items():
        gr.api(call, api_name=name, concurrency_limit=None)


def _plain(work: Callable[[], dict | None]) -> dict | None:
    from workbench.core.types import BadInput

    try:
        return work()
    except BadInput as error:
        raise gr.Error(str(error), print_exception=False) from None


def _answer(work: Callable[[], dict]) -> dict:
    """For the page, which shows a refusal where it shows everything else."""
    from workbench.core.types import BadInput

    try:
        return work()
    except BadInput as error:
        return {"phase": "refused", "told": f"Refused: {error}"}


def _said(event: gr.EventData) -> dict:
    return event._data if isinstance(event._data, dict) else {}
