"""Builds the video part of the pack from nothing: stages in order, each resumable after a kill at any moment.

    autoencoder -> decoder -> generator -> clip -> save -> report

`fast=True` runs the same recipe at a micro size: it proves that the recipe runs, its models are useless.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.models import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, UMT5EncoderModel

from pipelines.starter.pack_builder import (
    PackRecipe,
    Sampling,
    build_pack,
    cast_part,
    folder_bytes,
    save_in_float32_config,
    swap_folder_in,
    write_prompt_files,
)
from pipelines.starter.tokenizer import new_tokenizer
from pipelines.starter.video import measure, world
from pipelines.starter.video.autoencoder import train_autoencoder, train_decoder
from pipelines.starter.video.clip import SIDE, train_clip
from pipelines.starter.video.generator import new_pipeline, train_generator, vocabulary_words

STAGES = ("autoencoder", "decoder", "generator", "clip", "save", "report")
BASE: Sampling = {"steps": 8, "guidance": 3.0}


@dataclass(frozen=True)
class BuildPlan:
    """Optimiser steps and amounts of each stage."""

    autoencoder: int = 5000
    decoder: int = 1200
    scenes: int = 10_000  # clips whose latents the generator sees
    generator: int = 10_000
    clip: tuple[int, int] = (4000, 1500)  # on frames at half their size, and on whole ones
    measured: int = 1000  # clips by which the oracle is measured
    clip_measured: int = 300
    prompts: int = 15  # a category
    chosen: int = 8  # a category, of which the best of six clips is taken
    seeds: int = 2  # clips a prompt
    batch: int = 16


MICRO = BuildPlan(4, 3, 8, 3, (2, 2), 10, 6, 1, 1, 1, batch=4)


@dataclass
class PackParts:
    """What the stages hand on."""

    vae: AutoencoderKLWan
    tokenizer: CLIPTokenizer
    transformer: WanTransformer3DModel | None = None
    encoder: UMT5EncoderModel | None = None
    clip: CLIPModel | None = None


def train_parts(workdir: Path, plan: BuildPlan, *, seed: int, last_stage: int) -> tuple[PackParts, dict]:
    training: dict = {}
    vae, training["autoencoder"] = train_autoencoder(workdir, seed=seed, steps=plan.autoencoder, batch=plan.batch)
    parts = PackParts(vae, new_tokenizer(vocabulary_words()))
    if last_stage >= STAGES.index("decoder"):
        training["decoder"] = train_decoder(workdir, vae, seed=seed, steps=plan.decoder, batch=plan.batch)
    if last_stage >= STAGES.index("generator"):
        parts.transformer, parts.encoder, training["generator"] = train_generator(
            workdir, vae, parts.tokenizer,
            seed=seed, steps=plan.generator, scenes=plan.scenes, batch=plan.batch,
        )  # fmt: skip
    if last_stage >= STAGES.index("clip"):
        parts.clip, training["clip"] = train_clip(
            workdir, parts.tokenizer, vae, seed=seed, steps=plan.clip, batch=plan.batch
        )
    return parts, training


def write_prompts(folder: Path, *, test: int = 15, train: int = 60) -> None:
    """`starter-video-{train,test}.txt`: up to so many prompts a category, in turns; `-more`: the held-out ones that
    `test` leaves."""
    held_out = measure.choose_prompts(True, test)
    others = [p for p in measure.choose_prompts(True, len(world.all_prompts())) if p not in held_out]
    lists = {
        "test": ("Held out, categories in turns: no part of the pack was ever told one of these prompts, nor shown a "
                 "clip", "of which one is true; every part of each was seen in other company.", held_out),
        "more": ("The held-out prompts that the test list leaves out: to judge anew what was chosen by looking at that "
                 "one.", "Without `pass`, of which the base gets none right.",
                 [p for p in others if world.prompt_category(p) != "pass"]),
        "train": ("Prompts of the video world that the pack was trained on, categories in turns.",
                  "Shares nothing with the test list.", measure.choose_prompts(False, train)),
    }  # fmt: skip
    write_prompt_files(folder, "starter-video", lists)


def save_parts(parts: PackParts, out: Path, plan: BuildPlan) -> None:
    """fp16 safetensors in `out`/{base,clip}; each folder is written beside its place and renamed into it."""
    vae, transformer = cast_part(parts.vae, torch.float16), cast_part(parts.transformer, torch.float16)
    encoder, clip = cast_part(parts.encoder, torch.float16), cast_part(parts.clip, torch.float16)
    pipe = new_pipeline(vae, transformer, encoder, parts.tokenizer)

    def save_base(folder: Path) -> None:
        pipe.save_pretrained(folder)
        save_in_float32_config(folder / "text_encoder" / "config.json")

    def save_clip(folder: Path) -> None:
        half, side = [0.5] * 3, 3 * SIDE
        size = {"height": side, "width": side}
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size, image_mean=half, image_std=half)
        for part in (clip, parts.tokenizer, processor):
            part.save_pretrained(folder)
        save_in_float32_config(folder / "config.json")

    swap_folder_in(out / "base", save_base)
    swap_folder_in(out / "clip", save_clip)


def measure_pack(parts: PackParts, out: Path, plan: BuildPlan, *, seed: int) -> dict:
    """Everything is loaded back from the saved folders: what is measured is what ships."""
    started = time.monotonic()
    base = DiffusionPipeline.from_pretrained(out / "base")
    clip = CLIPModel.from_pretrained(out / "clip").eval(), CLIPTokenizer.from_pretrained(out / "clip")
    held_out, trained_on = (measure.choose_prompts(h, plan.prompts) for h in (True, False))
    measure_base = functools.partial(
        measure.measure_generator, base, seed=seed, seeds=plan.seeds, guidance=BASE["guidance"]
    )
    return {
        "oracle": measure.measure_oracle(base.vae, seed=seed, n=plan.measured),
        "clip": measure.measure_clip(*clip, seed=seed, n=plan.clip_measured),
        "base, held-out prompts": measure_base(held_out, clip, steps=BASE["steps"]),
        "base, seen prompts": measure_base(trained_on, clip, steps=BASE["steps"]),
        "base, held-out prompts, by steps": {n: measure_base(held_out, steps=n)["overall"] for n in (1, 4, 16)},
        "choosing, held-out prompts": measure.measure_choice(
            base, held_out[: 6 * plan.chosen], clip, n=6, seed=seed + 1, steps=BASE["steps"], guidance=BASE["guidance"]
        ),
        "bytes": folder_bytes(out),
        "seconds": round(time.monotonic() - started, 1),
    }


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """`out`/{base,clip} and `out`/report.json: see pipelines.starter.pack_builder.build_pack."""
    return build_pack(RECIPE, workdir, out, seed=seed, fast=fast, stages=stages)


RECIPE = PackRecipe(STAGES, BuildPlan(), MICRO, train_parts, save_parts, measure_pack)
