"""CLIPScore: how well a picture fits its prompt (Hessel et al. 2021, arXiv:2104.08718).

Without their factor 2.5 and max(0, .): neither changes a ranking, and the second has no gradient where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rewards.encoders import image_text
from rewards.encoders.frozen_reward import EncoderReward
from workbench.core.errors import BadInput
from workbench.core.types import RewardSpec

IMAGE, PROMPT = frozenset({"image"}), frozenset({"prompt"})


@dataclass(frozen=True)
class CLIPScore(EncoderReward):
    """How well a picture fits its prompt, by any CLIP or SigLIP model.

    mode `cosine`: cos(image, prompt). `scaled`: times the model's exp(logit_scale), about 100, plus SigLIP's bias.
    `contrastive`: log-probability of the prompt among itself and `negatives` at that scale, in (-inf, 0]; what a
    picture has in common with every caption cancels. A negative that equals the prompt is left out for that sample.
    """

    model: str = "openai/clip-vit-large-patch14"  # see rewards/encoders/image_text.py for the forms
    mode: Literal["cosine", "scaled", "contrastive"] = "cosine"
    negatives: tuple[str, ...] = ()  # captions that the picture should not fit, for `contrastive`

    spec = RewardSpec(
        "clip",
        "ViT-L-14",
        IMAGE,
        differentiable=True,
        needs=PROMPT,
        typical=(0.15, 0.35),
        paper="arXiv:2104.08718",
        weights="openai/clip-vit-large-patch14",
        licence="MIT",
        bounds=(-1.0, 1.0),
    )

    def __post_init__(self):
        if (self.mode == "contrastive") != bool(self.negatives):
            raise BadInput(f"{self.spec.name}: `negatives` and mode `contrastive` go together")
        if (self.model, self.mode) != (type(self).model, "cosine"):  # scores of another kind than the class's spec
            changes = {"version": f"{self.model} {self.mode}", "typical": None, "weights": self.model, "licence": ""}
            changes |= {"bounds": self.spec.bounds if self.mode == "cosine" else None}
            object.__setattr__(self, "spec", replace(self.spec, **changes))

    def score(self, encoder: image_text.ImageTextEncoder, x: Tensor, prompts: Sequence[str]) -> Tensor:
        image = encoder.embed_images(x, checkpoint=self.checkpoint)  # [B,D]
        cosine = (image * encoder.embed_texts(prompts)).sum(1)  # [B]
        if self.mode == "cosine":
            return cosine
        if self.mode == "scaled":
            return encoder.logits(cosine)
        same = torch.tensor([[str(p) == n for n in self.negatives] for p in prompts], device=x.device)  # [B,N]
        others = (image @ encoder.embed_texts(self.negatives).T).masked_fill(same, -torch.inf)
        return torch.cat([cosine[:, None], others], 1).mul(encoder.scale).log_softmax(1)[:, 0]


@dataclass(frozen=True)
class StarterCLIP(CLIPScore):
    """How well a starter-pack picture fits its prompt, by the embedded CLIP: knows that world's words and no others."""

    model: str = "starter:image/clip"

    spec = RewardSpec(
        "starter_clip",
        "1",
        IMAGE,
        differentiable=True,
        needs=PROMPT,
        typical=(-0.3, 0.8),
        paper="arXiv:2104.08718",
        weights="starter:image/clip",
        licence="Apache-2.0",
        bounds=(-1.0, 1.0),
    )
