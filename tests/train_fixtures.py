"""Trainings small enough for a test: the starter teacher, a few rounds of a few samples."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import torch
import yaml

import pipelines
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.runs import config, store
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress

PIPELINE = {
    "class": "StableDiffusionPipeline",
    "repo": "starter:image/teacher",
    "steps": 3,
    "call": {"guidance_scale": 1.0},
}
TRAIN = {
    "rounds": 4,
    "prompts_per_round": 2,
    "eval_prompts": 2,
    "eval_every": 2,
    "save_every": 1,
    "best": "last",
    "lora": {"rank": 2, "alpha": 4},
}
NFT = {"name": "nft", "group": 2, "levels_per_sample": 1, "old_decay_slope": 0.2, "lr": 1e-3}
GRPO = {"name": "grpo", "group": 2, "window": "mix", "window_size": 1, "window_interval": 1, "lr": 1e-3}
SDE = {"kernel": {"name": "flow-sde"}}


def asked(home: Path, **change) -> dict:
    """The config of a run; `train` is added to the usual one."""
    place = home / "free.yaml"
    place.write_text(yaml.safe_dump(PIPELINE))
    told = {
        "pipeline": str(place),
        "method": NFT,
        "reward": "starter_clip",
        "watch": ["oracle"],
        "name": "test",
        "batch": 4,
    }
    told |= {"prompts": "starter-image-train", "test": "starter-image-test", "limit": 2}
    return told | change | {"train": TRAIN | change.get("train", {})}


def planned(home: Path, **change) -> Plan:
    told = {k: v for k, v in asked(home, **change).items() if v is not None}
    return plan_run(config.check_config(config.build_dataclass(config.RunConfig, told, "test")))


def folder_of(plan: Plan, runs: Path, fresh: bool = True) -> store.RunFolder:
    return store.RunFolder.open(runs, plan.config.name, dataclasses.asdict(plan.config), fresh)


def go(plan: Plan, folder: store.RunFolder, stop: threading.Event | None = None, load=pipelines.load) -> list[Progress]:
    return list(run.execute_run(plan, folder, stop, load))


def weights(folder: store.RunFolder) -> dict:
    from safetensors.torch import load_file

    return load_file(folder.path / "export" / "pytorch_lora_weights.safetensors")


def told(folder: store.RunFolder, phase: str) -> list[dict]:
    """The numbers of a training's log, without the clock."""
    return [{"step": e["step"]} | e["metrics"] for e in folder.events() if e.get("phase") == phase]


def stopped(plan: Plan, folder: store.RunFolder, after: int) -> None:
    """Asked to stop once that many rounds are done."""
    stop = threading.Event()
    for p in run.execute_run(plan, folder, stop):
        if p.phase == "train" and p.batch == after:
            stop.set()


def same(ours: store.RunFolder, theirs: store.RunFolder) -> None:
    """One training, told twice: its log, what it took and its weights."""
    assert told(ours, "train") == told(theirs, "train") and told(ours, "watch") == told(theirs, "watch")
    assert counts(ours) == counts(theirs)
    assert all(torch.equal(v, weights(ours)[k]) for k, v in weights(theirs).items())


def counts(folder: store.RunFolder) -> list[int]:
    taught = folder.read("summary.json")["contestants"][1]["training"]
    return [taught[what] for what in ("updates", "samples", "nfe", "reward_calls", "decodes")]
