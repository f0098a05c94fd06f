"""Particles of sequential Monte Carlo: K chains a prompt in one batch, weighted, resampled and chosen from.

Groups are rows: B prompts times K particles are a batch [B*K,...] with a prompt's particles side by side, and what is known
of each particle is [B,K] float64 on the CPU. Resampling after Del Moral, Doucet & Jasra 2012 (adaptive, by effective
sample size) and Carpenter, Clifford & Fearnhead 1999 (systematic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Event, Media, Policy, Transition, derive
from workbench.methods.common.schedule import later


def slots(policy: Policy, batch: Batch, k: int) -> tuple[Tensor, list[torch.Generator]]:
    """First states [B*k,*latent] and the generators of the later draws. Slot j of a sample is what the policy's own chain
    draws for seed s_j; s_0 is the sample's own seed, so one particle is the base and all first noises are best-of-n's."""
    seeds = [s if j == 0 else derive(s, "candidate", j) for s in batch.seeds for j in range(k)]
    noise = policy.noise(seeds)
    return policy.start(noise), later(seeds, noise)


def filled(r: Tensor, last: Tensor) -> Tensor:
    """[B,K]: what can't be judged counts as the worst of its group; where none can, `last` [B,K] stands."""
    known = r.isfinite()
    worst = r.where(known, torch.inf).amin(1, keepdim=True)
    return r.where(known, worst.where(known.any(1, keepdim=True), last))


def judged(logw: Tensor, r: Tensor) -> Tensor:
    """[B,K]: log-weights with what can't be judged at weight 0, unless its whole group can't."""
    known = r.isfinite()
    return logw.where(known | ~known.any(1, keepdim=True), -torch.inf)


def effective(logw: Tensor) -> Tensor:
    """[B]: the effective sample size 1 / sum w^2 of the normalised weights."""
    return 1 / logw.softmax(1).square().sum(1)


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """[B,K] ancestors, by one uniform u [B] a group: a particle has floor or ceil of K w children, one each where
    weights [B,K] are equal. They need not sum to 1."""
    k, cdf = weights.shape[1], weights.cumsum(1)
    points = (torch.arange(k) + u[:, None]) / k  # [B,K] in [0,1)
    return torch.searchsorted(cdf / cdf[:, -1:], points, right=True)


def uniforms(seeds: Sequence[int], word: str, i: int = 0) -> Tensor:
    """[B] strictly inside (0,1), each from its own sample's seed: derive is a hash onto 31 bits."""
    return torch.tensor([(derive(s, word, i) + 0.5) / 2**31 for s in seeds], dtype=torch.float64)


def resample(logw: Tensor, threshold: float, seeds: Sequence[int], i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ancestors [B,K], who was resampled [B,1] and the effective sample sizes [B], from log-weights [B,K].

    A group whose effective sample size is at least threshold * K keeps its particles, and its caller their weights.
    """
    ess = effective(logw)
    low = (ess < threshold * logw.shape[1])[:, None]
    rows = torch.where(low, systematic(logw.softmax(1), uniforms(seeds, "resample", i)), torch.arange(logw.shape[1]))
    return rows, low, ess


def gather(values: Tensor, rows: Tensor) -> Tensor:
    """values [B,K,...] of the ancestors rows [B,K]."""
    return values[torch.arange(len(rows))[:, None], rows]


def flat(rows: Tensor) -> Tensor:
    """Ancestors [B,K] as rows [B*K] of a batch [B*K,...]."""
    return (rows + rows.shape[1] * torch.arange(len(rows))[:, None]).flatten()


def take(law: Transition, rows: Tensor) -> Transition:
    """The steps of rows [N] of a batch."""
    return replace(law, mean=law.mean[rows], x0=law.x0[rows])


def must_part(law: Transition, i: int) -> None:
    """Raises BadInput for a deterministic step, on which copies of a state would stay copies."""
    if not law.std.any():
        raise BadInput(
            f"pipeline: the kernel's step {i} is deterministic, so copied states never part; set eta above 0"
        )


def pick(r: Tensor, logw: Tensor, choose: str, seeds: Sequence[int], i: int = 0) -> Tensor:
    """[B]: each group's choice as a row of the batch: the highest reward r [B,K], or, to "draw", one by logw [B,K]."""
    if choose == "best":
        choice = r.where(r.isfinite(), -torch.inf).argmax(1, keepdim=True)
    else:
        cdf = logw.softmax(1).cumsum(1)
        choice = torch.searchsorted(cdf / cdf[:, -1:], uniforms(seeds, "draw", i)[:, None], right=True)
    return flat(choice + (r.shape[1] - 1) * torch.arange(len(r))[:, None])


def best(shown: tuple[Media, Tensor] | None, media: Media, r: Tensor) -> tuple[Media, Tensor]:
    """Media B and rewards [B]: the best of media [B*K] by r [B,K], or what was shown before where that is better."""
    row = pick(r, r, "best", ())
    media, r = media[row].detach(), r.flatten()[row]
    if shown is None:
        return media, r
    better = (r > shown[1]) | (shown[1].isnan() & ~r.isnan())
    keep = better.view(-1, *[1] * (media.data.dim() - 1)).to(media.data.device)
    return replace(media, data=torch.where(keep, media.data, shown[0].data)), torch.where(better, r, shown[1])


def event(step: int, batch: Batch, media: Media, r: Tensor, final: bool = False, **metrics: Tensor) -> Event:
    """Media B and their rewards [B]. No noise alone makes what was steered: latents are None."""
    means = {"reward": r.nanmean().item(), **{name: value.nanmean().item() for name, value in metrics.items()}}
    return Event(step, means, media, batch.prompts, batch.seeds, {"reward": r.float()}, final=final)
