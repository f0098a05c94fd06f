"""The best sample of each row so far: the state and the result of every search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.core.types import Batch, Event, Media, derive_seed


class BestSample:
    """The best sample of each row so far. A score beats NaN, as which infinity counts; on a tie the earlier stays."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.media: Media | None = None
        self.reward = torch.empty(0)  # [B], once there is a candidate
        self.latents: Tensor | None = None  # [B,*latent]

    @torch.no_grad()
    def take(self, media: Media, reward: Tensor, latents: Tensor | None = None) -> Tensor:
        """Consider one candidate per row, with its reward [B]; returns bool [B], where it is the best so far. Tensors
        are copied. latents: noise [B,*latent], given always or never."""
        reward = reward.masked_fill(reward == math.inf, math.nan)
        if self.media is None:
            self.media, self.reward, self.latents = media.detach(), torch.full_like(reward, math.nan), latents
            wins = torch.ones_like(reward, dtype=torch.bool)
        else:
            wins = (reward > self.reward) | (self.reward.isnan() & ~reward.isnan())
        self.media = replace(media, data=where_rows(wins, media.data, self.media.data))
        self.reward = where_rows(wins, reward, self.reward)
        known = self.latents
        self.latents = None if latents is None or known is None else where_rows(wins, latents, known)
        return wins

    def event(self, step: int, final: bool, **metrics: float) -> Event:
        """An Event with the best samples."""
        return Event(
            step=step,
            metrics={"reward": self.reward.nanmean().item(), **metrics},
            media=self.media,
            prompts=self.batch.prompts,
            seeds=self.batch.seeds,
            scores={"reward": self.reward},
            latents=self.latents,
            final=final,
        )


def seeded_normal(seeds: Sequence[int], shape: Sequence[int], *path: int | str) -> Tensor:
    """[B,*shape] standard normal on the CPU; row b is drawn by a generator with derive_seed(seeds[b], *path)."""
    generators = [torch.Generator().manual_seed(derive_seed(seed, *path)) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """A copy of `old` [B,...] with the rows of `new` where mask [B] is true."""
    return torch.where(mask.to(new.device).view(-1, *[1] * (new.dim() - 1)), new, old)
