"""Reads a picture of the world back into its objects and says whether it shows exactly what a prompt asks for.

No learning and no torch graph: background median, colour distance, connected components, a colour vote, and the best
soft overlap with each shape drawn at the component's own centroid and area.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pipelines.starter.image import rendering, world
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

FOREGROUND = 0.22  # RGB distance from the background beyond which a pixel belongs to something
SPECK = 10  # components of fewer pixels are ignored; those that are no clean shape still count as objects
OVERLAP = 0.75  # least soft IoU with an ideal shape
PURITY = 0.75  # least share of the core's pixels that agree on one colour
RADIUS = (5.8, 15.5)
LARGE = 9.9  # radius from which a thing is large

_PALETTE = np.array(list(world.PALETTE.values()), np.float32)  # [6,3]
_EIGHT = np.ones((3, 3), bool)
_AXIS = np.arange(-20, 21, dtype=np.float32)


@lru_cache
def _unit_shape(shape: str) -> tuple[float, float]:
    """Area and height of the centroid of a shape of radius 1."""
    axis = (torch.arange(400) - 199.5) / 160
    inside = (rendering.signed_distance(shape, axis[None, :], axis[:, None], torch.tensor(1.0)) < 0).float()
    return inside.sum().item() / 160**2, ((inside * axis[:, None]).sum() / inside.sum()).item()


def _ideal_coverage(shape: str, dx: float, dy: float, area: float) -> tuple[np.ndarray, float, float]:
    """Coverage [41,41] of the shape with that area whose centroid lies (dx, dy) off the window's centre, its radius and
    its lift."""
    unit, lift = _unit_shape(shape)
    r = (area / unit) ** 0.5
    x, y = (_AXIS - dx)[None, :], (_AXIS - dy + lift * r)[:, None]
    if shape == "circle":
        d = np.hypot(x, y) - r
    elif shape == "square":
        d = np.maximum(np.abs(x), np.abs(y)) - 0.9 * r
    elif shape == "triangle":
        d = np.maximum((np.abs(x) - (y + 1.12 * r) * 0.5) * (2 / 5**0.5), y - 1.12 * r)
    else:
        ax, ay = np.abs(x), np.abs(y)
        d = np.minimum(np.maximum(ax - r, ay - 0.36 * r), np.maximum(ay - r, ax - 0.36 * r))
    return np.clip(0.5 - d, 0, 1), r, lift * r


def _read_thing(
    pixels: np.ndarray, ground: np.ndarray, mask: np.ndarray, surroundings: np.ndarray
) -> world.Thing | None:
    """The thing that one component shows, or None when it is no clean shape of one colour."""
    core = ndimage.binary_erosion(mask, _EIGHT)
    if core.sum() < 8:
        core = mask
    votes = ((pixels[core][:, None] - _PALETTE) ** 2).sum(-1).argmin(1)
    counts = np.bincount(votes, minlength=len(_PALETTE))
    colour = int(counts.argmax())
    if counts[colour] < PURITY * counts.sum():
        return None
    ink = np.median(pixels[core], 0) - ground
    alpha = np.clip((pixels - ground) @ ink / (ink @ ink), 0, 1) * surroundings
    area = float(alpha.sum())
    ys, xs = np.nonzero(surroundings)
    weight = alpha[ys, xs]
    cx, cy = float((xs * weight).sum() / area), float((ys * weight).sum() / area)
    ix, iy = round(cx), round(cy)
    window = np.pad(alpha, 20)[iy : iy + 41, ix : ix + 41]
    best, shape, r, lift = max(
        (np.minimum(t, window).sum() / np.maximum(t, window).sum(), s, r, lift)
        for s in world.SHAPES
        for t, r, lift in [_ideal_coverage(s, cx - ix, cy - iy, area)]
    )
    if best < OVERLAP or not RADIUS[0] < r < RADIUS[1]:
        return None
    size = "large" if r >= LARGE else "small"
    return world.Thing(shape, world.COLOURS[colour], size, cx + 0.5, cy + 0.5 - lift, float(r))


def read_picture(image: Tensor) -> list[world.Thing | None]:
    """[3,64,64] in [0,1] -> every object in it, None for one that is no clean shape. Needs finite pixels."""
    pixels = image.detach().permute(1, 2, 0).float().cpu().numpy().astype(np.float32)
    ground = np.median(pixels.reshape(-1, 3), 0)
    foreground = ((pixels - ground) ** 2).sum(-1) > FOREGROUND**2
    labels, n = ndimage.label(foreground, _EIGHT)
    things = []
    for k, area in enumerate(np.bincount(labels.ravel(), minlength=n + 1)[1:], start=1):
        if area < SPECK:
            continue
        mask = labels == k
        surroundings = ndimage.binary_dilation(mask, _EIGHT) & (mask | (labels == 0))
        things.append(_read_thing(pixels, ground, mask, surroundings))
    return things


@dataclass(frozen=True)
class Judgement:
    exact: bool
    soft: float  # share of the requirements met, at most 0.95 unless exact


def compare_with_prompt(things: Sequence[world.Thing | None], need: world.Requirements) -> Judgement:
    """Best assignment of what is seen to what is wanted. Exact: all of it, and nothing else in the picture."""
    required = need.things
    units = sum(1 + bool(w.colour) + bool(w.size) for w in required) + bool(need.relation) + 1
    slots = list(things) + [None] * (len(required) - len(things))
    best = max(_count_met(pick, need) for pick in set(itertools.permutations(slots, len(required))))
    counted = len(things) == len(required)
    exact = counted and best == units - 1
    return Judgement(exact, 1.0 if exact else min((best + counted) / units, 0.95))


def _count_met(pick: Sequence[world.Thing | None], need: world.Requirements) -> int:
    count = 0
    for thing, want in zip(pick, need.things, strict=True):
        if thing is not None and thing.shape == want.shape:
            count += 1 + bool(want.colour and thing.colour == want.colour) + bool(want.size and thing.size == want.size)
    fitting = [t for t, w in zip(pick, need.things, strict=True) if t is not None and t.shape == w.shape]
    if need.relation and len(fitting) == len(need.things):
        count += world.holds_relation(fitting[0], fitting[1], need.relation)
    return count


class ImageOracle:
    """1 where the picture shows exactly what the prompt asks for, else 0; NaN for a prompt that is not of this world
    or for pixels that are not finite."""

    spec = RewardSpec(
        name="oracle",
        version="1",
        modalities=frozenset({"image"}),
        differentiable=False,
        needs=frozenset({"prompt"}),
        typical=(0.0, 1.0),
        licence="Apache-2.0",
        bounds=(0.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32. Raises BadInput for pictures that are not 64 x 64 RGB."""
        if media.data.shape[1:] != (3, world.SIZE, world.SIZE):
            raise BadInput(f"the oracle reads pictures of 3 x 64 x 64, not {tuple(media.data.shape[1:])}")
        rows = zip(media.data.detach(), prompts, strict=True)
        return torch.tensor(
            [self._score_picture(image, world.parse_prompt(prompt)) for image, prompt in rows], dtype=torch.float32
        )

    def _score_picture(self, image: Tensor, need: world.Requirements | None) -> float:
        if need is None or not torch.isfinite(image).all():
            return float("nan")
        return self._value_of(compare_with_prompt(read_picture(image), need))

    def _value_of(self, judgement: Judgement) -> float:
        return float(judgement.exact)

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.prompt_category(prompt) for prompt in prompts]


class ImageOracleSoft(ImageOracle):
    """The share of a prompt's requirements that the picture meets; 1 only where `ImageOracle` says 1, else <= 0.95."""

    spec = replace(ImageOracle.spec, name="oracle_soft")

    def _value_of(self, judgement: Judgement) -> float:
        return judgement.soft
