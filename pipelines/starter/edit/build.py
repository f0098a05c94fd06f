"""Builds the edit part of the pack: stages in order, each resumable after a kill at any moment.

    editor -> clip -> save -> report

It starts from the picture pack: the editor is its teacher, taught to edit, and shares its autoencoder. About two hours
on two cores. `fast=True` runs the same recipe at a micro size: it proves that the recipe runs, its models
are useless.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline
from diffusers.models import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.edit import measure, world
from pipelines.starter.edit.clip import train_edit_clip
from pipelines.starter.edit.generator import Editor, new_edit_tokenizer, train_editor
from pipelines.starter.image.build import image_processor
from pipelines.starter.image.generator import new_pipeline
from pipelines.starter.pack_builder import (
    DiffusersPipeline,
    PackRecipe,
    build_pack,
    cast_part,
    folder_bytes,
    save_in_float32_config,
    swap_folder_in,
)
from pipelines.starter.resumable_training import Draw
from workbench.core.io.media import encode_png
from workbench.core.paths import resolve_repo
from workbench.core.types import Media

STAGES = ("editor", "clip", "save", "report")
# Turns of the kinds in the training prompts: those with room to learn come more often.
TRAINED_KINDS = (*world.KINDS, "add", "swap", "recolour", "add", "swap", "add", "swap")
EDITOR: measure.EditSampling = {"steps": 4, "guidance": 1.0, "image_guidance": 1.0}

Drawn = tuple[world.Edit, torch.Tensor]  # an edit and its source [3,64,64]


@dataclass(frozen=True)
class BuildPlan:
    """Optimiser steps and amounts of each stage."""

    families: int = 24_000  # sources, each with three edits
    editor: int = 12_000
    curve: tuple[int, ...] = (1809, 3337, 5479, 8493)  # steps after which the editor is kept
    base: int = 5479  # which of them ships: it keeps what it should, and leaves room for alignment
    clip: int = 3000
    batch: int = 32
    measured: int = 700  # edits by which oracle and reward are measured
    edits: int = 294  # of each set on which the editors are measured
    curve_edits: int = 98
    choices: int = 8  # results of an edit, of which the reward chooses one


MICRO = BuildPlan(4, 3, (1, 2), 2, 2, 2, 7, 2, 2, 2)


@dataclass
class PackParts:
    """What the stages hand on."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    editors: dict[int, Editor] = field(default_factory=dict)  # by optimiser steps
    clip: CLIPModel | None = None


def train_parts(workdir: Path, plan: BuildPlan, *, seed: int, last_stage: int) -> tuple[PackParts, dict]:
    teacher: Any = DiffusionPipeline.from_pretrained(resolve_repo("starter:image/teacher"))
    parts = PackParts(teacher.vae.eval().requires_grad_(False), new_edit_tokenizer())
    training: dict = {}
    parts.editors, training["editor"] = train_editor(
        workdir, teacher, parts.tokenizer,
        seed=seed, steps=plan.editor, families=plan.families, checkpoint_steps=plan.curve, batch=plan.batch,
    )  # fmt: skip
    if last_stage >= STAGES.index("clip"):
        parts.clip, training["clip"] = train_edit_clip(
            workdir, parts.tokenizer, seed=seed, steps=plan.clip, batch=plan.batch
        )
    return parts, training


def write_prompts(
    folder: Path,
    *,
    test: Sequence[int] = (98,) * 3,
    train: Sequence[int] = (238,) * 4,
    strange: tuple[int, int] = (196, 700),
    additions: tuple[int, int] = (98, 196),
) -> None:
    """`starter-edit-{test,train}.jsonl`, each line an instruction and its source, which lies beside it in a folder of
    the list's name; kinds in turns. Beside them two tasks with a pair of colour and shape that nothing has ever shown,
    test and train: `starter-edit-strange-…`, edits, and `starter-edit-strange-draw-…`, additions to empty pictures.

    The first two are drawn in parts of so many edits. Each part has randomness of its own: a list of more parts begins
    with the shorter one. After the first, training has more of the kinds that are hard.
    """
    for name, parts in (("test", test), ("train", train)):
        pairs: list[Drawn] = []
        for part, n in enumerate(parts):
            draw = Draw.at_step(0, "edit prompts", name, *([part] if part else []))
            kinds = TRAINED_KINDS if part and name == "train" else world.KINDS
            edits = measure.draw_edits(n, draw.python, held_out=name == "test", kinds=kinds)
            pairs += zip(edits, world.render_edits(edits, draw.torch)[0], strict=True)
        _write_list(folder, f"starter-edit-{name}", pairs)
    tasks = (
        ("strange", "strange prompts", measure.draw_strange_edits, strange),
        ("strange-draw", "strange additions", measure.draw_strange_additions, additions),
    )
    for task, key, draw_task, sizes in tasks:
        for name, n in zip(("test", "train"), sizes, strict=True):
            draw = Draw.at_step(0, key, name)
            edits = draw_task(n, draw.python, held_out=name == "test")
            pairs = [*zip(edits, world.render_edits(edits, draw.torch)[0], strict=True)]
            _write_list(folder, f"starter-edit-{task}-{name}", pairs)


