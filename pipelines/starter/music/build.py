"""Builds the music part of the pack from nothing: stages in order, each resumable after a kill at any moment.

    autoencoder -> generator -> clap -> save -> report

Roughly half an hour on an idle core. `fast=True` runs the same recipe at a micro size: it proves that the recipe runs,
its models are useless.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.models import LongCatAudioDiTTransformer, LongCatAudioDiTVae
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast, UMT5EncoderModel

from pipelines.starter.music import measure, world
from pipelines.starter.music.autoencoder import new_autoencoder, principal_components
from pipelines.starter.music.clap import FRONT, train_clap
from pipelines.starter.music.generator import new_pipeline, new_tokenizer, train_generator
from pipelines.starter.pack_builder import (
    DiffusersPipeline,
    PackRecipe,
    Sampling,
    build_pack,
    cast_part,
    folder_bytes,
    save_in_float32_config,
    swap_folder_in,
    write_json,
    write_prompt_files,
)
from pipelines.starter.tokenizer import new_tokenizer as new_clip_tokenizer

STAGES = ("autoencoder", "generator", "clap", "save", "report")
BASE: Sampling = {"steps": 8, "guidance": 2.0}
GOOD: Sampling = {"steps": 8, "guidance": 2.0}
Generator = tuple[LongCatAudioDiTTransformer, UMT5EncoderModel]


@dataclass(frozen=True)
class BuildPlan:
    """Optimiser steps and amounts of each stage."""

    components: int = 1000  # pieces whose frames give the autoencoder
    pieces: int = 8000  # latents that the generator sees
    generator: int = 2400
    curve: tuple[int, ...] = (500, 700, 900, 1200, 1600)  # steps after which the generator is kept
    base: int = 900  # which of them is the model that alignment improves
    clap: int = 1600
    batch: int = 32
    measured: int = 1000  # clips by which the oracle is measured
    clap_measured: int = 400
    prompts: int = 192
    curve_prompts: int = 96
    choices: int = 8  # clips a prompt, of which the encoder chooses one


MICRO = BuildPlan(20, 20, 3, (1, 2), 2, 2, 2, 8, 4, 4, 4, 2)


@dataclass
class PackParts:
    """What the stages hand on."""

    vae: LongCatAudioDiTVae
    tokenizer: PreTrainedTokenizerFast
    clap_tokenizer: CLIPTokenizer
    generators: dict[int, Generator] = field(default_factory=dict)  # by optimiser steps
    clap: CLIPModel | None = None


def train_parts(workdir: Path, plan: BuildPlan, *, seed: int, last_stage: int) -> tuple[PackParts, dict]:
    training: dict = {}
    vae = new_autoencoder(*principal_components(seed=seed, clips=plan.components))
    parts = PackParts(vae, new_tokenizer(), new_clip_tokenizer(world.vocabulary_words()))
    if last_stage >= STAGES.index("generator"):
        parts.generators, training["generator"] = train_generator(
            workdir, vae, parts.tokenizer,
            seed=seed, steps=plan.generator, pieces=plan.pieces, checkpoint_steps=plan.curve, batch=plan.batch,
        )  # fmt: skip
    if last_stage >= STAGES.index("clap"):
        parts.clap, training["clap"] = train_clap(
            workdir, vae, parts.clap_tokenizer, seed=seed, steps=plan.clap, batch=min(plan.batch, 24)
        )
    return parts, training


def save_parts(parts: PackParts, out: Path, plan: BuildPlan) -> None:
    """fp16 safetensors in `out`/{base,good,clap}; each folder is written beside its place and renamed into it."""
    vae = cast_part(parts.vae, torch.float16)
    for name, steps in (("base", plan.base), ("good", plan.generator)):
        transformer, encoder = parts.generators[steps]
        transformer, encoder = cast_part(transformer, torch.float16), cast_part(encoder, torch.float16)
        pipe = new_pipeline(vae, transformer, encoder, parts.tokenizer)
        swap_folder_in(out / name, functools.partial(_save_pipeline, pipe))

    def save_clap(folder: Path) -> None:
        cast_part(parts.clap, torch.float16).save_pretrained(folder)
        parts.clap_tokenizer.save_pretrained(folder)
        write_json(FRONT, folder / "preprocessor_config.json")
        save_in_float32_config(folder / "config.json")

    swap_folder_in(out / "clap", save_clap)


def _save_pipeline(pipe: DiffusersPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    pipe.scheduler.save_pretrained(folder / "scheduler")  # optional in this class, which the line above leaves out
    save_in_float32_config(folder / "text_encoder" / "config.json")


def measure_pack(parts: PackParts, out: Path, plan: BuildPlan, *, seed: int) -> dict:
    """What ships is loaded back from its folders; the rest of the learning curve is measured from the checkpoints."""
    started = time.monotonic()
    base, good = (DiffusionPipeline.from_pretrained(out / name) for name in ("base", "good"))
    clap, tokenizer = CLIPModel.from_pretrained(out / "clap").eval(), CLIPTokenizer.from_pretrained(out / "clap")
    held_out, trained_on = (measure.choose_prompts(h, plan.prompts) for h in (True, False))
    subset = held_out[: plan.curve_prompts]
    report = {
        "oracle": measure.measure_oracle(good.vae, seed=seed, n=plan.measured),
        "clap": measure.measure_clap(clap, tokenizer, seed=seed, n=plan.clap_measured),
    }
    for name, pipe, how in (("base", base, BASE), ("good", good, GOOD)):
        for kind, prompts in (("held-out prompts", held_out), ("seen prompts", trained_on)):
            report[f"{name}, {kind}"] = measure.measure_generator(pipe, prompts, clap, tokenizer, seed=seed, **how)
    report["base, held-out prompts, by choosing"] = measure.measure_ranking(
        base, clap, tokenizer, subset, seed=seed, seeds=plan.choices, **BASE
    )
    report["good, held-out prompts, by steps"] = {
        n: measure.measure_generator(good, subset, seed=seed, steps=n, guidance=GOOD["guidance"])["overall"]
        for n in (1, 2, 4, 16)
    }
    report["held-out prompts, by training"] = {
        k: measure.measure_generator(_pipeline_at(parts, k, good.vae), subset, seed=seed, **GOOD)["overall"]
        for k in sorted(parts.generators)
    }
    size = folder_bytes(out)
    return report | {"bytes": size, "seconds": round(time.monotonic() - started, 1)}


def _pipeline_at(parts: PackParts, k: int, vae: LongCatAudioDiTVae) -> DiffusersPipeline:
    transformer, encoder = parts.generators[k]
    transformer, encoder = cast_part(transformer, torch.float32), cast_part(encoder, torch.float32)
    return new_pipeline(vae, transformer, encoder, parts.tokenizer)


def write_prompts(folder: Path, *, test: int = 96, train: int = 480) -> None:
    """`starter-music-{train,test}.txt`, the four beats in turns."""
    held_out, trained_on = measure.choose_prompts(True, test), measure.choose_prompts(False, train)
    lists = {
        "test": ("Held out, beats in turns: no part of the pack was told one of these prompts, nor heard the two "
                 "phrases", "together; each phrase was heard in both places, in other company.", held_out),
        "train": ("Prompts of the music world that the pack was trained on, beats in turns.",
                  "Shares nothing with the test list, not even a pair of phrases.", trained_on),
    }  # fmt: skip
    write_prompt_files(folder, "starter-music", lists)


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """`out`/{base,good,clap} and `out`/report.json: see pipelines.starter.pack_builder.build_pack."""
    return build_pack(RECIPE, workdir, out, seed=seed, fast=fast, stages=stages)


RECIPE = PackRecipe(STAGES, BuildPlan(), MICRO, train_parts, save_parts, measure_pack)
