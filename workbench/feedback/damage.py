"""Samples damaged on purpose: what a gold pair shows beside the intact one, which whoever looks or listens prefers."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.types import Media

BLOCKS = 12  # squares along the shorter side of a damaged picture
NOISE = 0.15  # standard deviation added to pixels in [0,1]
HISS = 0.5  # power of the noise in a damaged sound, as a share of the sound's own


def damage_media(media: Media, seed: int = 0) -> Media:
    """One row of media, clearly worse: pictures and clips in coarse squares under noise, sounds under a hiss and
    hoarse. The same seed gives the same damage."""
    generator = torch.Generator().manual_seed(seed)
    if media.modality == "audio":
        return replace(media, data=_add_hiss(media.data, generator))
    frames = media.data.flatten(0, -4)  # [T,3,H,W] of a clip, [1,3,H,W] of a picture
    return replace(media, data=_pixelate(frames, generator).view(media.data.shape))


def _pixelate(frames: Tensor, generator: torch.Generator) -> Tensor:
    height, width = frames.shape[-2:]
    scale = max(min(height, width) / BLOCKS, 2.0)
    small = F.interpolate(frames, size=(max(round(height / scale), 1), max(round(width / scale), 1)), mode="area")
    coarse = F.interpolate(small, size=(height, width), mode="nearest")
    noise = torch.randn(1, *frames.shape[1:], generator=generator)
    return (coarse + NOISE * noise).clamp(0, 1)


def _add_hiss(sound: Tensor, generator: torch.Generator) -> Tensor:
    level = sound.pow(2).mean().sqrt()
    noise = torch.randn(sound.shape, generator=generator) * level.clamp(min=1e-3) * HISS**0.5
    hoarse = (3 * sound).tanh() / 3  # peaks are cut off, softly
    return (hoarse + noise).clamp(-1, 1)
