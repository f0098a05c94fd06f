"""Rewards with a closed form, one per published formula: cheap objectives, baselines and watchdogs.

On video each is the mean over frames. Luma is Rec. 601 of the gamma-coded values, in [0,1].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.encoders.preprocess import media_pixels
from workbench.core.errors import BadInput
from workbench.core.io.clips import StoredClip
from workbench.core.types import AtLeast, Media, RewardSpec

IMAGE_AND_VIDEO = frozenset({"image", "video"})
FRAMES_AT_ONCE = 4  # of a clip in 8 bits
TINY = 1e-12  # under a square root: a flat picture has a finite gradient


def to_luma(x: Tensor) -> Tensor:
    """[...,3,H,W] -> [...,H,W]."""
    return (x * x.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(-3)


def mean_over_frames(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[B]: `score` ([N,3,H,W] -> [N]) of each image, or its mean over each video's frames."""
    return score(x.flatten(0, -4)).view(x.shape[0], -1).mean(1)


class ScoredByFrame:
    """A reward whose score of a clip is the mean of those of its frames."""

    def score_clip(self, clip: StoredClip, prompts: Sequence[str]) -> Tensor:
        """[1]: of a clip in 8 bits, of which a few frames at a time become numbers."""
        parts = (clip.frames(slice(a, a + FRAMES_AT_ONCE)) for a in range(0, len(clip), FRAMES_AT_ONCE))
        return sum(self(media=part, prompts=prompts) * part.data.shape[1] for part in parts) / len(clip)


@dataclass(frozen=True)
class Brightness(ScoredByFrame):
    """Mean luma."""

    spec = RewardSpec(
        "brightness",
        "1",
        IMAGE_AND_VIDEO,
        differentiable=True,
        typical=(0.0, 1.0),
        paper="ITU-R BT.601",
        bounds=(0.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return to_luma(media_pixels(self.spec, media, prompts)).flatten(1).mean(1)


@dataclass(frozen=True)
class Contrast(ScoredByFrame):
    """Root-mean-square contrast: the standard deviation of luma (Peli 1990, Eq. 4)."""

    spec = RewardSpec(
        "contrast", "1", IMAGE_AND_VIDEO, differentiable=True, typical=(0.0, 0.5), paper="doi:10.1364/JOSAA.7.002032"
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return mean_over_frames(
            lambda x: (to_luma(x).flatten(1).var(1, correction=0) + TINY).sqrt(),
            media_pixels(self.spec, media, prompts),
        )


@dataclass(frozen=True)
class Colourfulness(ScoredByFrame):
    """Colourfulness M of Hasler & Suesstrunk (2003), their 0..~110 scale divided by 255."""

    spec = RewardSpec(
        "colourfulness", "1", IMAGE_AND_VIDEO, differentiable=True, typical=(0.0, 0.6), paper="doi:10.1117/12.477378"
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        def score_images(x: Tensor) -> Tensor:
            r, g, b = x.flatten(2).unbind(1)  # each [N,H*W]
            rg, yb = r - g, (r + g) / 2 - b
            spread = (rg.var(1, correction=0) + yb.var(1, correction=0) + TINY).sqrt()
            return spread + 0.3 * (rg.mean(1).square() + yb.mean(1).square() + TINY).sqrt()

        return mean_over_frames(score_images, media_pixels(self.spec, media, prompts))


@dataclass(frozen=True)
class Sharpness(ScoredByFrame):
    """Variance of the 4-neighbour Laplacian of luma (Pech-Pacheco et al. 2000). Noise is sharp too: pair it."""

    spec = RewardSpec(
        "sharpness", "1", IMAGE_AND_VIDEO, differentiable=True, typical=(0.0, 0.2), paper="doi:10.1109/ICPR.2000.903548"
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        def score_images(x: Tensor) -> Tensor:
            kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
            return F.conv2d(to_luma(x).unsqueeze(1), kernel).flatten(1).var(1, correction=0)

        x = media_pixels(self.spec, media, prompts)
        if min(x.shape[-2:]) < 3:
            raise BadInput(f"sharpness needs at least 3 x 3 pixels, this has {x.shape[-1]} x {x.shape[-2]}")
        return mean_over_frames(score_images, x)


@dataclass(frozen=True)
class SaturatedPixels(ScoredByFrame):
    """Minus the share of values that are clipped, 0 or 255 in 8 bits: a watchdog of over-optimisation."""

    spec = RewardSpec(
        "saturated_pixels", "1", IMAGE_AND_VIDEO, differentiable=False, typical=(-0.3, 0.0), bounds=(-1.0, 0.0)
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts).detach().flatten(1)
        share = ((x < 0.5 / 255) | (x > 1 - 0.5 / 255)).float().mean(1)
        return (0.0 - share).masked_fill(x.isnan().any(1), torch.nan)


@dataclass(frozen=True)
class Compressibility:
    """Minus the size of the picture as a JPEG, in kB of 1000 bytes (DDPO, Black et al. 2023, section 5.1).

    A negative weight makes it DDPO's incompressibility.
    """

    quality: Annotated[int, AtLeast(1)] = 95  # JPEG quality, up to 95

    spec = RewardSpec(
        "compressibility", "1", frozenset({"image"}), differentiable=False, typical=(-150, -1), paper="arXiv:2305.13301"
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts).detach()
        return x.new_tensor([self._score_jpeg(image) for image in x.cpu()])

    def _score_jpeg(self, image: Tensor) -> float:
        from PIL import Image

        if image.isnan().any():
            return torch.nan
        file = io.BytesIO()
        eight_bit = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(eight_bit).save(file, "JPEG", quality=self.quality)
        return -file.tell() / 1000
