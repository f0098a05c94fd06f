"""What the video pack is worth, measured by the oracle that nothing was trained on: the numbers of its report.json."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from diffusers.models import AutoencoderKLWan
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image.measure import ranking_auc, wilson_interval
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw
from pipelines.starter.video import clip as encoder
from pipelines.starter.video import world
from pipelines.starter.video.autoencoder import SHAPE, decode_latents, draw_clips, encode_clips
from pipelines.starter.video.oracle import DynamicDegree, VideoOracle, VideoOracleSoft
from workbench.core.types import Media

EVEN = dict.fromkeys(("still", "speed", "grow", "turn", "pass"), 1.0)
ORDERED = ("move", "speed", "grow", "turn")  # categories that time turned round makes false


def score_exact(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] 1 or 0"""
    return VideoOracle()(media=Media(x, "video", world.RATE), prompts=prompts)


def choose_prompts(held_out: bool, per_category: int) -> list[str]:
    """Up to so many held-out (or seen) prompts of each category, in turns."""
    lists = []
    for kind in world.CATEGORIES:
        fitting = [
            p for p in world.all_prompts() if world.prompt_category(p) == kind and world.is_held_out(p) == held_out
        ]
        lists.append(sorted(fitting, key=world.shuffle_key)[:per_category])
    return [options[i] for i in range(per_category) for options in lists if i < len(options)]


def hits_by_category(hits: Tensor, prompts: Sequence[str]) -> dict:
    """Shares with intervals, overall and by category, and the mean of the categories."""
    kinds = [world.prompt_category(p) for p in prompts]
    parts = {}
    for kind in world.CATEGORIES:
        rows = torch.tensor([k == kind for k in kinds])
        if rows.any():
            parts[kind] = wilson_interval(hits[rows].sum().item(), int(rows.sum()))
    average = sum(part["mean"] for part in parts.values()) / len(parts)
    overall = wilson_interval(hits.sum().item(), len(prompts))
    return {"overall": overall, "mean of categories": round(average, 4), "categories": parts}


def blank_one_frame(x: Tensor, rng: random.Random) -> Tensor:
    """Clips of which one frame in the middle shows nothing but its ground."""
    out = x.clone()
    for clip in out:
        k = rng.randrange(2, world.FRAMES - 2)
        clip[k] = clip[k].flatten(1).median(1).values[:, None, None]
    return out


def measure_oracle(vae: AutoencoderKLWan, *, seed: int, n: int) -> dict:
    """Accuracy on fresh renders, on reconstructions and on noisy ones; false alarms on prompts of other clips, on
    frozen and reversed clips, on clips with an empty frame, and on noise."""
    draw = Draw.at_step(seed, "measure video oracle")
    x, scenes = draw_clips(n, draw, EVEN)
    prompts = [draw.python.choice(world.true_captions(clip)) for clip in scenes]
    reconstructed = decode_latents(vae, encode_clips(vae, x))
    noisy = (x + 0.04 * torch.randn(x.shape, generator=draw.torch)).clamp(0, 1)
    report = {
        "renders": hits_by_category(score_exact(x, prompts), prompts),
        "reconstructions": hits_by_category(score_exact(reconstructed, prompts), prompts),
        "noisy": wilson_interval(score_exact(noisy, prompts).sum().item(), n),
    }
    others = prompts[1:] + prompts[:1]
    false = [i for i in range(n) if others[i] not in world.true_captions(scenes[i])]
    moving = [i for i in range(n) if world.prompt_category(prompts[i]) != "still"]
    ordered = [i for i in range(n) if world.prompt_category(prompts[i]) in ORDERED]
    noise = torch.rand(min(n, 100), *x.shape[1:], generator=draw.torch)
    wrong = {
        "prompts of other clips": (x[false], [others[i] for i in false]),
        "frozen": (x[moving, :1].expand(-1, world.FRAMES, -1, -1, -1), [prompts[i] for i in moving]),
        "reversed": (x[ordered].flip(1), [prompts[i] for i in ordered]),
        "one empty frame": (blank_one_frame(x, draw.python), prompts),
        "noise": (noise, prompts[: len(noise)]),
    }
    for name, (bad, texts) in wrong.items():
        report[f"{name} (must be near 0)"] = wilson_interval(score_exact(bad, texts).sum().item(), len(texts))
    return report | {"psnr_db": round(-10 * (x - reconstructed).square().mean().log10().item(), 2)}


