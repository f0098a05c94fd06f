"""The pack's text-to-music model: flow matching (Lipman et al., arXiv:2210.02747) inside a plain
LongCatAudioDiTPipeline.

x_t = (1 - t) eps + t x0 with t = 0 noise and t = 1 music; the network predicts v = x0 - eps and is told t itself, which
is what FlowMatchEulerDiscreteScheduler with `invert_sigmas` asks of it: that pipeline builds no other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatAudioDiTPipeline
from diffusers.models import LongCatAudioDiTTransformer, LongCatAudioDiTVae
from rich.progress import track
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipelines.starter.music import world
from pipelines.starter.music.autoencoder import FRAMES, WIDTH, encode_waves
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw, TrainingStage, save_atomically, train_stage

TEXT = 96
UNCONDITIONAL = 0.1  # share of prompts left out, for classifier-free guidance


def new_transformer(width: int = 160, depth: int = 4) -> LongCatAudioDiTTransformer:
    return LongCatAudioDiTTransformer(
        dit_dim=width,
        dit_depth=depth,
        dit_heads=width // 32,
        dit_text_dim=TEXT,
        latent_dim=WIDTH,
        adaln_type="local",
        text_conv=False,
        use_latent_condition=False,
        ff_mult=2.5,
    )


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token."""
    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", *world.vocabulary_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=16
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=TEXT, d_kv=32, d_ff=192, num_layers=2, num_heads=3, dropout_rate=0.0
        )
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True)


def new_pipeline(
    vae: LongCatAudioDiTVae,
    transformer: LongCatAudioDiTTransformer,
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
) -> DiffusersPipeline:
    pipe: Any = LongCatAudioDiTPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, transformer=transformer, scheduler=new_scheduler()
    )
    return pipe


def encode_prompts(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Embeddings [B,T,96] and mask [B,T]: the pipeline's own encode_prompt, with its graph."""
    tokens = tokenizer(list(prompts), padding="longest", truncation=True, max_length=16, return_tensors="pt")
    out = encoder(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    last, first = (F.layer_norm(h, (TEXT,), eps=1e-6) for h in (out.last_hidden_state, out.hidden_states[0]))
    return last + first, tokens.attention_mask.bool()


def encode_training_set(folder: Path, vae: LongCatAudioDiTVae, *, seed: int, n: int) -> tuple[Tensor, list[str]]:
    """Latents [n,32,64] of n training pieces, in fp16, and the prompt of each."""
    path = folder / "music_latents.pt"
    parts: list[Tensor] = []
    prompts: list[str] = []
    saved = torch.load(path, weights_only=True) if path.exists() else []
    for part, first in enumerate(track(range(0, n, 500), description="latents")):
        draw = Draw.at_step(seed, "music bank", part)
        source = world.training_pieces(draw.python)
        batch = [next(source) for _ in range(min(500, n - first))]
        prompts += [piece.prompt for piece in batch]
        if part < len(saved):
            parts.append(saved[part])
            continue
        parts.append(encode_waves(vae, world.render_pieces(batch, draw.python, draw.torch)).half())
        if part % 10 == 9 or first + 500 >= n:
            save_atomically(parts, path)
    return torch.cat(parts), prompts


def train_generator(
    folder: Path,
    vae: LongCatAudioDiTVae,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: int,
    pieces: int,
    checkpoint_steps: Sequence[int],
    batch: int = 32,
) -> tuple[dict[int, tuple[LongCatAudioDiTTransformer, UMT5EncoderModel]], dict]:
    """Trains transformer and text encoder together; returns their running averages after each number of steps in
    `checkpoint_steps` (the learning curve), and after the last."""
    torch.manual_seed(seed + 5)
    transformer, encoder = new_transformer(), new_text_encoder(tokenizer)
    live = {"transformer": transformer, "text": encoder}
    average_transformer = copy.deepcopy(transformer).requires_grad_(False)
    average_encoder = copy.deepcopy(encoder).requires_grad_(False)
    averages = {"transformer": average_transformer, "text": average_encoder}
    latents, prompts = encode_training_set(folder, vae, seed=seed, n=pieces)
    everywhere = torch.ones(batch, FRAMES, dtype=torch.bool)

    def flow_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (batch,), generator=draw.torch)
        x0 = latents[rows].float()
        eps = torch.randn(x0.shape, generator=draw.torch)
        t = torch.sigmoid(torch.randn(batch, generator=draw.torch) - 0.5)
        encoding, mask = encode_prompts(encoder, tokenizer, [prompts[i] for i in rows])
        silent = torch.rand(batch, generator=draw.torch) < UNCONDITIONAL
        encoding = encoding.masked_fill(silent[:, None, None], 0.0)
        noisy = torch.lerp(eps, x0, t[:, None, None])
        v = transformer(noisy, encoding, mask, t, attention_mask=everywhere).sample
        error = (v - (x0 - eps)).square().mean()
        return error, {"flow": error.item()}

    def save_checkpoint(k: int) -> None:
        if k + 1 in checkpoint_steps:
            save_atomically({n: part.state_dict() for n, part in averages.items()}, _checkpoint_path(folder, k + 1))

    parameters = [p for part in live.values() for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    stage = TrainingStage("music_generator", live, optimizer, flow_loss, steps, 100, averages, 0.998, save_checkpoint)
    log = train_stage(stage, folder, seed=seed)
    generators = {k: _load_checkpoint(folder, k, averages) for k in checkpoint_steps if k < steps}
    generators[steps] = (average_transformer.eval(), average_encoder.eval())
    return generators, log | {"samples": log["steps"] * batch}


def _checkpoint_path(folder: Path, k: int) -> Path:
    return folder / f"music_generator_{k}.pt"


def _load_checkpoint(folder: Path, k: int, like: dict) -> tuple[LongCatAudioDiTTransformer, UMT5EncoderModel]:
    saved = torch.load(_checkpoint_path(folder, k), weights_only=True)
    parts = {name: copy.deepcopy(part) for name, part in like.items()}
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return parts["transformer"].eval(), parts["text"].eval()
