"""Builds the picture part of the pack from nothing: stages in order, each resumable after a kill at any moment.

    autoencoder -> clip -> generator -> distil -> save -> report

Two to three hours on two cores. `fast=True` runs the same recipe at a micro size: it proves that the recipe runs, its
models are useless.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from pipelines.starter.image import measure, world
from pipelines.starter.image.autoencoder import train_autoencoder
from pipelines.starter.image.clip import train_clip, vocabulary_words
from pipelines.starter.image.distil import distil_student
from pipelines.starter.image.generator import new_pipeline, train_generator
from pipelines.starter.pack_builder import (
    DiffusersPipeline,
    PackRecipe,
    Sampling,
    build_pack,
    folder_bytes,
    save_in_float32_config,
    swap_folder_in,
    write_prompt_files,
)
from pipelines.starter.tokenizer import new_tokenizer

STAGES = ("autoencoder", "clip", "generator", "distil", "save", "report")
TEACHER: Sampling = {"steps": 8, "guidance": 3.0}
STUDENT: Sampling = {"steps": 1, "guidance": 1.0}


@dataclass(frozen=True)
class BuildPlan:
    """Optimiser steps and amounts of each stage."""

    autoencoder: int = 1600
    clip: int = 5000
    scenes: int = 80_000
    generator: int = 12_000
    pairs: int = 10_000
    regression: int = 1500
    matching: int = 1200
    measured: int = 5000
    clip_measured: int = 700
    prompts: int = 15  # held-out prompts a category
    seeds: int = 4  # pictures a prompt
    batch: int = 32


MICRO = BuildPlan(4, 3, 12, 4, 4, 2, 2, 40, 14, 1, 1, batch=2)


@dataclass
class PackParts:
    """What the stages hand on."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    clip: CLIPModel | None = None
    unet: UNet2DConditionModel | None = None
    encoder: CLIPTextModel | None = None
    student: UNet2DConditionModel | None = None


def train_parts(workdir: Path, plan: BuildPlan, *, seed: int, last_stage: int) -> tuple[PackParts, dict]:
    training: dict = {}
    vae, training["autoencoder"] = train_autoencoder(workdir, seed=seed, steps=plan.autoencoder, batch=plan.batch)
    parts = PackParts(vae, new_tokenizer(vocabulary_words()))
    if last_stage >= STAGES.index("clip"):
        parts.clip, training["clip"] = train_clip(
            workdir, parts.tokenizer, seed=seed, steps=plan.clip, batch=plan.batch
        )
    if last_stage >= STAGES.index("generator"):
        parts.unet, parts.encoder, training["generator"] = train_generator(
            workdir, vae, parts.tokenizer, seed=seed, steps=plan.generator, scenes=plan.scenes, batch=plan.batch
        )
    if last_stage >= STAGES.index("distil"):
        assert parts.unet is not None and parts.encoder is not None  # an earlier stage's
        parts.student, training["distil"] = distil_student(
            workdir, parts.unet, parts.encoder, parts.tokenizer,
            seed=seed, n=plan.pairs, regression=plan.regression, matching=plan.matching, batch=plan.batch,
        )  # fmt: skip
    return parts, training


def write_prompts(folder: Path, *, test: int = 15, train: int = 60) -> None:
    """`starter-image-{train,test}.txt`: up to so many prompts a category, in turns."""
    held_out_prompts, seen_prompts = measure.held_out_prompts(test), measure.seen_prompts(train)
    lists = {
        "test": ("Held out, categories in turns: no part of the pack was ever told one of these prompts, nor shown a "
                 "picture of which one is true.",
                 "`single` has too few prompts to hold any out: its 12 are seen ones.", held_out_prompts),
        "train": ("Prompts of the picture world that the pack was trained on, categories in turns.",
                  "Shares nothing with the test list but the 12 prompts of `single`.", seen_prompts),
    }  # fmt: skip
    write_prompt_files(folder, "starter-image", lists)


def image_processor() -> CLIPImageProcessor:
    half, side = [0.5] * 3, world.SIZE
    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=half, image_std=half
    )


def save_parts(parts: PackParts, out: Path, plan: BuildPlan) -> None:
    """fp16 safetensors in `out`/{teacher,student,clip}; each folder is written beside its place and renamed into it."""
    half = {name: part.to(torch.float16) for name, part in parts_by_name(parts).items() if name != "tokenizer"}
    teacher = new_pipeline(half["vae"], half["unet"], half["encoder"], parts.tokenizer)
    student = new_pipeline(half["vae"], half["student"], half["encoder"], parts.tokenizer)
    swap_folder_in(out / "teacher", lambda folder: _save_pipeline(teacher, folder))
    swap_folder_in(out / "student", lambda folder: _save_pipeline(student, folder))

    def save_clip(folder: Path) -> None:
        for part in (half["clip"], parts.tokenizer, image_processor()):
            part.save_pretrained(folder)
        save_in_float32_config(folder / "config.json")

    swap_folder_in(out / "clip", save_clip)


def parts_by_name(parts: PackParts) -> dict:
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}


def _save_pipeline(pipe: DiffusersPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    save_in_float32_config(folder / "text_encoder" / "config.json")


def measure_pack(parts: PackParts, out: Path, plan: BuildPlan, *, seed: int) -> dict:
    """Everything is loaded back from the saved folders: what is measured is what ships."""
    started = time.monotonic()
    teacher, student = (DiffusionPipeline.from_pretrained(out / name) for name in ("teacher", "student"))
    clip, tokenizer = CLIPModel.from_pretrained(out / "clip").eval(), CLIPTokenizer.from_pretrained(out / "clip")
    prompts = measure.held_out_prompts(plan.prompts)
    shared = {"seed": seed, "seeds": plan.seeds}
    return {
        "oracle": measure.measure_oracle(teacher.vae, seed=seed, n=plan.measured),
        "clip": measure.measure_clip(clip, tokenizer, seed=seed, n=plan.clip_measured),
        "teacher, held-out prompts": measure.measure_generator(teacher, clip, tokenizer, prompts, **shared, **TEACHER),
        "student, held-out prompts": measure.measure_generator(student, clip, tokenizer, prompts, **shared, **STUDENT),
        "teacher, prompts with an unseen colour x shape": measure.measure_generator(
            teacher, clip, tokenizer, measure.strange_prompts(plan.prompts), **shared, **TEACHER
        ),
        "teacher, seen prompts": measure.measure_generator(
            teacher, clip, tokenizer, measure.seen_prompts(plan.prompts), **shared, **TEACHER
        ),
        "student, seen prompts": measure.measure_generator(
            student, clip, tokenizer, measure.seen_prompts(plan.prompts), **shared, **STUDENT
        ),
        "bytes": folder_bytes(out),
        "seconds": round(time.monotonic() - started, 1),
    }


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """`out`/{teacher,student,clip} and `out`/report.json: see pipelines.starter.pack_builder.build_pack."""
    return build_pack(RECIPE, workdir, out, seed=seed, fast=fast, stages=stages)


RECIPE = PackRecipe(STAGES, BuildPlan(), MICRO, train_parts, save_parts, measure_pack)
