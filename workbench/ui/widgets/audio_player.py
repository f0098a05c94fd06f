"""Sounds for the eye and for fair listening: waveform over log-mel spectrogram, and loudness as ears weigh it."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image
from scipy.signal import lfilter, stft

from workbench.core.types import Media

WIDE, WAVE, MEL = 640, 72, 128  # pixels
RANGE = 80.0  # decibels from the loudest band to the darkest colour
RAMP = np.array([[20, 22, 38], [58, 38, 108], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]])
LINE = (47, 143, 214)


def picture(sound: Media) -> bytes:
    """One sound [1,C,L] as PNG bytes: its waveform, and below it 128 mel bands from 20 Hz to half its rate in decibels."""
    x = sound.data[0].float().mean(0).cpu().numpy()
    image = Image.fromarray(np.concatenate([_wave(x), _mel(x, sound.rate)]))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _wave(x: np.ndarray) -> np.ndarray:
    """[WAVE,WIDE,3] uint8: from the lowest to the highest value of each column."""
    out = np.full((WAVE, WIDE, 3), RAMP[0], dtype=np.uint8)
    edges = np.linspace(0, len(x), WIDE + 1).astype(int)
    for column, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        part = np.clip(x[start : max(end, start + 1)], -1, 1) if start < len(x) else np.zeros(1)
        top, low = ((1 - v) / 2 * (WAVE - 1) for v in (part.max(), part.min()))
        out[math.floor(top) : math.ceil(low) + 1, column] = LINE
    return out


def _mel(x: np.ndarray, rate: float) -> np.ndarray:
    """[MEL,WIDE,3] uint8, high bands on top."""
    size = min(2048, 2 ** max(5, math.ceil(math.log2(rate / 20))))
    x = np.pad(x, (0, max(0, size - len(x))))
    hop = max(1, min(size // 4, len(x) // WIDE))
    _, _, z = stft(x, rate, nperseg=size, noverlap=size - hop)
    power = filters(size, rate) @ np.abs(z) ** 2  # [MEL,frames]
    db = 10 * np.log10(np.maximum(power, 1e-12) / max(power.max(), 1e-12))
    level = np.clip(1 + db / RANGE, 0, 1)[::-1]
    columns = np.linspace(0, level.shape[1] - 1, WIDE).round().astype(int)
    at = level[:, columns] * (len(RAMP) - 1)
    return np.stack([np.interp(at, range(len(RAMP)), RAMP[:, c]) for c in range(3)], -1).astype(np.uint8)


def filters(size: int, rate: float, bands: int = MEL) -> np.ndarray:
    """[bands, size // 2 + 1] triangles, evenly spaced in mel = 2595 log10(1 + f / 700). A band narrower than a bin takes the
    nearest one."""
    mel = np.linspace(*(2595 * math.log10(1 + f / 700) for f in (20, rate / 2)), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = np.linspace(0, rate / 2, size // 2 + 1)
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    out = np.clip(np.minimum((f - low) / (mid - low), (high - f) / (high - mid)), 0, None)
    out[np.arange(bands), np.abs(f - mid).argmin(1)] += out.sum(1) == 0
    return out


def loudness(sound: Media) -> float:
    """Integrated loudness of one sound [1,C,L] in LUFS (ITU-R BS.1770-4: K-weighting, gates at -70 LUFS and 10 LU below the
    mean); -inf for silence. Channels weigh alike, which holds for up to three. A sound shorter than 0.4 s is one block.
    """
    x, rate = sound.data[0].double().cpu().numpy(), sound.rate
    for b, a in (_shelf(rate), _highpass(rate)):
        x = lfilter(b, a, x)
    size = min(x.shape[1], round(0.4 * rate))
    starts = range(0, x.shape[1] - size + 1, max(1, size // 4))
    power = np.array([np.square(x[:, s : s + size]).mean(1).sum() for s in starts])  # of each block
    level = -0.691 + 10 * np.log10(np.maximum(power, 1e-30))
    loud = level > -70
    if not loud.any():
        return -math.inf
    loud &= level > -0.691 + 10 * math.log10(power[loud].mean()) - 10
    return -0.691 + 10 * math.log10(power[loud].mean())


def _shelf(rate: float) -> tuple[list[float], list[float]]:
    """The head: 4 dB more above 1.7 kHz. Analogue prototype of BS.1770's first stage at any rate."""
    k, q, high = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    mid = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    b = [(high + mid * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - mid * k / q + k * k) / a0]
    return b, [1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]


def _highpass(rate: float) -> tuple[list[float], list[float]]:
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    a0 = 1 + k / q + k * k
    return [1, -2, 1], [1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]


def volumes(levels: list[float]) -> list[float]:
    """The share of full volume at which each sounds as loud as the quietest that is not silent."""
    heard = [v for v in levels if math.isfinite(v)]
    return [10 ** ((min(heard) - v) / 20) if math.isfinite(v) else 1.0 for v in levels]
