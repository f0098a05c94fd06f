"""The LoRA that a training starts from: merged into the weights, and remembered, so that the export holds it too."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.adapters import lora_factors, lora_layers, strip_lora
from pipelines.seams import named_networks

Factors = dict[str, tuple[Tensor, Tensor]]  # layer -> A [rank,in,...], B [out,rank,...], with the scale folded in


@dataclass(frozen=True)
class StartLora:
    """What was merged into the weights of a pipeline before its training."""

    factors: dict[str, Factors]  # by network
    networks: frozenset[str]  # all whose weights are not the base's
    low_rank: bool  # whether `factors` are all of it: not for DoRA, biases and whole denoisers


@torch.no_grad()
def merge_start(pipe: Any, replaced: Collection[str] = ()) -> StartLora:
    """Merge the LoRA layers of a pipeline into its weights, W + scale B A, and take them off. `replaced` are networks
    whose weights were loaded as a whole."""
    factors: dict[str, Factors] = {}
    low_rank = not replaced
    for network, module in named_networks(pipe).items():
        for name, layer in lora_layers(module).items():
            (adapter,) = layer.lora_A
            low_rank &= adapter not in layer.lora_magnitude_vector and not layer.lora_bias[adapter]
            factors.setdefault(network, {})[name] = fold_strength(layer)
            layer.merge()
        if network in factors:
            strip_lora(module)
    return StartLora(factors, frozenset({*factors, *replaced}), low_rank)


def fold_strength(layer: Any) -> tuple[Tensor, Tensor]:
    """A and scale B of a LoRA layer, on the CPU in float32."""
    a, b, scale = lora_factors(layer)
    return a.detach().float().cpu().contiguous(), (b.detach().float() * scale).cpu().contiguous()


def join_factors(first: Factors, second: Factors) -> Factors:
    """One LoRA with the effect of both, exactly: ranks add up, B1 A1 + B2 A2 = [B1 B2] [A1; A2]."""
    return {
        layer: second.get(layer) or first[layer]
        if not (layer in first and layer in second)
        else (
            torch.cat([first[layer][0], second[layer][0]]),
            torch.cat([first[layer][1], second[layer][1]], dim=1),
        )
        for layer in first | second
    }
