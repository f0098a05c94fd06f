"""Scenes of the picture world as pictures: antialiased shapes on dark, slightly tinted grounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.starter.image.world import PALETTE, SHAPES, SIZE, Scene


def signed_distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance in pixels to the outline (negative inside), about exact near it. Shapes broadcast."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9 * r
    if shape == "triangle":  # isosceles, point upwards, centred on its bounding box
        half = 1.12 * r
        slope = 2 / 5**0.5
        side = (x.abs() - (y + half) * 0.5) * slope
        return torch.maximum(side, y - half)
    arm = torch.maximum(x.abs() - r, y.abs() - 0.36 * r)
    return torch.minimum(arm, torch.maximum(y.abs() - r, x.abs() - 0.36 * r))


def _scene_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = max(max(map(len, scenes), default=0), 1)
    geometry, kind = torch.zeros(len(scenes), n, 3), torch.full((len(scenes), n), -1)
    colour = torch.zeros(len(scenes), n, 3)
    for b, scene in enumerate(scenes):
        for k, t in enumerate(scene):
            geometry[b, k] = torch.tensor((t.x, t.y, t.r))
            kind[b, k] = SHAPES.index(t.shape)
            colour[b, k] = torch.tensor([p + d for p, d in zip(PALETTE[t.colour], t.tint, strict=True)])
    return geometry, kind, colour, torch.tensor([len(s) for s in scenes])


def draw_grounds(b: int, generator: torch.Generator) -> Tensor:
    """[B,3,64,64]: dark, slightly tinted grounds with a slight gradient."""
    level = 0.06 + 0.14 * torch.rand(b, 1, 1, 1, generator=generator)
    tint = 0.05 * (torch.rand(b, 3, 1, 1, generator=generator) - 0.5)
    slope = 0.06 * (torch.rand(b, 1, 2, generator=generator) - 0.5)
    ramp = torch.linspace(-1, 1, SIZE)
    return (level + tint + slope[..., :1, None] * ramp[None, None, :, None] + slope[..., 1:, None] * ramp).clamp(0, 1)


def render_scenes(scenes: Sequence[Scene], generator: torch.Generator, *, opacity: Tensor | None = None) -> Tensor:
    """[B,3,64,64] in [0,1], antialiased. `opacity` [B,K] fades single things (for wrong examples)."""
    geometry, kind, colour, _ = _scene_tensors(scenes)
    out = draw_grounds(len(scenes), generator)
    axis = torch.arange(SIZE) + 0.5
    for k in range(kind.shape[1]):
        cover = torch.zeros(len(scenes), SIZE, SIZE)
        for index, shape in enumerate(SHAPES):
            rows = kind[:, k] == index
            x, y, r = (geometry[rows, k, i, None, None] for i in range(3))
            cover[rows] = (0.5 - signed_distance(shape, axis - x, axis[:, None] - y, r)).clamp(0, 1)
        if opacity is not None:
            cover = cover * opacity[:, k, None, None]
        out = out + cover[:, None] * (colour[:, k, :, None, None] - out)
    return out.clamp(0, 1)
