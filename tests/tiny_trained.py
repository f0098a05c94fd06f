"""Tiny pipelines that are being trained."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from pipelines import Ancestral, FlowSDE, Lora, TrainablePolicy
from pipelines.known_classes import MODALITIES

SD = "StableDiffusionPipeline"
FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline")
SMALL = Lora(rank=4, alpha=16.0)


def trainable(name: str, pipe: Any = None, **changes: Any) -> TrainablePolicy:
    """With a stochastic kernel, so that its steps can be scored."""
    spec, (modality, rate) = tiny.TINY[name], MODALITIES[tiny.class_of(name)]
    settings = dict(
        steps=spec.steps, call=spec.call, text=spec.text, guidance=spec.guidance, modality=modality, rate=rate
    )
    kernel = FlowSDE() if name in FLOWS else Ancestral()
    return TrainablePolicy(pipe or tiny.build(name), **{"lora": SMALL, "kernel": kernel, **settings, **changes})


@torch.no_grad()
def nudge(policy: TrainablePolicy, size: float = 0.3, seed: int = 0) -> None:
    """Other values for what is trained, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for p in policy.adapters.parameters:
        p.add_((size * torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5).to(p.device))
