"""From media to the input of a frozen image backbone: resize, fit, normalise; differentiable and never through PIL.

The published scorers resize 8-bit pictures with PIL. `resize_images` is its kernel on floats (bicubic with a = -0.5,
antialiased), first across, then down, each pass clamped to [0,1] as PIL's is. On noise, smooth pictures and hard edges
of 31x57 to 1024x1024 it stays within 1.1/255 of PIL, 0.32/255 on average, which is PIL's rounding to 8 bits; one
unclamped pass, torchvision's resize of tensors, is up to 42/255 off beside hard edges. The one published scorer that
resizes so, HPS, asks for it with `as_pil=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Fit = Literal["crop", "squash", "pad"]


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
    if not as_pil:
        return F.interpolate(x, size, mode=kernel, antialias=True)
    for step in ((x.shape[-2], size[1]), size):
        if x.shape[-2:] != step:
            x = F.interpolate(x, step, mode=kernel, antialias=True).clamp(0, 1)
    return x


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