def generate_clips(
    pipe: DiffusersPipeline, prompts: Sequence[str], *, seed: int, steps: int, guidance: float, words: int = 12
) -> Tensor:
    """[B,9,3,64,64]; every prompt has noise of its own."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(prompts), *SHAPE, generator=Draw.at_step(seed, "measure video generator").torch)
    out = []
    for first in range(0, len(prompts), 32):
        rows = slice(first, first + 32)
        output = pipe(
            list(prompts[rows]), latents=z[rows], height=world.SIZE, width=world.SIZE, num_frames=world.FRAMES,
            num_inference_steps=steps, guidance_scale=guidance, max_sequence_length=words, output_type="pt",
        )  # fmt: skip
        out.append(output.frames)
    return torch.cat(out).float()


def measure_generator(
    pipe: DiffusersPipeline, prompts: Sequence[str], clip: tuple[CLIPModel, CLIPTokenizer] | None = None, *,
    seed: int, seeds: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The strict oracle by category, and how well the reward ranks the clips by it."""
    prompt_rows = [p for p in prompts for _ in range(seeds)]
    x = generate_clips(pipe, prompt_rows, seed=seed, steps=steps, guidance=guidance)
    is_exact, soft = (
        score_exact(x, prompt_rows),
        VideoOracleSoft()(media=Media(x, "video", world.RATE), prompts=prompt_rows),
    )
    dynamic = DynamicDegree()(media=Media(x, "video", world.RATE), prompts=prompt_rows)
    report = hits_by_category(is_exact, prompt_rows) | {"soft mean": round(soft.mean().item(), 4)}
    report["dynamic degree"] = round(dynamic.nanmean().item(), 2)
    if clip is not None:
        score = encoder.cosine_scores(*clip, x, prompt_rows)
        report |= {"clip auc": round(ranking_auc(score, is_exact), 4), "clip mean": round(score.mean().item(), 4)}
    return report | {"prompts": len(prompts), "seeds": seeds, "steps": steps, "guidance": guidance}


def measure_choice(
    pipe: DiffusersPipeline, prompts: Sequence[str], clip: tuple[CLIPModel, CLIPTokenizer], *,
    seed: int, n: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """What is gained by taking the best of `n` clips of a prompt, by the CLIP and by the oracle; and how often, within
    a prompt, the CLIP has a right one above a wrong one."""
    x = generate_clips(pipe, [p for p in prompts for _ in range(n)], seed=seed, steps=steps, guidance=guidance)
    prompt_rows = [p for p in prompts for _ in range(n)]
    is_exact, score = score_exact(x, prompt_rows).view(-1, n), encoder.cosine_scores(*clip, x, prompt_rows).view(-1, n)
    better = is_exact[:, :, None] > is_exact[:, None, :]  # [prompts,n,n]
    above = (score[:, :, None] > score[:, None, :])[better].float()
    return {
        "by chance": wilson_interval(is_exact.sum().item(), is_exact.numel()),
        "by the CLIP": wilson_interval(is_exact.gather(1, score.argmax(1, keepdim=True)).sum().item(), len(prompts)),
        "by the oracle": wilson_interval(is_exact.amax(1).sum().item(), len(prompts)),
        "right above wrong within a prompt": wilson_interval(above.sum().item(), len(above)) if len(above) else None,
        "clips a prompt": n,
    }


def measure_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out prompts: how often the truth beats its near misses, in words and in clips."""
    report = {}
    for name, held_out in (("seen", False), ("held out", True)):
        draw = Draw.at_step(seed, "measure video clip", name)
        pool: dict[str, list[str]] = {}
        for p in world.all_prompts():
            if world.is_held_out(p) == held_out:
                pool.setdefault(world.prompt_category(p), []).append(p)
        prompts = [draw.python.choice(pool[k]) for k in list(pool) * (n // len(pool))]
        scenes = [world.clip_for(world.require_prompt(p), draw.python) for p in prompts]
        x = world.render_clips(scenes, draw.torch)
        true_scores, hits = encoder.cosine_scores(clip, tokenizer, x, prompts), []
        for i, p in enumerate(prompts):
            near_misses = encoder.false_prompts(p, world.true_captions(scenes[i]), draw.python, 4, allow_held_out=True)
            copies = x[i].expand(len(near_misses), *x.shape[1:])
            hits.append((true_scores[i] > encoder.cosine_scores(clip, tokenizer, copies, near_misses)).all().item())
        wrong = encoder.near_misses(scenes, draw, allow_held_out=True)[0]
        bad = encoder.cosine_scores(clip, tokenizer, wrong, prompts)
        report[name] = {
            "beats 4 near-miss prompts": wilson_interval(sum(hits), len(hits)),
            "beats a near-miss clip": wilson_interval((true_scores > bad).sum().item(), len(prompts)),
        }
    return report
