"""Tiny pipelines that are being trained."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from pipelines import Ancestral, FlowSDE, Lora, TrainablePolicy

SD = "StableDiffusionPipeline"
FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline")
SMALL = Lora(rank=4, alpha=16.0)


def trainable(name: str, pipe: Any = None, **changes: Any) -> TrainablePolicy:
    """With a stochastic kernel, so that its steps can be scored."""
    kernel = FlowSDE() if name in FLOWS else Ancestral()
    settings = {"lora": SMALL, "kernel": kernel, **tiny.settings(name), **changes}
    return TrainablePolicy(pipe or tiny.build(name), **settings)


@torch.no_grad()
def nudge(policy: TrainablePolicy, size: float = 0.3, seed: int = 0) -> None:
    """Other values for what is trained, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for p in policy.adapters.parameters:
        p.add_((size * torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5).to(p.device))
