"""What the music pack is worth, measured by the oracle that nothing was trained on: the numbers of its `report.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, LongCatAudioDiTVae
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image.clip import tokenise
from pipelines.starter.image.measure import auc, wilson
from pipelines.starter.music import oracle, world
from pipelines.starter.music.autoencoder import FRAMES, WIDTH, decode, encode, signal_to_noise
from pipelines.starter.music.clap import corrupted, spectrogram
from pipelines.starter.resumable_training import Draw
from workbench.core.types import Media


def exact(waves: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] 1 or 0, of clips [B,32768]"""
    return oracle.MusicOracle()(media=Media(waves[:, None], "audio", float(world.RATE)), prompts=prompts)


def prompts(held: bool, n: int) -> list[str]:
    """n of them in a fixed order without meaning, the four beats in turns."""
    lists = [
        sorted((p for p, piece in world.all_pieces().items() if piece.beat == beat and world.held_out(piece) == held), key=world.lot)
        for beat in world.BEATS
    ]  # fmt: skip
    return [lists[i % 4][i // 4] for i in range(n)]


def share(right: Tensor) -> dict:
    return wilson(right.sum().item(), len(right))


def stress(waves: Tensor, draw: Draw) -> dict[str, Tensor]:
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
    draw = Draw.at(seed, "measure music oracle")
    everything = list(world.all_pieces().values())
    batch = [draw.python.choice(everything) for _ in range(n)]
    said = [piece.prompt for piece in batch]
    waves = world.render(batch, draw.python, draw.torch)
    back = decode(vae, encode(vae, waves))
    near = [world.near(piece, draw.python) for piece in batch]
    broken = torch.stack([corrupted(w, waves[i - 1], draw.python, draw.torch) for i, w in enumerate(waves)])
    told = {
        "truth": share(exact(waves, said)),
        "detuned by up to a semitone": share(exact(world.render(batch, draw.python, draw.torch, tuning=1.0), said)),
        "reconstructions": share(exact(back, said)),
        **{name: share(exact(harmed, said)) for name, harmed in stress(waves, draw).items()},
        "false: another prompt": share(exact(waves[1:], said[:-1])),
        "false: one word changed": share(exact(world.render(near, draw.python, draw.torch), said)),
        "false: slots replaced, mixed, silent or noisy": share(exact(broken, said)),
        "false: white noise": share(exact(0.1 * torch.randn(waves.shape, generator=draw.torch), said)),
        "false: silence": share(exact(torch.zeros_like(waves), said)),
        "reconstruction dB": round(signal_to_noise(waves, back), 2),
    }
    return told


@torch.no_grad()
def cosine(clap: CLIPModel, tokenizer: CLIPTokenizer, waves: Tensor, said: Sequence[str]) -> Tensor:
    """[B]"""
    audio = torch.cat([clap.get_image_features(pixel_values=spectrogram(w)).pooler_output for w in waves.split(32)])
    text = clap.get_text_features(input_ids=tokenise(tokenizer, list(said))).pooler_output
    return F.cosine_similarity(audio, text)


def measure_clap(clap: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out prompts: how often the truth beats near misses in words and in sound, and a broken clip."""
    told = {}
    for name, held in (("seen", False), ("held out", True)):
        draw = Draw.at(seed, "measure clap", name)
        said = prompts(held, n)
        batch = [world.parse(p) for p in said]
        waves = world.render(batch, draw.python, draw.torch)
        own = cosine(clap, tokenizer, waves, said)
        words = torch.stack(
            [
                cosine(clap, tokenizer, waves, [world.near(piece, draw.python).prompt for piece in batch])
                for _ in range(4)
            ]
        )
        near = world.render([world.near(piece, draw.python) for piece in batch], draw.python, draw.torch)
        broken = torch.stack([corrupted(w, waves[i - 1], draw.python, draw.torch) for i, w in enumerate(waves)])
        told[name] = {
            "beats 4 prompts of one other word": share((own > words.amax(0)).float()),
            "beats a clip of one other word": share((own > cosine(clap, tokenizer, near, said)).float()),
            "beats itself broken": share((own > cosine(clap, tokenizer, broken, said)).float()),
        }
    return told


@torch.no_grad()
def generate(pipe: DiffusionPipeline, said: Sequence[str], *, seed: int, steps: int, guidance: float) -> Tensor:
    """[B,32768] in [-1,1]; every clip has noise of its own."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(said), FRAMES, WIDTH, generator=Draw.at(seed, "measure music").torch)
    rows = [slice(i, i + 16) for i in range(0, len(said), 16)]
    parts = [
        pipe(list(said[r]), latents=z[r], num_inference_steps=steps, guidance_scale=guidance, output_type="pt").audios
        for r in rows
    ]
    return torch.cat(parts)[:, 0].float().clamp(-1, 1)


ASPECTS = ("mode", "articulation", "beat", "direction", "register", "timbre", "clean")


def heard(waves: Tensor, said: Sequence[str]) -> dict[str, dict]:
    """How often each aspect is right; of the phrases' ones, in both phrases."""
    hits: dict[str, list[bool]] = {name: [] for name in ASPECTS}
    for wave, prompt in zip(waves.numpy(), said, strict=True):
        found, want = oracle.read(wave), world.parse(prompt)
        for name in ASPECTS:
            if found is None:
                hits[name].append(False)
            elif name == "clean":
                hits[name].append(found.clean)
            elif hasattr(want, name):
                hits[name].append(getattr(found, name) == getattr(want, name))
            else:
                pairs = ((found.first, want.first), (found.second, want.second))
                hits[name].append(all(getattr(f, name) == getattr(w, name) for f, w in pairs))
    return {name: wilson(sum(rows), len(rows)) for name, rows in hits.items()}


def measure_generator(
    pipe: DiffusionPipeline, said: Sequence[str], clap: CLIPModel | None = None, tokenizer: CLIPTokenizer | None = None, *,
    seed: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The strict oracle, overall, by beat and by aspect, and how well the encoder ranks the clips by it."""
    waves = generate(pipe, said, seed=seed, steps=steps, guidance=guidance)
    right = exact(waves, said)
    kinds = [world.category(p) for p in said]
    told = {
        "overall": share(right),
        "beats": {k: share(right[torch.tensor([k == kind for kind in kinds])]) for k in world.BEATS if k in kinds},
        "aspects": heard(waves, said),
    }
    if clap is not None:
        score = cosine(clap, tokenizer, waves, said)
        rank = auc(score, right)
        told |= {"clap auc": None if math.isnan(rank) else round(rank, 4), "clap mean": round(score.mean().item(), 4)}
    return told | {"steps": steps, "guidance": guidance}


def measure_ranking(
    pipe: DiffusionPipeline, clap: CLIPModel, tokenizer: CLIPTokenizer, said: Sequence[str], *, seed: int, seeds: int,
    steps: int, guidance: float,
) -> dict:  # fmt: skip
    """What there is to gain by choosing: one clip a prompt, the best of `seeds` by the encoder, and by the oracle itself."""
    asked = [p for p in said for _ in range(seeds)]
    waves = generate(pipe, asked, seed=seed, steps=steps, guidance=guidance)
    right = exact(waves, asked).view(len(said), seeds)
    score = cosine(clap, tokenizer, waves, asked).view(len(said), seeds)
    pairs = [
        (score[i, row > 0, None] > score[i, row == 0]).double().mean()
        for i, row in enumerate(right)
        if 0 < row.sum() < seeds
    ]
    return {
        "one clip": wilson(right.sum().item(), right.numel()),
        "best by the encoder": share(right.gather(1, score.argmax(1, keepdim=True))[:, 0]),
        "best by the oracle": share(right.amax(1)),
        "clap auc within a prompt": round(torch.stack(pairs).mean().item(), 4) if pairs else None,
        "seeds": seeds,
    }
