"""The studio's fields for what samples are made from: an upload for each input that the chosen pipeline takes, what was
read of it, and a canvas to paint a mask on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta

from workbench.core.errors import BadInput
from workbench.ui.context import AppContext
from workbench.ui.limits import COVERED, INPUTS, MEDIA_WORDS
from workbench.ui.widgets import html

QUIET = {"show_progress": "hidden", "api_visibility": "private"}
CANVAS = 768  # pixels of the picture that a mask is painted on
WHITE = "#ffffff"


class InputFields:
    """One for an editor. Everything is hidden until a pipeline is chosen that takes it."""

    def __init__(self, context: AppContext):
        self.context = context

    def draw(self) -> None:
        self.boxes, self.files, self.previews = {}, {}, {}
        for name, (label, hint) in INPUTS.items():
            with gr.Column(visible=False, elem_classes=["wb-input"]) as self.boxes[name]:
                self.files[name] = gr.File(label=label, type="filepath", height=140, elem_id=f"wb-input-{name}")
                gr.HTML(html.hint_html(hint))
                self.previews[name] = gr.HTML("")
                if name == "mask":
                    brush = gr.Brush(default_size=24, colors=[WHITE], default_color=WHITE, color_mode="fixed")
                    self.sketch = gr.ImageEditor(
                        label="Paint the mask", type="filepath", sources=(), transforms=(), layers=False, brush=brush,
                        placeholder="Give the source first: it appears here, to be painted over.", format="png",
                        canvas_size=(CANVAS, CANVAS), buttons=[], elem_id="wb-sketch",
                    )  # fmt: skip

    def wire_events(self, pipeline: gr.Dropdown) -> None:
        """What an upload changes. What the pipeline changes is `choose_pipeline`."""
        for name, file in self.files.items():
            file.upload(self._handler(name), [pipeline, file], [self.previews[name], self.sketch], **QUIET)
            file.clear(lambda: "", None, self.previews[name], queue=False, **QUIET)

    def covered(self) -> list:
        """The fields of what a mask may cover."""
        return [self.files[name] for name in COVERED]

    def inputs(self) -> list:
        return [*self.files.values(), self.sketch]

    def outputs(self) -> list:
        return [*self.boxes.values(), *self.files.values(), *self.previews.values(), self.sketch]

    def choose_pipeline(self, pipeline: str, *covered: str | Path | None) -> list:
        """Updates of `outputs`: what the pipeline takes is shown, and stays as it was given; a mask is painted over
        what it covers. covered: files of COVERED."""
        kinds = self._list_kinds(pipeline)
        skip = [gr.skip()] * len(INPUTS)
        canvas = self.spread_canvas(pipeline, *(covered or [None] * len(COVERED)))
        return [*self._show_boxes(kinds), *self._label_files(kinds), *skip, canvas]

    def skip_outputs(self) -> list:
        """Updates of `outputs` that change nothing."""
        return [gr.skip()] * (3 * len(INPUTS) + 1)

    def fill_fields(self, pipeline: str, inputs: Mapping[str, str]) -> list:
        """Updates of `outputs`: these files of the run folder are the inputs, and nothing is painted."""
        from workbench.ui.served_files import serve_copy

        kinds = self._list_kinds(pipeline)
        served = {
            name: serve_copy(self.context.temp, Path(path), f"{name}{Path(path).suffix}")
            for name, path in inputs.items()
        }
        files = [gr.update(value=str(served[n]) if n in served else None, **u) for n, u in self._labels(kinds).items()]
        previews = [self._draw_preview(served[name], name) if name in served else "" for name in INPUTS]
        canvas = self.spread_canvas(pipeline, *(served.get(name) for name in COVERED))
        return [*self._show_boxes(kinds), *files, *previews, canvas]

    def spread_canvas(self, pipeline: str, *covered: str | Path | None) -> dict | None:
        """The canvas with what a mask of this pipeline covers; None while there is none. covered: files of COVERED."""
        kinds = self._list_kinds(pipeline)
        path = next((path for name, path in zip(COVERED, covered, strict=True) if name in kinds), None)
        if path is None or "mask" not in kinds:
            return None
        try:
            return {"background": self._draw_canvas(path), "layers": [], "composite": None}
        except BadInput:
            return None  # what can't be read says so where it was dropped

    def read_inputs(self, pipeline: str, values: Sequence[Any]) -> dict[str, str]:
        """Name -> kept file, of the values of `inputs`. Raises BadInput."""
        from workbench.ui import input_uploads

        *paths, sketch = values
        files = dict(zip(INPUTS, paths, strict=True))
        return input_uploads.keep_inputs(files, sketch, self._list_kinds(pipeline), self.context)

    def read_uploads(self, pipeline: str, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Name -> kept file, of what a program uploaded: nothing else that it names is opened. Raises BadInput."""
        from workbench.ui import input_uploads

        kinds, files = self._list_kinds(pipeline), {}
        for name, value in inputs.items():
            if name not in INPUTS:
                raise BadInput(f"inputs: unknown {str(name)[:60]!r}; known: {', '.join(INPUTS)}")
            path = Path(str(value.get("path", ""))).resolve() if is_file_obj_with_meta(value) else None
            if path is None or not path.is_relative_to(Path(get_upload_folder()).resolve()):
                raise BadInput(f"inputs.{name}: give an uploaded file, such as handle_file of gradio_client makes")
            files[name] = str(path)
        return input_uploads.keep_inputs(files, None, dict.fromkeys(files, "") | kinds, self.context)

    def _list_kinds(self, pipeline: str) -> dict[str, str]:
        from workbench.ui import contestant_choices

        return contestant_choices.list_inputs(pipeline, self.context.runs)

    def _show_boxes(self, kinds: Mapping[str, str]) -> list:
        return [gr.update(visible=name in kinds) for name in INPUTS]

    def _label_files(self, kinds: Mapping[str, str]) -> list:
        return [gr.update(**update) for update in self._labels(kinds).values()]

    def _labels(self, kinds: Mapping[str, str]) -> dict[str, dict]:
        return {name: {"label": f"{label}: {MEDIA_WORDS[kinds.get(name, '')]}"} for name, (label, _) in INPUTS.items()}

    def _handler(self, name: str) -> Callable[[str, str | None], list]:
        def show_upload(pipeline: str, path: str | None) -> list:
            """What was read of an upload, or why it can't be; a mask is painted over it."""
            from workbench.ui import input_uploads

            if not path:
                return ["", gr.skip()]
            kinds = self._list_kinds(pipeline)
            try:
                upload = input_uploads.accept_input(path, name, kinds.get(name, ""), self.context.temp)
            except BadInput as error:
                return [html.error_html(error), gr.skip()]
            is_covered = name == next((n for n in COVERED if n in kinds), None)
            covered = [upload.path if n == name else None for n in COVERED]
            canvas = self.spread_canvas(pipeline, *covered) if is_covered else None
            return [self._draw_preview(upload.path, name), canvas or gr.skip()]

        return show_upload

    def _draw_preview(self, path: Path, name: str) -> str:
        from workbench.core.io import media
        from workbench.ui import uploads
        from workbench.ui.widgets.samples import embed_media

        content = media.inspect_media(path, uploads.page_budget())
        element = embed_media(path, path.stat().st_mtime_ns, path.stat().st_size)
        words = f"{INPUTS[name][0]}, {content.describe_size()}"
        return f'<figure class="wb-media">{element}<figcaption>{html.escape_text(words)}</figcaption></figure>'

    def _draw_canvas(self, path: str | Path) -> str:
        from workbench.core.io import media
        from workbench.ui import uploads
        from workbench.ui.served_files import serve_made

        content = uploads.read_upload(uploads.accept_upload(path, self.context.temp)).media
        digest = media.file_digest(path)
        return str(serve_made(self.context.temp, digest, "canvas.png", lambda: media.encode_thumbnail(content, CANVAS)))
