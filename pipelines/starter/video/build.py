"""Builds the video part of the pack from nothing: stages in order, each resumable after a kill at any moment.

    autoencoder -> decoder -> generator -> clip -> save -> report

`fast=True` runs the same recipe at a micro size: it proves that the recipe runs, its models are useless.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, UMT5EncoderModel

from pipelines.starter.image.build import _says_float32, _swap_in, write_json
from pipelines.starter.tokenizer import new_tokenizer
from pipelines.starter.video import measure, world
from pipelines.starter.video.autoencoder import train_autoencoder, train_decoder
from pipelines.starter.video.clip import SIDE, train_clip
from pipelines.starter.video.generator import pipeline, train_generator, words
from workbench.core.types import BadInput

STAGES = ("autoencoder", "decoder", "generator", "clip", "save", "report")
BASE = {"steps": 8, "guidance": 3.0}


@dataclass(frozen=True)
class Plan:
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


MICRO = Plan(4, 3, 8, 3, (2, 2), 10, 6, 1, 1, 1, batch=4)


@dataclass
class Parts:
    """What the stages hand on."""

    vae: AutoencoderKLWan
    tokenizer: CLIPTokenizer
    transformer: WanTransformer3DModel | None = None
    encoder: UMT5EncoderModel | None = None
    clip: CLIPModel | None = None


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """Train what is not trained yet, write `out`/{base,clip} and `out`/report.json; returns the report.

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
    if last >= STAGES.index("decoder"):
        told["decoder"] = train_decoder(workdir, vae, seed=seed, steps=plan.decoder, batch=plan.batch)
    if last >= STAGES.index("generator"):
        parts.transformer, parts.encoder, told["generator"] = train_generator(
            workdir, vae, parts.tokenizer,
            seed=seed, steps=plan.generator, scenes=plan.scenes, batch=plan.batch,
        )  # fmt: skip
    if last >= STAGES.index("clip"):
        parts.clip, told["clip"] = train_clip(
            workdir, parts.tokenizer, vae, seed=seed, steps=plan.clip, batch=plan.batch
        )
    return parts


def write_prompts(folder: Path, *, test: int = 15, train: int = 60) -> None:
    """`starter-video-{train,test}.txt`: up to so many prompts a category, in turns; `-more`: the held-out ones that `test` leaves."""
    held = measure.prompts(True, test)
    told = {
        "test": ("Held out, categories in turns: no part of the pack was ever told one of these prompts, nor shown a clip",
                 "of which one is true; every part of each was seen in other company.", held),
        "more": ("The held-out prompts that the test list leaves out: to judge anew what was chosen by looking at that one.",
                 "Without `pass`, of which the base gets none right.",
                 [p for p in measure.prompts(True, len(world.all_prompts())) if p not in held and world.category(p) != "pass"]),
        "train": ("Prompts of the video world that the pack was trained on, categories in turns.",
                  "Shares nothing with the test list.", measure.prompts(False, train)),
    }  # fmt: skip
    for name, (first, second, prompts) in told.items():
        text = "\n".join((f"# {first}", f"# {second}", *prompts)) + "\n"
        (folder / f"starter-video-{name}.txt").write_text(text)


def save(parts: Parts, out: Path) -> None:
    """fp16 safetensors in `out`/{base,clip}; each folder is written beside its place and renamed into it."""
    vae, transformer, encoder, clip = (
        part.to(torch.float16) for part in (parts.vae, parts.transformer, parts.encoder, parts.clip)
    )
    pipe = pipeline(vae, transformer, encoder, parts.tokenizer)

    def save_base(folder: Path) -> None:
        pipe.save_pretrained(folder)
        _says_float32(folder / "text_encoder" / "config.json")

    def save_clip(folder: Path) -> None:
        half, side = [0.5] * 3, 3 * SIDE
        size = {"height": side, "width": side}
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size, image_mean=half, image_std=half)
        for part in (clip, parts.tokenizer, processor):
            part.save_pretrained(folder)
        _says_float32(folder / "config.json")

    _swap_in(out / "base", save_base)
    _swap_in(out / "clip", save_clip)


def measured(out: Path, plan: Plan, *, seed: int) -> dict:
    """Everything is loaded back from the saved folders: what is measured is what ships."""
    started = time.monotonic()
    base = DiffusionPipeline.from_pretrained(out / "base")
    clip = CLIPModel.from_pretrained(out / "clip").eval(), CLIPTokenizer.from_pretrained(out / "clip")
    held, seen = (measure.prompts(h, plan.prompts) for h in (True, False))
    how = {"seed": seed, "seeds": plan.seeds, "guidance": BASE["guidance"]}
    return {
        "oracle": measure.measure_oracle(base.vae, seed=seed, n=plan.measured),
        "clip": measure.measure_clip(*clip, seed=seed, n=plan.clip_measured),
        "base, held-out prompts": measure.measure_generator(base, held, clip, steps=BASE["steps"], **how),
        "base, seen prompts": measure.measure_generator(base, seen, clip, steps=BASE["steps"], **how),
        "base, held-out prompts, by steps": {
            n: measure.measure_generator(base, held, steps=n, **how)["overall"] for n in (1, 4, 16)
        },
        "choosing, held-out prompts": measure.measure_choice(
            base, held[: 6 * plan.chosen], clip, n=6, seed=seed + 1, steps=BASE["steps"], guidance=BASE["guidance"]
        ),
        "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
        "seconds": round(time.monotonic() - started, 1),
    }
