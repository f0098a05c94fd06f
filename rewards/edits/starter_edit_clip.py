"""How well an edit fits its instruction, by the edit pack's own CLIP (pipelines/starter/edit/clip.py): it sees source
and result as one picture of six channels, so that what it judges is what changed, and what did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from rewards.edits.unchanged import source_pixels
from rewards.encoders.frozen_reward import EncoderReward
from rewards.encoders.image_text import ImageTextEncoder
from rewards.encoders.preprocess import media_pixels
from workbench.core.types import Media, RewardSpec


@dataclass(frozen=True)
class StarterEditCLIP(EncoderReward):
    """How well a starter-pack edit carries out its instruction and leaves the rest, by the embedded CLIP of edits: it
    knows that world's instructions and no others. It was shown what was not done, done wrongly, done with something
    else changed, and painted anew, so its gradient leads away from them.

    cos(source and result, instruction), in [-1,1].
    """

    model: str = "starter:edit/clip"

    spec = RewardSpec(
        "starter_edit_clip",
        "1",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt", "source"}),
        typical=(-0.3, 0.9),
        paper="arXiv:2103.00020",
        weights="starter:edit/clip",
        licence="Apache-2.0",
        bounds=(-1.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """float32 [B]. Raises BadInput without sources and for sources of another size."""
        x = media_pixels(self.spec, media, prompts)
        pair = torch.cat([source_pixels(self.spec, media, prompts, references).detach(), x], 1)  # [B,6,H,W]
        return self.score(self.load(x.device), pair, prompts)

    def score(self, encoder: ImageTextEncoder, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """float32 [B] of pairs [B,6,H,W] in [0,1]: source, then result."""
        pair = torch.cat([encoder.view(part) for part in x.chunk(2, 1)], 1)
        with torch.autocast(x.device.type, enabled=False):
            pair = pair.to(next(encoder.net.parameters()).dtype)
            features = recompute(encoder.image, pair, use_reentrant=False) if self.checkpoint else encoder.image(pair)
        return (F.normalize(features.float(), dim=-1) * encoder.embed_texts(prompts)).sum(1)
