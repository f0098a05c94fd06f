"""Sounds to look at and to compare by ear: waveform and log-mel on shared scales, and equal loudness, for listening only.

The louder of two sounds seems the better one, so a comparison plays both at one loudness (ITU-R BS.1770). What is kept and
judged is the untouched sound: `audition` writes both.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rewards.audio.loudness import QUIETEST, lufs, true_peak
from rewards.encoders.audio_frontend import LogMel, resample
from workbench.core.io import media
from workbench.core.paths import write_atomic
from workbench.core.types import BadInput, Media

INK, FAINT, PAPER, WAVE, OVER = "#1c1e21", "#6b7078", "#ffffff", "#2f6f9f", "#c8372d"
# black, violet, red, orange, white: brightness grows with level, so that it reads in grey too
COLOURS = np.array([(0, 0, 4), (60, 15, 110), (160, 40, 100), (230, 95, 50), (252, 180, 60), (252, 255, 220)])
MARGIN, CAPTION, WAVE_HIGH, MEL_HIGH, GAP = 20, 22, 60, 128, 16
RANGE = 80.0  # decibels from the loudest band of all pictures down to black


def matched(sounds: Sequence[Media], target: float = -16.0, ceiling: float = -1.0) -> list[tuple[Media, float]]:
    """Copies at one loudness, and the gain of each in decibels.

    All at `target` LUFS, or as much under it as keeps every true peak below `ceiling` dBTP: nothing is limited or clipped.
    A silent sound, or one under 0.4 s, keeps its level: gain 0.
    """
    levels = [_one(s, lufs(s.data, s.rate)) for s in sounds]
    peaks = [20 * math.log10(max(_one(s, true_peak(s.data, s.rate)), 1e-9)) for s in sounds]
    known = [level == level and level > QUIETEST for level in levels]
    room = [ceiling - peak + level for level, peak, so in zip(levels, peaks, known, strict=True) if so]
    goal = min([target, *room])
    gains = [goal - level if so else 0.0 for level, so in zip(levels, known, strict=True)]
    return [(replace(s, data=s.data * 10 ** (g / 20)), g) for s, g in zip(sounds, gains, strict=True)]


def _one(sound: Media, values: Tensor) -> float:
    if sound.modality != "audio" or len(sound) != 1:
        raise ValueError(f"expected one row of audio, got {sound.modality} {tuple(sound.data.shape)}")
    return float(values[0])


def _sane(sound: Media) -> None:
    _one(sound, sound.data[:, 0, 0])
    if not sound.data.isfinite().all():
        raise ValueError("the audio holds values that aren't finite: what made it has diverged")


def picture(sounds: Sequence[Media], labels: Sequence[str], width: int = 900) -> bytes:
    """PNG bytes: of each sound [1,C,L] its waveform and its log-mel spectrogram under each other.

    One time axis, one amplitude (full scale at the edge, red where a sound reaches it), one range of frequencies and one
    scale of colours for all: what looks louder, higher or longer is. Raises ValueError for values that aren't finite.
    """
    if len(sounds) != len(labels) or not sounds:
        raise ValueError(f"{len(labels)} labels don't fit {len(sounds)} sounds")
    for s in sounds:
        _sane(s)
    rate = min(max(round(s.rate) for s in sounds), 48000)
    longest = max(s.data.shape[-1] / s.rate for s in sounds)
    mono = [s.data[0].detach().float().cpu().mean(0) for s in sounds]
    mels = [_mel(resample(x[None], s.rate, rate), rate) for x, s in zip(mono, sounds, strict=True)]
    top = max(float(m.max()) for m in mels)
    high = CAPTION + WAVE_HIGH + MEL_HIGH + GAP
    canvas = Image.new("RGB", (width + 2 * MARGIN, 2 * MARGIN + high * len(sounds) - GAP + 14), PAPER)
    pen = ImageDraw.Draw(canvas)
    for n, (s, x, mel) in enumerate(zip(sounds, mono, mels, strict=True)):
        across, y = max(round(width * s.data.shape[-1] / s.rate / longest), 1), MARGIN + n * high
        level = float(lufs(s.data, s.rate)[0])
        said = f"{labels[n]}    {s.data.shape[-1] / s.rate:.2f} s    " + (
            f"{level:.1f} LUFS" if level > QUIETEST else "silent" if level == level else "too short for a loudness"
        )
        pen.text((MARGIN, y + 14), said, font=media._font(14, said), fill=INK, anchor="ls")
        _wave(pen, x, MARGIN, y + CAPTION, across)
        canvas.paste(_coloured(mel, top).resize((across, MEL_HIGH)), (MARGIN, y + CAPTION + WAVE_HIGH))
    foot = f"0 to {longest:.2f} s, 20 Hz to {rate / 2000:g} kHz (mel), {top - RANGE:.0f} to {top:.0f} dB"
    pen.text((MARGIN, canvas.height - MARGIN + 8), foot, font=media._font(11, foot), fill=FAINT, anchor="ls")
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()


def _mel(x: Tensor, rate: int) -> Tensor:
    """[1,L] -> decibels [T,128]."""
    return LogMel(rate, 2048, 512, 128, 20.0, rate / 2)(x)[0]


def _coloured(mel: Tensor, top: float) -> Image.Image:
    share = ((mel.T.flip(0) - top) / RANGE + 1).clamp(0, 1).numpy() * (len(COLOURS) - 1)
    channels = [np.interp(share, np.arange(len(COLOURS)), COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def _wave(pen: ImageDraw.ImageDraw, x: Tensor, left: int, top: int, across: int) -> None:
    middle, half = top + WAVE_HIGH / 2, WAVE_HIGH / 2 - 2
    edges = torch.linspace(0, len(x), across + 1).round().long().tolist()
    for column, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        part = x[a : max(b, a + 1)]
        low, high = float(part.min()), float(part.max())
        colour = OVER if max(-low, high) >= 0.999 else WAVE
        ends = [middle - max(min(v, 1.0), -1.0) * half for v in (high, low)]
        pen.line([(left + column, ends[0]), (left + column, ends[1])], fill=colour)


def strips(clips: Sequence[Media], labels: Sequence[str], columns: int = 6, side: int = 128) -> bytes:
    """PNG bytes: a row of frames for each clip [1,T,3,H,W], at the same share of its length in every column."""
    if len(clips) != len(labels) or not clips:
        raise ValueError(f"{len(labels)} labels don't fit {len(clips)} clips")
    cells = []
    for c in clips:
        if c.modality != "video" or len(c) != 1 or not c.data.shape[1] or c.rate <= 0:
            raise ValueError(f"expected one clip with frames and a rate, got {c.modality} {tuple(c.data.shape)}")
        last = c.data.shape[1] - 1
        at = [round(last * k / max(columns - 1, 1)) for k in range(columns)]
        cells.append([media.Cell(Media(c.data[:, i], "image"), None, f"{i / c.rate:.2f} s") for i in at])
    rows = [f"{name}\n{c.data.shape[1]} frames at {c.rate:g} a second" for name, c in zip(labels, clips, strict=True)]
    shares = [f"{round(100 * k / max(columns - 1, 1))} %" for k in range(columns)]
    return media.grid(cells, rows=rows, columns=shares, side=side)


def still(sample: Media) -> Media:
    """A picture [1,3,H,W] that stands for one sample: itself; nine frames of a clip, three by three; a sound's log-mel spectrogram,
    from its own loudest band down to black. Raises ValueError for sounds that aren't finite."""
    if sample.modality == "audio":
        _sane(sample)
        mel = _mel(sample.data[0].float().cpu().mean(0)[None], round(sample.rate))
        picture = np.array(_coloured(mel, float(mel.max())).resize((2 * MEL_HIGH, 2 * MEL_HIGH)))
        return Media(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, "image")
    if sample.modality == "video":
        at = torch.linspace(0, sample.data.shape[1] - 1, 9).round().long()
        frames = sample.data[0, at].unflatten(0, (3, 3))  # [row,column,3,H,W]
        return Media(frames.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[None], "image")
    return sample


def audition(folder: str | Path, sounds: Mapping[str, Media], meta: Mapping | None = None) -> dict[str, Path]:
    """Write sounds to be compared: `NAME.wav` as it is, `NAME.matched.wav` at one loudness (its story has the `gain` in
    decibels), and `sounds.png`; the paths by file name. Raises BadInput for a name that is no file's name."""
    folder = Path(folder)
    if odd := [name for name in sounds if not name or Path(name).name != name]:
        raise BadInput(f"{odd[0]!r} can't name a file; give each sound a plain name")
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for (name, sound), (equal, gain) in zip(sounds.items(), matched(list(sounds.values())), strict=True):
        found[f"{name}.wav"] = media.write(sound, folder / f"{name}.wav", meta=meta)
        told = dict(meta or {}) | {"gain": round(gain, 2)}
        found[f"{name}.matched.wav"] = media.write(equal, folder / f"{name}.matched.wav", meta=told)
    write_atomic(folder / "sounds.png", picture(list(sounds.values()), list(sounds)))
    return found | {"sounds.png": folder / "sounds.png"}