def _write_list(folder: Path, name: str, pairs: Iterable[Drawn]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for n, (edit, source) in enumerate(pairs):
        file = f"{name}/{n:03}.png"
        (folder / file).write_bytes(encode_png(Media(measure.round_pixels(source)[None], "image")))
        lines.append(json.dumps({"prompt": world.write_instruction(edit.instruction), "source": file}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def save_parts(parts: PackParts, out: Path, plan: BuildPlan) -> None:
    """fp16 safetensors in `out`/{base,clip}; each folder is written beside its place and renamed into it."""
    swap_folder_in(out / "base", functools.partial(_save_pipeline, _pipeline_at(parts, plan.base, torch.float16)))

    def save_clip(folder: Path) -> None:
        for part in (cast_part(parts.clip, torch.float16), parts.tokenizer, image_processor()):
            part.save_pretrained(folder)
        save_in_float32_config(folder / "config.json")

    swap_folder_in(out / "clip", save_clip)


def _pipeline_at(parts: PackParts, steps: int, dtype: torch.dtype) -> DiffusersPipeline:
    unet, encoder = parts.editors[steps]
    unet, encoder = cast_part(unet, dtype), cast_part(encoder, dtype)
    vae, kind = cast_part(parts.vae, dtype), StableDiffusionInstructPix2PixPipeline
    return new_pipeline(vae, unet, encoder, parts.tokenizer, kind)


def _save_pipeline(pipe: DiffusersPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    save_in_float32_config(folder / "text_encoder" / "config.json")


def measure_pack(parts: PackParts, out: Path, plan: BuildPlan, *, seed: int) -> dict:
    """What ships is loaded back from its folders; the rest of the learning curve is measured from the checkpoints."""
    started = time.monotonic()
    base, good = DiffusionPipeline.from_pretrained(out / "base"), _pipeline_at(parts, plan.editor, torch.float32)
    clip = CLIPModel.from_pretrained(out / "clip").eval(), CLIPTokenizer.from_pretrained(out / "clip")
    draw, steps = Draw.at_step(seed, "measure edits"), EDITOR["steps"]
    held_out, seen = (measure.draw_edits(plan.edits, draw.python, held_out=h) for h in (True, False))
    strange = measure.draw_strange_edits(plan.curve_edits, draw.python)
    subset = held_out[: plan.curve_edits]
    report = {
        "oracle": measure.measure_oracle(base.vae, seed=seed, n=plan.measured),
        "clip": measure.measure_clip(*clip, seed=seed, n=plan.measured),
    }
    measure_one = functools.partial(
        measure.measure_editor, clip=clip, seed=seed, guidance=EDITOR["guidance"],
        image_guidance=EDITOR["image_guidance"],
    )  # fmt: skip
    for name, pipe in (("base", base), ("trained to the end", good)):
        report[f"{name}, held-out edits"] = measure_one(pipe, held_out, steps=steps)
        report[f"{name}, seen edits"] = measure_one(pipe, seen, steps=steps)
        report[f"{name}, edits with an unseen colour x shape"] = measure_one(pipe, strange, steps=steps)
        report[f"{name}, held-out edits, by steps"] = {
            n: measure_one(pipe, subset, steps=n)["exact"] for n in (1, 2, 4, 8)
        }
    report["base, held-out edits, by choosing"] = measure.measure_choice(
        base, subset, clip, n=plan.choices, seed=seed, **EDITOR
    )
    report["held-out edits, by training"] = {
        k: measure_one(_pipeline_at(parts, k, torch.float32), subset, steps=steps)["exact"]
        for k in sorted(parts.editors)
    }
    return report | {"bytes": folder_bytes(out), "seconds": round(time.monotonic() - started, 1)}


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """`out`/{base,clip} and `out`/report.json: see pipelines.starter.pack_builder.build_pack."""
    return build_pack(RECIPE, workdir, out, seed=seed, fast=fast, stages=stages)


RECIPE = PackRecipe(STAGES, BuildPlan(), MICRO, train_parts, save_parts, measure_pack)
