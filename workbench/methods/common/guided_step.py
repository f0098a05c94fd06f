"""Moving a denoising step: what guidance by the gradient of a clean reward and by that of a noisy-latent reward share.

A step predicts x0 and eps from x_i = a x0 + s eps. Guidance moves x0 by delta while x_i stays, so eps moves by
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
    """Whether step i of `steps` lies in the window [start, stop), given in shares of the steps."""
    return start * steps <= i < stop * steps


def base_step(policy: Policy, x: Tensor, i: int, prompts: Sequence[str], base: str) -> Transition:
    """The unguided step: the policy's own Gaussian one (sde), or the deterministic first-order one (ode), std 0."""
    if base == "sde":
        return policy.transition(x, i, prompts)
    p = policy.predict(x, i, prompts)
    return Transition(ode_step(policy, i, p), torch.zeros((), device=x.device), p.x0)


def shift_prediction(policy: Policy, law: Transition, i: int, delta: Tensor) -> Transition:
    """The step with x0 moved by delta [B,*latent]. Of eps it keeps sqrt(s_next^2 - std^2), which is exact for kernels
    that stay on schedule (DDIM's, CPS) and right to first order in the step's length for the others."""
    (a, s), (a_next, s_next) = alpha_sigma(policy, i), alpha_sigma(policy, i + 1)
    eps_share = math.sqrt(max(s_next**2 - float(law.std) ** 2, 0.0))
    return replace(law, mean=law.mean + (a_next - eps_share * a / s) * delta, x0=law.x0 + delta)


def renoise_step(policy: Policy, x: Tensor, i: int, generators: Sequence[torch.Generator]) -> Tensor:
    """x_i from x_{i+1} = x by the forward process, each row's noise from its own generator: time travel."""
    (a, s), (a_next, s_next) = alpha_sigma(policy, i), alpha_sigma(policy, i + 1)
    eps = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)
    return a / a_next * x + math.sqrt(max(s**2 - (a / a_next * s_next) ** 2, 0.0)) * eps


def capped_noise_ratio(a: float, s: float, cap: float) -> float:
    """s / a, which diverges in pure noise, bounded by `cap`."""
    return s / max(a, s / cap) if cap else 0.0


def unit_rms(g: Tensor) -> Tensor:
    """Each row of g [B,*latent] with a root mean square of 1; a row of zeros stays."""
    norm = g.flatten(1).norm(dim=1).view(-1, *[1] * (g.dim() - 1))  # [B,1,...]
    return g * (math.sqrt(g[0].numel()) / norm.clamp_min(1e-30))


def zero_nonfinite(delta: Tensor) -> Tensor:
    """Rows of delta [B,*latent] that are not finite become 0: a sample that can't be judged takes the base's step."""
    finite = delta.flatten(1).isfinite().all(1).view(-1, *[1] * (delta.dim() - 1))
    return torch.where(finite, delta, torch.zeros_like(delta))


@torch.no_grad()
def final_event(policy: Policy, reward: Reward, x: Tensor, batch: Batch, step: int) -> Event:
    """The final event: the clean latents x [B,*latent] decoded and judged. No noise alone makes them."""
    media = policy.decode(x, batch.prompts)
    r = reward(media=media, prompts=batch.prompts)
    return Event(step, {"reward": r.nanmean().item()}, media, batch.prompts, batch.seeds, {"reward": r}, None, True)
