"""The tab of runs: every run of the store, live; the queue; start, stop and go on with those that have processes.

What a run looks like is in widgets/run_view.py, its process in run_processes.py, its turn in run_queue.py. They bring
torch along, so they are imported when the first handler runs, and not before the page stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui import run_choices
from workbench.ui.context import AppContext
from workbench.ui.handlers import on_open
from workbench.ui.limits import MAX_TRAININGS
from workbench.ui.widgets import queue_view
from workbench.ui.widgets.choice import Choice
from workbench.ui.widgets.html import error_html, hint_html, placeholder_html
from workbench.ui.widgets.run_organiser import QUIET, BinPanel, NotesForm, SeveralRuns

REFRESH_SECONDS = 2.0  # seconds between looks at a run that is at work, and at the queue
EMPTY_HINT = (
    "No run yet. A run makes or trains, is judged, and keeps everything in one folder: start one here, or with "
    "workbench demo."
)
NOT_FOUND_HINT = "No run has all of these words."
SEARCH_HINT = "words of its title, note, pipeline, contestants; #tag, state:done, -word"
TRAININGS_HINT = "Choose trainings that are done: a link opens them beside the base in the studio."
GRID_HINT = (
    "A table of samples, all of the same prompts and noises. Along each side: steps, guidance_scale, pipeline, method, "
    "lora_weight, seed, reward.NAME, or a setting of the method or of the pipeline."
)
AXES = (("x", "across", "steps=1,2,4"), ("y", "down", "method.iterations=5,10"), ("z", "table by table", "seed=0,1"))
CLICK_JS = """element.addEventListener("click", (e) => {
  const node = e.target.closest("[data-run]"); if (node) trigger("click", { run: node.dataset.run }); });"""
PICK_HINT = "Choose a run in the table to see its curves, samples, config and log."
STOP_SENTENCE = "Asked to stop; whatever has not ended after a while is killed, and the run can go on from there."


class RunsTab:
    """The components, and what fills them."""

    def __init__(self, context: AppContext):
        self.context = context
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.search = gr.Textbox("", label="Search", info=SEARCH_HINT, max_length=200)
                self.table = gr.HTML(js_on_load=CLICK_JS, elem_id="runs-table")
                self.reload = gr.Button("Reload", size="sm", scale=0)
            with gr.Column(scale=2, min_width=300):
                offered = run_choices.offer_configs(context.runs)
                self.config = Choice(offered, value="demo", label="Config", info="type to search all of them")
                self.overrides = gr.Textbox(
                    label="Overrides", lines=2, max_length=4000, info="key=value, one a line",
                    placeholder="samples_per_prompt=4\ncontestants.reno.iterations=50",
                )  # fmt: skip
                with gr.Accordion("As a grid", open=False):
                    gr.HTML(hint_html(GRID_HINT))
                    self.axes = [
                        gr.Textbox("", label=f"{side}, {where}", placeholder=example, max_length=300)
                        for side, where, example in AXES
                    ]
                    self.varied = gr.Textbox("", label="Contestant", info="of a config with several", max_length=64)
                self.cost = gr.HTML()
                with gr.Row():
                    self.estimate = gr.Button("What will it cost?", scale=1)
                    self.start = gr.Button("Start", variant="primary", scale=1)
                self.message = gr.HTML()
                gr.HTML("<h3>Queue</h3>")
                self.queue = gr.HTML(queue_view.draw_queue([]), js_on_load=queue_view.QUEUE_JS, elem_id="queue")
                self.queue_message = gr.HTML()
                with gr.Accordion("This machine", open=True):
                    self.machine = gr.HTML()
        self.head = gr.HTML(placeholder_html(PICK_HINT))
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", interactive=False, size="sm", scale=0, min_width=110)
            self.resume = gr.Button("Resume", interactive=False, size="sm", scale=0, min_width=110)
        self.notes = NotesForm(context)
        self.curves, self.samples = gr.HTML(), gr.HTML()
        with gr.Accordion("Config", open=False):
            self.yaml = gr.Code(language="yaml", interactive=False, show_label=False)
        with gr.Accordion("Log of its process", open=False):
            self.log = gr.Code(language=None, interactive=False, show_label=False, lines=6, max_lines=24)
        with gr.Accordion("Report", open=False) as self.report_panel:
            self.report_file = gr.DownloadButton("Download report.html", visible=False, size="sm")
            self.report_frame = gr.HTML()
        with gr.Row(equal_height=True):
            self.chosen = Choice([], multiselect=True, max_choices=MAX_TRAININGS, label="Compare trainings")
            self.link = gr.HTML(hint_html(TRAININGS_HINT))
        self.several, self.bin = SeveralRuns(context), BinPanel(context)
        self.run_records = gr.JSON(visible=False)  # the list for other programs
        self.queue_records = gr.JSON(visible=False)  # and the queue
        self.job, self.action = gr.Textbox(visible=False), gr.Textbox(visible=False)  # what was clicked in the queue
        self.name = gr.Textbox(visible=False)  # of the run that is shown
        self.sent_marks, self.queue_marks = gr.State(()), gr.State(())  # what the page has got already
        self.timer, self.queue_timer = (gr.Timer(REFRESH_SECONDS, active=False) for _ in range(2))
        self.form = [self.config, self.overrides, *self.axes, self.varied]
        self.run_outputs = [self.head, self.stop, self.resume, self.curves, self.samples, self.yaml, self.log]
        self.run_outputs += [self.sent_marks, self.table, self.chosen, self.timer]
        self.list_outputs = [self.table, self.chosen, self.several.chosen, self.config, self.run_records]
        self.queue_outputs = [self.queue, self.machine, self.queue_records, self.queue_timer]

    def list_runs(self, search: str = "") -> list:
        """What there is, of which a search finds all its words: runs, trainings, runs to lay over each other, configs,
        and the runs again for other programs."""
        from workbench.ui.widgets import run_view

        runs = run_view.list_runs(self.context.runs, search or "")
        table = run_view.runs_table(runs) if runs else placeholder_html(NOT_FOUND_HINT if search else EMPTY_HINT)
        names = [(f"{r['title']} ({r['run']})" if r["title"] else r["run"], r["run"]) for r in runs]
        several = gr.skip() if search else gr.update(choices=names)  # what is chosen stays among the choices
        configs = gr.update(choices=run_choices.offer_configs(self.context.runs))
        return [table, gr.update(choices=self.list_trainings()), several, configs, runs]

    def list_trainings(self) -> list[tuple[str, str]]:
        from workbench.ui import contestant_choices

        return [(name.removeprefix("run:"), name) for name in contestant_choices.list_trained(self.context.runs)]

    def refresh_run(self, name: str, sent_marks: Sequence = (), search: str = "") -> list:
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
        waits = state.name == run_processes.QUEUED
        return [
            run_view.draw_header(folder, state, series) if has_news else gr.skip(),
            gr.Button(interactive=waits or (state.is_live and state.started_here)),
            gr.Button(interactive=state.name in ("stopped", "crashed", "failed", run_processes.QUEUED)),
            run_view.draw_curves(folder, state, series) if has_news else gr.skip(),
            run_view.draw_samples(folder, series) if has_news else gr.skip(),
            run_view.config_yaml(folder, state) if is_other_run else gr.skip(),
            log if has_log else gr.skip(),
            marks,
            self.list_runs(search)[0] if has_new_state else gr.skip(),
            gr.update(choices=self.list_trainings()) if has_new_state else gr.skip(),
            gr.Timer(active=state.is_live or waits),
        ]

    def estimate_cost(self, config: str, overrides: str, *grid: str) -> str:
        """What a run of a config, with overrides `key=value`, one a line, will cost: its denoiser calls, time and
        memory by earlier runs, and how many jobs come before it. What no run tells is unknown. A grid over it: x, y, z
        as `SETTING=VALUE,VALUE`, and the contestant that they vary."""
        from workbench.engine.cost_estimates import estimate_cost
        from workbench.ui import run_processes

        try:
            plan = run_processes.plan_config(self.context.runs, config, split_lines(overrides), *read_grid(grid))
        except BadInput as error:
            return error_html(error)
        ahead = len(self.context.jobs.list_jobs())
        wait = f"; {ahead} job{'s come' if ahead > 1 else ' comes'} before it" if ahead else ""
        return hint_html(f"{estimate_cost(plan, self.context.runs).describe()}{wait}.")

    def start_run(self, config: str, overrides: str, *grid: str) -> Iterator[tuple]:
        """Put a run into the queue, of a config that is offered and overrides `key=value`, one a line; it works in a
        process of its own when its turn comes: (what to say, the new run's name). A grid over it: x, y, z as
        `SETTING=VALUE,VALUE`, and the contestant that they vary."""
        yield hint_html("Checking …"), gr.skip()
        from workbench.ui import run_queue

        try:
            folder, job = run_queue.start_run(self.context, config, split_lines(overrides), *read_grid(grid))
        except BadInput as error:
            yield error_html(error), gr.skip()
            return
        ahead = self.context.jobs.jobs_ahead(job)
        words = f"waits for its turn, {ahead} before it" if ahead else "is starting"
        yield hint_html(f"{folder.path.name} {words}."), folder.path.name

    def make_handler(self, action: str, answer: str) -> Callable[[str], list]:
        """A handler that calls function `action` of run_queue with a run's name, and shows the run again."""

        def handler(name: str) -> list:
            """Stop or go on with a run, by its name, and look at it again as `run` does."""
            from workbench.ui import run_queue

            try:
                getattr(run_queue, action)(self.context, name)
            except BadInput as error:
                return [error_html(error), *self.refresh_run(name)]
            return [hint_html(answer), *self.refresh_run(name)]

        return handler

    def show_queue(self) -> list:
        """The queue, and what this machine is doing: (both as HTML, the jobs for other programs)."""
        jobs = self.context.jobs.list_jobs()
        machine = queue_view.draw_machine(queue_view.measure_machine())
        records = [queue_view.describe_job(job) for job in jobs]
        return [queue_view.draw_queue(jobs), machine, records, gr.Timer(active=bool(jobs))]

    def follow_queue(self, search: str, marks: Sequence = ()) -> list:
        """What `show_queue` gives, the table of runs where one of the queue has another state now, and the states."""
        from workbench.ui import run_processes

        names = [job.saved["run"] for job in self.context.jobs.list_jobs() if job.saved]
        folders = {f.path.name: f for f in run_processes.list_run_folders(self.context.runs) if f.path.name in names}
        new_marks = [[name, run_processes.run_state(folder).name] for name, folder in folders.items()]
        table = self.list_runs(search)[0] if new_marks != [*map(list, marks)] else gr.skip()
        return [*self.show_queue(), table, new_marks]

    def change_queue(self, key: str, action: str) -> list:
        """Change the queue: a job, by its key, is moved (up, down), paused, resumed, or stopped (cancel, stop)."""
        from workbench.ui import run_queue

        jobs, message = self.context.jobs, ""
        try:
            job = jobs.find_job(key)
            match action:
                case "up" | "down":
                    jobs.move(job, -1 if action == "up" else 1)
                case "pause":
                    jobs.pause(job)
                case "resume":
                    jobs.resume(job)
                case "cancel" | "stop":
                    run_queue.cancel_job(self.context, job)
                case _:
                    raise BadInput(f"a job can be told {', '.join(queue_view.ACTIONS)}")
        except BadInput as error:
            message = error_html(error)
        return [message, *self.show_queue()]

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
        """The report of a run, by its name: (the page in a frame, with that of a grid above it; the file)."""
        from workbench.ui.widgets import run_view

        try:
            frame, file = run_view.report_frame(self.context, name)
        except BadInput as error:
            return hint_html(error), gr.DownloadButton(visible=False)
        return frame, gr.DownloadButton(value=file, visible=True)


def read_grid(grid: Sequence[str]) -> tuple[dict[str, str], str]:
    """(side -> what varies along it, the contestant that varies) of the form's fields x, y, z and contestant."""
    *axes, varied = [(text or "").strip() for text in grid] or [""]
    return {side: text for (side, *_), text in zip(AXES, axes, strict=False) if text}, varied


def split_lines(overrides: str | None) -> list[str]:
    """The overrides in a text, one a line."""
    return [line.strip() for line in (overrides or "").splitlines() if line.strip()]


def _picked_run(click: gr.EventData) -> str:
    return str(click._data.get("run", ""))


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab into what is open, and wire it. Nothing of a run is sent before somebody opens the tab.

    The page must be launched with `allowed_paths=[context.temp]`: a report to download is copied there.
    """
    opened = on_open(page)
    tab = RunsTab(context)
    private = {"api_visibility": "private"}
    opened(tab.list_runs, tab.search, tab.list_outputs, api_name="runs", **QUIET)
    opened(tab.show_queue, None, tab.queue_outputs, api_name="queue", **QUIET)
    for event in (tab.reload.click, tab.search.submit, tab.search.blur):
        event(tab.list_runs, tab.search, tab.list_outputs, **private, **QUIET)
    tab.table.click(_picked_run, None, tab.name, **private, **QUIET)

    def run(name: str) -> list:
        """A run, by its name: what it is doing, its curves, samples, config and log, as HTML, YAML and text."""
        return [*tab.refresh_run(name), "", gr.DownloadButton(visible=False)]

    tab.name.change(run, tab.name, [*tab.run_outputs, tab.report_frame, tab.report_file], api_name="run", **QUIET)
    tab.name.change(tab.notes.show, tab.name, tab.notes.fields, **private, **QUIET)
    tab.timer.tick(tab.refresh_run, [tab.name, tab.sent_marks, tab.search], tab.run_outputs, **private, **QUIET)
    tab.estimate.click(tab.estimate_cost, tab.form, tab.cost, api_name="cost", **QUIET)
    started = tab.start.click(
        tab.start_run, tab.form, [tab.message, tab.name],
        api_name="start", concurrency_limit=2, show_progress="hidden",
    )  # fmt: skip
    wire_queue(tab, started)
    after = [tab.message, *tab.run_outputs]
    tab.stop.click(tab.make_handler("stop_run", STOP_SENTENCE), tab.name, after, api_name="stop_run", **QUIET)
    resumed = tab.resume.click(
        tab.make_handler("resume_run", "Going on, when its turn comes."), tab.name, after, api_name="resume", **QUIET
    )
    resumed.then(tab.show_queue, None, tab.queue_outputs, **private, **QUIET)
    tab.chosen.change(tab.link_trainings, tab.chosen, tab.link, **private, **QUIET)
    tab.report_panel.expand(tab.show_report, tab.name, [tab.report_frame, tab.report_file], api_name="report", **QUIET)
    wire_organiser(tab)


def wire_queue(tab: RunsTab, started: gr.events.Dependency) -> None:
    """The buttons of the queue, and its clock, which ticks while there is a job."""
    private = {"api_visibility": "private"}

    def take_click(click: gr.EventData) -> list:
        return tab.change_queue(str(click._data.get("job", "")), str(click._data.get("action", "")))

    tab.queue.click(take_click, None, [tab.queue_message, *tab.queue_outputs], **private, **QUIET)
    tab.action.submit(
        tab.change_queue, [tab.job, tab.action], [tab.queue_message, *tab.queue_outputs], api_name="queue_job", **QUIET
    )
    following = [*tab.queue_outputs, tab.table, tab.queue_marks]
    tab.queue_timer.tick(tab.follow_queue, [tab.search, tab.queue_marks], following, **private, **QUIET)
    started.then(tab.show_queue, None, tab.queue_outputs, **private, **QUIET)


def wire_organiser(tab: RunsTab) -> None:
    """Notes, bin, and several runs."""
    notes, binned, private = tab.notes, tab.bin, {"api_visibility": "private"}
    refresh = (tab.list_runs, tab.search, tab.list_outputs)
    saved = notes.save.click(notes.save_notes, [tab.name, *notes.fields], notes.message, api_name="save_notes", **QUIET)
    saved.then(*refresh, **private, **QUIET)
    deleted = notes.delete.click(notes.delete_run, tab.name, notes.message, api_name="delete_run", **QUIET)
    deleted.then(*refresh, **private, **QUIET).then(binned.list_choices, None, binned.chosen, **private, **QUIET)
    binned.panel.expand(binned.list_choices, None, binned.chosen, **private, **QUIET)
    for button, action, answer in (
        (binned.restore, "restore_run", "is back."), (binned.remove, "remove_binned", "is removed for good."),
    ):  # fmt: skip
        emptied = button.click(
            binned.make_handler(action, answer),
            binned.chosen,
            [binned.message, binned.chosen],
            api_name=action,
            **QUIET,
        )
        emptied.then(*refresh, **private, **QUIET)
    several = tab.several
    several.chosen.change(
        several.draw, several.chosen, [several.table, several.curves], api_name="runs_beside", **QUIET
    )
