"""The pack's editor: the picture pack's teacher, taught to edit, in a plain StableDiffusionInstructPix2PixPipeline
(Brooks et al., arXiv:2211.09800). The UNet sees the source's latent beside the noised one.

Flow matching as the teacher's: x_s = (1 - s) x0 + s eps, the network predicts v = eps - x0.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.starter.edit import world
from pipelines.starter.edit.training_set import TrainingEdit, encode_training_set
from pipelines.starter.image.clip import tokenise_prompts, vocabulary_words
from pipelines.starter.image.generator import add_noise, new_text_encoder, new_unet
from pipelines.starter.resumable_training import Draw, TrainingStage, save_atomically, train_stage
from pipelines.starter.tokenizer import new_tokenizer

NO_TEXT = 0.1  # share of rows with an empty text, whose target is the source: nothing asked, nothing changed
NO_SOURCE = 0.05  # share of rows without a source, for guidance by the source
WEIGHTS = {"recolour": 1.0, "resize": 0.8, "reshape": 1.0, "remove": 1.2, "add": 1.8, "move": 2.0, "swap": 1.8}


def new_edit_tokenizer() -> CLIPTokenizer:
    """The words of the picture world, numbered as the teacher's are, and those of the instructions."""
    return new_tokenizer([*vocabulary_words(), *world.WORDS])


def new_edit_unet() -> UNet2DConditionModel:
    config = {name: value for name, value in new_unet().config.items() if not name.startswith("_")}
    return UNet2DConditionModel(**config | {"in_channels": 8})


def widen_unet(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """The teacher's UNet with four more input channels, those of the source, at random weights of the same size.

    (Zeros, or minus the weights of the noised latent, did as well over the first 300 steps.)
    """
    state, unet = teacher.state_dict(), new_edit_unet()
    weight = state["conv_in.weight"]  # [C,4,3,3]
    widened = torch.cat([weight, weight.std() * torch.randn_like(weight)], 1)
    unet.load_state_dict(state | {"conv_in.weight": widened})
    return unet


def extend_text_encoder(
    teacher: CLIPTextModel, old_tokenizer: CLIPTokenizer, tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """The teacher's text encoder for a larger vocabulary: words that it knows keep their embedding."""
    encoder = new_text_encoder(tokenizer)
    state, name = teacher.state_dict(), next(n for n in teacher.state_dict() if "token_embedding" in n)
    table, numbers = encoder.state_dict()[name].clone(), old_tokenizer.get_vocab()
    for word, row in tokenizer.get_vocab().items():
        if word in numbers:
            table[row] = state[name][numbers[word]]
    encoder.load_state_dict(state | {name: table})
    return encoder


def draw_edit_levels(n: int, high: float, generator: torch.Generator) -> Tensor:
    """[n] noise levels in thousandths: a share of `high` between 0.7 and 1 with an eye on 1, where source and words
    alone have to tell what the result is; the others uniform."""
    uniform = torch.rand(n, generator=generator)
    near_one = 1 - 0.3 * torch.rand(n, generator=generator).square()
    s = torch.where(torch.rand(n, generator=generator) < high, near_one, uniform)
    return (s * 1000).round().clamp(1, 999)


def draw_training_rows(
    latents: Tensor, edits: dict[str, list[TrainingEdit]], batch: int, draw: Draw
) -> tuple[list[str], Tensor, Tensor]:
    """Texts, sources and targets [B,4,16,16] of a batch."""
    rng: random.Random = draw.python
    kinds = rng.choices([k for k in WEIGHTS if edits[k]], [w for k, w in WEIGHTS.items() if edits[k]], k=batch)
    rows = [rng.choice(edits[kind]) for kind in kinds]
    texts = [rng.choice(row.wordings) for row in rows]
    source, target = (latents[[getattr(row, end) for row in rows]].float() for end in ("source", "target"))
    for i in range(batch):
        if rng.random() < NO_TEXT:
            texts[i], target[i] = "", source[i]
    for i in range(batch):
        if rng.random() < NO_SOURCE:
            source[i] = 0
    return texts, source, target


Editor = tuple[UNet2DConditionModel, CLIPTextModel]


def train_editor(
    folder: Path, teacher: Any, tokenizer: CLIPTokenizer, *,
    seed: int, steps: int, families: int, checkpoint_steps: Sequence[int], batch: int = 32,
) -> tuple[dict[int, Editor], dict]:  # fmt: skip
    """Trains UNet and text encoder together, from those of the picture pack's teacher; returns their running averages
    after each number of steps in `checkpoint_steps` (the learning curve), and after the last.

    What the result is, source and words alone decide, so nearly all there is to learn lies at the highest noise levels,
    where the noised latent tells nothing: after 1,800 steps the error of the latent that was to change was 0.31 at 1,
    0.14 at 0.9, 0.05 at 0.7 and 0.02 at 0.5.
    """
    torch.manual_seed(seed + 2)
    unet, encoder = widen_unet(teacher.unet), extend_text_encoder(teacher.text_encoder, teacher.tokenizer, tokenizer)
    average_unet = copy.deepcopy(unet).requires_grad_(False)
    average_encoder = copy.deepcopy(encoder).requires_grad_(False)
    averages = {"unet": average_unet, "text": average_encoder}
    latents, all_edits = encode_training_set(folder, teacher.vae, seed=seed, families=families)
    edits = {kind: [edit for edit in all_edits if edit.kind == kind] for kind in world.KINDS}
    unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass takes a third of a step on a CPU

    def flow_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        texts, source, x0 = draw_training_rows(latents, edits, batch, draw)
        high = 0.5 if k < 0.27 * steps else 0.75
        eps, t = torch.randn(x0.shape, generator=draw.torch), draw_edit_levels(batch, high, draw.torch)
        encoding = encoder(tokenise_prompts(tokenizer, texts)).last_hidden_state  # [B,16,128]
        with torch.autocast("cpu", torch.bfloat16):
            v = unet(torch.cat([add_noise(x0, eps, t), source], 1), t, encoding).sample
        error = (v.float() - (eps - x0)).square().mean()
        return error, {"flow": error.item()}

    def save_checkpoint(k: int) -> None:
        if k + 1 in checkpoint_steps:
            save_atomically({n: part.state_dict() for n, part in averages.items()}, _checkpoint_path(folder, k + 1))

    groups: list[dict[str, Any]] = [{"params": unet.parameters()}, {"params": encoder.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    modules = {"unet": unet, "text": encoder}
    stage = TrainingStage("editor", modules, optimizer, flow_loss, steps, 200, averages, after=save_checkpoint)
    log = train_stage(stage, folder, seed=seed)
    editors = {k: _load_checkpoint(folder, k, averages) for k in checkpoint_steps if k < steps}
    editors[steps] = (average_unet.eval(), average_encoder.eval())
    return editors, log | {"samples": log["steps"] * batch}


def _checkpoint_path(folder: Path, k: int) -> Path:
    return folder / f"editor_{k}.pt"


def _load_checkpoint(folder: Path, k: int, like: dict) -> Editor:
    saved = torch.load(_checkpoint_path(folder, k), weights_only=True)
    parts = {name: copy.deepcopy(part) for name, part in like.items()}
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return parts["unet"].eval(), parts["text"].eval()
