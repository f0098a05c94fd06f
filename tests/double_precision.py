"""Gradients against finite differences, for which float32 has too few digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny import SEEDS
from torch.overrides import TorchFunctionMode


class Double(TorchFunctionMode):
    """Keeps float64 where diffusers casts to float32 for stability: a finite difference needs the digits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.float, torch.Tensor.to, torch.Tensor.type) and args[0].dtype is torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {key: torch.float64 if v is torch.float32 else v for key, v in kwargs.items()}
        return func(*args, **kwargs)


def gradient_error(policy: Any, prompts: Sequence[str]) -> float:
    """The relative error of the slope from media to noise along a direction, of a policy in float64: the least of
    three sizes of finite differences, or the first below 1e-6."""
    generator, seeds = torch.Generator().manual_seed(0), SEEDS[: len(prompts)]

    def draw(shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    shape = (len(prompts), *policy.structure.noise_shape)
    z, direction = draw(shape).requires_grad_(), draw(shape)
    data = policy.sample(prompts, seeds=seeds, noise=z, grad=policy.steps).media.data
    weight = draw(data.shape).to(data)
    (gradient,) = torch.autograd.grad((data * weight).sum(), z)
    slope, errors = (gradient * direction).sum().item(), []
    assert slope != 0
    for eps in (1e-5, 1e-4, 1e-3):
        with torch.no_grad():
            up, down = (
                (policy.sample(prompts, seeds=seeds, noise=z + sign * eps * direction).media.data * weight).sum()
                for sign in (1, -1)
            )
        errors.append(abs((up - down).item() / (2 * eps) - slope) / abs(slope))
        if errors[-1] < 1e-6:
            break
    return min(errors)
