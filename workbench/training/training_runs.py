"""Trainings as a run folder keeps them: what is finished, where it lies, what it would take again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipelines
from pipelines import processes
from pipelines.trainable_policy import EMA
from workbench.core.types import BadInput
from workbench.methods import Sample, name_of
from workbench.runs import store, train_config
from workbench.runs.checkpoints import Shelf
from workbench.training.monitoring import Halted


def together(open_folder: Callable[[], Path], device: str) -> Path:
    """What the leading process opens, known to all of them."""
    if processes.count() == 1:
        return open_folder()
    import torch
    from accelerate.utils import broadcast_object_list

    processes.world(torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"))
    told = [None]
    if processes.leads():
        try:
            told = [open_folder()]
        except BadInput as error:
            told = [error]
    (found,) = broadcast_object_list(told)
    if isinstance(found, Exception):
        raise found
    return found


def shelf(plan, folder: store.RunFolder, name: str) -> Shelf:
    return Shelf(folder.path / "checkpoints" / name, plan.recipe.keep)


def exported(plan, folder: store.RunFolder, name: str) -> Path:
    """Where the trained weights of a contestant are exported to."""
    home = folder.path / "export"
    return home if len(plan.trained) == 1 else home / name


def trained(plan, folder: store.RunFolder):
    """The plan of what is made in the end: those that are trained, as they were exported; not those that failed."""
    ready = {n for n in plan.methods if n not in plan.trained or shelf(plan, folder, n).finished}
    methods = {n: delivers(m) if n in plan.trained else m for n, m in plan.methods.items() if n in ready}
    made = {
        n: pipelines.adapted(p, str(exported(plan, folder, n))) if n in plan.trained else p
        for n, p in plan.pipelines.items()
        if n in ready
    }
    return replace(plan, methods=methods, pipelines=made)


def delivers(method):
    """What samples with the weights that a method has trained."""
    return getattr(method, "delivers", Sample)()


def rewind(plan, folder: store.RunFolder) -> set[tuple[str, int]]:
    """Forget what unfinished batches and rounds beyond the newest checkpoint logged; returns the finished batches."""
    if not plan.trained:
        return folder.rewind()
    events = folder.events()
    done = {(e["contestant"], e["batch"]) for e in events if e.get("final") and not e.get("stopped")}
    reached = {name: shelf(plan, folder, name).reached() for name in plan.trained} if events else {}
    folder.keep(
        lambda e: (
            e["step"] <= reached[e["contestant"]]
            if "phase" in e or "alarm" in e
            else (e["contestant"], e.get("batch")) in done
        )
    )
    return done


def drawn(plan, name: str) -> int:
    """Samples that the training of contestant `name` draws, or media of the pairs that it is given."""
    if plan.tasks:
        return sum(drawn(task, task.trained[0]) for task in plan.tasks)
    each = getattr(plan.methods[name], "group", 1) if plan.pairs is None else 2
    return plan.recipe.prompts * plan.recipe.batches * each


def foreseen(plan, runs, name: str) -> dict[str, Any]:
    """Samples, seconds and memory that its training will take, by the newest finished training of the same method on the same
    pipeline here, a sample and an update of it being worth as much now."""
    samples, found = drawn(plan, name), {}
    for folder in store.folders(runs):
        run = folder.read()
        if run["config"]["pipeline"] != plan.config.pipeline:
            continue
        for c in folder.read("summary.json").get("contestants", ()):
            if c.get("method") == name_of(plan.methods[name]) and c.get("training", {}).get("samples"):
                found = found or c["training"]
    seconds = found["seconds"] / found["samples"] * samples if found else None
    return {"samples": samples, "seconds": seconds and round(seconds, 1), "peak_mb": found.get("peak_mb")}


def while_training(plan, name: str) -> pipelines.PipelineConfig:
    """The pipeline of contestant `name` as the recipe has it while it trains."""
    changes, base = train_config.overrides(plan.recipe), plan.pipelines[name]
    return replace(base, kernel=changes.get("kernel", base.kernel), call={**base.call, **changes.get("call", {})})


def policy_of(plan, name: str, load, **changes: str):
    """The policy of contestant `name`, ready to be trained; `changes` of device, dtype and attention."""
    config, recipe = plan.config, plan.recipe
    settings = {
        "lora": train_config.adapter(recipe),
        "clip": recipe.clip,
        "ema": recipe.ema,
        "blocks": recipe.checkpointing,
    }
    settings["shard"] = recipe.shard
    where = {key: getattr(config, key) for key in ("device", "dtype", "attention")} | changes
    return load(while_training(plan, name), **where, train=settings)


def copy_of(method, copies) -> str:
    """What is watched and delivered: the copy that the method names, or the average, once there is one; else the weights."""
    return next((name for name in (getattr(method, "result", None), EMA) if name in copies), "train")


def put_best(policy, kept: Shelf, method) -> tuple[str, int]:
    """Give a policy the best weights of a training; (what they are called in it, after which update they were taken)."""
    update = kept.best["update"]
    state = kept.load(update)
    if state is None:
        raise Halted(f"the best checkpoint, {update}, is damaged; start anew with --new")
    policy.adapters.load_state_dict(state["policy"]["adapters"])
    return copy_of(method, state["policy"]["adapters"]), update


def best(plan, folder: store.RunFolder, name: str, load=pipelines.load) -> tuple[Any, str, int]:
    """(policy, the name of its best weights, after which update they were taken) of a finished training."""
    shards = {"dtype": "fp32"} if plan.recipe.shard else {}  # what they are trained in, and one process has no shards
    policy = policy_of(plan, name, load, **shards)
    return policy, *put_best(policy, shelf(plan, folder, name), plan.methods[name])
