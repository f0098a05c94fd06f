"""The tab of runs: every run of the store, live; start, stop and go on with those that have processes of their own.

What a run looks like is in widgets/run_view.py, its process in run_processes.py. They bring torch along, so they are
imported when the first handler runs, and not before the page stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import gradio as gr

from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS
from workbench.ui.context import AppContext
from workbench.ui.handlers import on_open
from workbench.ui.limits import MAX_TRAININGS
from workbench.ui.widgets.html import error_html, hint_html, placeholder_html

CONFIGURED = sorted(path.stem for path in (CONFIGS / "runs").glob("*.yaml"))
REFRESH_SECONDS = 2.0  # seconds between looks at a run that is at work
QUIET = {"queue": False, "show_progress": "hidden"}
EMPTY_HINT = (
    "No run yet. A run makes or trains, is judged, and keeps everything in one folder: start one here, or with "
    "workbench demo."
)
TRAININGS_HINT = "Choose trainings that are done: a link opens them beside the base in the studio."
CLICK_JS = """element.addEventListener("click", (e) => {
  const node = e.target.closest("[data-run]"); if (node) trigger("click", { run: node.dataset.run }); });"""
PICK_HINT = "Choose a run in the table to see its curves, samples, config and log."


class RunsTab:
    """The components, and what fills them."""

    def __init__(self, context: AppContext):
        self.context = context
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.table = gr.HTML(js_on_load=CLICK_JS, elem_id="runs-table")
                self.reload = gr.Button("Reload", size="sm", scale=0)
            with gr.Column(scale=2, min_width=300):
                self.config = gr.Dropdown(CONFIGURED, value="demo", label="Config", info="a file in configs/runs")
                self.overrides = gr.Textbox(
                    label="Overrides", lines=2, max_length=4000, info="key=value, one a line",
                    placeholder="samples_per_prompt=4\ncontestants.reno.iterations=50",
                )  # fmt: skip
                self.start = gr.Button("Start", variant="primary")
                self.message = gr.HTML()
        self.head = gr.HTML(placeholder_html(PICK_HINT))
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", interactive=False, size="sm", scale=0, min_width=110)
            self.resume = gr.Button("Resume", interactive=False, size="sm", scale=0, min_width=110)
        self.curves, self.samples = gr.HTML(), gr.HTML()
        with gr.Accordion("Config", open=False):
            self.yaml = gr.Code(language="yaml", interactive=False, show_label=False)
        with gr.Accordion("Log of its process", open=False):
            self.log = gr.Code(language=None, interactive=False, show_label=False, lines=6, max_lines=24)
        with gr.Accordion("Report", open=False) as self.report_panel:
            self.report_file = gr.DownloadButton("Download report.html", visible=False, size="sm")
            self.report_frame = gr.HTML()
        with gr.Row(equal_height=True):
            self.chosen = gr.Dropdown([], multiselect=True, max_choices=MAX_TRAININGS, label="Compare trainings")
            self.link = gr.HTML(hint_html(TRAININGS_HINT))
        self.run_records = gr.JSON(visible=False)  # the list for other programs
        self.name = gr.Textbox(visible=False)  # of the run that is shown
        self.sent_marks = gr.State(())  # what the page has got already
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)
        self.run_outputs = [self.head, self.stop, self.resume, self.curves, self.samples, self.yaml, self.log]
        self.run_outputs += [self.sent_marks, self.table, self.chosen, self.timer]

    def list_runs(self) -> list:
        """What there is: runs, trainings, and the runs again for other programs."""
        from workbench.ui.widgets import run_view

        runs = run_view.list_runs(self.context.runs)
        table = run_view.runs_table(runs) if runs else placeholder_html(EMPTY_HINT)
        return [table, gr.update(choices=self.list_trainings()), runs]

    def list_trainings(self) -> list[tuple[str, str]]:
        from workbench.ui import contestant_choices

        return [(name.removeprefix("run:"), name) for name in contestant_choices.list_trained(self.context.runs)]

    def refresh_run(self, name: str, sent_marks: Sequence = ()) -> list:
        """What has changed about run `name` since `sent_marks`: a value for each of `run_outputs`."""
        from workbench.ui import run_processes
        from workbench.ui.widgets import curves, run_view

        unchanged = [gr.skip() for _ in self.run_outputs[:-1]]
        if not name:
            return [*unchanged, gr.Timer(active=False)]
        try:
            folder = run_processes.find_run(self.context.runs, name)
        except BadInput as error:
            return [error_html(error), *unchanged[1:], gr.Timer(active=False)]
        state, series = run_processes.run_state(folder), curves.read_series(folder.path / "events.jsonl")
        log = run_processes.log_tail(folder)
        marks = ((name, state, series.changes), (name, log), name, (name, state))
        has_news, has_log, is_other_run, has_new_state = (
            a != b for a, b in zip(marks, sent_marks or (None,) * 4, strict=True)
        )
        return [
            run_view.draw_header(folder, state, series) if has_news else gr.skip(),
            gr.Button(interactive=state.is_live and state.started_here),
            gr.Button(interactive=state.name in ("stopped", "crashed", "failed")),
            run_view.draw_curves(folder, state, series) if has_news else gr.skip(),
            run_view.draw_samples(folder, series) if has_news else gr.skip(),
            run_view.config_yaml(folder, state) if is_other_run else gr.skip(),
            log if has_log else gr.skip(),
            marks,
            self.list_runs()[0] if has_new_state else gr.skip(),
            gr.update(choices=self.list_trainings()) if has_new_state else gr.skip(),
            gr.Timer(active=state.is_live),
        ]

    def start_run(self, config: str, overrides: str) -> Iterator[tuple]:
        """Start a run in a process of its own, from a config in configs/runs and overrides `key=value`, one a line:
        (what to say, the new run's name)."""
        yield hint_html("Checking …"), gr.skip()
        from workbench.ui import run_processes

        lines = [line.strip() for line in (overrides or "").splitlines() if line.strip()]
        try:
            name = run_processes.start_run(self.context.runs, config, lines).path.name
        except BadInput as error:
            yield error_html(error), gr.skip()
            return
        yield hint_html(f"{name} is starting."), name

    def make_handler(self, action: str, answer: str) -> Callable[[str], list]:
        """A handler that calls function `action` of run_processes with a run's name, and shows the run again."""

        def handler(name: str) -> list:
            """Stop or go on with a run, by its name, and look at it again as `run` does."""
            from workbench.ui import run_processes

            try:
                getattr(run_processes, action)(self.context.runs, name)
            except BadInput as error:
                return [error_html(error), *self.refresh_run(name)]
            return [hint_html(answer), *self.refresh_run(name)]

        return handler

    def link_trainings(self, chosen: Sequence[str]) -> str:
        from workbench.ui.widgets import run_view

        try:
            return (
                run_view.studio_button(run_view.studio_link(self.context.runs, chosen))
                if chosen
                else hint_html(TRAININGS_HINT)
            )
        except BadInput as error:
            return hint_html(error)

    def show_report(self, name: str) -> tuple:
        """The report of a run, by its name: (the page in a frame, the file)."""
        from workbench.ui.widgets import run_view

        try:
            frame, file = run_view.report_frame(self.context, name)
        except BadInput as error:
            return hint_html(error), gr.DownloadButton(visible=False)
        return frame, gr.DownloadButton(value=file, visible=True)


def _picked_run(click: gr.EventData) -> str:
    return str(click._data.get("run", ""))


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab into what is open, and wire it. Nothing of a run is sent before somebody opens the tab.

    The page must be launched with `allowed_paths=[context.temp]`: a report to download is copied there.
    """
    opened = on_open(page)
    tab = RunsTab(context)
    list_outputs, private = [tab.table, tab.chosen, tab.run_records], {"api_visibility": "private"}
    opened(tab.list_runs, None, list_outputs, api_name="runs", **QUIET)
    tab.reload.click(tab.list_runs, None, list_outputs, **private, **QUIET)
    tab.table.click(_picked_run, None, tab.name, **private, **QUIET)

    def run(name: str) -> list:
        """A run, by its name: what it is doing, its curves, samples, config and log, as HTML, YAML and text."""
        return [*tab.refresh_run(name), "", gr.DownloadButton(visible=False)]

    tab.name.change(run, tab.name, [*tab.run_outputs, tab.report_frame, tab.report_file], api_name="run", **QUIET)
    tab.timer.tick(tab.refresh_run, [tab.name, tab.sent_marks], tab.run_outputs, **private, **QUIET)
    tab.start.click(
        tab.start_run, [tab.config, tab.overrides], [tab.message, tab.name],
        api_name="start", concurrency_limit=2, show_progress="hidden",
    )  # fmt: skip
    after = [tab.message, *tab.run_outputs]
    stop_sentence = "Asked to stop; whatever has not ended after a while is killed, and the run can go on from there."
    tab.stop.click(tab.make_handler("stop_run", stop_sentence), tab.name, after, api_name="stop_run", **QUIET)
    tab.resume.click(tab.make_handler("resume_run", "Going on."), tab.name, after, api_name="resume", **QUIET)
    tab.chosen.change(tab.link_trainings, tab.chosen, tab.link, **private, **QUIET)
    tab.report_panel.expand(tab.show_report, tab.name, [tab.report_frame, tab.report_file], api_name="report", **QUIET)
