"""Guided denoising steps, for guidance by the gradient of a reward on clean media or of one on noisy latents.

A step predicts x0 and eps from x_i = a x0 + s eps. Guidance shifts x0 by delta at a fixed x_i, so eps shifts by
-(a/s) delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.core.types import Batch, Event, Policy, Reward, Transition
from workbench.methods.common.schedule import alpha_sigma, ode_step


def in_window(i: int, steps: int, start: float, stop: float) -> bool:
    """Whether step i of `steps` is in the window [start, stop), given as fractions of the steps."""
    return start * steps <= i < stop * steps


def base_step(policy: Policy, x: Tensor, i: int, prompts: Sequence[str], base: str) -> Transition:
    """The unguided step: the policy's Gaussian one (base "sde"), or the first-order ODE step with std 0 ("ode")."""
    if base == "sde":
        return policy.transition(x, i, prompts)
    p = policy.predict(x, i, prompts)
    return Transition(ode_step(policy, i, p), torch.zeros((), device=x.device), p.x0)


def shift_prediction(policy: Policy, law: Transition, i: int, delta: Tensor) -> Transition:
    """The step with x0 shifted by delta [B,*latent]. Its mean has eps with the factor sqrt(s_next^2 - std^2): exact for
    kernels whose states are on schedule (DDIM's, CPS), and to first order in the step's length for others."""
    (a, s), (a_next, s_next) = alpha_sigma(policy, i), alpha_sigma(policy, i + 1)
    eps_share = math.sqrt(max(s_next**2 - float(law.std) ** 2, 0.0))
    return replace(law, mean=law.mean + (a_next - eps_share * a / s) * delta, x0=law.x0 + delta)


def renoise_step(policy: Policy, x: Tensor, i: int, generators: Sequence[torch.Generator]) -> Tensor:
    """x_i from x_{i+1} = x by the forward process ("time travel"), each row's noise by its own generator."""
    (a, s), (a_next, s_next) = alpha_sigma(policy, i), alpha_sigma(policy, i + 1)
    eps = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)
    return a / a_next * x + math.sqrt(max(s**2 - (a / a_next * s_next) ** 2, 0.0)) * eps


def capped_noise_ratio(a: float, s: float, cap: float) -> float:
    """s / a, which diverges in pure noise, bounded by `cap`."""
    return s / max(a, s / cap) if cap else 0.0


def unit_rms(g: Tensor) -> Tensor:
    """g [B,*latent] with each row scaled to a root mean square of 1; rows of zeros stay zero."""
    norm = g.flatten(1).norm(dim=1).view(-1, *[1] * (g.dim() - 1))  # [B,1,...]
    return g * (math.sqrt(g[0].numel()) / norm.clamp_min(1e-30))


def zero_nonfinite(delta: Tensor) -> Tensor:
    """delta [B,*latent] with non-finite rows set to 0: a sample that can't be scored takes the unguided step."""
    finite = delta.flatten(1).isfinite().all(1).view(-1, *[1] * (delta.dim() - 1))
    return torch.where(finite, delta, torch.zeros_like(delta))


@torch.no_grad()
def final_event(policy: Policy, reward: Reward, x: Tensor, batch: Batch, step: int) -> Event:
    """The final event: the clean latents x [B,*latent] decoded and scored, without noise that would make them."""
    media = policy.decode(x, batch.prompts)
    r = reward(media=media, prompts=batch.prompts)
    return Event(step, {"reward": r.nanmean().item()}, media, batch.prompts, batch.seeds, {"reward": r}, None, True)
