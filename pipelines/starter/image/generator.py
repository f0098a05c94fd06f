"""The pack's text-to-image model: flow matching (Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003) inside
a plain StableDiffusionPipeline.

x_s = (1 - s) x0 + s eps; the network predicts v = eps - x0 and is told t = 1000 s, which is what
DPMSolverMultistepScheduler with `flow_prediction` and `use_flow_sigmas` asks of it.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from rich.progress import track
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.starter.image import rendering, world
from pipelines.starter.image.autoencoder import MIX, encode_pictures
from pipelines.starter.image.auxiliary_heads import AuxiliaryHeads
from pipelines.starter.image.clip import PATCH, new_clip, tokenise_prompts
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw, TrainingStage, save_atomically, train_stage

UNCONDITIONAL = 0.1  # share of captions left empty, for classifier-free guidance


def new_unet(widths: tuple[int, int] = (48, 96)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The reward model's text tower in size, but not in weights: what scores the pictures shares nothing with what
    makes them."""
    config = new_clip(tokenizer).config.text_config
    assert isinstance(config, CLIPTextConfig)
    return CLIPTextModel(config)


def new_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    pipeline_class: Any = StableDiffusionPipeline,
) -> DiffusersPipeline:
    """A pipeline of that class, which has the components of Stable Diffusion, without a safety checker."""
    return pipeline_class(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def encode_training_set(folder: Path, vae: AutoencoderKL, *, seed: int, n: int) -> tuple[Tensor, list[list[str]], int]:
    """Latents [n,4,16,16] of n training pictures, in fp16, every true caption of each, the drawn one first, and how
    many pictures at the beginning are the lesson's."""
    path = folder / "latents.pt"
    parts: list[Tensor] = []
    captions: list[list[str]] = []
    saved = torch.load(path, weights_only=True) if path.exists() else []
    starts = range(0, n, 2000)
    lesson = [first for first in starts if first < n // 6]
    for part, first in enumerate(track(starts, description="latents")):
        draw = Draw.at_step(seed, "bank", part)
        source = world.training_pairs(draw.python, {"sides": 1.0} if first in lesson else MIX)
        pairs = [next(source) for _ in range(min(2000, n - first))]
        captions += [[prompt, *world.true_captions(scene)] for scene, prompt in pairs]
        if part < len(saved):
            parts.append(saved[part])
            continue
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(
                encode_pictures(vae, rendering.render_scenes([scene for scene, _ in pairs], draw.torch)).half()
            )
        if part % 5 == 4 or first + 2000 >= n:
            save_atomically(parts, path)
    return torch.cat(parts), captions, sum(map(len, parts[: len(lesson)]))


def draw_levels(n: int, generator: torch.Generator) -> Tensor:
    """[n] noise levels in thousandths: half uniform, half logit-normal with an eye on 0.7 to 1, where things get their
    places (Esser et al., arXiv:2403.03206, section 3.1)."""
    uniform = torch.rand(n, generator=generator)
    high = torch.sigmoid(1.0 + 1.2 * torch.randn(n, generator=generator))
    s = torch.where(torch.rand(n, generator=generator) < 0.5, uniform, high)
    return (s * 1000).round().clamp(1, 999)


def add_noise(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    s = (t / 1000)[:, None, None, None]
    return (1 - s) * x0 + s * eps


def pick_caption(captions: list[str], rng: random.Random) -> str:
    return captions[0] if rng.random() < 0.7 else rng.choice(captions)


def train_generator(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, seed: int, steps: int, scenes: int, batch: int = 32
) -> tuple[UNet2DConditionModel, CLIPTextModel, dict]:  # fmt: skip
    """Trains UNet and text encoder together; returns their running averages.

    The first tenth is a lesson on pairs at opposite edges. Relations are a pure interaction of words and places, worth
    a few per cent of the loss at the highest noise levels: from mixed pictures alone they were not learned in 6,500
    steps, in the lesson they appear after some 500.
    """
    torch.manual_seed(seed + 2)
    unet, encoder, heads = new_unet(), new_text_encoder(tokenizer), AuxiliaryHeads(PATCH)
    average_unet = copy.deepcopy(unet).requires_grad_(False)
    average_encoder = copy.deepcopy(encoder).requires_grad_(False)
    averages = {"unet": average_unet, "text": average_encoder}
    latents, captions, lesson = encode_training_set(folder, vae, seed=seed, n=scenes)

    def flow_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(lesson if k < steps // 10 else len(latents), (batch,), generator=draw.torch)
        prompts = ["" if draw.python.random() < UNCONDITIONAL else pick_caption(captions[i], draw.python) for i in rows]
        x0 = latents[rows].float()
        eps, t = torch.randn(x0.shape, generator=draw.torch), draw_levels(batch, draw.torch)
        encoding = encoder(tokenise_prompts(tokenizer, prompts)).last_hidden_state  # [B,16,128]
        with torch.autocast("cpu", torch.bfloat16):
            v = unet(add_noise(x0, eps, t), t, encoding).sample
        error = (v.float() - (eps - x0)).square().mean()
        who = heads.relation_loss(encoding, prompts)
        return error + 0.1 * who, {"flow": error.item(), "who": who.item()}

    groups: list[dict[str, Any]] = [{"params": unet.parameters()}]
    groups.append({"params": [*encoder.parameters(), *heads.parameters()]})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    stage = TrainingStage(
        "generator", {"unet": unet, "text": encoder, "hints": heads}, optimizer, flow_loss, steps, 200, averages
    )
    log = train_stage(stage, folder, seed=seed)
    return average_unet.eval(), average_encoder.eval(), log | {"samples": log["steps"] * batch}
