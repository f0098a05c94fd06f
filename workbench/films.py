"""Films and compressed sounds, by PyAV where it is installed: `pip install av`. Reading only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .types import BadInput


def film(path: Path) -> tuple[Tensor, float]:
    """Every frame [1,T,3,H,W] in [0,1], and how many a second. Raises BadInput."""
    with _opened(path, "video") as (file, stream):
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
        rate = stream.average_rate
    if not frames or not rate:
        raise BadInput(f"{path}: holds no frames, or doesn't say how many a second")
    return torch.stack(frames).permute(0, 3, 1, 2)[None].float() / 255, float(rate)


def sound(path: Path) -> tuple[Tensor, float]:
    """Every sample [C,L] as float32, and how many a second. Raises BadInput."""
    import av

    with _opened(path, "audio") as (file, stream):
        planes = av.AudioResampler(format="fltp")
        parts = [part.to_ndarray() for frame in file.decode(stream) for part in planes.resample(frame)]
        rate = stream.rate
    return torch.from_numpy(np.concatenate(parts, 1) if parts else np.zeros((1, 0), np.float32)), float(rate)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple]:
    try:
        import av
    except ImportError:
        raise BadInput(f"{path}: reading {path.suffix} needs PyAV; run: pip install av") from None
    try:
        with av.open(str(path)) as file:
            if not (streams := getattr(file.streams, kind)):
                raise BadInput(f"{path}: holds no {kind}")
            yield file, streams[0]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(str(error)) from error
