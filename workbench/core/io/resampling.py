"""Resampling of sounds, differentiable."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput

MAX_FILTER_SIZE = 1 << 24  # numbers in a filter


def resample_audio(x: Tensor, rate: float, new_rate: int) -> Tensor:
    """[...,L] at `rate` -> [...,ceil(L wanted/rate)] at `wanted` samples a second, by a Kaiser-windowed sinc.

    The window is fadtk's (half-width 64 zero crossings, roll-off 0.9476, beta 14.77): flat to 0.92 of the lower Nyquist
    frequency, 100 dB down above it. Raises BadInput for two rates without a small common ratio.
    """
    if rate == new_rate:
        return x
    if rate != round(rate):
        raise BadInput(f"a sample rate is a whole number, got {rate:g}")
    shared = math.gcd(round(rate), new_rate)
    old, new = round(rate) // shared, new_rate // shared
    kernel, width = _sinc_filter(old, new)
    flat = F.pad(x.reshape(-1, 1, x.shape[-1]), (width, width + old))
    out = F.conv1d(flat, kernel.to(x), stride=old).transpose(1, 2).flatten(1)  # [N,frames*new]
    return out[:, : math.ceil(new * x.shape[-1] / old)].reshape(*x.shape[:-1], -1)


@functools.lru_cache(32)
def _sinc_filter(old: int, new: int) -> tuple[Tensor, int]:
    """The polyphase filter [new,1,K] of a ratio in lowest terms, and how far it reaches to the left."""
    zeros, rolloff, beta = 64, 0.9475937167399596, 14.769656459379492
    cut = min(old, new) * rolloff
    width = math.ceil(zeros * old / cut)
    if new * (2 * width + old) > MAX_FILTER_SIZE:
        raise BadInput(
            f"{old}:{new} is no ratio that sounds are resampled by; bring the sound to a usual sample rate first"
        )
    t = torch.arange(-width, width + old, dtype=torch.float64) / old - torch.arange(new)[:, None] / new  # [new,K]
    t = (t * cut).clamp(-zeros, zeros)
    window = torch.i0(beta * (1 - (t / zeros) ** 2).sqrt()) / torch.i0(torch.tensor(beta, dtype=torch.float64))
    return (torch.sinc(t) * window * cut / old).float()[:, None], width
