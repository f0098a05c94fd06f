"""The video pack's text-to-video model: flow matching (Lipman et al., arXiv:2210.02747) inside a plain WanPipeline.

x_s = (1 - s) x0 + s eps; the transformer predicts v = eps - x0 and is told t = 1000 s, which is what
FlowMatchEulerDiscreteScheduler asks of it. All its 80 tokens, five moments of 4 x 4 places, see each other.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.models import AutoencoderKLWan, WanTransformer3DModel
from rich.progress import track
from torch import Tensor
from transformers import CLIPTokenizer, UMT5Config, UMT5EncoderModel

from pipelines.starter.image.generator import UNCONDITIONAL, draw_levels
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw, TrainingStage, save_atomically, train_stage
from pipelines.starter.video import world
from pipelines.starter.video.autoencoder import CHANNELS, MIX, SHAPE, draw_clips, encode_clips

WORDS, WIDTH = 12, 128  # tokens that a prompt is padded to; width of the text encoder
PART = 1000  # clips a part of the bank


def new_transformer(width: int = 160, layers: int = 6) -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=3 * width,
        num_layers=layers,
        rope_max_seq_len=32,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    return model


def new_text_encoder(tokenizer: CLIPTokenizer) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=16,
        )
    )


def vocabulary_words() -> list[str]:
    return sorted({word for prompt in world.all_prompts() for word in prompt.split()})


def new_pipeline(
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    encoder: UMT5EncoderModel,
    tokenizer: CLIPTokenizer,
    pipeline_class: Any = WanPipeline,
    **settings: Any,
) -> DiffusersPipeline:
    """A pipeline of that class, which has the components of Wan, and further settings of its own."""
    return pipeline_class(
        vae=vae,
        transformer=transformer,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        **settings,
    )


def encode_prompts(encoder: UMT5EncoderModel, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """[B,12,128], zero after each prompt's last token: what WanPipeline makes of prompts."""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt")
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[..., None]


def encode_training_set(folder: Path, vae: AutoencoderKLWan, *, seed: int, n: int) -> tuple[Tensor, list[list[str]]]:
    """Latents [n,12,5,8,8] of n training clips, in fp16, and every true caption of each."""
    path = folder / "latents.pt"
    parts: list[Tensor] = []
    captions: list[list[str]] = []
    saved = torch.load(path, weights_only=True) if path.exists() else []
    for part, first in enumerate(track(range(0, n, PART), description="latents")):
        draw, size = Draw.at_step(seed, "bank", part), min(PART, n - first)
        if part < len(saved):
            source = world.training_clips(draw.python, MIX)
            clips_drawn = [next(source) for _ in range(size)]
            parts.append(saved[part])
        else:
            x, clips_drawn = draw_clips(size, draw)
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(encode_clips(vae, x).half())
            if part % 4 == 3 or first + PART >= n:
                save_atomically(parts, path)
        captions += map(world.true_captions, clips_drawn)
    return torch.cat(parts), captions


def train_generator(
    folder: Path, vae: AutoencoderKLWan, tokenizer: CLIPTokenizer, *,
    seed: int, steps: int, scenes: int, batch: int = 16,
) -> tuple[WanTransformer3DModel, UMT5EncoderModel, dict]:  # fmt: skip
    """Trains transformer and text encoder together; returns their running averages."""
    latents, captions = encode_training_set(folder, vae, seed=seed, n=scenes)
    torch.manual_seed(seed + 2)
    model, encoder = new_transformer(), new_text_encoder(tokenizer)
    average_model = copy.deepcopy(model).requires_grad_(False)
    average_encoder = copy.deepcopy(encoder).requires_grad_(False)
    averages = {"transformer": average_model, "text": average_encoder}

    def flow_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (batch,), generator=draw.torch)
        prompts = ["" if draw.python.random() < UNCONDITIONAL else pick_caption(captions[i], draw.python) for i in rows]
        x0 = latents[rows].float()
        eps, t = torch.randn(batch, *SHAPE, generator=draw.torch), draw_levels(batch, draw.torch)
        s = (t / 1000)[:, None, None, None, None]
        v = model((1 - s) * x0 + s * eps, t, encode_prompts(encoder, tokenizer, prompts)).sample
        error = (v - (eps - x0)).square().mean()
        return error, {"flow": error.item()}

    groups = [{"params": model.parameters()}, {"params": encoder.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    modules = {"transformer": model, "text": encoder}
    stage = TrainingStage("generator", modules, optimizer, flow_loss, steps, 200, averages, decay=0.996)
    log = train_stage(stage, folder, seed=seed)
    return average_model.eval(), average_encoder.eval(), log | {"samples": log["steps"] * batch}


def pick_caption(captions: list[str], rng: random.Random) -> str:
    return captions[-1] if rng.random() < 0.7 else rng.choice(captions)
