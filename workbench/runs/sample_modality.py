"""What a stored sample is: picture, clip or sound. By its name where that is certain, else by its content."""

from __future__ import annotations

from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io import formats, media
from workbench.core.io.budget import Budget

CERTAIN = {  # suffixes that runs write, and formats that hold one kind only
    ".png": "image", ".apng": "video", ".wav": "audio",
    **{suffix: "audio" for kind in formats.FORMATS if kind.reader == "sound" for suffix in kind.suffixes},
    **{s: "image" for k in formats.FORMATS if k.reader == "picture" and not k.animated for s in k.suffixes},
}  # fmt: skip
LIKELY = {"picture": "image", "film": "video", "sound": "audio"}  # by who reads the format


def guess_modality(file: str | Path) -> str:
    """By the suffix alone; "" for an unknown one."""
    suffix = Path(file).suffix.lower()
    kind = formats.format_by_suffix(Path(file))
    return CERTAIN.get(suffix) or (LIKELY[kind.reader] if kind else "")


def read_modality(path: Path) -> str:
    """By the suffix, or by the content where a suffix may mean two (.gif, .webp, .webm, .ogg); "" for no medium."""
    if certain := CERTAIN.get(path.suffix.lower()):
        return certain
    try:
        return media.measure_media(path, Budget())
    except BadInput:  # gone or broken since: who shows it says so
        return guess_modality(path)
