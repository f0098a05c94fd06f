"""PickScore: which of two pictures for a prompt people pick (Kirstain et al. 2023, arXiv:2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rewards.encoders.frozen_reward import EncoderReward
from rewards.encoders.image_text import ImageTextEncoder
from workbench.core.types import RewardSpec


@dataclass(frozen=True)
class PickScore(EncoderReward):
    """What people pick among pictures of one prompt: a CLIP ViT-H/14 tuned on Pick-a-Pic, exp(logit_scale) * cosine.

    Papers that report 0.2 for this score have divided it by 100.
    """

    model: str = "yuvalkirstain/PickScore_v1"  # see rewards/encoders/image_text.py for the forms

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

    def score(self, encoder: ImageTextEncoder, x: Tensor, prompts: Sequence[str]) -> Tensor:
        return encoder.logits(
            (encoder.embed_images(x, checkpoint=self.checkpoint) * encoder.embed_texts(prompts)).sum(1)
        )
