"""Whether a clip of the video world begins as the picture that it was to begin with, and stays on its ground.

The video pack's oracle says whether a clip shows what its text asks for; this one compares with the first frame that
was given. No learning: things are read by the picture world's oracle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.starter.image.oracle import read_picture
from pipelines.starter.image.world import EXTENT, Thing
from pipelines.starter.video import world
from workbench.core.errors import BadInput
from workbench.core.inputs import stack_inputs
from workbench.core.types import Media, RewardSpec

NEAR = 2.5  # how far a thing of the first frame may be from its place, in pixels
WIDTH = 1.5  # and its radius from what it was
GROUND = 0.022  # median absolute change of a frame's ground
HALO = 2.0  # pixels around the picture's things that are not counted as ground


def keeps_things(picture: Tensor, frame: Tensor) -> bool:
    """Whether the things of two pictures [3,64,64] are the same, in the same places. What is no clean shape in one of
    them is the same as nothing."""
    old, new = read_picture(picture), read_picture(frame)
    return len(old) == len(new) and all(any(_is_same(a, b) for b in new) for a in old)


def _is_same(old: Thing | None, new: Thing | None) -> bool:
    return (
        old is not None
        and new is not None
        and (new.shape, new.colour) == (old.shape, old.colour)
        and max(abs(new.x - old.x), abs(new.y - old.y)) <= NEAR
        and abs(new.r - old.r) <= WIDTH
    )


def keeps_ground(picture: Tensor, clip: Tensor) -> bool:
    """Whether the ground of every frame of a clip [9,3,64,64] is that of a picture [3,64,64]: away from the picture's
    things the median pixel changes by less than GROUND. (What moves covers less than half of it.)"""
    away = torch.ones(world.SIZE, world.SIZE, dtype=torch.bool)
    axis = torch.arange(world.SIZE) + 0.5
    for thing in read_picture(picture):
        if thing is not None:
            reach = thing.r * EXTENT[thing.shape] + HALO
            away &= ~(((axis - thing.x).abs() < reach) & ((axis - thing.y).abs() < reach)[:, None])
    change = (clip - picture).abs().mean(1)[:, away]  # [9,pixels]
    return bool((change.median(1).values < GROUND).all())


class FirstKept:
    """1 where a clip begins with the things of its first frame `first`, in their places, and keeps its ground in every
    frame, else 0; NaN for pixels that are not finite. What the text asks for is not looked at."""

    spec = RewardSpec(
        name="first_kept",
        version="1",
        modalities=frozenset({"video"}),
        differentiable=False,
        needs=frozenset({"first"}),
        typical=(0.0, 1.0),
        licence="Apache-2.0",
        bounds=(0.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32. Raises BadInput for anything but clips of 9 frames of 64 x 64 RGB, and for a prompt without its
        first frame."""
        shape = (world.FRAMES, 3, world.SIZE, world.SIZE)
        if media.modality != "video" or tuple(media.data.shape[1:]) != shape:
            size = tuple(media.data.shape[1:])
            raise BadInput(f"{self.spec.name} reads video of 9 x 3 x 64 x 64, not {media.modality} of {size}")
        pictures = stack_inputs(prompts, "first", shape[2:])
        if pictures.modality != "image":
            raise BadInput(f"first: {self.spec.name} compares a clip with a picture, got {pictures.modality}")
        rows = zip(media.data.detach().float().cpu(), pictures.data.float().cpu(), strict=True)
        return torch.tensor([self._score_clip(clip, picture) for clip, picture in rows], dtype=torch.float32)

    def _score_clip(self, clip: Tensor, picture: Tensor) -> float:
        if not (torch.isfinite(clip).all() and torch.isfinite(picture).all()):
            return float("nan")
        return float(keeps_things(picture, clip[0]) and keeps_ground(picture, clip))

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.prompt_category(prompt) for prompt in prompts]
