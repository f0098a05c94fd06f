"""PickScore: which of two pictures for a prompt people pick (Kirstain et al. 2023, arXiv:2305.01569)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from workbench.types import RewardSpec

from . import encoders
from .preprocess import pixels


@dataclass(frozen=True)
class PickScore:
    """What people pick among pictures of one prompt: a CLIP ViT-H/14 tuned on Pick-a-Pic, exp(logit_scale) * cosine.

    Papers that report 0.2 for this score have divided it by 100.
    """

    model: str = "yuvalkirstain/PickScore_v1"  # see rewards/encoders.py for the forms
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the backbone; scores are float32
    checkpoint: bool = False  # recompute in the backward pass: a backbone's activations are held for that moment only

    spec = RewardSpec(
        "pickscore",
        "v1",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(18.0, 24.0),
        paper="arXiv:2305.01569",
        weights="yuvalkirstain/PickScore_v1",
        licence="MIT",
    )

    def check(self) -> None:
        encoders.check(self.model)

    def load(self, device: torch.device | str = "cpu") -> encoders.Encoder:
        return encoders.load(self.model, device, self.dtype)

    def __call__(self, *, media, prompts, references=None):
        x = pixels(self.spec, media, prompts)
        encoder = self.load(x.device)
        return encoder.logits((encoder.images(x, checkpoint=self.checkpoint) * encoder.texts(prompts)).sum(1))
