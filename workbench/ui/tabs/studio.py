"""The studio: the same prompts and noises through several contestants, live, judged, kept, and found again by a link.

This file is the page and its handlers. What may be asked for is in contestant_choices.py, its fields in
widgets/editor.py, how it is made in studio_comparison.py and how it looks in widgets/live_view.py and result_view.py.
They bring torch along, so they are imported when the first handler runs, and not before the page stands.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui import presets, served_files
from workbench.ui.context import AppContext
from workbench.ui.form import read_draft
from workbench.ui.studio_programs import VIEW_INTERVAL, StudioPrograms, error_sentence, shown_error
from workbench.ui.widgets.choice import Choice
from workbench.ui.widgets.editor import QUIET, Editor
from workbench.ui.widgets.html import error_html, escape_text, hint_html

if TYPE_CHECKING:
    from workbench.runs.store import RunFolder
    from workbench.ui.studio_comparison import ComparisonManager, LiveComparison
    from workbench.ui.widgets.live_view import Previews
    from workbench.ui.widgets.result_view import ComparisonResult

OLD_DRAFT = "The form that this browser kept is of another version of the app, and is not restored."
LOOK_SECONDS = 1.0  # between looks at a run that a process makes
RESULTS = 13  # outputs that show a comparison
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
        self.programs = StudioPrograms(context, self.editor.given, lambda: self.manager)
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
        self.editor.offer_choices()  # reads all configs, once
        try:
            self.manager.warm_up(presets.FIRST)
        except BadInput:
            return  # without the starter pack there is nothing to warm; the first comparison says what is missing

    # the page

    def draw(self, page: gr.Blocks) -> None:
        self.running, self.shown_result = gr.State(""), gr.State({})
        self.draft = gr.Textbox(visible=False)
        with gr.Row():
            with gr.Column(scale=4, min_width=330, elem_id="wb-form"):
                self.editor.draw_prompts()
                with gr.Row():
                    self.compare_button = gr.Button("Compare", variant="primary", elem_id="wb-compare", min_width=110)
                    self.stop_button = gr.Button("Stop", elem_id="wb-stop", min_width=110)
                self.status = gr.HTML("", elem_id="wb-status")
                self.editor.draw_advice()
                self.editor.draw_contestants()
            with gr.Column(scale=8, min_width=330, elem_classes=["wb-results"]):
                self._draw_stage()
        self.editor.wire_events()
        self._wire_events(page)
        for function in (self.programs.compare, self.programs.stop, self.programs.open):
            gr.api(function, api_name=function.__name__, concurrency_limit=None)
        threading.Thread(target=self._warm_up, args=(page,), name="warming", daemon=True).start()

    def _draw_stage(self) -> None:
        self.stage = gr.HTML(EMPTY_HTML, elem_id="wb-stage")
        with gr.Row(visible=False) as self.actions:
            names = ("Same seed again", "Vary the seed", "Open the run folder", "Download all")
            self.again_button, self.vary_button, self.folder_button, self.zip_button = (
                gr.Button(n, size="sm", min_width=140) for n in names
            )
        with gr.Row(visible=False) as self.pager:
            self.earlier_button = gr.Button("Earlier rows", size="sm", min_width=140)
            self.later_button = gr.Button("Later rows", size="sm", min_width=140)
        self.message = gr.HTML("")
        with gr.Column(visible=False) as self.slider_panel:
            with gr.Row():
                self.row_choice = Choice([], label="Prompt", scale=3, min_width=180)
                self.left_choice = Choice([], label="Left", min_width=110)
                self.right_choice = Choice([], label="Right", min_width=110)
            self.slider = gr.ImageSlider(
                show_label=False, type="filepath", format="png", interactive=False, elem_classes=["wb-slider"]
            )
        self.chart = gr.HTML("", elem_classes=["wb-one"])
        self.zip_link = gr.Textbox(visible=False)

    def _wire_events(self, page: gr.Blocks) -> None:
        slide = [self.slider_panel, self.row_choice, self.left_choice, self.right_choice, self.slider]
        results = [self.status, self.stage, self.chart, self.running, self.shown_result, self.actions, self.message]
        results += slide
        results += [self.pager]
        outputs = [*self.editor.outputs(), *results]
        long = QUIET | {"concurrency_limit": None}
        page.load(self.open_page, [self.draft], outputs, js="() => [window.wbDraft()]", **long)
        fields, memories = self.editor.draft_fields()
        save_draft = f"(...values) => {{ window.wbKeepDraft(values, {len(memories)}); return []; }}"
        gr.on([c.change for c in (*fields, *memories)], None, [*fields, *memories], None, js=save_draft, queue=False)
        for button, step in ((self.earlier_button, -1), (self.later_button, 1)):
            button.click(self._page_turner(step), [self.shown_result], results, **QUIET)
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
        from workbench.ui import run_queue

        if self.manager.stop(key) is None:
            try:
                run_queue.stop_run(self.context, key)
            except BadInput:
                return hint_html("Nothing of yours is at work.")
        return hint_html("Stopping: what is being made is finished as it stands, and kept.")

    def open_page(self, draft: str, request: gr.Request) -> Iterator[list]:
        """The page is opened: what can be chosen, the form as this browser kept it, and what the address names, if it
        does: `?run=` a comparison, at work or stored, or `?contestants=` trainings to be compared."""
        query = dict(request.query_params) if request else {}
        name = query.get("run")
        fields, message = self._restore_draft(draft)
        nothing = [hint_html(message) if message else gr.skip(), *[gr.skip()] * (RESULTS - 1)]
        if name is None and "contestants" not in query:
            yield [*(fields or self.editor.offer_choices()), *nothing]
            return
        try:
            if name is None:
                trainings = self.manager.request_for_trainings(query["contestants"])
                yield [*self.editor.fill_fields(trainings), *nothing]
                return
            live = self.manager.list_running().get(name)
            folder = live.reserved if live else self.manager.find_folder(name)
        except BadInput as error:
            yield [*(fields or self.editor.offer_choices()), *self._refusal_updates(error)]
            return
        if fields is None:
            fields = self._fields_of(live, folder)
        updates = self.follow_comparison(live) if live else self.follow_folder(folder)
        for n, update in enumerate(updates):
            yield [*(fields if not n else [gr.skip()] * len(fields)), *update]

    def _restore_draft(self, draft: str) -> tuple[list | None, str]:
        """(updates of the editor's fields, what is to be told) of the form that a browser kept; None without one."""
        form = read_draft(draft) if draft else None
        if form is None:
            return None, OLD_DRAFT if draft else ""
        try:
            return self.editor.fill_form(form), ""
        except BadInput as error:  # as of a pipeline that has been removed
            return None, f"The form that this browser kept can't be restored: {error}."

    def _fields_of(self, live: LiveComparison | None, folder: RunFolder) -> list:
        """The editor, filled with what a comparison was asked."""
        try:
            stored = live.plan.config if live else None
            return self.editor.fill_fields(self.manager.read_request(folder, stored))
        except BadInput:
            return self.editor.offer_choices()  # shown, but not to be asked for from a page

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

    def follow_comparison(self, live: LiveComparison) -> Iterator[list]:
        """Updates of the results while a comparison is made, and its result. It goes on when nobody looks any more."""
        from workbench.ui.widgets import live_view

        previews, sent = live_view.Previews(live), [None, None]
        skip = gr.skip()
        try:
            for _ in live.job.watch(0.5, leaving_stops=False):
                views = self._live_html(live, previews)
                new = [skip if a == b else b for a, b in zip(sent, views, strict=True)]
                first_time, sent = sent == [None, None], views
                hidden = gr.update(visible=False) if first_time else skip
                yield ["" if first_time else skip, *new, live.key, skip, hidden, "", hidden, *[skip] * 4, hidden]
                time.sleep(VIEW_INTERVAL)
        except Exception as error:
            yield self._refusal_updates(error, running="")
            return
        if live.folder is None:
            yield [hint_html("Stopped before it began."), EMPTY_HTML, "", "", skip, skip, "", *[skip] * 6]
            return
        yield self._result_updates(live.folder)

    def follow_folder(self, folder: RunFolder) -> Iterator[list]:
        """The result of a stored comparison; and before it, how far one has come that a process of its own goes on
        with, as after a restart of the app."""
        from workbench.ui import run_processes

        last_size = -1
        while (state := run_processes.run_state(folder)).is_live or state.name == run_processes.QUEUED:
            log = folder.path / "events.jsonl"
            size = log.stat().st_size if log.is_file() else 0
            if size != last_size:
                last_size, word = size, "waits for its turn" if state.name == run_processes.QUEUED else "is being made"
                update = self._result_updates(folder, status=f"This comparison {word}, in a process of its own.")
                yield [*update[:3], folder.path.name, *update[4:]]
            time.sleep(LOOK_SECONDS)
        yield self._result_updates(folder)

    def _live_html(self, live: LiveComparison, previews: Previews) -> list[str]:
        from workbench.ui.widgets import live_view

        view = live_view.live_view(live, previews)
        name = live.reserved.path.name
        if live.job.state != "waiting":
            return [_with_address(name, live_view.render_live(view)), live_view.live_chart(live)]
        queue = self.context.jobs.list_jobs()
        ahead = self.context.jobs.jobs_ahead(live.job)
        return [_with_address(name, live_view.render_waiting(view, ahead, queue[0].title if queue else "")), ""]

    def _result_updates(self, folder: RunFolder, page: int = 0, status: str = "") -> list:
        from workbench.ui.widgets import result_view

        result = result_view.read_result(folder, self.context.temp, status, page)
        return [
            "",
            _with_address(result.run, result.html),
            result.chart,
            "",
            result_view.slider_state(result),
            gr.update(visible=True),
            "",
            *self._slider_updates(result),
            gr.update(visible=result.pages > 1),
        ]

    def _page_turner(self, step: int) -> Callable[[dict], list]:
        def turn_page(result: dict) -> list:
            """The rows before or after those that are shown."""
            try:
                folder = self.manager.find_folder(result.get("run", ""))
                return self._result_updates(folder, max(0, result.get("page", 0) + step))
            except BadInput as error:
                raise shown_error(error) from None

        return turn_page

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
        return [
            error_html(error_sentence(error)),
            *[skip] * 2,
            skip if running is None else running,
            *[skip] * (RESULTS - 4),
        ]


def _with_address(run: str, html: str) -> str:
    """What is shown of a comparison, with the name by which its address is."""
    return f'<div data-wb-run="{escape_text(run)}">{html}</div>'
