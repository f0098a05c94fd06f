"""Sounds in reports: waveforms, log-mel spectrograms, and copies of equal loudness for listening tests.

The louder of two sounds seems the better one, so a comparison plays both at one loudness (ITU-R BS.1770). The sounds
that are stored and scored are not changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rewards.audio.loudness import QUIETEST, integrated_loudness, true_peak
from rewards.encoders.audio_frontend import LogMel
from workbench.core.types import Media

PAPER, WAVE, OVER = "#ffffff", "#2f6f9f", "#c8372d"
# black, violet, red, orange, white: brightness grows with level, so that it reads in grey too
COLOURS = np.array([(0, 0, 4), (60, 15, 110), (160, 40, 100), (230, 95, 50), (252, 180, 60), (252, 255, 220)])
WAVE_HIGH, MEL_HIGH = 60, 128  # pixels
RANGE = 80.0  # decibels from the loudest band down to black


def match_loudness(sounds: Sequence[Media], target: float = -16.0, ceiling: float = -1.0) -> list[tuple[Media, float]]:
    """Copies of equal loudness, and the gain of each in decibels.

    The loudness is `target` LUFS, or less where a true peak would exceed `ceiling` dBTP: nothing is limited or clipped.
    A silent sound, or one under 0.4 s, keeps its level: gain 0. Raises ValueError for anything but one row of audio.
    """
    levels = [_single_value(s, integrated_loudness(s.data, s.rate)) for s in sounds]
    peaks = [20 * math.log10(max(_single_value(s, true_peak(s.data, s.rate)), 1e-9)) for s in sounds]
    has_loudness = [level == level and level > QUIETEST for level in levels]
    limits = [
        ceiling - peak + level for level, peak, is_known in zip(levels, peaks, has_loudness, strict=True) if is_known
    ]
    goal = min([target, *limits])
    gains = [goal - level if is_known else 0.0 for level, is_known in zip(levels, has_loudness, strict=True)]
    return [(replace(s, data=s.data * 10 ** (g / 20)), g) for s, g in zip(sounds, gains, strict=True)]


def _single_value(sound: Media, values: Tensor) -> float:
    if sound.modality != "audio" or len(sound) != 1:
        raise ValueError(f"expected one row of audio, got {sound.modality} {tuple(sound.data.shape)}")
    return float(values[0])


def _check_finite(sound: Media) -> None:
    _single_value(sound, sound.data[:, 0, 0])
    if not sound.data.isfinite().all():
        raise ValueError("the audio holds values that aren't finite: what made it has diverged")


def sound_picture(sound: Media, width: int = 600) -> bytes:
    """PNG bytes: the waveform of one sound [1,C,L], red at full scale, above its log-mel spectrogram, RANGE decibels
    from its loudest band down to black. Raises ValueError for values that aren't finite."""
    _check_finite(sound)
    x = sound.data[0].detach().float().cpu().mean(0)
    mel = _log_mel(x[None], round(sound.rate))
    canvas = Image.new("RGB", (width, WAVE_HIGH + MEL_HIGH), PAPER)
    _draw_waveform(ImageDraw.Draw(canvas), x, 0, 0, width)
    canvas.paste(_colour_spectrogram(mel, float(mel.max())).resize((width, MEL_HIGH)), (0, WAVE_HIGH))
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()


def _log_mel(x: Tensor, rate: int) -> Tensor:
    """[1,L] -> decibels [T,128], from 20 Hz, or where the rate does not reach that from the middle of its band."""
    return LogMel(rate, 2048, 512, 128, min(20.0, rate / 4), rate / 2)(x)[0]


def _colour_spectrogram(mel: Tensor, top: float) -> Image.Image:
    share = ((mel.T.flip(0) - top) / RANGE + 1).clamp(0, 1).numpy() * (len(COLOURS) - 1)
    channels = [np.interp(share, np.arange(len(COLOURS)), COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def _draw_waveform(pen: ImageDraw.ImageDraw, x: Tensor, x0: int, top: int, across: int) -> None:
    middle, half = top + WAVE_HIGH / 2, WAVE_HIGH / 2 - 2
    edges = torch.linspace(0, len(x), across + 1).round().long().tolist()
    for column, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        part = x[min(a, len(x) - 1) : max(b, a + 1)]  # a short sound has fewer samples than columns
        low, high = float(part.min()), float(part.max())
        colour = OVER if max(-low, high) >= 0.999 else WAVE
        ends = [middle - max(min(v, 1.0), -1.0) * half for v in (high, low)]
        pen.line([(x0 + column, ends[0]), (x0 + column, ends[1])], fill=colour)


def still_picture(sample: Media) -> Media:
    """A picture [1,3,H,W] of one sample: the picture itself, nine frames of a clip (three by three), or the log-mel
    spectrogram of a sound. Raises ValueError for sounds that aren't finite."""
    if sample.modality == "audio":
        _check_finite(sample)
        mel = _log_mel(sample.data[0].float().cpu().mean(0)[None], round(sample.rate))
        picture = np.array(_colour_spectrogram(mel, float(mel.max())).resize((2 * MEL_HIGH, 2 * MEL_HIGH)))
        return Media(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, "image")
    if sample.modality == "video":
        at = torch.linspace(0, sample.data.shape[1] - 1, 9).round().long()
        frames = sample.data[0, at].unflatten(0, (3, 3))  # [row,column,3,H,W]
        return Media(frames.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[None], "image")
    return sample
