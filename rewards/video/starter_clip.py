"""How well a clip fits its prompt, by the video pack's own CLIP (pipelines/starter/video/clip.py): it reads a clip as a
film strip, nine frames in one picture, so that what it judges is what moves and not only what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.encoders import image_text
from rewards.encoders.frozen_reward import EncoderReward
from rewards.encoders.preprocess import media_pixels, resize_images
from workbench.core.io.clips import StoredClip
from workbench.core.types import Media, RewardSpec

ROWS = 3  # frames across and down the strip


def film_strip(x: Tensor, side: int) -> Tensor:
    """[B,9,3,H,W] in [0,1] -> [B,3,3 side,3 side]: the frames, resized, three by three, first row first."""
    h, w = x.shape[-2:]
    if h == w and h % side == 0:  # what the pack's own clips get: means of whole pixels
        small = torch.nn.functional.avg_pool2d(x.flatten(0, 1), h // side)
    else:
        small = resize_images(x.flatten(0, 1), (side, side))
    rows = small.view(len(x), ROWS, ROWS, 3, side, side).permute(0, 3, 1, 4, 2, 5)  # [B,3,row,y,column,x]
    return rows.flatten(4, 5).flatten(2, 3)


def seen_frames(frames: int) -> Tensor:
    return torch.linspace(0, frames - 1, ROWS**2).round().long()


@dataclass(frozen=True)
class StarterVideoCLIP(EncoderReward):
    """How well a clip of nine frames fits its prompt in content and in motion, by the embedded video CLIP: knows that
    world's words and no others. It was shown frozen, shuffled and broken clips too, so its gradient leads away from
    them.

    Of a clip with more or fewer frames it sees nine, evenly spread. cos(clip, prompt), in [-1,1].
    """

    model: str = "starter:video/clip"

    spec = RewardSpec(
        "starter_video_clip",
        "2",
        frozenset({"video"}),
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(-0.3, 0.9),
        paper="arXiv:2103.00020",
        weights="starter:video/clip",
        licence="Apache-2.0",
        bounds=(-1.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)  # [B,T,3,H,W]
        scores = self.score(self.load(x.device), x[:, seen_frames(x.shape[1]).to(x.device)], prompts)
        return scores.masked_fill(x.detach().flatten(1).isnan().any(1), torch.nan)  # in any frame, seen or not

    def score_clip(self, clip: StoredClip, prompts: Sequence[str]) -> Tensor:
        """[1]: of a clip in 8 bits, of which only the frames that are looked at become numbers."""
        return self.score(self.load(), clip.frames(seen_frames(len(clip)).tolist()).data, prompts)

    def score(self, encoder: image_text.ImageTextEncoder, x: Tensor, prompts: Sequence[str]) -> Tensor:
        picture = film_strip(x, encoder.size[0] // ROWS)
        return (encoder.embed_images(picture, checkpoint=self.checkpoint) * encoder.embed_texts(prompts)).sum(1)
