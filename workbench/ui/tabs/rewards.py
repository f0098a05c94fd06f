"""The tab of rewards: hand in media, type a prompt, see what every reward makes of it, and where it looks.

What it does is in scores.py, which brings torch along and is imported when the first handler runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr
from gradio.context import Context

from workbench.ui.context import Place
from workbench.ui.widgets.html import bad, empty, note

SPACES = ("starter:image/clip", "openai/clip-vit-large-patch14")  # in which examples are compared
MOST = 8  # media judged at once
PROMPT = 2000  # letters
TEACH = "Drop a picture, a clip or a sound: every reward that can judge it here does, nothing is fetched, and the file stays on this machine."  # fmt: skip
EXAMPLES = "With examples, rewards of sets join in: exemplar says how near your file is to them, frechet, kid, kad and cmmd how near all files together are."  # fmt: skip
LOG = "A log of what a community did (item, prompt, path, user, event, time) becomes pairs for the social reward. Pictures are not looked at here, so look-alikes are not searched."  # fmt: skip


def spoken(place: Place, what: str, *values, rest: int = 0) -> Iterator:
    """What function `what` of scores.py yields; BadInput is one sentence in its first output, where it was asked."""
    from workbench.core.types import BadInput
    from workbench.ui.widgets import reward_scores

    try:
        for view in getattr(reward_scores, what)(place, *values):
            yield view if rest else view[0]
    except BadInput as error:
        yield (bad(error), *[gr.skip()] * rest) if rest else bad(error)


def arrive() -> tuple:
    """What there is to choose from here: models, rewards with a gradient, and the table of all."""
    from workbench.ui import reward_choices
    from workbench.ui.widgets import reward_scores

    steep = reward_scores.steep()
    first = "starter_clip" if "starter_clip" in steep else None
    return (
        gr.update(choices=reward_choices.spaces()),
        gr.update(choices=steep, value=first),
        reward_choices.everything(),
    )


def build(page: gr.Blocks, place: Place) -> None:
    """Draw the tab into what is open, and wire it. The page must be launched with `allowed_paths=[place.temp]`."""
    here = Context.block
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            media = gr.File(
                label=f"Pictures, clips or sounds (up to {MOST})", file_count="multiple", type="filepath", height=150
            )
            with gr.Accordion("Record instead", open=False):
                photo = gr.Image(sources=["webcam", "clipboard"], type="filepath", image_mode=None, format="png",
                                 label="Camera or clipboard", height=220)  # fmt: skip
                voice = gr.Audio(sources=["microphone"], type="filepath", format="wav", label="Microphone")
            prompt = gr.Textbox(label="Prompt", lines=2, max_length=PROMPT, placeholder="a red circle above a blue square",
                                info="a file that the workbench wrote brings its own")  # fmt: skip
            with gr.Accordion("Compare with examples", open=False):
                gr.HTML(note(EXAMPLES))
                examples = gr.File(label="Examples (pictures)", file_count="multiple", type="filepath", height=130)
                space = gr.Dropdown(list(SPACES), value=SPACES[0], label="Seen through")
            with gr.Row():
                go = gr.Button("Score", variant="primary")
                stop = gr.Button("Stop", scale=0, min_width=90)
            shown = gr.HTML()
        with gr.Column(scale=3, min_width=320):
            scores = gr.HTML(empty(TEACH))
            with gr.Row(equal_height=True):
                which = gr.Dropdown([], label="Where does it look?", min_width=160, allow_custom_value=True)
                number = gr.Number(1, label="File", scale=0, min_width=90)
                see = gr.Button("Show the map", scale=0, min_width=140)
            seen = gr.HTML()
    with gr.Accordion("A reward from what a community took up", open=False):
        gr.HTML(note(LOG))
        with gr.Row():
            log = gr.File(label="Interaction log (CSV or JSON lines)", type="filepath", height=130)
            window = gr.Number(14, label="Days of a picture’s life that count")
            views = gr.Number(10, label="Least viewers of a picture")
            sure = gr.Number(0.9, label="Least confidence of a pair")
        made = gr.Button("Make pairs", scale=0)
        told = gr.HTML()
        pairs = gr.File(label="Data card and pairs", file_count="multiple", interactive=False)
    with gr.Accordion("All rewards", open=False):
        table = gr.HTML()

    def score(media, prompt, examples, space):
        """Files, their prompt, and an exemplar set with the model that sees it: the table of scores, as HTML while it fills."""
        yield from spoken(place, "score", media, prompt, examples, space, rest=1)

    def look(media, number, prompt, reward):
        """Where a reward looks in file `number` (from 1): its map as HTML, sharpening."""
        yield from spoken(place, "look", media, number, prompt, reward)

    def curate(log, window, min_views, confidence):
        """An interaction log (CSV or JSON lines) becomes pairs of what a community took up: (data card, files)."""
        yield from spoken(place, "curate", log, window, min_views, confidence, rest=1)

    busy = {"concurrency_limit": 8, "show_progress": "hidden"}
    scoring = go.click(score, [media, prompt, examples, space], [scores, shown], api_name="score", **busy)
    mapping = see.click(look, [media, number, prompt, which], seen, api_name="saliency", **busy)
    counting = made.click(curate, [log, window, views, sure], [told, pairs], api_name="curate", **busy)
    opened = here.select if isinstance(here, gr.Tab) else page.load
    opened(arrive, None, [space, which, table], api_name="rewards", queue=False, show_progress="hidden")
    stop.click(None, cancels=[scoring, mapping, counting])
    for source in (photo, voice):
        source.change(lambda path: [path] if path else gr.skip(), source, media, api_visibility="private", queue=False)
