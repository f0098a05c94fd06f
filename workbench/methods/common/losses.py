"""Losses that several training methods share: pure functions of tensors, whose rows are samples.

Errors of a denoiser are measured in its own output, as in pre-training. At a given state x = a x0 + s eps, x0 moves by
`unit` when the output moves by one: s for a velocity (v = eps - x0, or VP's v = a eps - s x0), s/a for eps, 1 for x0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def denoising_distance(ours: Tensor, theirs: Tensor, unit: float) -> Tensor:
    """[B] float64: mean over latent dimensions of the squared difference of two denoiser outputs at one state, given by
    their x0 predictions [B,*latent]. With the true x0 as the second, the denoising loss."""
    return ((ours.double() - theirs.double()) / unit).square().flatten(1).mean(1)


def self_normalised_error(ours: Tensor, clean: Tensor, floor: float = 1e-5) -> Tensor:
    """[B] float64: mean |x0 - x0'|^2 / mean |x0 - x0'|, the denominator without gradient: the self-normalised error of
    DiffusionNFT (arXiv:2509.16117) and CRD (arXiv:2603.14128). On v it is the same but for a factor s."""
    gap = (ours.double() - clean.double()).flatten(1)
    return gap.square().mean(1) / gap.detach().abs().mean(1).clamp(min=floor)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """[B]: PPO's loss max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = exp(log_ratio) (arXiv:1707.06347, Eq. 7)."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def guard_log_ratio(mean: Tensor, old_mean: Tensor, std: Tensor, x_next: Tensor) -> Tensor:
    """[B] float64: GRPO-Guard's normalised log-ratio (arXiv:2510.22319), the mean over dimensions of eps (mu - mu_old)
    with the noise eps = (x' - mu_old) / std that was drawn. Unlike log p - log p_old it has mean 0 at every noise
    level, so clipping treats good and bad samples alike."""
    eps = (x_next.double() - old_mean.double()) / std.double()
    return (eps * (mean.double() - old_mean.double())).flatten(1).mean(1)


def preference_loss(margin: Tensor) -> Tensor:
    """[B]: -log sigmoid(margin), the Bradley-Terry loss; log 2 at margin 0."""
    return F.softplus(-margin)


def optimality_probability(advantage: Tensor, bound: float) -> Tensor:
    """[B] in [0,1]: clip(A, -bound, bound) / (2 bound) + 1/2, the probability that a sample is optimal
    (DiffusionNFT, arXiv:2509.16117, Eq. 5)."""
    return advantage.clamp(-bound, bound) / (2 * bound) + 0.5


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """[B]: for each row the sum of values [B] over the rows of its group; group: int [B]."""
    return (group[:, None] == group[None]).to(values.dtype) @ values


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """[B]: for each row the mean of values [B] over the rows of its group; group: int [B]."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group)
