"""What the pack is worth, measured by the oracle that nothing was trained on: the numbers of `report.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from diffusers.models import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image import negatives, rendering, world
from pipelines.starter.image.autoencoder import MIX, decode_latents, encode_pictures
from pipelines.starter.image.clip import tokenise_prompts
from pipelines.starter.image.oracle import ImageOracle
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw
from workbench.core.types import Media


class Interval(TypedDict):
    mean: float
    ci95: list[float]
    n: int


def wilson_interval(hits: float, n: int) -> Interval:
    """A proportion and its 95 % score interval (Wilson, 1927)."""
    p, z = hits / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"mean": round(p, 4), "ci95": [round(middle - half, 4), round(middle + half, 4)], "n": n}


def score_exact(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] 1 or 0"""
    return ImageOracle()(media=Media(x, "image"), prompts=prompts)


def ranking_auc(score: Tensor, label: Tensor) -> float:
    """Chance that a right picture scores above a wrong one, ties one half (Mann-Whitney)."""
    positive, negative = score[label > 0.5], score[label <= 0.5]
    if not len(positive) or not len(negative):
        return float("nan")
    diff = positive[:, None] - negative
    return ((diff > 0).double().mean() + 0.5 * (diff == 0).double().mean()).item()


def _round_robin(accept: Callable[[str], bool], per_category: int) -> list[str]:
    lists = []
    for kind in world.CATEGORIES:
        options = [p for p in world.all_prompts() if world.prompt_category(p) == kind and accept(p)]
        lists.append(sorted(options, key=world.shuffle_key)[:per_category])
    return [options[i] for i in range(per_category) for options in lists if i < len(options)]


def held_out_prompts(per_category: int) -> list[str]:
    """Up to so many of each category, round-robin: new ones, but for `single`, which has none."""
    return _round_robin(
        lambda p: world.prompt_category(p) == "single" or world.is_held_out(p) and not world.has_unseen_pair(p),
        per_category,
    )


def strange_prompts(per_category: int) -> list[str]:
    """Harder ones: every prompt has a colour x shape pair in it that no training picture has."""
    return _round_robin(world.has_unseen_pair, per_category)


def seen_prompts(per_category: int) -> list[str]:
    return _round_robin(lambda p: not world.is_held_out(p), per_category)


def harmed_copies(x: Tensor, draw: Draw) -> dict[str, Tensor]:
    """The same pictures, harmed but still right."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noisy = (x + 0.04 * torch.randn(x.shape, generator=draw.torch)).clamp(0, 1)
    return {"blur": blurred, "noise": noisy, "darker": x * 0.85}


def occlude_first(x: Tensor, scenes: Sequence[world.Scene]) -> Tensor:
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
    draw = Draw.at_step(seed, "measure oracle")
    source = world.training_pairs(draw.python, MIX)
    scenes, prompts = zip(*(next(source) for _ in range(n)), strict=True)
    x = torch.cat([rendering.render_scenes(scenes[i : i + 500], draw.torch) for i in range(0, n, 500)])
    n_subset = min(n, 1000)
    reconstructed = decode_latents(vae, encode_pictures(vae, x[:n_subset]))
    wrong = [negatives.wrong_picture(s, p, draw.python) for s, p in zip(scenes[:n_subset], prompts, strict=False)]
    report: dict[str, Interval | float] = {"renders": wilson_interval(score_exact(x, prompts).sum().item(), n)}
    report["reconstructions"] = wilson_interval(score_exact(reconstructed, prompts[:n_subset]).sum().item(), n_subset)
    for name, harmed in harmed_copies(x[:n_subset], draw).items():
        report[name] = wilson_interval(score_exact(harmed, prompts[:n_subset]).sum().item(), n_subset)
    report["occluded (must be near 0)"] = wilson_interval(
        score_exact(occlude_first(x[:n_subset], scenes[:n_subset]), prompts[:n_subset]).sum().item(), n_subset
    )
    passed = score_exact(negatives.render_pictures(wrong, draw.torch), prompts[:n_subset])
    malformed = torch.tensor([picture.malformed for picture in wrong])
    for name, rows in (("near misses (must be near 0)", ~malformed), ("ghosts and bumps", malformed)):
        report[name] = wilson_interval(passed[rows].sum().item(), int(rows.sum()))
    report["psnr_db"] = round(-10 * (x[:n_subset] - reconstructed).square().mean().log10().item(), 2)
    return report


@torch.no_grad()
def cosine_scores(clip: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B]"""
    image = clip.get_image_features(pixel_values=x * 2 - 1)
    text = clip.get_text_features(input_ids=tokenise_prompts(tokenizer, list(prompts)))
    image, text = (f if isinstance(f, Tensor) else f.pooler_output for f in (image, text))
    return F.cosine_similarity(image, text)


