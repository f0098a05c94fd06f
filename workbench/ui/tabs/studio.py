"""The studio: the same prompts and noises through several contestants, live, judged, kept, and found again by a link.

This file is the page and its handlers. What may be asked for is in contestant_choices.py, its fields in
widgets/editor.py, how it is made in studio_comparison.py and how it looks in widgets/live_view.py and result_view.py.
They bring torch along, so they are imported when the first handler runs, and not before the page stands.
"""

from __future__ import annotations

import dataclasses
import html
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui import served_files
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.widgets.editor import QUIET, Editor, first_request
from workbench.ui.widgets.html import error_html, escape_text, hint_html

if TYPE_CHECKING:
    from workbench.runs.store import RunFolder
    from workbench.ui.studio_comparison import ComparisonManager, LiveComparison
    from workbench.ui.widgets.live_view import Previews
    from workbench.ui.widgets.result_view import ComparisonResult

VIEW_INTERVAL = 0.15  # seconds between two views that are sent
EMPTY_HTML = """<div class="wb-empty"><b>Nothing compared yet</b>
Press <em>Compare</em>: the base, the best of 21 draws and ReNO make the same four prompts from the same noises, the
last two at equal numbers of denoiser calls. You see each one’s best so far while it works, then all of them side by
side with what each reward says. Only <code>starter_clip</code> is optimised; the oracle, which reads the pictures
exactly, only looks on.</div>"""


def build_tab(page: gr.Blocks, context: AppContext) -> None:
    """Draw the tab inside `page`, wire it, and begin to load what its first comparison needs.

    The page must be launched with `allowed_paths=[context.temp]`: all that it shows is copied there.
    """
    Studio(context).draw(page)


