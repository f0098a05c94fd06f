"""Builds the image-to-video part of the pack: stages in order, each resumable after a kill at any moment.

    transformer -> save -> report

It starts from the video pack: the transformer is its base's, taught to begin with a given picture; autoencoder and text
encoder stay the base's and are not saved again. `fast=True` runs the same recipe at a micro size: it proves that the
recipe runs, its model is useless.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline
from diffusers.models import WanTransformer3DModel
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.image_to_video import measure
from pipelines.starter.image_to_video.generator import train_transformer
from pipelines.starter.pack_builder import (
    DiffusersPipeline,
    PackRecipe,
    build_pack,
    cast_part,
    folder_bytes,
    swap_folder_in,
)
from pipelines.starter.resumable_training import Draw
from pipelines.starter.video.generator import new_pipeline
from workbench.core.io.media import encode_png
from workbench.core.paths import resolve_repo
from workbench.core.types import Media

STAGES = ("transformer", "save", "report")
SAMPLING: measure.ClipSampling = {"steps": 8, "guidance": 1.0}
SHARED = ("vae", "text_encoder")  # the video pack's


@dataclass(frozen=True)
class BuildPlan:
    """Optimiser steps and amounts of each stage."""

    scenes: int = 10_000  # clips whose latents the transformer sees
    transformer: int = 4000
    curve: tuple[int, ...] = (500, 1000, 2000, 3000)  # steps after which the transformer is kept
    base: int = 2000  # which of them ships: it leaves room for alignment
    batch: int = 16
    measured: int = 700  # clips by which the oracle is measured
    prompts: int = 15  # a category
    seeds: int = 3  # clips a prompt
    choices: int = 8  # clips of a prompt, of which the reward chooses one


MICRO = BuildPlan(4, 3, (1, 2), 2, 2, 4, 1, 1, 2)


@dataclass
class PackParts:
    """What the stages hand on."""

    base: Any  # the text-to-video pipeline that it starts from
    transformers: dict[int, WanTransformer3DModel]  # by optimiser steps


def train_parts(workdir: Path, plan: BuildPlan, *, seed: int, last_stage: int) -> tuple[PackParts, dict]:
    base: Any = DiffusionPipeline.from_pretrained(resolve_repo("starter:video/base"))
    transformers, log = train_transformer(
        workdir, base,
        seed=seed, steps=plan.transformer, scenes=plan.scenes, checkpoint_steps=plan.curve, batch=plan.batch,
    )  # fmt: skip
    return PackParts(base, transformers), {"transformer": log}


def write_prompts(folder: Path, *, test: int = 15, train: int = 30) -> None:
    """`starter-image-to-video-{test,train}.jsonl`: up to so many prompts a category, in turns, each with its first
    frame, which lies beside it in a folder of the list's name."""
    for kind, n in (("test", test), ("train", train)):
        draw, name, lines = Draw.at_step(0, "image to video prompts", kind), f"starter-image-to-video-{kind}", []
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, task in enumerate(measure.draw_tasks(held_out=kind == "test", per_category=n, draw=draw)):
            file = f"{name}/{i:03}.png"
            (folder / file).write_bytes(encode_png(Media(task.first[None], "image")))
            lines.append(json.dumps({"prompt": task.prompt, "first": file}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def save_parts(parts: PackParts, out: Path, plan: BuildPlan) -> None:
    """fp16 safetensors in `out`/base, without the parts that are the video pack's; the folder is written beside its
    place and renamed into it."""

    def save_base(folder: Path) -> None:
        _pipeline_at(parts, plan.base, torch.float16).save_pretrained(folder)
        for name in SHARED:
            shutil.rmtree(folder / name)

    swap_folder_in(out / "base", save_base)


def _pipeline_at(parts: PackParts, steps: int, dtype: torch.dtype) -> DiffusersPipeline:
    base, transformer = parts.base, cast_part(parts.transformers[steps], dtype)
    shared = base.text_encoder, base.tokenizer
    return new_pipeline(base.vae, transformer, *shared, WanImageToVideoPipeline, expand_timesteps=True)


def measure_pack(parts: PackParts, out: Path, plan: BuildPlan, *, seed: int) -> dict:
    """What ships is loaded back from its folder; the learning curve is measured from the checkpoints."""
    started = time.monotonic()
    shared: dict[str, Any] = {name: getattr(parts.base, name) for name in SHARED}
    base: Any = WanImageToVideoPipeline.from_pretrained(out / "base", **shared)
    folder = resolve_repo("starter:video/clip")
    clip = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    draw = Draw.at_step(seed, "measure image to video")
    held_out, seen = (measure.draw_tasks(held_out=h, per_category=plan.prompts, draw=draw) for h in (True, False))
    measure_one = functools.partial(measure.measure_generator, clip=clip, seed=seed)
    steps, guidance = SAMPLING["steps"], SAMPLING["guidance"]
    return {
        "oracle": measure.measure_oracle(base.vae, seed=seed, n=plan.measured),
        "held-out prompts": measure_one(base, held_out, seeds=plan.seeds, **SAMPLING),
        "seen prompts": measure_one(base, seen, seeds=plan.seeds, **SAMPLING),
        "held-out prompts, first frames shuffled": measure.measure_shuffled(
            base, held_out, seed=seed, seeds=plan.seeds, **SAMPLING
        ),
        "held-out prompts, by steps": {
            n: measure_one(base, held_out, seeds=1, steps=n, guidance=guidance)["exact"] for n in (1, 2, 4, 16)
        },
        "held-out prompts, by guidance": {
            g: measure_one(base, held_out, seeds=1, steps=steps, guidance=g)["exact"] for g in (2.0, 3.0)
        },
        "held-out prompts, by choosing": measure.measure_choice(
            base, held_out, clip, n=plan.choices, seed=seed + 1, **SAMPLING
        ),
        "held-out prompts, by training": {
            k: measure_one(_pipeline_at(parts, k, torch.float32), held_out, seeds=1, **SAMPLING)["exact"]
            for k in sorted(parts.transformers)
        },
        "bytes": folder_bytes(out),
        "seconds": round(time.monotonic() - started, 1),
    }


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """`out`/base and `out`/report.json: see pipelines.starter.pack_builder.build_pack."""
    return build_pack(RECIPE, workdir, out, seed=seed, fast=fast, stages=stages)


RECIPE = PackRecipe(
    STAGES, BuildPlan(), MICRO, train_parts, save_parts, measure_pack,
    shared={f"base/{name}": f"starter:video/base/{name}" for name in SHARED},
)  # fmt: skip
