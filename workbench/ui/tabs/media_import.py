"""The tab of imports: two folders of results, or a zip, become a run that people can look at, score and vote on.

What it does is in ui/import_uploads.py, which brings torch along and is imported when the first handler runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui.context import AppContext
from workbench.ui.handlers import on_open
from workbench.ui.widgets.html import error_html, escape_text, hint_html, placeholder_html

HINT = (
    "Which of two folders is better? Give pictures, clips or sounds that were made anywhere. They are paired by their "
    "prompts, which are read from metadata.jsonl, a text beside each file, or what the program that made them wrote "
    "into them. The files stay as they are."
)
WAYS = [("where it is clear", ""), ("their prompt", "prompt"), ("their name", "name"), ("their order", "order")]


def load_rewards() -> dict[str, Any]:
    """The rewards of single samples that can score here without fetching anything."""
    from workbench.ui.widgets import reward_scores

    return gr.update(choices=reward_scores.list_scoring())


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab into what is open, and wire it."""
    opened = on_open(page)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            gr.HTML(hint_html(HINT))
            names, folders = [], []
            for label in "AB":
                with gr.Group():
                    names.append(gr.Textbox(label=f"Name of {label}", max_length=60, placeholder=label))
                    folders.append(
                        gr.File(label=f"Folder {label}", file_count="directory", type="filepath", height=120)
                    )
            archive = gr.File(
                label="or a zip, with a folder for each", file_types=[".zip"], type="filepath", height=110
            )
            with gr.Accordion("Prompts, pairs, scores", open=False):
                prompts = gr.File(
                    label="Prompts (.txt, .jsonl, .csv …), if the files don’t bring their own",
                    type="filepath",
                    height=110,
                )
                pair = gr.Radio(WAYS, value="", label="Files belong together by")
                rewards = gr.Dropdown([], multiselect=True, label="Score by", info="those that are on this machine")
                title = gr.Textbox(label="Name of the run", max_length=60, placeholder="import")
            with gr.Row():
                look = gr.Button("What belongs together?")
                start = gr.Button("Import", variant="primary")
        with gr.Column(scale=3, min_width=320):
            answer = gr.HTML(placeholder_html("Choose folders on the left. Nothing leaves this machine."))
    fields = [*names, *folders, archive, prompts, pair, rewards, title]

    def make_request(*values: Any):
        from workbench.ui.import_uploads import ImportRequest

        first, second, one, two, archive, prompts, pair, rewards, title = values
        sides = [one or [], two or []]
        return ImportRequest(
            [first or "", second or ""],
            sides,
            archive or "",
            prompts or "",
            pair or "",
            rewards or (),
            title or "import",
        )

    def check(*values: Any) -> Iterator[str]:
        """What of two folders or a zip would be paired, and what not, as HTML. Nothing is stored."""
        yield hint_html("Reading …")
        from workbench.ui import import_uploads

        try:
            plan = import_uploads.plan_upload(make_request(*values), context.temp)
        except BadInput as error:
            yield error_html(error)
            return
        yield draw_checks(plan.checks, "Import stores it as a run.")

    def store(*values: Any) -> Iterator[str]:
        """Two folders or a zip become a run: its progress, then where it is, as HTML."""
        yield hint_html("Reading …")
        from workbench.ui import import_uploads

        try:
            plan = import_uploads.plan_upload(make_request(*values), context.temp)
            folder, job = import_uploads.execute_upload(plan, context)
            for view in job.watch(leaving_stops=False):
                count = f"{view['done']} of {view['total']} parts" if view else "waiting for its turn"
                yield draw_checks(plan.checks, f"Importing: {count} …")
        except BadInput as error:
            yield error_html(error)
            return
        yield draw_checks(plan.checks, "") + draw_run(folder.path, context)

    busy = {"concurrency_limit": 4, "show_progress": "hidden"}
    opened(load_rewards, None, rewards, api_name="import_rewards", queue=False, show_progress="hidden")
    look.click(check, fields, answer, api_name="check_import", **busy)
    start.click(store, fields, answer, api_name="import", **busy)


def draw_checks(checks: Sequence[str], ending: str) -> str:
    """The sentences of an import's plan."""
    lines = "".join(
        f"<li>{'⚠ ' if line.startswith('warning: ') else ''}{escape_text(line.removeprefix('warning: '))}</li>"
        for line in checks
    )
    return f'<ul class="wb-checks">{lines}</ul><p aria-live="polite">{escape_text(ending)}</p>'


def draw_run(run: Path, context: AppContext) -> str:
    """What was imported, and where to go on with it."""
    from workbench.report.findings import headline_sentences
    from workbench.runs.store import RunFolder
    from workbench.ui.served_files import file_url, serve_copy

    name, (outcome, *_) = escape_text(run.name), headline_sentences(RunFolder(run).read("summary.json"))
    sheet = run / "grid.png"
    picture = f'<img class="wb-sheet" alt="The first samples" src="{file_url(serve_copy(context.temp, sheet))}">'
    links = (
        f'<a href="?run={name}">See it side by side</a> · <a href="?tab=vote">Vote blind</a> · '
        f'<a href="?tab=runs&amp;run={name}">All about the run</a>'
    )
    return f"<p><b>{name}</b> is stored. {escape_text(outcome)}</p><p>{links}</p>{picture if sheet.is_file() else ''}"
