"""The tab of rewards: hand in media, type a prompt, see what every reward makes of it, and where it looks.

What it does is in widgets/reward_scores.py, which brings torch along and is imported when the first handler runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui.context import AppContext
from workbench.ui.handlers import on_open
from workbench.ui.limits import (
    EMBEDDING_MODELS,
    INPUTS,
    JUDGED_INPUTS,
    LOG_HINT,
    MAX_FILES,
    MAX_PROMPT_LETTERS,
    MEDIA_WORDS,
    SCORE_HINT,
)
from workbench.ui.widgets.html import error_html, hint_html, placeholder_html

MADE_FROM_HINT = (
    "For rewards that compare an edit with its source, or a clip with its first frame: one for all files. Of a mask, "
    "white was to change."
)
EXAMPLES_HINT = (
    "With examples, rewards of sets join in: exemplar says how near your file is to them, frechet, kid, kad and "
    "cmmd how near all files together are."
)


def stream_view(context: AppContext, function: str, *values: Any, further_outputs: int = 0) -> Iterator:
    """What a function of reward_scores.py yields; BadInput is one sentence in its first output, where it was asked."""
    from workbench.ui.widgets import reward_scores

    try:
        for view in getattr(reward_scores, function)(context, *values):
            yield view if further_outputs else view[0]
    except BadInput as error:
        yield (error_html(error), *[gr.skip()] * further_outputs) if further_outputs else error_html(error)


def load_choices() -> tuple:
    """What there is to choose from here: models, rewards with a gradient, and the table of all."""
    from workbench.ui import reward_choices
    from workbench.ui.widgets import reward_scores, reward_tables

    differentiable = reward_scores.list_differentiable()
    first = "starter_clip" if "starter_clip" in differentiable else None
    return (
        gr.update(choices=reward_choices.list_embedding_models()),
        gr.update(choices=differentiable, value=first),
        reward_tables.all_rewards_table(),
    )


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab into what is open, and wire it. The page must be launched with `allowed_paths=[context.temp]`."""
    opened = on_open(page)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            media = gr.File(
                label=f"Pictures, clips or sounds (up to {MAX_FILES})",
                file_count="multiple",
                type="filepath",
                height=150,
            )
            with gr.Accordion("Record instead", open=False):
                photo = gr.Image(sources=["webcam", "clipboard"], type="filepath", image_mode=None, format="png",
                                 label="Camera or clipboard", height=220)  # fmt: skip
                voice = gr.Audio(sources=["microphone"], type="filepath", format="wav", label="Microphone")
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_length=MAX_PROMPT_LETTERS, placeholder="a red circle above a blue square",
                info="a file that the workbench wrote brings its own",
            )  # fmt: skip
            with gr.Accordion("What they were made from", open=False):
                gr.HTML(hint_html(MADE_FROM_HINT))
                given = [
                    gr.File(label=f"{INPUTS[name][0]}: {MEDIA_WORDS[kind]}", type="filepath", height=110)
                    for name, kind in JUDGED_INPUTS.items()
                ]
            with gr.Accordion("Compare with examples", open=False):
                gr.HTML(hint_html(EXAMPLES_HINT))
                examples = gr.File(label="Examples (pictures)", file_count="multiple", type="filepath", height=130)
                space = gr.Dropdown(list(EMBEDDING_MODELS), value=EMBEDDING_MODELS[0], label="Seen through")
            with gr.Row():
                go = gr.Button("Score", variant="primary")
                stop = gr.Button("Stop", scale=0, min_width=90)
            thumbnails = gr.HTML()
        with gr.Column(scale=3, min_width=320):
            scores = gr.HTML(placeholder_html(SCORE_HINT))
            with gr.Row(equal_height=True):
                which = gr.Dropdown([], label="Where does it look?", min_width=160, allow_custom_value=True)
                number = gr.Number(1, label="File", scale=0, min_width=90)
                see = gr.Button("Show the map", scale=0, min_width=140)
            saliency_map = gr.HTML()
    with gr.Accordion("A reward from what a community took up", open=False):
        gr.HTML(hint_html(LOG_HINT))
        with gr.Row():
            log = gr.File(label="Interaction log (CSV or JSON lines)", type="filepath", height=130)
            window = gr.Number(14, label="Days of a picture’s life that count")
            views = gr.Number(10, label="Least viewers of a picture")
            confidence = gr.Number(0.9, label="Least confidence of a pair")
        make_pairs = gr.Button("Make pairs", scale=0)
        card = gr.HTML()
        pairs = gr.File(label="Data card and pairs", file_count="multiple", interactive=False)
    with gr.Accordion("All rewards", open=False):
        table = gr.HTML()

    def score(
        media: list[str],
        prompt: str,
        examples: list[str],
        space: str,
        source: str | None = None,
        mask: str | None = None,
        first: str | None = None,
    ) -> Iterator[tuple]:
        """Files, their prompt, an exemplar set with the model that sees it, and what all files were made from: the
        table of scores, as HTML while it fills."""
        values = (media, prompt, examples, space, source, mask, first)
        yield from stream_view(context, "score_files", *values, further_outputs=1)

    def draw_map(media: list[str], number: float, prompt: str, reward: str) -> Iterator[str]:
        """Where a reward looks in file `number` (from 1): its map as HTML, sharpening."""
        yield from stream_view(context, "map_file", media, number, prompt, reward)

    def curate(log: str, window: float, min_views: float, confidence: float) -> Iterator[tuple]:
        """An interaction log (CSV or JSON lines) becomes pairs of what a community took up: (data card, files)."""
        yield from stream_view(context, "curate_log", log, window, min_views, confidence, further_outputs=1)

    busy = {"concurrency_limit": 8, "show_progress": "hidden"}
    scoring = go.click(score, [media, prompt, examples, space, *given], [scores, thumbnails], api_name="score", **busy)
    mapping = see.click(draw_map, [media, number, prompt, which], saliency_map, api_name="saliency", **busy)
    counting = make_pairs.click(curate, [log, window, views, confidence], [card, pairs], api_name="curate", **busy)
    opened(load_choices, None, [space, which, table], api_name="rewards", queue=False, show_progress="hidden")
    stop.click(None, cancels=[scoring, mapping, counting])
    for source in (photo, voice):
        source.change(lambda path: [path] if path else gr.skip(), source, media, api_visibility="private", queue=False)