def measure_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out prompts: how often the truth beats its near misses, in words and in pictures."""
    report = {}
    held_out = [p for p in world.all_prompts() if world.is_held_out(p)]
    trained_on = [p for p in world.all_prompts() if not world.is_held_out(p)]
    for name, pool in (("seen", trained_on), ("held out", held_out)):
        draw = Draw.at_step(seed, "measure clip", name)
        kinds: dict[str, list[str]] = {}
        for p in pool:
            kinds.setdefault(world.prompt_category(p), []).append(p)
        prompts = [draw.python.choice(kinds[k]) for k in list(kinds) * (n // len(kinds))]
        scenes = [world.scene_for(p, draw.python) for p in prompts]
        x = rendering.render_scenes(scenes, draw.torch)
        true_scores = cosine_scores(clip, tokenizer, x, prompts)
        words = []
        for i, (p, scene) in enumerate(zip(prompts, scenes, strict=True)):
            near_misses = negatives.false_prompts(p, world.true_captions(scene), draw.python, 4, allow_held_out=True)
            false_scores = cosine_scores(clip, tokenizer, x[i].expand(len(near_misses), -1, -1, -1), near_misses)
            words.append((true_scores[i] > false_scores).all().item())
        wrong = [
            negatives.wrong_picture(s, p, draw.python, allow_held_out=True)
            for s, p in zip(scenes, prompts, strict=True)
        ]
        bad = cosine_scores(clip, tokenizer, negatives.render_pictures(wrong, draw.torch), prompts)
        report[name] = {
            "beats 4 near-miss prompts": wilson_interval(sum(words), len(words)),
            "beats a near-miss picture": wilson_interval((true_scores > bad).sum().item(), len(prompts)),
        }
    return report


def generate_pictures(
    pipe: DiffusersPipeline, prompts: Sequence[str], *, seed: int, steps: int, guidance: float
) -> Tensor:
    """[B,3,64,64]; every prompt has noise of its own."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(prompts), 4, 16, 16, generator=Draw.at_step(seed, "measure generator").torch)
    out = []
    for first in range(0, len(prompts), 64):
        rows = slice(first, first + 64)
        out.append(pipe(list(prompts[rows]), latents=z[rows].to(pipe.dtype), num_inference_steps=steps,
                        guidance_scale=guidance, output_type="pt").images)  # fmt: skip
    return torch.cat(out).float()


def measure_generator(
    pipe: DiffusersPipeline, clip: CLIPModel, tokenizer: CLIPTokenizer, prompts: Sequence[str], *,
    seed: int, seeds: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The strict oracle by category, and how well the reward ranks the pictures by it."""
    prompt_rows = [p for p in prompts for _ in range(seeds)]
    x = generate_pictures(pipe, prompt_rows, seed=seed, steps=steps, guidance=guidance)
    is_exact, score = score_exact(x, prompt_rows), cosine_scores(clip, tokenizer, x, prompt_rows)
    kinds = [world.prompt_category(p) for p in prompt_rows]
    by_category = {}
    for kind in world.CATEGORIES:
        rows = torch.tensor([k == kind for k in kinds])
        if rows.any():
            by_category[kind] = wilson_interval(is_exact[rows].sum().item(), int(rows.sum()))
    average = sum(part["mean"] for part in by_category.values()) / len(by_category)
    return {
        "overall": wilson_interval(is_exact.sum().item(), len(prompt_rows)),
        "mean of categories": round(average, 4),
        "categories": by_category,
        "clip auc": round(ranking_auc(score, is_exact), 4),
        "clip mean": round(score.mean().item(), 4),
        "prompts": len(prompts),
        "seeds": seeds,
        "steps": steps,
        "guidance": guidance,
    }
