"""The pack's text-to-image model: flow matching (Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003) inside a
plain StableDiffusionPipeline.

x_s = (1 - s) x0 + s eps; the network predicts v = eps - x0 and is told t = 1000 s, which is what
DPMSolverMultistepScheduler with `flow_prediction` and `use_flow_sigmas` asks of it.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.progress import track
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from pipelines.starter import image_world as world
from pipelines.starter.train_autoencoder import MIX, encode
from pipelines.starter.train_clip import tokenise
from pipelines.starter.training import Draw, Stage, save_atomically, train

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


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """A text encoder that starts from the reward model's text tower."""
    encoder = CLIPTextModel(copy.deepcopy(clip.config.text_config))
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder


def pipeline(vae, unet, encoder, tokenizer) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def bank(folder: Path, vae: AutoencoderKL, *, seed: int, n: int) -> tuple[Tensor, list[list[str]]]:
    """Latents [n,4,16,16] of n training pictures, in fp16, and every true caption of each, the drawn one first."""
    path, parts, captions = folder / "latents.pt", [], []
    saved = torch.load(path, weights_only=True) if path.exists() else []
    for part, first in enumerate(track(range(0, n, 2000), description="latents")):
        draw = Draw.at(seed, "bank", part)
        source = world.stream(draw.python, MIX)
        pairs = [next(source) for _ in range(min(2000, n - first))]
        captions += [[prompt, *world.captions(scene)] for scene, prompt in pairs]
        if part < len(saved):
            parts.append(saved[part])
            continue
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(encode(vae, world.render([scene for scene, _ in pairs], draw.torch)).half())
        if part % 5 == 4 or first + 2000 >= n:
            save_atomically(parts, path)
    return torch.cat(parts), captions


def levels(n: int, generator: torch.Generator) -> Tensor:
    """[n] noise levels in thousandths: half uniform, half logit-normal around 0.6, where the layout is decided."""
    uniform = torch.rand(n, generator=generator)
    middle = torch.sigmoid(0.4 + torch.randn(n, generator=generator))
    s = torch.where(torch.rand(n, generator=generator) < 0.5, uniform, middle)
    return (s * 1000).round().clamp(1, 999)


def noised(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    s = (t / 1000)[:, None, None, None]
    return (1 - s) * x0 + s * eps


def pick(captions: list[str], rng: random.Random) -> str:
    return captions[0] if rng.random() < 0.7 else rng.choice(captions)


def train_generator(
    folder: Path, vae: AutoencoderKL, clip: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, steps: int, scenes: int,
    batch: int = 32,
) -> tuple[UNet2DConditionModel, CLIPTextModel, dict]:  # fmt: skip
    """Trains UNet and text encoder together; returns their running averages."""
    torch.manual_seed(seed + 2)
    unet, encoder = new_unet(), text_tower(clip).requires_grad_(True)
    averages = {"unet": copy.deepcopy(unet).requires_grad_(False), "text": copy.deepcopy(encoder).requires_grad_(False)}
    latents, captions = bank(folder, vae, seed=seed, n=scenes)

    def loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (batch,), generator=draw.torch)
        prompts = ["" if draw.python.random() < UNCONDITIONAL else pick(captions[i], draw.python) for i in rows]
        x0 = latents[rows].float()
        eps, t = torch.randn(x0.shape, generator=draw.torch), levels(batch, draw.torch)
        said = encoder(tokenise(tokenizer, prompts)).last_hidden_state  # [B,16,128]
        with torch.autocast("cpu", torch.bfloat16):
            v = unet(noised(x0, eps, t), t, said).sample
        error = (v.float() - (eps - x0)).square().mean()
        return error, {}

    groups = [{"params": unet.parameters(), "lr": 1e-3}, {"params": encoder.parameters(), "lr": 5e-4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01)
    stage = Stage("generator", {"unet": unet, "text": encoder}, optimizer, loss, steps, 200, averages)
    told = train(stage, folder, seed=seed)
    return averages["unet"].eval(), averages["text"].eval(), told | {"samples": told["steps"] * batch}
