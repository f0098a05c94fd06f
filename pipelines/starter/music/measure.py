"""What the music pack is worth, measured by the oracle that nothing was trained on: the numbers of its report.json."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.models import LongCatAudioDiTVae
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image.clip import tokenise_prompts
from pipelines.starter.image.measure import Interval, ranking_auc, wilson_interval
from pipelines.starter.music import oracle, world
from pipelines.starter.music.autoencoder import FRAMES, WIDTH, decode_latents, encode_waves, signal_to_noise
from pipelines.starter.music.clap import corrupt_wave, log_mel_spectrogram
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw
from workbench.core.types import Media


def score_exact(waves: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] 1 or 0, of clips [B,32768]"""
    return oracle.MusicOracle()(media=Media(waves[:, None], "audio", float(world.RATE)), prompts=prompts)


def choose_prompts(held_out: bool, n: int) -> list[str]:
    """n of them in a fixed order without meaning, the four beats in turns."""
    pieces = {p: piece for p, piece in world.all_pieces().items() if world.is_held_out(piece) == held_out}
    lists = [
        sorted((p for p, piece in pieces.items() if piece.beat == beat), key=world.shuffle_key) for beat in world.BEATS
    ]
    return [lists[i % 4][i // 4] for i in range(n)]


def share_with_interval(hits: Tensor) -> Interval:
    return wilson_interval(hits.sum().item(), len(hits))


def harmed_copies(waves: Tensor, draw: Draw) -> dict[str, Tensor]:
    """The same pieces, harmed but still right."""
    return {
        "white noise at -40 dB": waves
        + 0.01 * waves.std(1, keepdim=True) * torch.randn(waves.shape, generator=draw.torch),
        "white noise at -30 dB": waves
        + 0.0316 * waves.std(1, keepdim=True) * torch.randn(waves.shape, generator=draw.torch),
        "half as loud": 0.5 * waves,
        "upside down": -waves,
        "1.5 ms late": F.pad(waves, (24, 0))[:, :-24],
        "16 bits": (waves * 32767).round() / 32767,
    }


def measure_oracle(vae: LongCatAudioDiTVae, *, seed: int, n: int) -> dict:
    """Accuracy on fresh pieces, detuned ones, reconstructions and under stress; false alarms on others."""
    draw = Draw.at_step(seed, "measure music oracle")
    everything = list(world.all_pieces().values())
    batch = [draw.python.choice(everything) for _ in range(n)]
    prompts = [piece.prompt for piece in batch]
    waves = world.render_pieces(batch, draw.python, draw.torch)
    reconstructed = decode_latents(vae, encode_waves(vae, waves))
    near_misses = [world.near_miss(piece, draw.python) for piece in batch]
    broken = torch.stack([corrupt_wave(w, waves[i - 1], draw.python, draw.torch) for i, w in enumerate(waves)])
    report = {
        "truth": share_with_interval(score_exact(waves, prompts)),
        "detuned by up to a semitone": share_with_interval(
            score_exact(world.render_pieces(batch, draw.python, draw.torch, tuning=1.0), prompts)
        ),
        "reconstructions": share_with_interval(score_exact(reconstructed, prompts)),
        **{
            name: share_with_interval(score_exact(harmed, prompts))
            for name, harmed in harmed_copies(waves, draw).items()
        },
        "false: another prompt": share_with_interval(score_exact(waves[1:], prompts[:-1])),
        "false: one word changed": share_with_interval(
            score_exact(world.render_pieces(near_misses, draw.python, draw.torch), prompts)
        ),
        "false: slots replaced, mixed, silent or noisy": share_with_interval(score_exact(broken, prompts)),
        "false: white noise": share_with_interval(
            score_exact(0.1 * torch.randn(waves.shape, generator=draw.torch), prompts)
        ),
        "false: silence": share_with_interval(score_exact(torch.zeros_like(waves), prompts)),
        "reconstruction dB": round(signal_to_noise(waves, reconstructed), 2),
    }
    return report


@torch.no_grad()
def cosine_scores(clap: CLIPModel, tokenizer: CLIPTokenizer, waves: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B]"""
    audio = torch.cat(
        [clap.get_image_features(pixel_values=log_mel_spectrogram(w)).pooler_output for w in waves.split(32)]
    )
    text = clap.get_text_features(input_ids=tokenise_prompts(tokenizer, list(prompts))).pooler_output
    return F.cosine_similarity(audio, text)


def measure_clap(clap: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out prompts: how often the truth beats near misses in words and in sound, and a broken
    clip."""
    report = {}
    for name, held_out in (("seen", False), ("held out", True)):
        draw = Draw.at_step(seed, "measure clap", name)
        texts = choose_prompts(held_out, n)
        batch = [world.require_prompt(p) for p in texts]
        waves = world.render_pieces(batch, draw.python, draw.torch)
        true_scores = cosine_scores(clap, tokenizer, waves, texts)
        words = torch.stack(
            [
                cosine_scores(clap, tokenizer, waves, [world.near_miss(piece, draw.python).prompt for piece in batch])
                for _ in range(4)
            ]
        )
        near_misses = world.render_pieces(
            [world.near_miss(piece, draw.python) for piece in batch], draw.python, draw.torch
        )
        broken = torch.stack([corrupt_wave(w, waves[i - 1], draw.python, draw.torch) for i, w in enumerate(waves)])
        report[name] = {
            "beats 4 prompts of one other word": share_with_interval((true_scores > words.amax(0)).float()),
            "beats a clip of one other word": share_with_interval(
                (true_scores > cosine_scores(clap, tokenizer, near_misses, texts)).float()
            ),
            "beats itself broken": share_with_interval(
                (true_scores > cosine_scores(clap, tokenizer, broken, texts)).float()
            ),
        }
    return report


@torch.no_grad()
def generate_waves(
    pipe: DiffusersPipeline, prompts: Sequence[str], *, seed: int, steps: int, guidance: float
) -> Tensor:
    """[B,32768] in [-1,1]; every clip has noise of its own."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(prompts), FRAMES, WIDTH, generator=Draw.at_step(seed, "measure music").torch)
    rows = [slice(i, i + 16) for i in range(0, len(prompts), 16)]
    parts = [
        pipe(
            list(prompts[r]), latents=z[r], num_inference_steps=steps, guidance_scale=guidance, output_type="pt"
        ).audios
        for r in rows
    ]
    return torch.cat(parts)[:, 0].float().clamp(-1, 1)


ASPECTS = ("mode", "articulation", "beat", "direction", "register", "timbre", "clean")


def measure_aspects(waves: Tensor, prompts: Sequence[str]) -> dict[str, Interval]:
    """How often each aspect is right; of the phrases' ones, in both phrases."""
    hits: dict[str, list[bool]] = {name: [] for name in ASPECTS}
    for wave, prompt in zip(waves.numpy(), prompts, strict=True):
        reading, want = oracle.read_piece(wave), world.require_prompt(prompt)
        for name in ASPECTS:
            if reading is None:
                hits[name].append(False)
            elif name == "clean":
                hits[name].append(reading.clean)
            elif hasattr(want, name):
                hits[name].append(getattr(reading, name) == getattr(want, name))
            else:
                pairs = ((reading.first, want.first), (reading.second, want.second))
                hits[name].append(all(getattr(f, name) == getattr(w, name) for f, w in pairs))
    return {name: wilson_interval(sum(rows), len(rows)) for name, rows in hits.items()}


def measure_generator(
    pipe: DiffusersPipeline, prompts: Sequence[str], clap: CLIPModel | None = None,
    tokenizer: CLIPTokenizer | None = None, *, seed: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The strict oracle, overall, by beat and by aspect, and how well the encoder ranks the clips by it."""
    waves = generate_waves(pipe, prompts, seed=seed, steps=steps, guidance=guidance)
    is_exact = score_exact(waves, prompts)
    kinds = [world.prompt_category(p) for p in prompts]
    report: dict[str, object] = {
        "overall": share_with_interval(is_exact),
        "beats": {
            k: share_with_interval(is_exact[torch.tensor([k == kind for kind in kinds])])
            for k in world.BEATS
            if k in kinds
        },
        "aspects": measure_aspects(waves, prompts),
    }
    if clap is not None:
        assert tokenizer is not None  # it comes with the encoder
        score = cosine_scores(clap, tokenizer, waves, prompts)
        rank = ranking_auc(score, is_exact)
        report |= {"clap auc": None if math.isnan(rank) else round(rank, 4), "clap mean": round(score.mean().item(), 4)}
    return report | {"steps": steps, "guidance": guidance}


def measure_ranking(
    pipe: DiffusersPipeline, clap: CLIPModel, tokenizer: CLIPTokenizer, prompts: Sequence[str], *,
    seed: int, seeds: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """What there is to gain by choosing: one clip a prompt, the best of `seeds` by the encoder, and by the oracle
    itself."""
    prompt_rows = [p for p in prompts for _ in range(seeds)]
    waves = generate_waves(pipe, prompt_rows, seed=seed, steps=steps, guidance=guidance)
    is_exact = score_exact(waves, prompt_rows).view(len(prompts), seeds)
    score = cosine_scores(clap, tokenizer, waves, prompt_rows).view(len(prompts), seeds)
    pairs = [
        (score[i, row > 0, None] > score[i, row == 0]).double().mean()
        for i, row in enumerate(is_exact)
        if 0 < row.sum() < seeds
    ]
    return {
        "one clip": wilson_interval(is_exact.sum().item(), is_exact.numel()),
        "best by the encoder": share_with_interval(is_exact.gather(1, score.argmax(1, keepdim=True))[:, 0]),
        "best by the oracle": share_with_interval(is_exact.amax(1)),
        "clap auc within a prompt": round(torch.stack(pairs).mean().item(), 4) if pairs else None,
        "seeds": seeds,
    }
