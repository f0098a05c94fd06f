"""Clips as files hold them: 8 bits a value, each picture once however long it is shown, and even steps of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.core.io.budget import Budget
from workbench.core.types import Media

BROWSERS_DELAY = 0.1  # seconds that browsers show a picture whose delay is 0


@dataclass(frozen=True)
class StoredClip:
    """One clip, a quarter of the memory of its Media and less where pictures are held."""

    pictures: Tensor  # uint8 [N,3,H,W]
    order: Tensor  # int64 [T]: the picture that each frame shows
    rate: float  # frames per second

    def __len__(self) -> int:
        """T, the number of frames."""
        return len(self.order)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pictures.shape[-1], self.pictures.shape[-2]

    def frames(self, at: Sequence[int] | slice = slice(None)) -> Media:
        """Frames of the clip, all by default, as a clip [1,len(at),3,H,W] in [0,1]."""
        shown = self.order[at if isinstance(at, slice) else list(at)].tolist()
        out = torch.empty(1, len(shown), *self.pictures.shape[1:])
        for n, picture in enumerate(shown):
            out[0, n].copy_(self.pictures[picture]).div_(255)
        return Media(out, "video", self.rate)


def time_evenly(seconds: Sequence[float], name: object, size: tuple[int, int], budget: Budget) -> tuple[Tensor, float]:
    """(order int64 [T], frames per second) of pictures that are shown for `seconds` each, as files of a variable rate
    say: frame t shows what is to be seen then.

    The step is that of the quickest pictures, a tenth of which may be stragglers, fitted to the whole length; with
    equal times every picture is one frame. Raises BadInput, before anything is allocated, for more than the budget.
    """
    shown = np.asarray(seconds, np.float64)
    shown = np.where(np.isfinite(shown) & (shown > 0), shown, 0)
    if not shown.any():
        shown = np.full(len(shown), BROWSERS_DELAY)
    quickest = np.quantile(shown[shown > 0], 0.1, method="lower")
    count = np.rint(shown / quickest).sum()
    budget.check_clip(name, int(count), *size)
    step = shown.sum() / count
    edges = np.rint(np.concatenate([[0], shown.cumsum()]) / step).astype(np.int64)
    order = torch.from_numpy(np.repeat(np.arange(len(shown)), np.diff(edges)))
    return order, round(1 / step, 6)


class PictureStack:
    """Pictures of one size as they are decoded, in one block of memory, up to a budget."""

    def __init__(self, name: object, size: tuple[int, int], expected: int, budget: Budget):
        self.name, self.size, self.budget, self.count = name, size, budget, 0
        budget.check_clip(name, max(expected, 1), *size)
        self.block = torch.empty(max(expected, 1), 3, size[1], size[0], dtype=torch.uint8)

    def add(self, picture: np.ndarray) -> None:
        """uint8 [H,W,3]. Raises BadInput for one picture too many."""
        if self.count == len(self.block):
            self.budget.check_clip(self.name, self.count + 1, *self.size)
            longer = torch.empty(self.count + self.count // 2 + 1, *self.block.shape[1:], dtype=torch.uint8)
            longer[: self.count] = self.block
            self.block = longer
        self.block[self.count] = torch.from_numpy(picture).permute(2, 0, 1)
        self.count += 1

    def pictures(self) -> Tensor:
        """uint8 [N,3,H,W]"""
        return self.block[: self.count]
