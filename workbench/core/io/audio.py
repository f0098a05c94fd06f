"""Reading sound files: all channels as float32, and the metadata that the workbench wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io import formats, video
from workbench.core.io.budget import Budget
from workbench.core.io.image import decoding

BLOCK = 1 << 20  # values read at once
SOUNDFILE = (formats.WAV, formats.W64, formats.AIFF, formats.FLAC, formats.OGG, formats.CAF, formats.AU)


def read_sound(path: str | Path, budget: Budget | None = None) -> tuple[Tensor, float, dict]:
    """(samples [C,L], in [-1,1] unless the file exceeds full scale; sample rate in Hz; metadata by the workbench).

    By libsndfile, and by PyAV MP3, AAC, the sound of films, and WAVs with rare codecs or without sizes.
    Raises BadInput, naming the file, for one that is missing, broken, too long or without a sound.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a sound")
    with decoding(path, "sound"):
        kind = formats.detect_format(path)
        if kind is not None and formats.is_cut_short(path, kind):
            raise BadInput(f"{path}: can't be read as a sound; the file is cut short")
        read = _read_by_soundfile(path, budget or Budget()) if kind in SOUNDFILE else None
        data, rate, story = read or video.read_sound(path, budget)
    if not data.numel():
        raise BadInput(f"{path}: holds no sound ({data.shape[-1]} samples at {rate:g} a second)")
    return data, rate, story


def measure_sound(path: Path, budget: Budget) -> None:
    """Raises BadInput for a sound whose header says more than the budget, and the exceptions of decoders."""
    kind = formats.detect_format(path)
    if kind in SOUNDFILE and (file := _open_by_soundfile(path)):
        with file:
            budget.check_sound(path, file.frames, file.channels, file.samplerate)
    else:
        video.measure_sound(path, budget)


def _open_by_soundfile(path: Path) -> Any:
    """The file, or None for what libsndfile can't open or finds nothing in, and for MP3, whose decoder there writes its
    doubts to the terminal."""
    import soundfile

    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        return None
    if file.frames > 0 and not file.subtype.startswith("MPEG"):
        return file
    file.close()
    return None


def _read_by_soundfile(path: Path, budget: Budget) -> tuple[Tensor, float, dict] | None:
    """As `read_sound`, in blocks, so that memory holds the samples once. None for what PyAV has to try."""
    if (file := _open_by_soundfile(path)) is None:
        return None
    with file:
        budget.check_sound(path, file.frames, file.channels, file.samplerate)
        data, at = torch.empty(file.channels, file.frames), 0
        for block in file.blocks(max(BLOCK // file.channels, 1), dtype="float32", always_2d=True):
            data[:, at : at + len(block)] = torch.from_numpy(block).T
            at += len(block)
        if at < file.frames:
            raise BadInput(f"{path}: can't be read as a sound; the file is broken or cut short")
        return data, float(file.samplerate), video.read_story(path)
