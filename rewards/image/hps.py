"""HPSv2.1: human preference between pictures of one prompt (Wu et al. 2023, arXiv:2306.09341).

The authors' fork of open_clip and today's open_clip agree on all 686 names and shapes of ViT-H-14. Their transform
resizes the tensor, not the 8-bit picture, so this one does too; before torchvision 0.17 theirs had no antialiasing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rewards.encoders.frozen_reward import EncoderReward
from rewards.encoders.image_text import ImageTextEncoder
from rewards.encoders.preprocess import View
from workbench.core.types import RewardSpec


@dataclass(frozen=True)
class HPS(EncoderReward):
    """Human preference score v2.1: an open_clip ViT-H-14 tuned on HPD v2, plain cosine (tables print it times 100).

    Pictures are fitted as the authors do, long side to 224 and black around, so that nothing is cut off; ReNO crops
    instead. Comparable within one prompt only, and never between v2.0 and v2.1.
    """

    model: str = (
        "open_clip:ViT-H-14/xswu/HPSv2/HPS_v2.1_compressed.pt"  # see rewards/encoders/image_text.py for the forms
    )

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

    def score(self, encoder: ImageTextEncoder, x: Tensor, prompts: Sequence[str]) -> Tensor:
        view = View(encoder.size, encoder.view.mean, encoder.view.std, fit="pad", as_pil=False)
        return (encoder.embed_images(x, view, self.checkpoint) * encoder.embed_texts(prompts)).sum(1)
