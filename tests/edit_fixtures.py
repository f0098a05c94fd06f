"""Samples that were made from a source: prompts with inputs in memory, and scores of them."""

from __future__ import annotations

import torch

from rewards import build_reward
from rewards.compose import WeightedReward
from workbench.core.inputs import MediaInput
from workbench.core.types import Media, Prompt

CLIP = Media(torch.zeros(1, 2, 3, 8, 8), "video", 8.0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """In 256 steps, as files hold them."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def edit(text: str, **inputs: torch.Tensor | Media) -> Prompt:
    """A prompt with pictures [3,H,W], or media, under their names."""
    rows = {n: x if isinstance(x, Media) else Media(x[None], "image") for n, x in inputs.items()}
    return Prompt(text, {name: MediaInput.of(row) for name, row in rows.items()})


def score(reward, media: Media, prompts) -> torch.Tensor:
    return build_reward({"it": {"reward": reward}} if isinstance(reward, str) else reward)(media=media, prompts=prompts)


def build_reward_of(reward):
    return WeightedReward({reward: 1.0})
