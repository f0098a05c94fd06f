"""What rewards on frozen weights share: their settings, the checks, and the call around `score`.

A reward of this kind is its defaults, its spec and one line of arithmetic; rewards/image/pickscore.py is one to copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rewards.encoders import image_text
from rewards.encoders.preprocess import media_pixels
from workbench.core.types import Media, RewardSpec


@dataclass(frozen=True)
class FrozenReward(ABC):
    """A picture reward with weights of its own, which `load` loads and `score` uses."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network; scores are float32
    checkpoint: bool = False  # recompute in the backward pass: activations are held for that moment only

    spec: ClassVar[RewardSpec]

    @abstractmethod
    def check(self) -> None:
        """Raises BadInput for what can be known to be wrong before anything loads."""

    @abstractmethod
    def load(self, device: torch.device | str = "cpu") -> Any:
        """What `score` needs, in memory once for each device and dtype. Raises BadInput."""

    @abstractmethod
    def score(self, loaded: Any, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """float32 [B] of pictures [B,3,H,W] in [0,1]."""

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)
        return self.score(self.load(x.device), x, prompts)


@dataclass(frozen=True)
class EncoderReward(FrozenReward):
    """A reward on one shared CLIP or SigLIP encoder."""

    model: str = ""  # see rewards/encoders/image_text.py for the forms

    def check(self) -> None:
        image_text.check_encoder(self.model)

    def load(self, device: torch.device | str = "cpu") -> image_text.ImageTextEncoder:
        return image_text.load_encoder(self.model, device, self.dtype)
