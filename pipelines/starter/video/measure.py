"""What the video pack is worth, measured by the oracle that nothing was trained on: the numbers of its `report.json`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image.measure import auc, wilson
from pipelines.starter.resumable_training import Draw
from pipelines.starter.video import clip as encoder
from pipelines.starter.video import world
from pipelines.starter.video.autoencoder import SHAPE, clips, decode, encode
from pipelines.starter.video.oracle import DynamicDegree, VideoOracle, VideoOracleSoft
from workbench.core.types import Media

EVEN = dict.fromkeys(("still", "speed", "grow", "turn", "pass"), 1.0)
ORDERED = ("move", "speed", "grow", "turn")  # categories that time turned round makes false


def exact(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] 1 or 0"""
    return VideoOracle()(media=Media(x, "video", world.RATE), prompts=prompts)


def prompts(held: bool, per_category: int) -> list[str]:
    """Up to so many held-out (or seen) prompts of each category, in turns."""
    lists = []
    for kind in world.CATEGORIES:
        fitting = [p for p in world.all_prompts() if world.category(p) == kind and world.held_out(p) == held]
        lists.append(sorted(fitting, key=world.lot)[:per_category])
    return [options[i] for i in range(per_category) for options in lists if i < len(options)]


def by_category(right: Tensor, asked: Sequence[str]) -> dict:
    """Shares with intervals, overall and by category, and the mean of the categories."""
    kinds = [world.category(p) for p in asked]
    parts = {}
    for kind in world.CATEGORIES:
        rows = torch.tensor([k == kind for k in kinds])
        if rows.any():
            parts[kind] = wilson(right[rows].sum().item(), int(rows.sum()))
    average = sum(part["mean"] for part in parts.values()) / len(parts)
    overall = wilson(right.sum().item(), len(asked))
    return {"overall": overall, "mean of categories": round(average, 4), "categories": parts}


def vanished(x: Tensor, rng: random.Random) -> Tensor:
    """Clips of which one frame in the middle shows nothing but its ground."""
    out = x.clone()
    for clip in out:
        k = rng.randrange(2, world.FRAMES - 2)
        clip[k] = clip[k].flatten(1).median(1).values[:, None, None]
    return out


def measure_oracle(vae: AutoencoderKLWan, *, seed: int, n: int) -> dict:
    """Accuracy on fresh renders, on reconstructions and on noisy ones; false alarms on prompts of other clips, on frozen
    and reversed clips, on clips with an empty frame, and on noise."""
    draw = Draw.at(seed, "measure video oracle")
    x, shown = clips(n, draw, EVEN)
    asked = [draw.python.choice(world.captions(clip)) for clip in shown]
    back = decode(vae, encode(vae, x))
    noisy = (x + 0.04 * torch.randn(x.shape, generator=draw.torch)).clamp(0, 1)
    told = {
        "renders": by_category(exact(x, asked), asked),
        "reconstructions": by_category(exact(back, asked), asked),
        "noisy": wilson(exact(noisy, asked).sum().item(), n),
    }
    others = asked[1:] + asked[:1]
    false = [i for i in range(n) if others[i] not in world.captions(shown[i])]
    moving = [i for i in range(n) if world.category(asked[i]) != "still"]
    ordered = [i for i in range(n) if world.category(asked[i]) in ORDERED]
    noise = torch.rand(min(n, 100), *x.shape[1:], generator=draw.torch)
    wrong = {
        "prompts of other clips": (x[false], [others[i] for i in false]),
        "frozen": (x[moving, :1].expand(-1, world.FRAMES, -1, -1, -1), [asked[i] for i in moving]),
        "reversed": (x[ordered].flip(1), [asked[i] for i in ordered]),
        "one empty frame": (vanished(x, draw.python), asked),
        "noise": (noise, asked[: len(noise)]),
    }
    for name, (bad, said) in wrong.items():
        told[f"{name} (must be near 0)"] = wilson(exact(bad, said).sum().item(), len(said))
    return told | {"psnr_db": round(-10 * (x - back).square().mean().log10().item(), 2)}


