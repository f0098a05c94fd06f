"""What the tab of runs has besides a run itself: its title, note and tags, the bin, several runs beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui.context import AppContext
from workbench.ui.widgets.choice import Choice
from workbench.ui.widgets.html import error_html, hint_html

QUIET = {"queue": False, "show_progress": "hidden"}
SEVERAL_HINT = "Choose runs to see their curves in one chart, and their contestants in one table."
NO_RUN = "Choose a run in the table first."


class NotesForm:
    """Title, tags and note of the run that is shown, and its way to the bin."""

    def __init__(self, context: AppContext):
        self.context = context
        with gr.Accordion("Title, tags and note", open=False):
            with gr.Row():
                self.title = gr.Textbox(label="Title", max_length=120, info="what the run is called in lists")
                self.tags = gr.Textbox(label="Tags", max_length=400, info="words, with spaces between them")
            self.note = gr.Textbox(label="Note", lines=2, max_length=10_000)
            with gr.Row():
                self.save = gr.Button("Save", size="sm", scale=0, min_width=110)
                self.delete = gr.Button("Move this run to the bin", size="sm", scale=0, min_width=200)
            self.message = gr.HTML()
        self.fields = [self.title, self.tags, self.note]

    def show(self, name: str) -> list:
        """Title, tags and note of a run: a value for each of `fields`."""
        from workbench.runs.run_notes import read_notes
        from workbench.ui import run_processes

        try:
            notes = read_notes(run_processes.find_run(self.context.runs, name))
        except BadInput:
            return ["", "", ""]
        return [notes.title, " ".join(notes.tags), notes.note]

    def save_notes(self, name: str, title: str, tags: str, note: str) -> str:
        """Give a run, by its name, a title, tags (words with spaces between them) and a note."""
        from workbench.runs.run_notes import write_notes
        from workbench.ui import run_processes

        try:
            folder = run_processes.find_run(self.context.runs, name, NO_RUN)
            words = (tags or "").replace("#", " ").replace(",", " ").split()
            write_notes(folder, title=title or "", note=note or "", tags=words)
        except BadInput as error:
            return error_html(error)
        return hint_html("Saved.")

    def delete_run(self, name: str) -> str:
        """Move a run, by its name, to the bin, from which it can be restored; what becomes of its votes is said."""
        from workbench.runs import run_bin
        from workbench.ui import run_processes, run_queue

        try:
            folder = run_processes.find_run(self.context.runs, name, NO_RUN)
            if run_processes.run_state(folder).is_live or run_queue.find_job(self.context, name) is not None:
                raise BadInput("this run is at work, or waits for its turn; stop it first")
            votes = run_bin.describe_votes(run_bin.count_votes(self.context.runs, name))
            run_bin.move_to_bin(folder)
        except BadInput as error:
            return error_html(error)
        return hint_html(f"{name} is in the bin{f'; {votes}' if votes else ''}.")


class BinPanel:
    """The runs in the bin."""

    def __init__(self, context: AppContext):
        self.context = context
        with gr.Accordion("Bin", open=False) as self.panel:
            with gr.Row(equal_height=True):
                self.chosen = Choice([], label="Runs in the bin", scale=3)
                self.restore = gr.Button("Restore", size="sm", scale=0, min_width=110)
                self.remove = gr.Button("Remove for good", variant="stop", size="sm", scale=0, min_width=160)
            self.message = gr.HTML()

    def list_choices(self) -> dict:
        """What is in the bin, for the dropdown."""
        from workbench.runs import run_bin
        from workbench.runs.run_notes import read_notes

        choices = []
        for folder in run_bin.list_binned(self.context.runs):
            title = read_notes(folder).title
            choices.append((f"{title} ({folder.path.name})" if title else folder.path.name, folder.path.name))
        return gr.update(choices=choices, value=None)

    def make_handler(self, action: str, answer: str) -> Callable[[str], tuple]:
        """A handler that calls a function of run_bin with a run's name."""

        def handler(name: str) -> tuple:
            """Take a run, by its folder's name, out of the bin: back to the others, or for good."""
            from workbench.runs import run_bin

            try:
                getattr(run_bin, action)(self.context.runs, name or "")
            except (BadInput, OSError) as error:
                return error_html(error), gr.skip()
            return hint_html(f"{name} {answer}"), self.list_choices()

        return handler


class SeveralRuns:
    """Runs that somebody chooses, beside each other."""

    def __init__(self, context: AppContext):
        self.context = context
        with gr.Accordion("Several runs beside each other", open=False) as self.panel:
            self.chosen = Choice([], multiselect=True, max_choices=8, label="Runs")
            self.table, self.curves = gr.HTML(hint_html(SEVERAL_HINT)), gr.HTML()

    def draw(self, names: Sequence[str]) -> tuple[str, str]:
        """Several runs, by their names: (their contestants in one table, their curves in one chart), as HTML."""
        from workbench.ui.widgets import several_runs

        if not names:
            return hint_html(SEVERAL_HINT), ""
        try:
            folders = several_runs.find_runs(self.context.runs, names)
        except BadInput as error:
            return error_html(error), ""
        return several_runs.draw_comparison(folders), several_runs.overlay_curves(folders)
