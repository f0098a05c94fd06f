"""The tab of runs: every run of the store, live; start, stop and go on with those that have processes of their own.

What a run looks like is in watching.py, its process in processes.py. They bring torch along, so they are imported when the
first handler runs, and not before the page stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import gradio as gr
from gradio.context import Context

from workbench.core.paths import CONFIGS
from workbench.ui.context import Place
from workbench.ui.widgets.html import bad, empty, note

CONFIGURED = sorted(path.stem for path in (CONFIGS / "runs").glob("*.yaml"))
COMPARED = 3  # trainings of one comparison, beside the base
EVERY = 2.0  # seconds between looks at a run that is at work
QUIET = {"queue": False, "show_progress": "hidden"}
TEACH = "No run yet. A run makes or trains, is judged, and keeps everything in one folder: start one here, or with workbench demo."
SEVERAL = "Choose trainings that are done: a link opens them beside the base in the studio."
CHOOSE = """element.addEventListener("click", (e) => {
  const node = e.target.closest("[data-run]"); if (node) trigger("click", { run: node.dataset.run }); });"""
PICK = "Choose a run in the table to see its curves, samples, config and log."


class Tab:
    """The components, and what fills them."""

    def __init__(self, place: Place):
        self.place = place
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.table = gr.HTML(js_on_load=CHOOSE, elem_id="runs-table")
                self.reload = gr.Button("Reload", size="sm", scale=0)
            with gr.Column(scale=2, min_width=300):
                self.config = gr.Dropdown(CONFIGURED, value="demo", label="Config", info="a file in configs/runs")
                self.overrides = gr.Textbox(
                    label="Overrides", lines=2, max_length=4000, placeholder="seeds=4\ncontestants.reno.iterations=50",
                    info="key=value, one a line",
                )  # fmt: skip
                self.start = gr.Button("Start", variant="primary")
                self.said = gr.HTML()
        self.head = gr.HTML(empty(PICK))
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", interactive=False, size="sm", scale=0, min_width=110)
            self.resume = gr.Button("Resume", interactive=False, size="sm", scale=0, min_width=110)
        self.curves, self.samples = gr.HTML(), gr.HTML()
        with gr.Accordion("Config", open=False):
            self.yaml = gr.Code(language="yaml", interactive=False, show_label=False)
        with gr.Accordion("Log of its process", open=False):
            self.log = gr.Code(language=None, interactive=False, show_label=False, lines=6, max_lines=24)
        with gr.Accordion("Report", open=False) as self.reported:
            self.file = gr.DownloadButton("Download report.html", visible=False, size="sm")
            self.page = gr.HTML()
        with gr.Row(equal_height=True):
            self.chosen = gr.Dropdown([], multiselect=True, max_choices=COMPARED, label="Compare trainings")
            self.link = gr.HTML(note(SEVERAL))
        self.told = gr.JSON(visible=False)  # the list for other programs
        self.name = gr.Textbox(visible=False)  # of the run that is shown
        self.seen = gr.State(())  # what the page has got already
        self.timer = gr.Timer(EVERY, active=False)
        self.parts = [self.head, self.stop, self.resume, self.curves, self.samples, self.yaml, self.log, self.seen]
        self.parts += [self.table, self.chosen, self.timer]

    def list(self) -> list:
        """What there is: runs, trainings, and the runs again for other programs."""
        from workbench.ui.widgets import run_view

        runs = run_view.rows(self.place.runs)
        shown = run_view.listing(runs) if runs else empty(TEACH)
        return [shown, gr.update(choices=self.trainings()), runs]

    def trainings(self) -> list[tuple[str, str]]:
        from workbench.ui import contestant_choices

        return [(name.removeprefix("run:"), name) for name in contestant_choices.trained(self.place.runs)]

    def look(self, name: str, seen: Sequence = ()) -> list:
        """What has changed about run `name` since `seen`: a value for each of `parts`."""
        from workbench.core.types import BadInput
        from workbench.ui import run_processes
        from workbench.ui.widgets import curves, run_view

        still = [gr.skip() for _ in self.parts[:-1]]
        if not name:
            return [*still, gr.Timer(active=False)]
        try:
            folder = run_processes.find(self.place.runs, name)
        except BadInput as error:
            return [bad(error), *still[1:], gr.Timer(active=False)]
        now, series = run_processes.state(folder), curves.series(folder.path / "events.jsonl")
        log = run_processes.tail(folder)
        marks = ((name, now, series.changes), (name, log), name, (name, now))
        new, talked, other, turned = (a != b for a, b in zip(marks, seen or (None,) * 4, strict=True))
        return [
            run_view.header(folder, now, series) if new else gr.skip(),
            gr.Button(interactive=now.live and now.ours),
            gr.Button(interactive=now.name in ("stopped", "crashed", "failed")),
            run_view.drawn(folder, now, series) if new else gr.skip(),
            run_view.shown(folder, series) if new else gr.skip(),
            run_view.settings(folder, now) if other else gr.skip(),
            log if talked else gr.skip(),
            marks,
            self.list()[0] if turned else gr.skip(),
            gr.update(choices=self.trainings()) if turned else gr.skip(),
            gr.Timer(active=now.live),
        ]

    def begin(self, config: str, overrides: str) -> Iterator[tuple]:
        """Start a run in a process of its own, from a config in configs/runs and overrides `key=value`, one a line:
        (what to say, the new run's name)."""
        yield note("Checking …"), gr.skip()
        from workbench.core.types import BadInput
        from workbench.ui import run_processes

        asked = [line.strip() for line in (overrides or "").splitlines() if line.strip()]
        try:
            name = run_processes.start(self.place.runs, config, asked).path.name
        except BadInput as error:
            yield bad(error), gr.skip()
            return
        yield note(f"{name} is starting."), name

    def act(self, what: str, told: str) -> Callable[[str], list]:
        """A handler that does `what` of processes to a run, and looks at it again."""

        def handler(name: str) -> list:
            """Stop or go on with a run, by its name, and look at it again as `run` does."""
            from workbench.core.types import BadInput
            from workbench.ui import run_processes

            try:
                getattr(run_processes, what)(self.place.runs, name)
            except BadInput as error:
                return [bad(error), *self.look(name)]
            return [note(told), *self.look(name)]

        return handler

    def compare(self, chosen: list[str]) -> str:
        from workbench.core.types import BadInput
        from workbench.ui.widgets import run_view

        try:
            return run_view.opener(run_view.link(self.place.runs, chosen)) if chosen else note(SEVERAL)
        except BadInput as error:
            return note(error)

    def report(self, name: str) -> tuple:
        """The report of a run, by its name: (the page in a frame, the file)."""
        from workbench.core.types import BadInput
        from workbench.ui.widgets import run_view

        try:
            shown, file = run_view.report(self.place, name)
        except BadInput as error:
            return note(error), gr.DownloadButton(visible=False)
        return shown, gr.DownloadButton(value=file, visible=True)


def _picked(click: gr.EventData) -> str:
    return str(click._data.get("run", ""))


def build(page: gr.Blocks, place: Place) -> None:
    """Draw the tab into what is open, and wire it. Nothing of a run is sent before somebody opens the tab.

    The page must be launched with `allowed_paths=[place.temp]`: a report to download is copied there.
    """
    here = Context.block
    tab = Tab(place)
    listed, private = [tab.table, tab.chosen, tab.told], {"api_visibility": "private"}
    opened = here.select if isinstance(here, gr.Tab) else page.load
    opened(tab.list, None, listed, api_name="runs", **QUIET)
    tab.reload.click(tab.list, None, listed, **private, **QUIET)
    tab.table.click(_picked, None, tab.name, **private, **QUIET)

    def run(name: str) -> list:
        """A run, by its name: what it is doing, its curves, samples, config and log, as HTML, YAML and text."""
        return [*tab.look(name), "", gr.DownloadButton(visible=False)]

    tab.name.change(run, tab.name, [*tab.parts, tab.page, tab.file], api_name="run", **QUIET)
    tab.timer.tick(tab.look, [tab.name, tab.seen], tab.parts, **private, **QUIET)
    tab.start.click(
        tab.begin, [tab.config, tab.overrides], [tab.said, tab.name],
        api_name="start", concurrency_limit=2, show_progress="hidden",
    )  # fmt: skip
    after = [tab.said, *tab.parts]
    asked = "Asked to stop; whatever has not ended after a while is killed, and the run can go on from there."
    tab.stop.click(tab.act("stop", asked), tab.name, after, api_name="stop_run", **QUIET)
    tab.resume.click(tab.act("resume", "Going on."), tab.name, after, api_name="resume", **QUIET)
    tab.chosen.change(tab.compare, tab.chosen, tab.link, **private, **QUIET)
    tab.reported.expand(tab.report, tab.name, [tab.page, tab.file], api_name="report", **QUIET)
