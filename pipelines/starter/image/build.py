"""Builds the picture part of the pack from nothing: stages in order, each resumable after a kill at any moment.

    autoencoder -> clip -> generator -> distil -> save -> report

Two to three hours on two cores. `fast=True` runs the same recipe at a micro size: it proves that the recipe runs, its
models are useless.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from pipelines.starter.image import measure, world
from pipelines.starter.image.autoencoder import train_autoencoder
from pipelines.starter.image.clip import train_clip, words
from pipelines.starter.image.distil import distil
from pipelines.starter.image.generator import pipeline, train_generator
from pipelines.starter.tokenizer import new_tokenizer
from workbench.core.types import BadInput

STAGES = ("autoencoder", "clip", "generator", "distil", "save", "report")
TEACHER = {"steps": 8, "guidance": 3.0}
STUDENT = {"steps": 1, "guidance": 1.0}


@dataclass(frozen=True)
class Plan:
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


MICRO = Plan(4, 3, 12, 4, 4, 2, 2, 40, 14, 1, 1, batch=2)


@dataclass
class Parts:
    """What the stages hand on."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    clip: CLIPModel | None = None
    unet: UNet2DConditionModel | None = None
    encoder: CLIPTextModel | None = None
    student: UNet2DConditionModel | None = None


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """Train what is not trained yet, write `out`/{teacher,student,clip} and `out`/report.json; returns the report.

    `stages` runs only up to the last one named (earlier ones load from `workdir`). Raises BadInput for an unknown stage.
    """
    unknown = set(stages or ()) - set(STAGES)
    if unknown:
        raise BadInput(f"stages: there is no {sorted(unknown)[0]!r}; the stages are {', '.join(STAGES)}")
    workdir, out = Path(workdir), Path(out)
    workdir.mkdir(parents=True, exist_ok=True)
    last = max(map(STAGES.index, stages)) if stages else len(STAGES) - 1
    plan, told = MICRO if fast else Plan(), {}
    parts = train_parts(workdir, plan, told, seed=seed, last=last)
    if last >= STAGES.index("save"):
        save(parts, out)
    report = {"seed": seed, "micro": fast, "plan": asdict(plan), "training": told}
    if last >= STAGES.index("report"):
        report["measured"] = measured(out, plan, seed=seed)
        write_json(report, out / "report.json")
    return report


def train_parts(workdir: Path, plan: Plan, told: dict, *, seed: int, last: int) -> Parts:
    vae, told["autoencoder"] = train_autoencoder(workdir, seed=seed, steps=plan.autoencoder, batch=plan.batch)
    parts = Parts(vae, new_tokenizer(words()))
    if last >= STAGES.index("clip"):
        parts.clip, told["clip"] = train_clip(workdir, parts.tokenizer, seed=seed, steps=plan.clip, batch=plan.batch)
    if last >= STAGES.index("generator"):
        parts.unet, parts.encoder, told["generator"] = train_generator(
            workdir, vae, parts.tokenizer, seed=seed, steps=plan.generator, scenes=plan.scenes, batch=plan.batch
        )
    if last >= STAGES.index("distil"):
        parts.student, told["distil"] = distil(
            workdir, parts.unet, parts.encoder, parts.tokenizer,
            seed=seed, n=plan.pairs, regression=plan.regression, matching=plan.matching, batch=plan.batch,
        )  # fmt: skip
    return parts


def write_prompts(folder: Path, *, test: int = 15, train: int = 60) -> None:
    """`starter-image-{train,test}.txt`: up to so many prompts a category, in turns."""
    held, seen = measure.held_out_prompts(test), measure.seen_prompts(train)
    told = {
        "test": ("Held out, categories in turns: no part of the pack was ever told one of these prompts, nor shown a picture of which one is true.",
                 "`single` has too few prompts to hold any out: its 12 are seen ones.", held),
        "train": ("Prompts of the picture world that the pack was trained on, categories in turns.",
                  "Shares nothing with the test list but the 12 prompts of `single`.", seen),
    }  # fmt: skip
    for name, (first, second, prompts) in told.items():
        text = "\n".join((f"# {first}", f"# {second}", *prompts)) + "\n"
        (folder / f"starter-image-{name}.txt").write_text(text)


def image_processor() -> CLIPImageProcessor:
    half, side = [0.5] * 3, world.SIZE
    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=half, image_std=half
    )


def save(parts: Parts, out: Path) -> None:
    """fp16 safetensors in `out`/{teacher,student,clip}; each folder is written beside its place and renamed into it."""
    half = {name: part.to(torch.float16) for name, part in asdict_shallow(parts).items() if name != "tokenizer"}
    teacher = pipeline(half["vae"], half["unet"], half["encoder"], parts.tokenizer)
    student = pipeline(half["vae"], half["student"], half["encoder"], parts.tokenizer)
    _swap_in(out / "teacher", lambda folder: _save_pipeline(teacher, folder))
    _swap_in(out / "student", lambda folder: _save_pipeline(student, folder))

    def save_clip(folder: Path) -> None:
        for part in (half["clip"], parts.tokenizer, image_processor()):
            part.save_pretrained(folder)
        _says_float32(folder / "config.json")

    _swap_in(out / "clip", save_clip)


def asdict_shallow(parts: Parts) -> dict:
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}


def _save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    _says_float32(folder / "text_encoder" / "config.json")


def _says_float32(path: Path) -> None:
    """The files are half precision, the models are meant to run in single: a plain from_pretrained upcasts them."""
    config = json.loads(path.read_text())
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        for name in ("dtype", "torch_dtype"):
            if name in part:
                part[name] = "float32"
    write_json(config, path)


def _swap_in(folder: Path, write) -> None:
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for stale in (fresh, old):
        shutil.rmtree(stale, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    write(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(content: dict, path: Path) -> None:
    part = path.with_suffix(".part")
    with part.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def measured(out: Path, plan: Plan, *, seed: int) -> dict:
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
        "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
        "seconds": round(time.monotonic() - started, 1),
    }
