"""The video pack's base, taught to begin with a given picture, in a plain WanImageToVideoPipeline: that of Wan 2.2's
TI2V 5B (`expand_timesteps`). The picture's clean latent is laid over the first latent frame, whose tokens are told the
time 0; all other tokens are noised and told their own.

Flow matching as the base's: x_s = (1 - s) x0 + s eps, the transformer predicts v = eps - x0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models import WanTransformer3DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.starter.edit.generator import draw_edit_levels
from pipelines.starter.image.generator import UNCONDITIONAL
from pipelines.starter.resumable_training import Draw, TrainingStage, save_atomically, train_stage
from pipelines.starter.video.autoencoder import SHAPE
from pipelines.starter.video.generator import encode_prompts, encode_training_set, pick_caption

HIGH = 0.5  # share of noise levels near 1, where the picture and the words alone have to tell what happens
PATCH = 2  # latent places a side that make a token


def lay_first_frame(x: Tensor, clean: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B,12,5,8,8] with the first latent frame of `clean` and the time [B,80] of every token, from times [B]:
    what WanImageToVideoPipeline makes of them."""
    x = torch.cat([clean[:, :, :1], x[:, :, 1:]], 2)
    frames, height, width = x.shape[2:]
    tokens = height // PATCH * width // PATCH
    times = t[:, None].repeat(1, frames * tokens)
    times[:, :tokens] = 0
    return x, times


def train_transformer(
    folder: Path, base: Any, *, seed: int, steps: int, scenes: int, checkpoint_steps: Sequence[int], batch: int = 16
) -> tuple[dict[int, WanTransformer3DModel], dict]:
    """Trains the transformer on, from that of the text-to-video base, whose text encoder and autoencoder stay as they
    are; returns its running average after each number of steps in `checkpoint_steps` (the learning curve), and after
    the last."""
    latents, captions = encode_training_set(folder, base.vae, seed=seed, n=scenes)
    model = copy.deepcopy(base.transformer).train().requires_grad_(True)
    average = copy.deepcopy(base.transformer).eval().requires_grad_(False)
    encoder = base.text_encoder.eval().requires_grad_(False)

    def flow_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (batch,), generator=draw.torch)
        prompts = ["" if draw.python.random() < UNCONDITIONAL else pick_caption(captions[i], draw.python) for i in rows]
        x0 = latents[rows].float()
        eps, t = torch.randn(batch, *SHAPE, generator=draw.torch), draw_edit_levels(batch, HIGH, draw.torch)
        s = (t / 1000)[:, None, None, None, None]
        x, times = lay_first_frame((1 - s) * x0 + s * eps, x0, t)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward pass is slower on a CPU
            v = model(x, times, encode_prompts(encoder, base.tokenizer, prompts)).sample
        error = (v - (eps - x0))[:, :, 1:].square().mean()
        return error, {"flow": error.item()}

    def save_checkpoint(k: int) -> None:
        if k + 1 in checkpoint_steps:
            save_atomically(average.state_dict(), _checkpoint_path(folder, k + 1))

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01)
    stage = TrainingStage(
        "transformer", {"transformer": model}, optimizer, flow_loss, steps, 100, {"transformer": average}, 0.996,
        after=save_checkpoint,
    )  # fmt: skip
    log = train_stage(stage, folder, seed=seed)
    transformers = {}
    for k in checkpoint_steps:
        if k < steps:
            transformers[k] = copy.deepcopy(average)
            transformers[k].load_state_dict(torch.load(_checkpoint_path(folder, k), weights_only=True))
    return transformers | {steps: average}, log | {"samples": log["steps"] * batch}


def _checkpoint_path(folder: Path, k: int) -> Path:
    return folder / f"transformer_{k}.pt"
