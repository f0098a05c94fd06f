"""Sequential Monte Carlo over denoising chains: K particles per prompt are weighted, resampled and selected.

B prompts with K particles each are a batch [B*K,...], a prompt's particles side by side; weights and rewards are [B,K]
float64 on the CPU. Resampling is adaptive, by effective sample size (Del Moral, Doucet & Jasra 2012), and systematic
(Carpenter, Clifford & Fearnhead 1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, Media, Policy, Transition, derive_seed
from workbench.methods.common.schedule import advanced_generators


def start_particles(policy: Policy, batch: Batch, k: int) -> tuple[Tensor, list[torch.Generator]]:
    """First states [B*k,*latent], and the generators of later draws. Particle j of a sample draws as the policy does
    for seed s_j; s_0 is the sample's own seed, so particle 0 is the base's chain, and the noises are those of
    best-of-n."""
    seeds = [s if j == 0 else derive_seed(s, "candidate", j) for s in batch.seeds for j in range(k)]
    noise = policy.noise(seeds)
    return policy.start(noise, [p for p in batch.prompts for _ in range(k)]), advanced_generators(seeds, noise)


def fill_unscored(r: Tensor, last: Tensor) -> Tensor:
    """Rewards [B,K], with NaN replaced by the worst of its group, or by `last` [B,K] in groups without a score."""
    finite = r.isfinite()
    worst = r.where(finite, torch.inf).amin(1, keepdim=True)
    return r.where(finite, worst.where(finite.any(1, keepdim=True), last))


def mask_unscored(logw: Tensor, r: Tensor) -> Tensor:
    """Log-weights [B,K], -inf where the reward r [B,K] is not finite or the weight NaN, as a broken state's is; in
    groups without a finite reward only where the weight is NaN, and 0 if all are."""
    valid = ~logw.isnan()
    scored = valid & (r.isfinite() | ~(valid & r.isfinite()).any(1, keepdim=True))
    return logw.where(scored, -torch.inf).where(scored.any(1, keepdim=True), 0.0)


def effective_sample_size(logw: Tensor) -> Tensor:
    """[B]: the effective sample size 1 / sum w^2, of weights normalised from log-weights [B,K]."""
    return 1 / logw.softmax(1).square().sum(1)


def resample_systematically(weights: Tensor, u: Tensor) -> Tensor:
    """Ancestors [B,K] by weights [B,K], which need not sum to 1, and one uniform u [B] per group: a particle of
    normalised weight w has floor(K w) or ceil(K w) children, one each for equal weights."""
    k, cdf = weights.shape[1], weights.cumsum(1)
    points = (torch.arange(k) + u[:, None]) / k  # [B,K] in [0,1)
    return torch.searchsorted(cdf / cdf[:, -1:], points, right=True)


def seeded_uniforms(seeds: Sequence[int], word: str, i: int = 0) -> Tensor:
    """[B] in (0,1), each by its own sample's seed: derive_seed hashes to 31 bits."""
    return torch.tensor([(derive_seed(s, word, i) + 0.5) / 2**31 for s in seeds], dtype=torch.float64)


def resample_groups(logw: Tensor, threshold: float, seeds: Sequence[int], i: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ancestors [B,K], whether a group was resampled [B,1], effective sample sizes [B]) by log-weights [B,K].

    A group whose effective sample size is at least threshold * K keeps its particles, and its caller their weights.
    """
    ess = effective_sample_size(logw)
    low = (ess < threshold * logw.shape[1])[:, None]
    ancestors = resample_systematically(logw.softmax(1), seeded_uniforms(seeds, "resample", i))
    return torch.where(low, ancestors, torch.arange(logw.shape[1])), low, ess


def gather_ancestors(values: Tensor, rows: Tensor) -> Tensor:
    """The values [B,K,...] of ancestors `rows` [B,K]."""
    return values[torch.arange(len(rows))[:, None], rows]


def flatten_rows(rows: Tensor) -> Tensor:
    """Ancestors [B,K] as row indices [B*K] of a batch [B*K,...]."""
    return (rows + rows.shape[1] * torch.arange(len(rows))[:, None]).flatten()


def take_rows(law: Transition, rows: Tensor) -> Transition:
    """The transition of rows [N] of a batch."""
    return replace(law, mean=law.mean[rows], x0=law.x0[rows])


def check_stochastic(law: Transition, i: int) -> None:
    """Raises BadInput for a deterministic step, after which copies of a state would still be equal."""
    if not law.std.any():
        raise BadInput(f"pipeline: the kernel's step {i} is deterministic, so copies never part; set eta above 0")


def choose_particle(r: Tensor, logw: Tensor, choose: str, seeds: Sequence[int], i: int = 0) -> Tensor:
    """[B]: a row of the batch for each group: that of the highest reward r [B,K] (choose "best"), or a draw by the
    log-weights logw [B,K] ("draw")."""
    if choose == "best":
        choice = r.where(r.isfinite(), -torch.inf).argmax(1, keepdim=True)
    else:
        cdf = logw.softmax(1).cumsum(1)
        choice = torch.searchsorted(cdf / cdf[:, -1:], seeded_uniforms(seeds, "draw", i)[:, None], right=True)
    return flatten_rows(choice + (r.shape[1] - 1) * torch.arange(len(r))[:, None])


def best_so_far(previous: tuple[Media, Tensor] | None, media: Media, r: Tensor) -> tuple[Media, Tensor]:
    """B media and rewards [B]: the best of B*K media by r [B,K], or the `previous` best where that is better."""
    row = choose_particle(r, r, "best", ())
    media, r = media[row].detach(), r.flatten()[row]
    if previous is None:
        return media, r
    better = (r > previous[1]) | (previous[1].isnan() & ~r.isnan())
    keep = better.view(-1, *[1] * (media.data.dim() - 1)).to(media.data.device)
    return replace(media, data=torch.where(keep, media.data, previous[0].data)), torch.where(better, r, previous[1])


def particle_event(step: int, batch: Batch, media: Media, r: Tensor, final: bool = False, **metrics: Tensor) -> Event:
    """An Event with B media and their rewards [B]. Latents are None, as no noise makes steered samples."""
    means = {"reward": r.nanmean().item(), **{name: value.nanmean().item() for name, value in metrics.items()}}
    return Event(step, means, media, batch.prompts, batch.seeds, {"reward": r.float()}, final=final)
