"""Reading sound files: all channels as float32, and the metadata that the workbench wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io import video

COMPRESSED = frozenset({".flac", ".mp3", ".ogg", ".opus", ".m4a"})  # read by PyAV
SUFFIXES = COMPRESSED | {".wav"}


def read_sound(path: str | Path) -> tuple[Tensor, float, dict]:
    """(samples [C,L], in [-1,1] unless the file exceeds full scale; sample rate in Hz; metadata by the workbench).

    Raises BadInput, naming the file, for one that is missing, broken or without a sound.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a sound")
    try:
        data, rate, story = video.read_sound(path) if path.suffix.lower() in COMPRESSED else _read_wav(path)
    except BadInput:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: can't be read as a sound; the file is broken or cut short") from error
    if not data.numel() or rate <= 0:
        raise BadInput(f"{path}: holds no sound ({data.shape[-1]} samples at {rate:g} a second)")
    return data, rate, story


def _read_wav(path: Path) -> tuple[Tensor, float, dict]:
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)  # scipy only warns of a truncated file
        try:
            rate, samples = wavfile.read(path)
        except wavfile.WavFileWarning as error:
            raise ValueError(str(error)) from error
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / float(-np.iinfo(samples.dtype).min)
    content = path.read_bytes()
    at = content.rfind(b"INFOICMT")
    try:
        story = json.loads(content[at + 12 :].rstrip(b"\0")) if at > 0 else {}
    except ValueError:  # a comment that is not ours
        story = {}
    story = story if isinstance(story, dict) else {}
    samples = samples[:, None] if samples.ndim == 1 else samples
    return torch.from_numpy(samples.astype(np.float32)).T.contiguous(), float(rate), story
