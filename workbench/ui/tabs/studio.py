"""The studio: the same prompts and noises through several contestants, live, judged, kept, and found again by a link.

This file is the page and its handlers. What may be asked for is in contestants.py, its fields in editor.py, how it is made in
comparison.py and how it looks in show.py. They bring torch along, so they are imported when the first handler runs, and not
before the page stands.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from workbench.ui.context import Place
from workbench.ui.widgets.editor import QUIET, Editor, first

if TYPE_CHECKING:
    from workbench.runs.store import RunFolder
    from workbench.ui.studio_comparison import Bench, Live
    from workbench.ui.widgets.comparison_view import Previews, Result

EVERY = 0.15  # seconds between two views that are sent
EMPTY = """<div class="wb-empty"><b>Nothing compared yet</b>
Press <em>Compare</em>: the base, the best of 21 draws and ReNO make the same four prompts from the same noises, the last two
at equal numbers of denoiser calls. You see each one’s best so far while it works, then all of them side by side with what each
reward says. Only <code>starter_clip</code> is optimised; the oracle, which reads the pictures exactly, only looks on.</div>"""


def build(page: gr.Blocks, place: Place) -> None:
    """Draw the tab inside `page`, wire it, and begin to load what its first comparison needs.

    The page must be launched with `allowed_paths=[place.temp]`: all that it shows is copied there.
    """
    Studio(place).draw(page)


class Studio:
    """One for an app."""

    def __init__(self, place: Place):
        self.place, self.editor = place, Editor(place.runs)
        self._bench: Bench | None = None
        self._making = threading.Lock()

    @property
    def bench(self) -> Bench:
        with self._making:
            if self._bench is None:
                from workbench.ui.studio_comparison import Bench

                self._bench = Bench(self.place)
        return self._bench

    def _warm(self, page: gr.Blocks) -> None:
        while not page.is_running:  # the page first
            time.sleep(0.1)
        self.place.ready.wait()
        from workbench.core.types import BadInput
        from workbench.ui.widgets import comparison_view

        comparison_view.sweep(self.place.temp)
        try:
            self.bench.warm(first())
        except BadInput:
            return  # without the starter pack there is nothing to warm; the first comparison says what is missing

    # the page

    def draw(self, page: gr.Blocks) -> None:
        self.running, self.shown = gr.State(""), gr.State({})
        with gr.Row():
            with gr.Column(scale=4, min_width=330):
                self.editor.above()
                with gr.Row():
                    self.go = gr.Button("Compare", variant="primary", elem_id="wb-compare", min_width=110)
                    self.halt = gr.Button("Stop", elem_id="wb-stop", min_width=110)
                self.status = gr.HTML("", elem_id="wb-status")
                self.editor.below()
            with gr.Column(scale=8, min_width=330):
                self._stage()
        self.editor.wire()
        self._wire(page)
        for function in (self.compare, self.stop, self.open):
            gr.api(function, api_name=function.__name__, concurrency_limit=None)
        threading.Thread(target=self._warm, args=(page,), name="warming", daemon=True).start()

    def _stage(self) -> None:
        self.stage = gr.HTML(EMPTY, elem_id="wb-stage")
        with gr.Row(visible=False) as self.actions:
            names = ("Same seed again", "Vary the seed", "Open the run folder", "Download all")
            self.again, self.vary, self.where, self.zip = (gr.Button(n, size="sm", min_width=140) for n in names)
        self.said = gr.HTML("")
        with gr.Column(visible=False) as self.slide:
            with gr.Row():
                self.row = gr.Dropdown([], label="Prompt", type="index", scale=3, min_width=180)
                self.left = gr.Dropdown([], label="Left", min_width=110)
                self.right = gr.Dropdown([], label="Right", min_width=110)
            self.slider = gr.ImageSlider(
                show_label=False, type="filepath", format="png", interactive=False, elem_classes=["wb-slider"]
            )
        self.chart = gr.HTML("", elem_classes=["wb-one"])
        self.link = gr.Textbox(visible=False)

    def _wire(self, page: gr.Blocks) -> None:
        slide = [self.slide, self.row, self.left, self.right, self.slider]
        results = [self.status, self.stage, self.chart, self.running, self.shown, self.actions, self.said, *slide]
        both = [*self.editor.outputs(), *results]
        long = QUIET | {"concurrency_limit": None}
        page.load(self.arrive, None, both, **long)
        self.go.click(self.pressed, self.editor.inputs(), results, **long)
        self.again.click(self.repeated, [self.shown], both, **long)
        self.vary.click(self.varied, [self.shown], both, **long)
        self.halt.click(self.halted, [self.running], [self.status], queue=False, **QUIET)
        self.where.click(self.located, [self.shown], [self.said], queue=False, **QUIET)
        save = (
            "(u) => { if (!u) return; const a = document.createElement('a'); a.href = u; a.download = ''; a.click(); }"
        )
        self.zip.click(self.packed, [self.shown], [self.link], **QUIET).then(None, [self.link], None, js=save)
        chosen = [self.row.input, self.left.input, self.right.input]
        gr.on(chosen, self.slid, [self.shown, self.row, self.left, self.right], [self.slider], **QUIET)

    # what a click does

    def pressed(self, *values: Any) -> Iterator[list]:
        from workbench.core.types import BadInput

        try:
            live = self.bench.start(self.editor.asked(*values))
        except BadInput as error:
            yield self._refusal(error)
            raise refused(error) from None
        yield from self.followed(live)

    def repeated(self, shown: dict) -> Iterator[list]:
        yield from self._once_more(shown, vary=False)

    def varied(self, shown: dict) -> Iterator[list]:
        yield from self._once_more(shown, vary=True)

    def _once_more(self, shown: dict, vary: bool) -> Iterator[list]:
        import dataclasses

        from workbench.core.types import BadInput

        name = shown.get("run", "")
        skip = [gr.skip()] * len(self.editor.outputs())
        try:
            asked = self.bench.asked(self.bench.find(name))
            seed = asked.seed + 1 if vary else None
            live = self.bench.again(name, seed)
        except BadInput as error:
            yield [*skip, *self._refusal(error)]
            raise refused(error) from None
        fields = self.editor.fields(dataclasses.replace(asked, seed=asked.seed if seed is None else seed))
        for n, update in enumerate(self.followed(live)):
            yield [*(skip if n else fields), *update]

    def halted(self, key: str) -> str:
        from workbench.ui.widgets.html import note

        if self.bench.stop(key) is None:
            return note("Nothing of yours is at work.")
        return note("Stopping: what is being made is finished as it stands, and kept.")

    def arrive(self, request: gr.Request) -> Iterator[list]:
        """The page is opened: what can be chosen, and what the address names, if it does: `?run=` a comparison, or
        `?contestants=` trainings to be compared."""
        from workbench.core.types import BadInput

        named = dict(request.query_params) if request else {}
        name = named.get("run")
        if name is None:
            try:
                asked = self.bench.trainings(named["contestants"]) if "contestants" in named else first()
                yield [*self.editor.fields(asked), *[gr.skip()] * 12]
            except BadInput as error:
                yield [*self.editor.fields(first()), *self._refusal(error)]
            return
        try:
            folder = self.bench.find(name)
        except BadInput as error:
            yield [*self.editor.fields(first()), *self._refusal(error)]
            return
        try:
            fields = self.editor.fields(self.bench.asked(folder))
        except BadInput:
            fields = self.editor.fields(first())  # shown, but not to be asked for from a page
        live = self.bench.busy().get(name)
        updates = self.followed(live, own=False) if live else iter([self._finished(folder)])
        for n, update in enumerate(updates):
            yield [*(fields if not n else [gr.skip()] * len(fields)), *update]

    def located(self, shown: dict) -> str:
        from workbench.ui.widgets.html import plain

        path = plain((self.place.runs / shown["run"]).resolve()) if shown.get("run") else ""
        copy = f'<button type="button" class="wb-copy" data-wb-copy="{path}">Copy</button>'
        return f'<div class="wb-links"><code>{path}</code>{copy}</div>' if path else ""

    def packed(self, shown: dict) -> str:
        from workbench.ui.widgets import comparison_view

        return comparison_view.url(comparison_view.archive(self.bench.find(shown.get("run")), self.place.temp))

    def slid(self, shown: dict, row: int | None, left: str | None, right: str | None):
        from workbench.ui.widgets import comparison_view

        pair = (
            comparison_view.pair(shown["rows"], shown["kind"], row, left, right)
            if shown and None not in (row, left, right)
            else None
        )
        return pair or gr.skip()

    # what is seen

    def followed(self, live: Live, own: bool = True) -> Iterator[list]:
        """Updates of the results while a comparison is made, and its result."""
        from workbench.ui.widgets import comparison_view

        previews, sent = comparison_view.Previews(live), [None, None]
        skip = gr.skip()
        try:
            for _ in live.job.watch(0.5, leaving_stops=own):
                seen = self._seen(live, previews)
                new = [skip if a == b else b for a, b in zip(sent, seen, strict=True)]
                first_time, sent = sent == [None, None], seen
                hidden = gr.update(visible=False) if first_time else skip
                yield ["" if first_time else skip, *new, live.key, skip, hidden, "", hidden, *[skip] * 4]
                time.sleep(EVERY)
        except Exception as error:
            yield self._refusal(error, running="")
            return
        if live.folder is None:
            yield [_note("Stopped before it began."), EMPTY, "", "", skip, skip, "", *[skip] * 5]
            return
        yield self._finished(live.folder)

    def _seen(self, live: Live, previews: Previews) -> list[str]:
        from workbench.ui.widgets import comparison_view

        shown = comparison_view.view(live, previews)
        if live.job.state != "waiting":
            return [comparison_view.live(shown), comparison_view.drawn(live)]
        queue = self.place.desk.queue()
        return [comparison_view.waiting(shown, self.place.desk.ahead(live.job), queue[0].title if queue else ""), ""]

    def _finished(self, folder: RunFolder) -> list:
        from workbench.ui.widgets import comparison_view

        found = comparison_view.result(folder, self.place.temp)
        return [
            "",
            found.html,
            found.chart,
            "",
            comparison_view.kept(found),
            gr.update(visible=True),
            "",
            *self._slide(found),
        ]

    def _slide(self, found: Result) -> list:
        from workbench.ui.widgets import comparison_view

        rows = [(f"{n + 1}. {row['prompt'][:80]}", n) for n, row in enumerate(found.rows)]
        names = [
            name
            for name in found.names
            if any(c["file"] for row in found.rows for c in row["cells"] if c["name"] == name)
        ]
        if found.kind == "audio" or len(names) < 2:
            return [gr.update(visible=False), *[gr.skip()] * 4]
        pair = comparison_view.pair(comparison_view.kept(found)["rows"], found.kind, 0, names[0], names[-1])
        picks = [gr.update(choices=names, value=names[0]), gr.update(choices=names, value=names[-1])]
        return [gr.update(visible=True), gr.update(choices=rows, value=0), *picks, pair or gr.skip()]

    def _refusal(self, error: BaseException, running: Any = None) -> list:
        from workbench.ui.widgets.html import bad

        skip = gr.skip()
        return [bad(sentence(error)), *[skip] * 2, skip if running is None else running, *[skip] * 8]

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
    ) -> dict:
        """Compare contestants on the same prompts and noises. A generator: views while it works, the result at the end.

        Args:
            prompts: one a line; or `list:NAME` for a list of configs/prompts
            pipeline: a configured pipeline
            contestants: lines METHOD[@PIPELINE] key=value …, at most four
            rewards: what is optimised, each with its weight
            watch: what only looks on; not given: the oracle where there is one, and the scorers whose weights are here
            seed: everything random follows from it
            seeds: noises per prompt
            calls: denoiser calls a sample to which every method is fitted; 0 leaves their settings
            batch: samples made at once

        Views are {"key", "run", "state", "share", "contestants": [{"name", "state", "rows", "of", "seconds", "left", "reward",
        "previews": [{"uri", "prompt"}]}]}; the result is what `open` gives. `stop` takes the key or the run.
        """
        from workbench.core.types import BadInput
        from workbench.ui.studio_comparison import Asked
        from workbench.ui.widgets import comparison_view

        name = prompts.strip().removeprefix("list:") if prompts.strip().startswith("list:") else None
        asked = Asked(name or prompts.splitlines(), pipeline, contestants, rewards, watch, seed, seeds, calls, batch)
        try:
            live = self.bench.start(asked)
            previews = comparison_view.Previews(live)
            for _ in live.job.watch(0.5):
                yield comparison_view.view(live, previews) | {"ahead": self.place.desk.ahead(live.job)}
                time.sleep(EVERY)
            if live.folder is None:
                raise BadInput("stopped before it began")
            yield comparison_view.told(comparison_view.result(live.folder, self.place.temp), live.folder)
        except Exception as error:
            raise refused(error) from error

    def stop(self, which: str) -> dict:
        """Stop a comparison, by its key or its run: {"stopping": whether there was one}. What is being made is finished as it
        stands and kept; the result comes from the `compare` that began it, or from `open`."""
        return {"stopping": self.bench.stop(which) is not None}

    def open(self, run: str) -> dict:
        """A stored comparison: {"run", "folder", "state", "headline", "summary", "files": [{"contestant", "prompt", "seed", "url",
        "scores"}]}, its first rows. `url` is relative to the page."""
        from workbench.core.types import BadInput
        from workbench.ui.widgets import comparison_view

        try:
            folder = self.bench.find(run)
            return comparison_view.told(comparison_view.result(folder, self.place.temp), folder)
        except BadInput as error:
            raise refused(error) from None


def sentence(error: BaseException) -> str:
    """What a person is told: what is wrong with what was asked, or that the program is at fault (the log says where)."""
    from workbench.core.types import BadInput
    from workbench.engine.run import DiskFull

    if isinstance(error, (BadInput, DiskFull)):
        return str(error)
    return f"It failed, which it should not: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def refused(error: Exception) -> gr.Error:
    """One sentence, shown as text."""
    return gr.Error(html.escape(sentence(error), quote=False), print_exception=False)


def _note(sentence: str) -> str:
    from workbench.ui.widgets.html import note

    return note(sentence)
