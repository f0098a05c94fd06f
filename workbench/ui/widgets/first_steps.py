"""What a newcomer sees before there is any run: what they have decides where they begin."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from workbench.ui.context import AppContext
from workbench.ui.widgets.html import hint_html

TITLE = '<h2 class="wb-first-title" id="wb-first-title">What do you have?</h2>'
COMPARE_JS = "() => { document.getElementById('wb-compare')?.click(); }"
PIPELINE_JS = """() => { const box = [...document.querySelectorAll("input[aria-label='Pipeline']")][0];
  box?.scrollIntoView({ block: "center" }); box?.focus(); }"""
GPU_HINT = (
    "On a GPU the pipelines marked “to fetch” run, too. Choose one in the Studio: it says how large it is, under which "
    "licence, and the command that fetches it. Trainings for them are in Runs, as configs."
)
MODEL_HINT = (
    "Choose it under Pipeline. A folder of your own becomes a choice as a YAML file of eight lines in "
    "configs/pipelines, or from the command line: workbench compare reno --pipeline FOLDER …"
)
CHOICES = (
    ("Folders of results", "Compare, score and vote on what any program made", "import", "", ""),
    ("A model", "Align it: same prompts, same noise, side by side", "studio", PIPELINE_JS, MODEL_HINT),
    ("A GPU", "Published models, and trainings of them", "studio", PIPELINE_JS, GPU_HINT),
    ("Nothing yet", "See it work: a comparison on this machine, in a minute", "studio", COMPARE_JS, ""),
)


def draw_first_steps(page: gr.Blocks, context: AppContext, tabs: gr.Tabs) -> None:
    """Draw the choices into what is open; `tabs` are those of the page, by their ids. They go once there is a run."""
    with gr.Column(visible=False, elem_classes=["wb-first"]) as panel:
        gr.HTML(TITLE)
        with gr.Row():
            buttons = [gr.Button(f"{title}\n{about}", elem_classes=["wb-first-choice"]) for title, about, *_ in CHOICES]
        hint = gr.HTML()
    for button, (_, _, tab, script, words) in zip(buttons, CHOICES, strict=True):
        answer = _make_answer(tab, words)
        outputs = [tabs, hint, panel]
        chosen = button.click(answer, None, outputs, queue=False, show_progress="hidden", api_visibility="private")
        if script:
            chosen.then(None, js=script)
    page.load(
        lambda: gr.update(visible=is_first_visit(context)), None, panel,
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip


def _make_answer(tab: str, words: str) -> Callable[[], tuple]:
    return lambda: (gr.Tabs(selected=tab), hint_html(words) if words else "", gr.update(visible=bool(words)))


def is_first_visit(context: AppContext) -> bool:
    """Whether there is no run yet."""
    return not any(context.runs.glob("*/run.json"))
