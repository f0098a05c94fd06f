"""The studio as programs call it: `compare`, `stop` and `open`; and the one sentence that a refusal is."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.form import typed_prompts
from workbench.ui.widgets.input_fields import InputFields

if TYPE_CHECKING:
    from workbench.ui.studio_comparison import ComparisonManager

VIEW_INTERVAL = 0.15  # seconds between two views that are sent


class StudioPrograms:
    """One for a studio. manager: gives its comparisons, once they are asked for."""

    def __init__(self, context: AppContext, given: InputFields, manager: Callable[[], ComparisonManager]):
        self.context, self.given, self.manager = context, given, manager

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
        limit: int = 0,
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
            limit: of a list, only the first so many prompts; 0: all of it

        Views are {"key", "run", "state", "share", "contestants": [{"name", "state", "rows", "of", "seconds", "left",
        "reward", "previews": [{"uri", "prompt"}]}]}; the result is what `open` gives. `stop` takes the key or the run.
        """
        from workbench.ui.widgets import live_view, result_view

        name = prompts.strip().removeprefix("list:") if prompts.strip().startswith("list:") else None
        try:
            given = self.given.read_uploads(pipeline, inputs or {})
            texts, numbers = name or typed_prompts(prompts), (seed, seeds, calls, batch)
            request = ComparisonRequest(texts, pipeline, contestants, rewards, watch, *numbers, given, limit)
            live = self.manager().start(request)
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
        return {"stopping": self.manager().stop(which) is not None}

    def open(self, run: str) -> dict:
        """A stored comparison: {"run", "folder", "state", "headline", "summary", "files": [{"contestant", "prompt",
        "seed", "url", "scores"}]}, its first rows. `url` is relative to the page."""
        from workbench.ui.widgets import result_view

        try:
            folder = self.manager().find_folder(run)
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
