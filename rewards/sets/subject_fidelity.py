"""RPO's lambda-Harmonic reward: does a picture show this very subject, and does it show what was asked? Miao et al.,
NeurIPS 2024, arXiv:2407.12164, Eq. 6.

    r = 1 / ( lambda / I + (1 - lambda) / T ),

I the mean cosine to the reference pictures, T the cosine to the prompt, both brought to [0,1] by (x + 1) / 2: one that
is low can't be bought with the other. It is `combine: harmonic` of the two; `block` writes it down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rewards.sets.exemplar import IMAGE_AND_VIDEO, ReferenceReward
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec


@dataclass(frozen=True)
class Subject(ReferenceReward):
    """How much each sample looks like the reference pictures of one subject: the mean cosine to them (CLIP-I)."""

    spec = RewardSpec(
        "subject", "1", IMAGE_AND_VIDEO, differentiable=True, needs=frozenset({"reference"}), typical=(-1.0, 1.0),
        paper="arXiv:2407.12164", bounds=(-1.0, 1.0),
    )  # fmt: skip
    min_examples = 1

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = self.features(media)
        target = self.target(references, x.device)
        return (F.normalize(x.double(), dim=1) @ F.normalize(target.to(x.device).double(), dim=1).T).mean(1).float()


def harmonic_block(
    reference: str, lam: float, text: str | Mapping[str, Any] = "clip", **settings: Any
) -> dict[str, Any]:
    """The reward block of lambda-Harmonic: {image, text, combine: harmonic}. lam weighs the image side; at 0 and 1 one
    side is all there is. `text` is a reward or its settings, what else is given goes to both. Raises BadInput for a lam
    outside [0,1]."""
    if not 0 <= lam <= 1:
        raise BadInput(f"lambda: {lam:g} weighs pictures against text; set it in [0, 1]")
    text_settings = {"reward": text} if isinstance(text, str) else dict(text)
    sides = {
        "image": {"reward": "subject", "reference": reference, "weight": lam, **settings},
        "text": {**text_settings, "weight": 1 - lam, **settings},
    }
    return {name: side for name, side in sides.items() if side["weight"]} | {"combine": "harmonic"}
