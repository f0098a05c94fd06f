"""What samples were made from besides their prompt, for the report, the contact sheet and the app: a column of its own
for each input, in the size of the samples, so that both can be laid over each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from workbench.core.inputs import NAMES, prompt_inputs, read_input
from workbench.core.io import media
from workbench.core.types import Media
from workbench.runs.run_inputs import restore_prompt

TITLES = {"first": "first frame", "last": "last frame", "audio": "sound"}  # where the name is not the word
FREE_SIZE = frozenset({"reference", "audio"})  # inputs that say nothing of places in the picture


def input_title(name: str) -> str:
    """What people call an input."""
    return TITLES.get(name, name)


def list_input_names(samples: Iterable[Mapping]) -> list[str]:
    """The inputs that any of these samples was made from, in the order of workbench.core.inputs.NAMES."""
    names = {name for sample in samples for name in sample.get("inputs") or ()}
    return [name for name in NAMES if name in names]


def fit_input(run: Path, sample: Mapping, name: str, size: tuple[int, int, int] | None) -> Media | None:
    """An input of a sample in a run's log, as one row; None where it has none of that name. Pictures and clips are
    brought to the sample's (T,H,W), as the pipeline did: of a longer clip the first frames. Raises BadInput for a file
    that is gone or was changed."""
    prompt = restore_prompt(run, sample)
    if name not in prompt_inputs(prompt):
        return None
    if size is None or name in FREE_SIZE:
        return read_input(prompt, name)
    row = read_input(prompt, name, size[1:])
    return replace(row, data=row.data[:, : size[0]]) if row.modality == "video" else row


def encode_input(content: Media) -> tuple[bytes, str]:
    """(file, MIME type) of an input for a page: a picture fitted to a square as samples are, a clip or sound whole."""
    if content.modality == "audio":
        return media.encode_wav(content), "audio/wav"
    if content.modality == "video":
        return media.encode_apng(content), "image/apng"
    return media.encode_thumbnail(content), "image/png"
