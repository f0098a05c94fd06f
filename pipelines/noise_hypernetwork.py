"""HyperNoise's network (arXiv:2508.09968): the denoiser with its LoRA, of whose last layer only the LoRA branch is kept.

It reads noise and prompt as the denoiser does, and as that branch starts at zero so does what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.adapters import layers
from pipelines.seams import modules
from workbench.core.types import BadInput


def adapted(policy: Any) -> list[Any]:
    """The LoRA layers of a policy's denoisers."""
    parts = modules(policy.pipe)
    return [layer for name in sorted(policy.anatomy.denoisers) for layer in layers(parts[name]).values()]


@contextmanager
def off(policy: Any) -> Iterator[None]:
    """Inside, they do nothing; where they did nothing before, they do nothing after."""
    found = adapted(policy)
    were = [layer.disable_adapters for layer in found]
    try:
        for layer in found:
            layer._disable_adapters = True  # its public method also changes which parameters require grad
        yield
    finally:
        for layer, was in zip(found, were, strict=True):
            layer._disable_adapters = was


@contextmanager
def alone(layer: Any) -> Iterator[None]:
    """Inside, a LoRA layer gives B A x alone, without W x and the bias; zero where adapters are off."""
    (name,) = layer.lora_A
    a, b, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (b(a(x.to(a.weight.dtype))) * (0.0 if layer.disable_adapters else scale)).to(x.dtype)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@dataclass(frozen=True)
class Outlet:
    """Where the correction is read."""

    layer: Any  # the LoRA layer that makes what the denoiser says at the first step
    own: float  # what the scheduler sees where the denoiser says nothing, as a multiple of the state: SANA-Sprint adds some of it


def outlet(policy: Any) -> Outlet:
    """The last LoRA layer to run, found by running the denoiser.

    Raises BadInput where the denoiser's last layer has no LoRA: alone, the one before it would not silence the denoiser.
    """
    found = adapted(policy)
    order, spent, x, said = [], policy.nfe, policy.start(policy.noise([0])).float(), None
    hooks = [layer.register_forward_hook(lambda own, *_: order.append(own)) for layer in found]
    try:
        with torch.no_grad():
            policy._output(x, 0, ("a",))
            for hook in hooks:
                hook.remove()
            if order:
                with alone(order[-1]), off(policy):
                    said = policy._output(x, 0, ("a",)).float()
    finally:
        for hook in hooks:
            hook.remove()
        policy.nfe = spent
    own = 0.0 if said is None else float((said * x).sum() / x.square().sum())
    if said is None or not torch.allclose(said, own * x, rtol=1e-2, atol=1e-4 * float(x.abs().max())):
        raise BadInput(
            "the last layer of this denoiser has no LoRA, and the correction of the noise is read there; train one with the "
            "LoRA's targets: all"
        )
    return Outlet(order[-1], own)


def correction(policy: Any, way: Outlet, noise: Tensor, prompts: Sequence[str]) -> Tensor:
    """f(z, c) [B,*draw] for noise z [B,*draw], in the units of the noise, with the graph to the adapters."""
    x = policy.start(noise)
    with alone(way.layer):
        said = policy._output(x, 0, prompts).float()
    return policy.anatomy.unstart(said - way.own * x.float() if way.own else said) * policy.anatomy.scale
