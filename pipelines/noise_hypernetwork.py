"""HyperNoise's network (arXiv:2508.09968): the denoiser with LoRA, with only the LoRA branch in its last layer.

It maps noise and prompt to a correction of the noise, which is zero at first, as the LoRA branch starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.adapters import lora_layers
from pipelines.dials import dials_disabled, find_dials
from pipelines.seams import named_networks
from workbench.core.errors import BadInput


def find_lora_layers(policy: Any) -> list[Any]:
    """The LoRA layers of a policy's denoisers."""
    parts = named_networks(policy.pipe)
    return [layer for name in sorted(policy.structure.denoisers) for layer in lora_layers(parts[name]).values()]


@contextmanager
def adapters_disabled(policy: Any) -> Iterator[None]:
    """Inside the context LoRA layers and dials are disabled; afterwards they are as before."""
    layers = find_lora_layers(policy)
    were = [layer.disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # its public method also changes which parameters require grad
        with dials_disabled(find_dials(policy.pipe).values()):
            yield
    finally:
        for layer, was in zip(layers, were, strict=True):
            layer._disable_adapters = was


@contextmanager
def lora_branch_alone(layer: Any) -> Iterator[None]:
    """Inside the context a LoRA layer computes only scale B A x, without W x and bias; 0 where adapters are
    disabled."""
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
class OutputLayer:
    """The layer whose LoRA branch gives the correction."""

    layer: Any  # the denoiser's last LoRA layer
    # the model output for a denoiser output of 0, as a multiple of the state: SANA-Sprint adds some of the state
    state_share: float


def find_output_layer(policy: Any) -> OutputLayer:
    """The last LoRA layer that runs, found by running the denoiser.

    Raises BadInput where the denoiser's last layer has no LoRA: then the output isn't zero with only LoRA branches.
    """
    layers = find_lora_layers(policy)
    order, nfe_before, x, silent_output = [], policy.nfe, policy.structure.start(policy.noise([0])).float(), None
    hooks = [layer.register_forward_hook(lambda own, *_: order.append(own)) for layer in layers]
    try:
        with torch.no_grad():
            policy._model_output(x, 0, policy.example_prompts("a"))
            for hook in hooks:
                hook.remove()
            if order:
                with lora_branch_alone(order[-1]), adapters_disabled(policy):
                    silent_output = policy._model_output(x, 0, policy.example_prompts("a")).float()
    finally:
        for hook in hooks:
            hook.remove()
        policy.nfe = nfe_before
    state_share = 0.0 if silent_output is None else float((silent_output * x).sum() / x.square().sum())
    if silent_output is None or not torch.allclose(
        silent_output, state_share * x, rtol=1e-2, atol=1e-4 * float(x.abs().max())
    ):
        raise BadInput(
            "the last layer of this denoiser has no LoRA, and the correction of the noise is read there; train one "
            "with the LoRA's targets: all"
        )
    return OutputLayer(order[-1], state_share)


def predict_correction(policy: Any, output_layer: OutputLayer, noise: Tensor, prompts: Sequence[str]) -> Tensor:
    """The correction f(z, c) [B,*draw] of noise z [B,*draw] for prompts c, with the graph to the adapters."""
    x = policy.start(noise, prompts)
    with lora_branch_alone(output_layer.layer):
        output = policy._model_output(x, 0, prompts).float()
    return (
        policy.structure.invert_start(
            output - output_layer.state_share * x.float() if output_layer.state_share else output
        )
        * policy.structure.state_scale
    )
