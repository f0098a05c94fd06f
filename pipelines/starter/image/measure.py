"""What the pack is worth, measured by the oracle that nothing was trained on: the numbers of `report.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image import negatives, world
from pipelines.starter.image.autoencoder import MIX, decode, encode
from pipelines.starter.image.clip import tokenise
from pipelines.starter.image.oracle import ImageOracle
from pipelines.starter.resumable_training import Draw
from workbench.core.types import Media


def wilson(hits: float, n: int) -> dict[str, float | int | list[float]]:
    """A proportion and its 95 % score interval (Wilson, 1927)."""
    p, z = hits / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"mean": round(p, 4), "ci95": [round(middle - half, 4), round(middle + half, 4)], "n": n}


def exact(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] 1 or 0"""
    return ImageOracle()(media=Media(x, "image"), prompts=prompts)


def auc(score: Tensor, label: Tensor) -> float:
    """Chance that a right picture scores above a wrong one, ties one half (Mann-Whitney)."""
    right, wrong = score[label > 0.5], score[label <= 0.5]
    if not len(right) or not len(wrong):
        return float("nan")
    diff = right[:, None] - wrong
    return ((diff > 0).double().mean() + 0.5 * (diff == 0).double().mean()).item()


def _round_robin(fits: Callable[[str], bool], per_category: int) -> list[str]:
    lists = []
    for kind in world.CATEGORIES:
        options = [p for p in world.all_prompts() if world.category(p) == kind and fits(p)]
        lists.append(sorted(options, key=world.lot)[:per_category])
    return [options[i] for i in range(per_category) for options in lists if i < len(options)]


def held_out_prompts(per_category: int) -> list[str]:
    """Up to so many of each category, round-robin: new ones, but for `single`, which has none."""
    return _round_robin(
        lambda p: world.category(p) == "single" or world.held_out(p) and not world.unseen_pair(p), per_category
    )


def strange_prompts(per_category: int) -> list[str]:
    """Harder ones: every prompt has a colour x shape pair in it that no training picture has."""
    return _round_robin(world.unseen_pair, per_category)


def seen_prompts(per_category: int) -> list[str]:
    return _round_robin(lambda p: not world.held_out(p), per_category)


def stress(x: Tensor, draw: Draw) -> dict[str, Tensor]:
    """The same pictures, harmed but still right."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noisy = (x + 0.04 * torch.randn(x.shape, generator=draw.torch)).clamp(0, 1)
    return {"blur": blurred, "noise": noisy, "darker": x * 0.85}


def occluded(x: Tensor, scenes: Sequence[world.Scene]) -> Tensor:
    """The first thing of each scene painted over with the ground's median: the prompt is no longer true."""
    out = x.clone()
    axis = torch.arange(world.SIZE) + 0.5
    for picture, scene in zip(out, scenes, strict=True):
        t = scene[0]
        inside = ((axis - t.x).abs() < 1.2 * t.r + 1) & ((axis - t.y).abs() < 1.2 * t.r + 1)[:, None]
        picture[:, inside] = picture.flatten(1).median(1).values[:, None]
    return out


def measure_oracle(vae: AutoencoderKL, *, seed: int, n: int) -> dict:
    """Accuracy on fresh renders, on reconstructions, under stress; false alarms on occlusion and other prompts."""
    draw = Draw.at(seed, "measure oracle")
    source = world.stream(draw.python, MIX)
    scenes, prompts = zip(*(next(source) for _ in range(n)), strict=True)
    x = torch.cat([world.render(scenes[i : i + 500], draw.torch) for i in range(0, n, 500)])
    few = min(n, 1000)
    back = decode(vae, encode(vae, x[:few]))
    wrong = [negatives.wrong_picture(s, p, draw.python) for s, p in zip(scenes[:few], prompts, strict=False)]
    told = {"renders": wilson(exact(x, prompts).sum().item(), n)}
    told["reconstructions"] = wilson(exact(back, prompts[:few]).sum().item(), few)
    for name, harmed in stress(x[:few], draw).items():
        told[name] = wilson(exact(harmed, prompts[:few]).sum().item(), few)
    told["occluded (must be near 0)"] = wilson(exact(occluded(x[:few], scenes[:few]), prompts[:few]).sum().item(), few)
    passed = exact(negatives.render(wrong, draw.torch), prompts[:few])
    malformed = torch.tensor([picture.malformed for picture in wrong])
    for name, rows in (("near misses (must be near 0)", ~malformed), ("ghosts and bumps", malformed)):
        told[name] = wilson(passed[rows].sum().item(), int(rows.sum()))
    told["psnr_db"] = round(-10 * (x[:few] - back).square().mean().log10().item(), 2)
    return told


