"""What works on this machine: each row is seen to work just now, or says why it doesn't."""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .types import BadInput, Media, Reward, RewardSpec

PAIR = ("a red circle", "a blue square")  # drawn by the starter world; exact pictures of their prompts
TONES = ("a steady pure tone", "loud white noise")
SAME = 1e-6  # relative: scores nearer to each other than this are one score


def examine(runs: Path) -> list[dict]:
    """Rows of `what`, `state` (ok, missing, broken) and `detail`."""
    rows = []
    for check in (_python, _packages, _devices, _attention, _disk, _starter, _rewards):
        rows += [dict(zip(("what", "state", "detail"), row, strict=True)) for row in check(runs)]
    return rows


def _python(runs: Path) -> Iterator[tuple]:
    cores = os.cpu_count()
    yield "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"


def _packages(runs: Path) -> Iterator[tuple]:
    for name in ("torch", "diffusers", "transformers", "accelerate", "open-clip-torch", "gradio"):
        try:
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "broken", "not installed; run: make install"
    for name, extra in (("xformers", "gpu"), ("bitsandbytes", "gpu"), ("av", "film"), ("wandb", "track")):
        try:  # not find_spec: a folder of this name, such as the one that wandb logs into, looks like a module to it
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "missing", f"optional; pip install 'media-alignment-workbench[{extra}]'"


def _devices(runs: Path) -> Iterator[tuple]:
    if not torch.cuda.is_available():
        yield "GPU", "missing", "none that torch can use: the starter pack runs on the CPU, large models will not"
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(n)
        yield f"cuda:{n}", "ok", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}"


def _attention(runs: Path) -> Iterator[tuple]:
    from pipelines.loading import attention_problem

    for backend in ("sdpa", "xformers", "flash"):
        problem = attention_problem(backend)
        yield f"attention {backend}", "missing" if problem else "ok", problem or "works"


def _disk(runs: Path) -> Iterator[tuple]:
    there = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    writable = os.access(there, os.W_OK)
    detail = f"{runs}: {free:.1f} GiB free" if writable else f"{there} can't be written to; use --runs DIR"
    yield "runs", "ok" if writable and free > 1 else "broken", detail


def _starter(runs: Path) -> Iterator[tuple]:
    """One batch of pictures is made for real."""
    from . import data

    try:
        import pipelines

        policy = pipelines.load("starter-image", device="cpu")
        prompts = data.prompts("starter-image-test")[:8]
        policy.sample(prompts, seeds=range(len(prompts)))
    except (BadInput, FileNotFoundError) as error:
        yield "starter pack", "broken", str(error)
        return
    yield "starter pack", "ok", f"{len(prompts)} pictures made"


def _rewards(runs: Path) -> Iterator[tuple]:
    """Every reward whose weights are on this machine scores media of which it is known how they compare."""
    import transformers

    from rewards import release

    from .judges import judges

    transformers.utils.logging.disable_progress_bar()
    for name, cls in judges().items():
        yield (f"reward {name}", *verdict(cls))
        release()


def verdict(cls: type) -> tuple[str, str]:
    """(state, detail) of one reward: `missing` when it isn't installed here, `broken` when it fails, gives every sample
    the same score, or likes media no better with their own prompts than with each other's.

    A judge's weights lie on a server: it is `missing` when none answers, or none with its model.
    """
    from rewards import Judge, configured

    here = [] if issubclass(cls, Judge) else repositories(cls.spec, str(getattr(cls, "model", "")))
    if absent := [repo for repo in here if not installed(repo)]:
        return "missing", f"weights not on this machine, fetched when first used: {', '.join(absent)}"
    try:
        reward = configured(cls, {}, cls.spec.name)
        if hasattr(reward, "check"):
            reward.check()
    except (BadInput, TypeError) as error:
        return "missing", f"not set up: {error}"
    try:
        return examined(reward)
    except Exception as error:  # whatever a reward of anyone's may raise is what this row is for
        return "broken", f"{type(error).__name__}: {error}".splitlines()[0]


@torch.no_grad()
def examined(reward: Reward) -> tuple[str, str]:
    media, prompts = sample(reward.spec)
    if reward.spec.scope == "set":
        scores = torch.stack([_score(reward, media[rows], prompts[rows]) for rows in (slice(0, 4), slice(4, 8))])
    elif reward.spec.scope == "group":
        scores = _score(reward, media, [prompts[0]] * len(prompts))
    else:
        scores = _score(reward, media, prompts)
    if not scores.isfinite().all():
        return "broken", f"no score for {int((~scores.isfinite()).sum())} of {scores.numel()} test media"
    if scores.max() - scores.min() <= SAME * scores.abs().max():
        return "broken", f"zero variance: gives {scores[0].item():g} to everything, good or bad"
    told = f"{scores.min():.3f} to {scores.max():.3f} over {scores.numel()} test media"
    if reward.spec.scope == "sample" and "prompt" in reward.spec.needs:
        own = scores[:2].mean()
        others = _score(reward, media[:2], [prompts[1], prompts[0]]).mean()
        told = f"own prompts {own:.3f}, each other's {others:.3f}"
        return ("ok" if own > others else "broken"), told
    return "ok", told


def _score(reward: Reward, media: Media, prompts: list[str]) -> torch.Tensor:
    references = None
    if "reference" in reward.spec.needs:
        references = sample(reward.spec)[0][:4]
    elif "source" in reward.spec.needs:  # each was made from its neighbour, which shows what the other prompt says
        references = replace(media, data=media.data.roll(1, 0))
    return reward(media=media, prompts=prompts, references=references)


def sample(spec: RewardSpec) -> tuple[Media, list[str]]:
    """Eight media and their prompts: two that are exactly what their prompts say, then less and less of anything."""
    g = torch.Generator().manual_seed(0)
    if not spec.modalities & {"image", "video"}:
        t = torch.arange(32000) / 16000
        tones = torch.stack([torch.sin(2 * torch.pi * f * t) * 0.5 for f in (440.0, 220.0, 880.0, 330.0)])
        noise = torch.rand(4, 32000, generator=g) * torch.tensor([1.9, 0.02, 0.9, 0.3])[:, None] - 0.01
        order = torch.stack([tones[0], noise[0], *tones[1:], *noise[1:]])
        return Media(order[:, None].clamp(-1, 1), "audio", 16000.0), [*TONES, *TONES[:1] * 3, *TONES[1:] * 3]
    from pipelines.starter import image_world

    prompts = [*PAIR, *PAIR]
    scenes = [image_world.scene_for(prompt, random.Random(k)) for k, prompt in enumerate(prompts)]
    drawn = image_world.render(scenes, g)  # [4,3,H,W]
    bad = torch.stack([torch.rand(drawn.shape[1:], generator=g), torch.zeros_like(drawn[0]), *drawn[:2] * 0.3 + 0.4])
    data = torch.cat([drawn, bad])
    if "image" not in spec.modalities:
        shake = torch.linspace(0.7, 1.0, 16).view(1, 16, 1, 1, 1)
        return Media(data[:, None] * shake, "video", 8.0), prompts * 2
    return Media(data, "image"), prompts * 2


def repositories(spec: RewardSpec, *more: str) -> list[str]:
    """The hub repositories that a spec's `weights`, or `more`, names."""
    words = dict.fromkeys(re.split(r"[\s+,]+", " ".join((spec.weights, *more))))
    return [word for word in words if re.fullmatch(r"[\w.-]+/[\w.-]+", word)]


def installed(repo: str) -> bool:
    """Whether the hub's cache holds a snapshot of `repo`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())