def generate(
    pipe: WanPipeline, asked: Sequence[str], *, seed: int, steps: int, guidance: float, words: int = 12
) -> Tensor:  # fmt: skip
    """[B,9,3,64,64]; every prompt has noise of its own."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(asked), *SHAPE, generator=Draw.at(seed, "measure video generator").torch)
    out = []
    for first in range(0, len(asked), 32):
        rows = slice(first, first + 32)
        made = pipe(list(asked[rows]), latents=z[rows], height=world.SIZE, width=world.SIZE, num_frames=world.FRAMES,
                    num_inference_steps=steps, guidance_scale=guidance, max_sequence_length=words, output_type="pt")  # fmt: skip
        out.append(made.frames)
    return torch.cat(out).float()


def measure_generator(
    pipe: WanPipeline, said: Sequence[str], clip: tuple[CLIPModel, CLIPTokenizer] | None = None, *, seed: int, seeds: int,
    steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The strict oracle by category, and how well the reward ranks the clips by it."""
    asked = [p for p in said for _ in range(seeds)]
    x = generate(pipe, asked, seed=seed, steps=steps, guidance=guidance)
    right, soft = exact(x, asked), VideoOracleSoft()(media=Media(x, "video", world.RATE), prompts=asked)
    dynamic = DynamicDegree()(media=Media(x, "video", world.RATE), prompts=asked)
    told = by_category(right, asked) | {"soft mean": round(soft.mean().item(), 4)}
    told["dynamic degree"] = round(dynamic.nanmean().item(), 2)
    if clip is not None:
        score = encoder.cosine(*clip, x, asked)
        told |= {"clip auc": round(auc(score, right), 4), "clip mean": round(score.mean().item(), 4)}
    return told | {"prompts": len(said), "seeds": seeds, "steps": steps, "guidance": guidance}


def measure_choice(
    pipe: WanPipeline, said: Sequence[str], clip: tuple[CLIPModel, CLIPTokenizer], *, seed: int, n: int, steps: int, guidance: float
) -> dict:  # fmt: skip
    """What is gained by taking the best of `n` clips of a prompt, by the CLIP and by the oracle; and how often, within a
    prompt, the CLIP has a right one above a wrong one."""
    x = generate(pipe, [p for p in said for _ in range(n)], seed=seed, steps=steps, guidance=guidance)
    asked = [p for p in said for _ in range(n)]
    right, score = exact(x, asked).view(-1, n), encoder.cosine(*clip, x, asked).view(-1, n)
    better = right[:, :, None] > right[:, None, :]  # [prompts,n,n]
    above = (score[:, :, None] > score[:, None, :])[better].float()
    return {
        "by chance": wilson(right.sum().item(), right.numel()),
        "by the CLIP": wilson(right.gather(1, score.argmax(1, keepdim=True)).sum().item(), len(said)),
        "by the oracle": wilson(right.amax(1).sum().item(), len(said)),
        "right above wrong within a prompt": wilson(above.sum().item(), len(above)) if len(above) else None,
        "clips a prompt": n,
    }


def measure_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out prompts: how often the truth beats its near misses, in words and in clips."""
    told = {}
    for name, held in (("seen", False), ("held out", True)):
        draw = Draw.at(seed, "measure video clip", name)
        pool: dict[str, list[str]] = {}
        for p in world.all_prompts():
            if world.held_out(p) == held:
                pool.setdefault(world.category(p), []).append(p)
        asked = [draw.python.choice(pool[k]) for k in list(pool) * (n // len(pool))]
        shown = [world.clip_for(world.parse(p), draw.python) for p in asked]
        x = world.render(shown, draw.torch)
        own, hits = encoder.cosine(clip, tokenizer, x, asked), []
        for i, p in enumerate(asked):
            near = encoder.false_prompts(p, world.captions(shown[i]), draw.python, 4, held=True)
            hits.append(
                (own[i] > encoder.cosine(clip, tokenizer, x[i].expand(len(near), *x.shape[1:]), near)).all().item()
            )
        wrong = encoder.near_misses(shown, draw, held=True)[0]
        bad = encoder.cosine(clip, tokenizer, wrong, asked)
        told[name] = {
            "beats 4 near-miss prompts": wilson(sum(hits), len(hits)),
            "beats a near-miss clip": wilson((own > bad).sum().item(), len(asked)),
        }
    return told