@torch.no_grad()
def cosine(clip: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B]"""
    image = clip.get_image_features(pixel_values=x * 2 - 1)
    text = clip.get_text_features(input_ids=tokenise(tokenizer, list(prompts)))
    image, text = (f if isinstance(f, Tensor) else f.pooler_output for f in (image, text))
    return F.cosine_similarity(image, text)


def measure_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out prompts: how often the truth beats its near misses, in words and in pictures."""
    told = {}
    held = [p for p in world.all_prompts() if world.held_out(p)]
    seen = [p for p in world.all_prompts() if not world.held_out(p)]
    for name, pool in (("seen", seen), ("held out", held)):
        draw = Draw.at(seed, "measure clip", name)
        kinds: dict[str, list[str]] = {}
        for p in pool:
            kinds.setdefault(world.category(p), []).append(p)
        asked = [draw.python.choice(kinds[k]) for k in list(kinds) * (n // len(kinds))]
        scenes = [world.scene_for(p, draw.python) for p in asked]
        x = world.render(scenes, draw.torch)
        own = cosine(clip, tokenizer, x, asked)
        words = []
        for i, (p, scene) in enumerate(zip(asked, scenes, strict=True)):
            near = negatives.false_prompts(p, world.captions(scene), draw.python, 4, held=True)
            words.append((own[i] > cosine(clip, tokenizer, x[i].expand(len(near), -1, -1, -1), near)).all().item())
        wrong = [negatives.wrong_picture(s, p, draw.python, held=True) for s, p in zip(scenes, asked, strict=True)]
        bad = cosine(clip, tokenizer, negatives.render(wrong, draw.torch), asked)
        told[name] = {
            "beats 4 near-miss prompts": wilson(sum(words), len(words)),
            "beats a near-miss picture": wilson((own > bad).sum().item(), len(asked)),
        }
    return told


def generate(pipe: DiffusionPipeline, prompts: Sequence[str], *, seed: int, steps: int, guidance: float) -> Tensor:
    """[B,3,64,64]; every prompt has noise of its own."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(prompts), 4, 16, 16, generator=Draw.at(seed, "measure generator").torch)
    out = []
    for first in range(0, len(prompts), 64):
        rows = slice(first, first + 64)
        out.append(pipe(list(prompts[rows]), latents=z[rows].to(pipe.dtype), num_inference_steps=steps,
                        guidance_scale=guidance, output_type="pt").images)  # fmt: skip
    return torch.cat(out).float()


def measure_generator(
    pipe: DiffusionPipeline, clip: CLIPModel, tokenizer: CLIPTokenizer, prompts: Sequence[str], *, seed: int, seeds: int,
    steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The strict oracle by category, and how well the reward ranks the pictures by it."""
    asked = [p for p in prompts for _ in range(seeds)]
    x = generate(pipe, asked, seed=seed, steps=steps, guidance=guidance)
    right, score = exact(x, asked), cosine(clip, tokenizer, x, asked)
    kinds = [world.category(p) for p in asked]
    told = {}
    for kind in world.CATEGORIES:
        rows = torch.tensor([k == kind for k in kinds])
        if rows.any():
            told[kind] = wilson(right[rows].sum().item(), int(rows.sum()))
    average = sum(part["mean"] for part in told.values()) / len(told)
    return {
        "overall": wilson(right.sum().item(), len(asked)),
        "mean of categories": round(average, 4),
        "categories": told,
        "clip auc": round(auc(score, right), 4),
        "clip mean": round(score.mean().item(), 4),
        "prompts": len(prompts),
        "seeds": seeds,
        "steps": steps,
        "guidance": guidance,
    }
