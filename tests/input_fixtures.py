"""Prompts with sources, and a run of a tiny editing pipeline on them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_conditioned  # noqa: F401  registers the editing classes
import yaml
from PIL import Image

import pipelines
from pipelines.call_arguments import read_arguments
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.runs import config, store
from workbench.runs.plan import Plan

EDIT = "StableDiffusionInstructPix2PixPipeline"
RUN = {
    "method": {"name": "best_of_n", "n": 2},
    "reward": "brightness",
    "watch": ["unchanged"],
    "name": "edit",
    "batch": 4,
}


def write_picture(path: Path, seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Path:
    """A picture of noise, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


def write_edits(folder: Path, instructions: int = 2, sources: int = 2, name: str = "edits.jsonl") -> Path:
    """A prompt file that gives every instruction on every source."""
    rows = []
    for n in range(sources):
        write_picture(folder / "pictures" / f"{n}.png", n)
        rows += [{"prompt": f"make it colour {k}", "source": f"pictures/{n}.png"} for k in range(instructions)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def save_pipeline(folder: Path, name: str = EDIT, **changes: Any) -> Path:
    """A config of a tiny pipeline in a folder, without its inputs, which are those of its class."""
    settings = {**tiny.settings(name), "steps": 2, **changes}
    settings["call"] = {k: v for k, v in settings["call"].items() if k in read_arguments(tiny.class_of(name))}
    settings.pop("inputs")
    values = {"class": tiny.class_of(name), "repo": str(tiny.save(name, folder)), **settings}
    path = folder / f"{name.replace(':', '-')}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def plan_edits(pipeline: Path, prompts: Any, **changes: Any) -> Plan:
    values = {"pipeline": str(pipeline), "prompts": prompts if isinstance(prompts, list | dict) else str(prompts)}
    values = {key: value for key, value in {**RUN, **values, **changes}.items() if value is not None}
    return plan_run(config.check_config(config.build_dataclass(config.RunConfig, values, "test")))


def execute(plan: Plan, runs: Path) -> store.RunFolder:
    folder = store.RunFolder.open(runs, plan.config.name, dataclasses.asdict(plan.config))
    failures = [p.failed for p in run.execute_run(plan, folder, load=load_once) if p.failed]
    assert not failures
    return folder


_LOADED: dict[str, Any] = {}


def load_once(pipeline: Any, **settings: Any) -> Any:
    """pipelines.load; what is not trained is loaded once for all runs."""
    if settings.get("train") or pipeline.lora:
        return pipelines.load(pipeline, **settings)
    if pipeline.name not in _LOADED:
        _LOADED[pipeline.name] = pipelines.load(pipeline, **settings)
    return _LOADED[pipeline.name]
