"""Media with their scores for notebooks: self-contained HTML, and PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from workbench.core.finite import find_finite_rows
from workbench.core.inputs import NAMES, prompt_inputs, read_input
from workbench.core.io import media as media_files
from workbench.core.types import Media
from workbench.report import audio_view
from workbench.report.sample_inputs import input_title

SIDE = 256  # width of a picture on the page, in pixels
MAX_SAMPLES = 24  # that are shown; the others are counted


def media_html(media: Media, prompts: Sequence[str], scores: Sequence[Mapping[str, float]], heading: str = "") -> str:
    """HTML with a figure for each sample: the picture, the playing clip, or the sound's spectrogram with a player;
    prompt and scores below. What a prompt comes with stands before its samples."""
    figures: list[str] = []
    for n in range(min(len(media), MAX_SAMPLES)):
        figures += input_figures(prompts[n]) if n == 0 or prompts[n] != prompts[n - 1] else []
        caption = "<br>".join(f"{html.escape(name)} <b>{format_cell(value)}</b>" for name, value in scores[n].items())
        figures.append(
            f'<figure style="display:inline-block;width:{SIDE}px;margin:0 12px 12px 0;vertical-align:top">'
            f"{media_element(media[n])}"
            f'<figcaption style="font-size:12px;line-height:1.4">{html.escape(prompts[n])}<br>{caption}</figcaption>'
            "</figure>"
        )
    more = f"<p>and {len(media) - MAX_SAMPLES} more</p>" if len(media) > MAX_SAMPLES else ""
    head = f'<p style="font-size:12px">{html.escape(heading)}</p>' if heading else ""
    return f"<div>{head}{''.join(figures)}{more}</div>"


def input_figures(prompt: str) -> list[str]:
    """A figure for each input of a prompt."""
    return [
        f'<figure style="display:inline-block;width:{SIDE}px;margin:0 12px 12px 0;vertical-align:top;opacity:.85">'
        f"{media_element(read_input(prompt, name))}"
        f'<figcaption style="font-size:12px;line-height:1.4">{input_title(name)}</figcaption></figure>'
        for name in prompt_inputs(prompt)
    ]


def media_element(row: Media) -> str:
    """The HTML element that shows or plays one row; a box that says so where it is not finite."""
    if not find_finite_rows(row).all():
        return f'<div style="width:{SIDE}px;padding:24px 0;background:#f2f3f5;text-align:center">not finite</div>'
    style = f"width:{SIDE}px;display:block;image-rendering:{'pixelated' if row.data.shape[-1] < SIDE else 'auto'}"
    if row.modality == "audio":
        still = data_uri(picture_png(audio_view.still_picture(row)), "image/png")
        sound = data_uri(media_files.encode_wav(row), "audio/wav")
        return (
            f'<img src="{still}" style="{style}" alt=""><audio controls src="{sound}" style="width:{SIDE}px"></audio>'
        )
    if row.modality == "video":
        return f'<img src="{data_uri(media_files.encode_apng(row), "image/apng")}" style="{style}" alt="">'
    return f'<img src="{data_uri(picture_png(row), "image/png")}" style="{style}" alt="">'


def picture_png(row: Media) -> bytes:
    """A picture [1,3,H,W] as PNG, scaled down to at most twice its size on the page."""
    data = media_files.encode_png(row)
    if max(row.data.shape[-2:]) <= 2 * SIDE:
        return data
    image, out = Image.open(io.BytesIO(data)), io.BytesIO()
    image.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    image.save(out, "PNG")
    return out.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """The data: URI of a file's bytes; kind: its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def contact_sheet(media: Media, prompts: Sequence[str], scores: Sequence[Mapping[str, float]]) -> bytes:
    """PNG bytes: a row of samples for each prompt, after what it comes with; clips as nine of their frames, sounds as
    spectrograms."""
    rows: dict[str, list[media_files.Cell]] = {}
    for n in range(min(len(media), MAX_SAMPLES)):
        note = next((f"{name} {format_cell(value)}" for name, value in scores[n].items()), "")
        picture = audio_view.still_picture(media[n]) if find_finite_rows(media[n]).all() else None
        rows.setdefault(prompts[n], []).append(media_files.Cell(picture, None, note if picture else "not finite"))
    width = max(map(len, rows.values()))
    inputs = [name for name in NAMES if any(name in prompt_inputs(prompt) for prompt in rows)]
    cells = [
        [*(_input_cell(prompt, name) for name in inputs), *row, *[media_files.Cell(None)] * (width - len(row))]
        for prompt, row in rows.items()
    ]
    columns = [*map(input_title, inputs), *(f"sample {k + 1}" for k in range(width))]
    return media_files.draw_contact_sheet(cells, rows=list(rows), columns=columns)


def _input_cell(prompt: str, name: str) -> media_files.Cell:
    has_it = name in prompt_inputs(prompt)
    return media_files.Cell(audio_view.still_picture(read_input(prompt, name)) if has_it else None)


def table_html(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows (column -> value) as an HTML table, with numbers to three places."""
    if not rows:
        return "<p>nothing</p>"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(format_cell(row.get(column)))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def format_cell(value: object) -> str:
    """A value as text: floats to three places, a dash for None and NaN."""
    if value is None or value != value:
        return "–"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def paragraph_html(text: str) -> str:
    """The text, escaped, as a paragraph."""
    return f'<p style="font-size:12px">{html.escape(text)}</p>'
