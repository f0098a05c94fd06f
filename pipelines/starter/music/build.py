"""Builds the music part of the pack from nothing: stages in order, each resumable after a kill at any moment.

    autoencoder -> generator -> clap -> save -> report

Roughly half an hour on an idle core. `fast=True` runs the same recipe at a micro size: it proves that the recipe runs, its
models are useless.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, LongCatAudioDiTTransformer, LongCatAudioDiTVae
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast, UMT5EncoderModel

from pipelines.starter.image.build import _says_float32, _swap_in, write_json
from pipelines.starter.music import measure, world
from pipelines.starter.music.autoencoder import components, new_autoencoder
from pipelines.starter.music.clap import FRONT, train_clap
from pipelines.starter.music.generator import new_tokenizer, pipeline, train_generator
from pipelines.starter.tokenizer import new_tokenizer as new_clip_tokenizer
from workbench.core.types import BadInput

STAGES = ("autoencoder", "generator", "clap", "save", "report")
BASE, GOOD = {"steps": 8, "guidance": 2.0}, {"steps": 8, "guidance": 2.0}
Generator = tuple[LongCatAudioDiTTransformer, UMT5EncoderModel]


@dataclass(frozen=True)
class Plan:
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


MICRO = Plan(20, 20, 3, (1, 2), 2, 2, 2, 8, 4, 4, 4, 2)


@dataclass
class Parts:
    """What the stages hand on."""

    vae: LongCatAudioDiTVae
    tokenizer: PreTrainedTokenizerFast
    clap_tokenizer: CLIPTokenizer
    generators: dict[int, Generator] = field(default_factory=dict)  # by optimiser steps
    clap: CLIPModel | None = None


def build(
    workdir: str | Path, out: str | Path, *, seed: int = 0, fast: bool = False, stages: Sequence[str] | None = None
) -> dict:
    """Train what is not trained yet, write `out`/{base,good,clap} and `out`/report.json; returns the report.

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
        save(parts, out, plan)
    report = {"seed": seed, "micro": fast, "plan": asdict(plan), "training": told}
    if last >= STAGES.index("report"):
        report["measured"] = measured(parts, out, plan, seed=seed)
        write_json(report, out / "report.json")
    return report


def train_parts(workdir: Path, plan: Plan, told: dict, *, seed: int, last: int) -> Parts:
    vae = new_autoencoder(*components(seed=seed, clips=plan.components))
    parts = Parts(vae, new_tokenizer(), new_clip_tokenizer(world.words()))
    if last >= STAGES.index("generator"):
        parts.generators, told["generator"] = train_generator(
            workdir, vae, parts.tokenizer,
            seed=seed, steps=plan.generator, pieces=plan.pieces, kept=plan.curve, batch=plan.batch,
        )  # fmt: skip
    if last >= STAGES.index("clap"):
        parts.clap, told["clap"] = train_clap(
            workdir, vae, parts.clap_tokenizer, seed=seed, steps=plan.clap, batch=min(plan.batch, 24)
        )
    return parts


def save(parts: Parts, out: Path, plan: Plan) -> None:
    """fp16 safetensors in `out`/{base,good,clap}; each folder is written beside its place and renamed into it."""
    parts.vae.to(torch.float16)
    for name, steps in (("base", plan.base), ("good", plan.generator)):
        transformer, encoder = (part.to(torch.float16) for part in parts.generators[steps])
        pipe = pipeline(parts.vae, transformer, encoder, parts.tokenizer)
        _swap_in(out / name, lambda folder, pipe=pipe: _save_pipeline(pipe, folder))

    def save_clap(folder: Path) -> None:
        parts.clap.to(torch.float16).save_pretrained(folder)
        parts.clap_tokenizer.save_pretrained(folder)
        write_json(FRONT, folder / "preprocessor_config.json")
        _says_float32(folder / "config.json")

    _swap_in(out / "clap", save_clap)


def _save_pipeline(pipe: DiffusionPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder)
    pipe.scheduler.save_pretrained(folder / "scheduler")  # optional in this class, which the line above leaves out
    _says_float32(folder / "text_encoder" / "config.json")


def measured(parts: Parts, out: Path, plan: Plan, *, seed: int) -> dict:
    """What ships is loaded back from its folders; the rest of the learning curve is measured from the checkpoints."""
    started = time.monotonic()
    base, good = (DiffusionPipeline.from_pretrained(out / name) for name in ("base", "good"))
    clap, tokenizer = CLIPModel.from_pretrained(out / "clap").eval(), CLIPTokenizer.from_pretrained(out / "clap")
    held, seen = (measure.prompts(h, plan.prompts) for h in (True, False))
    few = held[: plan.curve_prompts]
    told = {
        "oracle": measure.measure_oracle(good.vae, seed=seed, n=plan.measured),
        "clap": measure.measure_clap(clap, tokenizer, seed=seed, n=plan.clap_measured),
    }
    for name, pipe, how in (("base", base, BASE), ("good", good, GOOD)):
        for kind, said in (("held-out prompts", held), ("seen prompts", seen)):
            told[f"{name}, {kind}"] = measure.measure_generator(pipe, said, clap, tokenizer, seed=seed, **how)
    told["base, held-out prompts, by choosing"] = measure.measure_ranking(
        base, clap, tokenizer, few, seed=seed, seeds=plan.choices, **BASE
    )
    told["good, held-out prompts, by steps"] = {
        n: measure.measure_generator(good, few, seed=seed, steps=n, guidance=GOOD["guidance"])["overall"]
        for n in (1, 2, 4, 16)
    }
    told["held-out prompts, by training"] = {
        k: measure.measure_generator(_checkpoint(parts, k, good.vae), few, seed=seed, **GOOD)["overall"]
        for k in sorted(parts.generators)
    }
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return told | {"bytes": size, "seconds": round(time.monotonic() - started, 1)}


def _checkpoint(parts: Parts, k: int, vae: LongCatAudioDiTVae) -> DiffusionPipeline:
    transformer, encoder = (part.to(torch.float32) for part in parts.generators[k])
    return pipeline(vae, transformer, encoder, parts.tokenizer)


def write_prompts(folder: Path, *, test: int = 96, train: int = 480) -> None:
    """`starter-music-{train,test}.txt`, the four beats in turns."""
    told = {
        "test": ("Held out, beats in turns: no part of the pack was told one of these prompts, nor heard the two phrases",
                 "together; each phrase was heard in both places, in other company.", measure.prompts(True, test)),
        "train": ("Prompts of the music world that the pack was trained on, beats in turns.",
                  "Shares nothing with the test list, not even a pair of phrases.", measure.prompts(False, train)),
    }  # fmt: skip
    for name, (first, second, prompts) in told.items():
        text = "\n".join((f"# {first}", f"# {second}", *prompts)) + "\n"
        (folder / f"starter-music-{name}.txt").write_text(text)
