"""HPSv2.1: human preference between pictures of one prompt (Wu et al. 2023, arXiv:2306.09341).

The authors' fork of open_clip and today's open_clip agree on all 686 names and shapes of ViT-H-14.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from workbench.types import RewardSpec

from . import encoders
from .preprocess import pixels


@dataclass(frozen=True)
class HPS:
    """Human preference score v2.1: an open_clip ViT-H-14 tuned on HPD v2, plain cosine (tables print it times 100).

    Pictures are fitted as the authors do, long side to 224 and black around, so that nothing is cut off; ReNO crops
    instead. Comparable within one prompt only, and never between v2.0 and v2.1.
    """

    model: str = "open_clip:ViT-H-14/xswu/HPSv2/HPS_v2.1_compressed.pt"  # see rewards/encoders.py for the forms
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the backbone; scores are float32
    checkpoint: bool = False  # recompute in the backward pass: a backbone's activations are held for that moment only

    spec = RewardSpec(
        "hps",
        "v2.1",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(0.15, 0.34),
        paper="arXiv:2306.09341",
        weights="xswu/HPSv2",
        licence="Apache-2.0",
    )

    def check(self) -> None:
        encoders.check(self.model)

    def load(self, device: torch.device | str = "cpu") -> encoders.Encoder:
        return encoders.load(self.model, device, self.dtype)

    def __call__(self, *, media, prompts, references=None):
        x = pixels(self.spec, media, prompts)
        encoder = self.load(x.device)
        return (encoder.images(x, fit="pad", checkpoint=self.checkpoint) * encoder.texts(prompts)).sum(1)
