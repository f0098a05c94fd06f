"""How much of its source an edit leaves as it was, by pixels: minus the mean squared difference, everywhere or outside
the mask. An editor that changes nothing is perfect to both: watch a reward of the instruction beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rewards.edits.sources import check_sources
from rewards.encoders.preprocess import media_pixels
from workbench.core.errors import BadInput
from workbench.core.inputs import stack_inputs
from workbench.core.types import Media, RewardSpec

IMAGE_AND_VIDEO = frozenset({"image", "video"})


def source_pixels(spec: RewardSpec, media: Media, prompts: Sequence[str], references: Media | None) -> Tensor:
    """float32 of the shape of `media.data`: what each sample was made from.

    Raises BadInput without sources and for sources of another modality or size, and ValueError for another number.
    """
    sources = media_pixels(spec, check_sources(spec, media, references), prompts)
    if sources.shape != media.data.shape:
        sizes = " and ".join("x".join(map(str, x.shape[1:])) for x in (media.data, sources))
        raise BadInput(f"{spec.name}: sizes {sizes} of sample and source can't be compared; bring them to one size")
    return sources


@dataclass(frozen=True)
class Unchanged:
    """Minus the mean squared difference from the source, over the whole picture or clip: 0 where nothing changed."""

    spec = RewardSpec(
        "unchanged",
        "1",
        IMAGE_AND_VIDEO,
        differentiable=True,
        needs=frozenset({"source"}),
        typical=(-0.1, 0.0),
        paper="arXiv:2306.10012",
        bounds=(-1.0, 0.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)
        return -(x - source_pixels(self.spec, media, prompts, references)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Background:
    """Minus the mean squared difference from the source where the mask is black: 0 where only the masked part changed
    (background preservation of PIE-Bench). NaN for a mask that leaves nothing. A clip may have one mask for all
    frames."""

    spec = RewardSpec(
        "background",
        "1",
        IMAGE_AND_VIDEO,
        differentiable=True,
        needs=frozenset({"source", "mask"}),
        typical=(-0.05, 0.0),
        paper="arXiv:2310.01506",
        bounds=(-1.0, 0.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)
        change = (x - source_pixels(self.spec, media, prompts, references)).square()
        outside = 1 - self._read_masks(media, prompts).to(x)
        return -(change * outside).flatten(1).sum(1) / outside.expand_as(x).flatten(1).sum(1)

    def _read_masks(self, media: Media, prompts: Sequence[str]) -> Tensor:
        """[B,3,H,W], of a clip [B,1 or T,3,H,W], of 0 and 1."""
        masks = stack_inputs(prompts, "mask", media.data.shape[1:])
        if masks.modality == "audio" or (media.modality, masks.modality) == ("image", "video"):
            raise BadInput(
                f"mask: {self.spec.name} takes a picture as the mask of {media.modality}, got {masks.modality}"
            )
        if media.modality == "image":
            return masks.data
        data = masks.data[:, None] if masks.modality == "image" else masks.data[:, : media.data.shape[1]]
        if data.shape[1] not in (1, media.data.shape[1]):
            raise BadInput(
                f"mask: {data.shape[1]} frames can't mask a clip of {media.data.shape[1]}; give a picture, or as many "
                "frames"
            )
        return data
