"""Noise levels and deterministic steps of a policy's chain, by the methods of the Policy protocol."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.core.types import Policy, Prediction


def alpha_sigma(policy: Policy, i: int) -> tuple[float, float]:
    """a and s of x_i = a x0 + s eps; 1 and 0 for i = S, after the last step."""
    if i == policy.steps:
        return 1.0, 0.0
    one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return policy.noised(one, i, none).item(), policy.noised(none, i, one).item()


def ode_step(policy: Policy, i: int, prediction: Prediction) -> Tensor:
    """x_{i+1} [B,*latent] by the first-order ODE step (DDIM, Euler) from a prediction at step i; x0 at the last
    step."""
    return prediction.x0 if i + 1 == policy.steps else policy.noised(prediction.x0, i + 1, prediction.eps)


def ode_step_from(policy: Policy, x: Tensor, i: int, prompts: Sequence[str]) -> Tensor:
    """x_{i+1} [B,*latent] by the first-order ODE step from x_i = x [B,*latent], with one denoiser call."""
    return ode_step(policy, i, policy.predict(x, i, prompts))


def advanced_generators(seeds: Sequence[int], noise: Tensor) -> list[torch.Generator]:
    """A generator per row, advanced past the row's noise [B,*draw], which is the first draw of its seed."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    for g in generators:
        torch.randn(noise.shape[1:], generator=g)
    return generators


def mix_predictions(one: Prediction, other: Prediction, share: float) -> Prediction:
    """(1 - share) one + share other, in all three forms, which are affine in each other."""
    return Prediction(*(torch.lerp(getattr(one, k), getattr(other, k), share) for k in ("x0", "eps", "v")))
