"""What the samples of a page were made from, as cells beside or above them. Each is served in the size of the samples,
so that it can be laid over them; a click opens the file as it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.audio.loudness import integrated_loudness
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.report import audio_view
from workbench.report.sample_inputs import fit_input, input_title
from workbench.runs.run_inputs import find_input
from workbench.ui.served_files import file_url, serve_copy, serve_made
from workbench.ui.widgets.html import data_uri

TINY = 128  # a picture of fewer pixels is shown as squares
ENCODERS = {"image": media.encode_png, "video": media.encode_apng, "audio": media.encode_wav}


def input_cells(
    folder: Path, temp: Path, sample: Mapping, names: Sequence[str], size: tuple[int, int, int] | None
) -> list[dict]:
    """A cell for each of these inputs of a sample in a run's log: {name, title, kind, url, file, original, size, …};
    without an address where its file is missing. size: (T,H,W) of the sample, None of a sound."""
    return [_input_cell(folder, temp, sample, name, size) for name in names]


def _input_cell(folder: Path, temp: Path, sample: Mapping, name: str, size: tuple[int, int, int] | None) -> dict:
    title = input_title(name)
    cell = {"name": name, "title": title, "kind": "", "url": "", "original": "", "file": None, "size": None}
    cell |= {"gap": f"no {title}", "volume": ""}
    try:
        content = fit_input(folder, sample, name, size)
    except BadInput:
        return cell | {"gap": "missing"}
    if content is None:
        return cell
    digest, suffix = sample["inputs"][name], media.SUFFIX_BY_MODALITY[content.modality]
    fitted = serve_made(temp, f"{digest}{name}{size}", name + suffix, lambda: ENCODERS[content.modality](content))
    cell |= {
        "kind": content.modality,
        "url": file_url(fitted),
        "file": str(fitted),
        "rate": content.rate,
        "type": "image/png",
    }
    if original := find_input(folder, digest):  # as it was given
        cell["original"] = file_url(serve_copy(temp, original, f"given-{name}{original.suffix}"))
    if content.modality == "audio":
        loudness = float(integrated_loudness(content.data, content.rate)[0])
        return cell | {"drawn": data_uri(audio_view.sound_picture(content)), "loudness": loudness}
    height, width = content.data.shape[-2:]
    return cell | {"size": (1, height, width), "tiny": max(height, width) <= TINY}


def over_address(given: Sequence[Mapping], kind: str, size: tuple[int, int, int] | None) -> str:
    """The address of the source that can be laid over a picture of this size, or ""."""
    sources = [cell for cell in given if cell["name"] == "source" and cell["kind"] == "image" and cell["size"] == size]
    return sources[0]["url"] if kind == "image" and sources else ""
