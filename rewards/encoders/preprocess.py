"""From media to the input of a frozen image backbone: resize, fit, normalise; differentiable and never through PIL.

The published scorers resize 8-bit pictures with PIL. `resize_images` is its kernel on floats (bicubic with a = -0.5,
antialiased), first across, then down, each pass clamped to [0,1] as PIL's is. On noise, smooth pictures and hard edges
of 31x57 to 1024x1024 it stays within 1.1/255 of PIL, 0.32/255 on average, which is PIL's rounding to 8 bits; one
unclamped pass, torchvision's resize of tensors, is up to 42/255 off beside hard edges. The one published scorer that
resizes so, HPS, asks for it with `as_pil=False`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_RESIZED = 1 << 24  # pixels of a picture that is made for a model: more than 300 times as long as wide
Fit = Literal["crop", "squash", "pad"]
PIL_KERNELS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers


def media_pixels(spec: RewardSpec, media: Media, prompts: Sequence[str]) -> Tensor:
    """float32 [B,3,H,W] of an image batch or [B,T,3,H,W] of a video batch, graph attached.

    Raises BadInput for a modality that `spec` does not judge and for clips without frames, and ValueError unless there
    is one prompt a sample.
    """
    if media.modality not in spec.modalities:
        raise BadInput(f"{spec.name} judges {' and '.join(sorted(spec.modalities))}, not {media.modality}")
    shape = {"image": "[B,3,H,W]", "video": "[B,T,3,H,W]"}[media.modality]
    if media.data.dim() != shape.count(",") + 1 or media.data.shape[-3] != 3:
        raise ValueError(f"{spec.name} needs {media.modality} data {shape}, got {list(media.data.shape)}")
    if not media.data.shape[-4:].numel() and len(media):
        raise BadInput(
            f"{spec.name}: {'the clip has no frames' if media.modality == 'video' else 'the picture is empty'}"
        )
    if "prompt" in spec.needs and len(prompts) != len(media):
        raise ValueError(f"{spec.name} needs one prompt a sample: {len(prompts)} prompts for {len(media)} samples")
    return media.data.float()


def resize_images(x: Tensor, size: tuple[int, int], kernel: str = "bicubic", as_pil: bool = True) -> Tensor:
    """[B,3,h,w] in [0,1] -> [B,3,*size]: in [0,1], as PIL resizes pictures, or as torchvision resizes tensors."""
    if size[0] * size[1] > MAX_RESIZED:  # a line, whose short side becomes a model's input
        raise BadInput(f"a picture of {x.shape[-1]} x {x.shape[-2]} is too narrow to be resized for a model; crop it")
    if not as_pil:
        return F.interpolate(x, size, mode=kernel, antialias=True)
    if kernel == "nearest":
        down, across = (_nearest_places(*sides).to(x.device) for sides in zip(x.shape[-2:], size, strict=True))
        return x[..., down[:, None], across]
    for axis, step in ((3, (x.shape[-2], size[1])), (2, size)):
        if x.shape[-2:] != step and kernel in FILTERS:
            weights = _filter_matrix(kernel, x.shape[axis], size[axis - 2]).to(x)  # [out,in]
            x = (x @ weights.T if axis == 3 else weights @ x).clamp(0, 1)
        elif x.shape[-2:] != step:
            x = F.interpolate(x, step, mode=kernel, antialias=True).clamp(0, 1)
    return x


# PIL's filters that torch lacks: how far they reach, and their value at x
FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "box": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).to(x.dtype)),
    "hamming": (1.0, lambda x: (x.abs() < 1) * torch.sinc(x) * (0.54 + 0.46 * (math.pi * x).cos())),
    "lanczos": (3.0, lambda x: (x.abs() < 3) * torch.sinc(x) * torch.sinc(x / 3)),
}


def _nearest_places(length: int, new_length: int) -> Tensor:
    """[new_length]: the places that PIL takes; it adds up its steps, and between two pixels their rounding decides."""
    scale = length / new_length
    return torch.tensor([int(v) for v in accumulate([scale] * (new_length - 1), initial=scale * 0.5)])


@functools.lru_cache(64)
def _filter_matrix(kernel: str, length: int, new_length: int) -> Tensor:
    """float32 [new_length,length]: the weights with which PIL resizes one axis."""
    reach, value = FILTERS[kernel]
    scale = length / new_length
    wide = max(scale, 1.0)
    centre = (torch.arange(new_length, dtype=torch.float64)[:, None] + 0.5) * scale
    place = torch.arange(length, dtype=torch.float64)
    inside = (place >= (centre - reach * wide + 0.5).floor()) & (place < (centre + reach * wide + 0.5).floor())
    weights = value((place - centre + 0.5) / wide) * inside
    return (weights / weights.sum(1, keepdim=True)).float()


@dataclass(frozen=True)
class View:
    """How a backbone looks at pictures."""

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Fit = "crop"  # crop: short side, then the centre; squash: both sides; pad: long side, then black around
    kernel: str = "bicubic"
    as_pil: bool = True  # False: one unclamped pass, as torchvision resizes tensors

    def __call__(self, x: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] -> normalised [B,3,*size]."""
        x = {"crop": self._crop_to_size, "squash": self._squash_to_size, "pad": self._pad_to_size}[self.fit](x)
        return (x - x.new_tensor(self.mean).view(3, 1, 1)) / x.new_tensor(self.std).view(3, 1, 1)

    def _squash_to_size(self, x: Tensor) -> Tensor:
        return resize_images(x, self.size, self.kernel, self.as_pil)

    def _crop_to_size(self, x: Tensor) -> Tensor:
        (h, w), (high, width) = x.shape[-2:], self.size
        short, side = min(h, w), max(high, width)
        x = resize_images(x, (int(side * h / short), int(side * w / short)), self.kernel, self.as_pil)
        y0, x0 = round((x.shape[-2] - high) / 2), round((x.shape[-1] - width) / 2)
        return x[..., y0 : y0 + high, x0 : x0 + width]

    def _pad_to_size(self, x: Tensor) -> Tensor:
        scale = max(self.size) / max(x.shape[-2:])
        x = resize_images(x, tuple(max(1, round(side * scale)) for side in x.shape[-2:]), self.kernel, self.as_pil)
        dy, dx = self.size[0] - x.shape[-2], self.size[1] - x.shape[-1]
        return F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