class Studio:
    """One for an app."""

    def __init__(self, context: AppContext):
        self.context, self.editor = context, Editor(context)
        self._manager: ComparisonManager | None = None
        self._manager_lock = threading.Lock()

    @property
    def manager(self) -> ComparisonManager:
        with self._manager_lock:
            if self._manager is None:
                from workbench.ui.studio_comparison import ComparisonManager

                self._manager = ComparisonManager(self.context)
        return self._manager

    def _warm_up(self, page: gr.Blocks) -> None:
        while not page.is_running:  # the page first
            time.sleep(0.1)
        self.context.imports_done.wait()
        served_files.sweep_copies(self.context.temp)
        try:
            self.manager.warm_up(first_request())
        except BadInput:
            return  # without the starter pack there is nothing to warm; the first comparison says what is missing

    # the page

    def draw(self, page: gr.Blocks) -> None:
        self.running, self.shown_result = gr.State(""), gr.State({})
        with gr.Row():
            with gr.Column(scale=4, min_width=330):
                self.editor.draw_prompts()
                with gr.Row():
                    self.compare_button = gr.Button("Compare", variant="primary", elem_id="wb-compare", min_width=110)
                    self.stop_button = gr.Button("Stop", elem_id="wb-stop", min_width=110)
                self.status = gr.HTML("", elem_id="wb-status")
                self.editor.draw_contestants()
            with gr.Column(scale=8, min_width=330):
                self._draw_stage()
        self.editor.wire_events()
        self._wire_events(page)
        for function in (self.compare, self.stop, self.open):
            gr.api(function, api_name=function.__name__, concurrency_limit=None)
        threading.Thread(target=self._warm_up, args=(page,), name="warming", daemon=True).start()

    def _draw_stage(self) -> None:
        self.stage = gr.HTML(EMPTY_HTML, elem_id="wb-stage")
        with gr.Row(visible=False) as self.actions:
            names = ("Same seed again", "Vary the seed", "Open the run folder", "Download all")
            self.again_button, self.vary_button, self.folder_button, self.zip_button = (
                gr.Button(n, size="sm", min_width=140) for n in names
            )
        self.message = gr.HTML("")
        with gr.Column(visible=False) as self.slider_panel:
            with gr.Row():
                self.row_choice = gr.Dropdown([], label="Prompt", type="index", scale=3, min_width=180)
                self.left_choice = gr.Dropdown([], label="Left", min_width=110)
                self.right_choice = gr.Dropdown([], label="Right", min_width=110)
            self.slider = gr.ImageSlider(
                show_label=False, type="filepath", format="png", interactive=False, elem_classes=["wb-slider"]
            )
        self.chart = gr.HTML("", elem_classes=["wb-one"])
        self.zip_link = gr.Textbox(visible=False)

    def _wire_events(self, page: gr.Blocks) -> None:
        slide = [self.slider_panel, self.row_choice, self.left_choice, self.right_choice, self.slider]
        results = [self.status, self.stage, self.chart, self.running, self.shown_result, self.actions, self.message]
        results += slide
        outputs = [*self.editor.outputs(), *results]
        long = QUIET | {"concurrency_limit": None}
        page.load(self.open_page, None, outputs, **long)
        self.compare_button.click(self.start_comparison, self.editor.inputs(), results, **long)
        self.again_button.click(self.repeat_seed, [self.shown_result], outputs, **long)
        self.vary_button.click(self.vary_seed, [self.shown_result], outputs, **long)
        self.stop_button.click(self.stop_running, [self.running], [self.status], queue=False, **QUIET)
        self.folder_button.click(self.show_folder, [self.shown_result], [self.message], queue=False, **QUIET)
        save = (
            "(u) => { if (!u) return; const a = document.createElement('a'); a.href = u; a.download = ''; a.click(); }"
        )
        self.zip_button.click(self.zip_result, [self.shown_result], [self.zip_link], **QUIET).then(
            None, [self.zip_link], None, js=save
        )
        chosen = [self.row_choice.input, self.left_choice.input, self.right_choice.input]
        gr.on(
            chosen,
            self.move_slider,
            [self.shown_result, self.row_choice, self.left_choice, self.right_choice],
            [self.slider],
            **QUIET,
        )

    # what a click does

    def start_comparison(self, *values: Any) -> Iterator[list]:
        try:
            live = self.manager.start(self.editor.read_request(*values))
        except BadInput as error:
            yield self._refusal_updates(error)
            raise shown_error(error) from None
        yield from self.follow_comparison(live)

    def repeat_seed(self, result: dict) -> Iterator[list]:
        yield from self._repeat_comparison(result, vary=False)

    def vary_seed(self, result: dict) -> Iterator[list]:
        yield from self._repeat_comparison(result, vary=True)

    def _repeat_comparison(self, result: dict, vary: bool) -> Iterator[list]:
        name = result.get("run", "")
        skip = [gr.skip()] * len(self.editor.outputs())
        try:
            request = self.manager.read_request(self.manager.find_folder(name))
            seed = request.seed + 1 if vary else None
            live = self.manager.repeat_run(name, seed)
        except BadInput as error:
            yield [*skip, *self._refusal_updates(error)]
            raise shown_error(error) from None
        fields = self.editor.fill_fields(dataclasses.replace(request, seed=request.seed if seed is None else seed))
        for n, update in enumerate(self.follow_comparison(live)):
            yield [*(skip if n else fields), *update]

    def stop_running(self, key: str) -> str:
        if self.manager.stop(key) is None:
            return hint_html("Nothing of yours is at work.")
        return hint_html("Stopping: what is being made is finished as it stands, and kept.")

    def open_page(self, request: gr.Request) -> Iterator[list]:
        """The page is opened: what can be chosen, and what the address names, if it does: `?run=` a comparison, or
        `?contestants=` trainings to be compared."""
        query = dict(request.query_params) if request else {}
        name = query.get("run")
        if name is None:
            try:
                shown_request = (
                    self.manager.request_for_trainings(query["contestants"])
                    if "contestants" in query
                    else first_request()
                )
                yield [*self.editor.fill_fields(shown_request), *[gr.skip()] * 12]
            except BadInput as error:
                yield [*self.editor.fill_fields(first_request()), *self._refusal_updates(error)]
            return
        try:
            folder = self.manager.find_folder(name)
        except BadInput as error:
            yield [*self.editor.fill_fields(first_request()), *self._refusal_updates(error)]
            return
        try:
            fields = self.editor.fill_fields(self.manager.read_request(folder))
        except BadInput:
            fields = self.editor.fill_fields(first_request())  # shown, but not to be asked for from a page
        live = self.manager.list_running().get(name)
        updates = self.follow_comparison(live, is_owner=False) if live else iter([self._result_updates(folder)])
        for n, update in enumerate(updates):
            yield [*(fields if not n else [gr.skip()] * len(fields)), *update]

    def show_folder(self, result: dict) -> str:
        path = escape_text((self.context.runs / result["run"]).resolve()) if result.get("run") else ""
        copy = f'<button type="button" class="wb-copy" data-wb-copy="{path}">Copy</button>'
        return f'<div class="wb-links"><code>{path}</code>{copy}</div>' if path else ""

    def zip_result(self, result: dict) -> str:

        return served_files.file_url(
            served_files.zip_folder(self.manager.find_folder(result.get("run")), self.context.temp)
        )

    def move_slider(self, result: dict, row: int | None, left_name: str | None, right_name: str | None) -> Any:
        from workbench.ui.widgets import result_view

        pair = (
            result_view.slider_pair(result["rows"], result["kind"], row, left_name, right_name)
            if result and None not in (row, left_name, right_name)
            else None
        )
        return pair or gr.skip()

    # what is seen

    def follow_comparison(self, live: LiveComparison, is_owner: bool = True) -> Iterator[list]:
        """Updates of the results while a comparison is made, and its result."""
        from workbench.ui.widgets import live_view

        previews, sent = live_view.Previews(live), [None, None]
        skip = gr.skip()
        try:
            for _ in live.job.watch(0.5, leaving_stops=is_owner):
                views = self._live_html(live, previews)
                new = [skip if a == b else b for a, b in zip(sent, views, strict=True)]
                first_time, sent = sent == [None, None], views
                hidden = gr.update(visible=False) if first_time else skip
                yield ["" if first_time else skip, *new, live.key, skip, hidden, "", hidden, *[skip] * 4]
                time.sleep(VIEW_INTERVAL)
        except Exception as error:
            yield self._refusal_updates(error, running="")
            return
        if live.folder is None:
            yield [hint_html("Stopped before it began."), EMPTY_HTML, "", "", skip, skip, "", *[skip] * 5]
            return
        yield self._result_updates(live.folder)

    def _live_html(self, live: LiveComparison, previews: Previews) -> list[str]:
        from workbench.ui.widgets import live_view

        view = live_view.live_view(live, previews)
        if live.job.state != "waiting":
            return [live_view.render_live(view), live_view.live_chart(live)]
        queue = self.context.jobs.list_jobs()
        return [
            live_view.render_waiting(view, self.context.jobs.jobs_ahead(live.job), queue[0].title if queue else ""),
            "",
        ]

    def _result_updates(self, folder: RunFolder) -> list:
        from workbench.ui.widgets import result_view

        result = result_view.read_result(folder, self.context.temp)
        return [
            "",
            result.html,
            result.chart,
            "",
            result_view.slider_state(result),
            gr.update(visible=True),
            "",
            *self._slider_updates(result),
        ]

    def _slider_updates(self, result: ComparisonResult) -> list:
        from workbench.ui.widgets import result_view

        rows = [(f"{n + 1}. {row['prompt'][:80]}", n) for n, row in enumerate(result.rows)]
        files = result_view.slider_state(result)["rows"]
        given = [cell["title"] for row in result.rows[:1] for cell in row["given"] if cell["title"] in files[0]]
        names = [name for name in dict.fromkeys([*given, *result.names]) if any(name in row for row in files)]
        if result.kind == "audio" or len(names) < 2:
            return [gr.update(visible=False), *[gr.skip()] * 4]
        pair = result_view.slider_pair(files, result.kind, 0, names[0], names[-1])
        picks = [gr.update(choices=names, value=names[0]), gr.update(choices=names, value=names[-1])]
        return [gr.update(visible=True), gr.update(choices=rows, value=0), *picks, pair or gr.skip()]

    def _refusal_updates(self, error: BaseException, running: Any = None) -> list:
        skip = gr.skip()
        return [error_html(error_sentence(error)), *[skip] * 2, skip if running is None else running, *[skip] * 8]

    # what programs call

    def compare(
        self,
        prompts: str,
        pipeline: str = "starter-image",
        contestants: list[str] = ["sample", "best_of_n n=21", "reno iterations=20"],  # noqa: B006
        rewards: dict[str, float] = {"starter_clip": 1.0},  # noqa: B006
        watch: list[str] | None = None,
        seed: int = 0,
        seeds: int = 1,
        calls: int = 0,
        batch: int = 16,
        inputs: dict[str, dict] | None = None,
    ) -> dict:
        """Compare contestants on the same prompts and noises. A generator: views while it works, the result at the end.

        Args:
            prompts: one a line; or `list:NAME` for a list of configs/prompts, `list:run:NAME` for those of a stored run
            pipeline: a configured pipeline
            contestants: lines METHOD[@PIPELINE] key=value …, at most four
            rewards: what is optimised, each with its weight
            watch: what only looks on; not given: the oracle where there is one, and the scorers whose weights are here
            seed: everything random follows from it
            seeds: noises per prompt
            calls: denoiser calls a sample to which every method is fitted; 0 leaves their settings
            batch: samples made at once
            inputs: what all samples are made from, where the pipeline takes it: name (source, mask, first, ...) -> an
                uploaded file, such as gradio_client's `handle_file` makes of a path; of a mask, white is changed

        Views are {"key", "run", "state", "share", "contestants": [{"name", "state", "rows", "of", "seconds", "left",
        "reward", "previews": [{"uri", "prompt"}]}]}; the result is what `open` gives. `stop` takes the key or the run.
        """
        from workbench.ui.widgets import live_view, result_view

        name = prompts.strip().removeprefix("list:") if prompts.strip().startswith("list:") else None
        try:
            given = self.editor.given.read_uploads(pipeline, inputs or {})
            texts = name or prompts.splitlines()
            request = ComparisonRequest(texts, pipeline, contestants, rewards, watch, seed, seeds, calls, batch, given)
            live = self.manager.start(request)
            previews = live_view.Previews(live)
            for _ in live.job.watch(0.5):
                yield live_view.live_view(live, previews) | {"ahead": self.context.jobs.jobs_ahead(live.job)}
                time.sleep(VIEW_INTERVAL)
            if live.folder is None:
                raise BadInput("stopped before it began")
            yield result_view.result_for_programs(result_view.read_result(live.folder, self.context.temp), live.folder)
        except Exception as error:
            raise shown_error(error) from error

    def stop(self, which: str) -> dict:
        """Stop a comparison, by its key or its run: {"stopping": whether there was one}. What is being made is finished
        as it stands and kept; the result comes from the `compare` that began it, or from `open`."""
        return {"stopping": self.manager.stop(which) is not None}

    def open(self, run: str) -> dict:
        """A stored comparison: {"run", "folder", "state", "headline", "summary", "files": [{"contestant", "prompt",
        "seed", "url", "scores"}]}, its first rows. `url` is relative to the page."""
        from workbench.ui.widgets import result_view

        try:
            folder = self.manager.find_folder(run)
            return result_view.result_for_programs(result_view.read_result(folder, self.context.temp), folder)
        except BadInput as error:
            raise shown_error(error) from None


def error_sentence(error: BaseException) -> str:
    """What a person is told: what is wrong with what was asked, or that the program is at fault (the log says
    where)."""
    from workbench.engine.run import DiskFull

    if isinstance(error, (BadInput, DiskFull)):
        return str(error)
    return (
        f"It failed, which it should not: {type(error).__name__}: "
        f"{str(error).splitlines()[0] if str(error) else 'no message'}"
    )


def shown_error(error: Exception) -> gr.Error:
    """One sentence, shown as text."""
    return gr.Error(html.escape(error_sentence(error), quote=False), print_exception=False)
