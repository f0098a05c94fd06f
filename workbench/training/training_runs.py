"""Trainings in a run folder: which are finished, where checkpoints and exports are, and how long one will take."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipelines
from pipelines import processes
from pipelines.loading import resolve_device
from pipelines.trainable_policy import EMA
from workbench.core.errors import BadInput
from workbench.methods import Sample, name_of
from workbench.runs import store, train_config
from workbench.runs.checkpoints import CheckpointStore
from workbench.runs.plan import Plan
from workbench.runs.resolve import resolve_dependencies
from workbench.training.monitoring import TrainingHalted


def open_on_leader(open_folder: Callable[[], Path], device: str) -> Path:
    """The folder that the main process opens, sent to all processes. Its BadInput is raised in all of them."""
    if processes.count_processes() == 1:
        return open_folder()
    from accelerate.utils import broadcast_object_list

    processes.join_processes(resolve_device(device))
    messages = [None]
    if processes.is_main_process():
        try:
            messages = [open_folder()]
        except BadInput as error:
            messages = [error]
    (message,) = broadcast_object_list(messages)
    if isinstance(message, Exception):
        raise message
    return message


def checkpoint_store(plan: Plan, folder: store.RunFolder, name: str) -> CheckpointStore:
    """The checkpoints of contestant `name`."""
    return CheckpointStore(folder.path / "checkpoints" / name, plan.train_config.keep_last)


def export_folder(plan: Plan, folder: store.RunFolder, name: str) -> Path:
    """The folder to which the trained weights of a contestant are exported."""
    exports = folder.path / "export"
    return exports if len(plan.trained_contestants) == 1 else exports / name


def plan_with_exports(plan: Plan, folder: store.RunFolder) -> Plan:
    """The plan for the final samples: trained contestants use their exported weights; those whose training failed are
    left out."""
    names = {
        n
        for n in plan.methods
        if n not in plan.trained_contestants or checkpoint_store(plan, folder, n).finished_record
    }
    methods = {
        n: delivery_method(m) if n in plan.trained_contestants else m for n, m in plan.methods.items() if n in names
    }
    pipeline_configs = {
        # an export holds the LoRA that its training started from, too
        n: pipelines.with_lora(replace(p, lora=""), str(export_folder(plan, folder, n)))
        if n in plan.trained_contestants
        else p
        for n, p in plan.pipelines.items()
        if n in names
    }
    return replace(plan, methods=methods, pipelines=pipeline_configs)


def delivery_method(method: Any) -> Any:
    """The method that samples with the weights that `method` has trained."""
    return method.sampler() or Sample()


def rewind_run(plan: Plan, folder: store.RunFolder) -> set[tuple[str, int]]:
    """Remove from the log unfinished batches and rounds beyond the newest checkpoint; returns the finished batches,
    (contestant, batch)."""
    if not plan.trained_contestants:
        return folder.drop_unfinished()
    events = folder.events()
    finished = {(e["contestant"], e["batch"]) for e in events if e.get("final") and not e.get("stopped")}
    newest = (
        {name: checkpoint_store(plan, folder, name).newest_round() for name in plan.trained_contestants}
        if events
        else {}
    )
    folder.keep_events(
        lambda e: (
            e["step"] <= newest[e["contestant"]]
            if {"phase", "alarm", "warning"} & e.keys()
            else (e["contestant"], e.get("batch")) in finished
        )
    )
    return finished


def training_samples(plan: Plan, name: str) -> int:
    """How many samples the training of contestant `name` draws, or media of pairs it uses."""
    if plan.tasks:
        return sum(training_samples(task, task.trained_contestants[0]) for task in plan.tasks)
    each = plan.methods[name].group if plan.pairs is None else 2
    return plan.train_config.prompts_per_round * plan.train_config.total_batches * each


def estimate_training(plan: Plan, runs: Path, name: str) -> dict[str, Any]:
    """{"samples", "seconds", "peak_mb"} of a training, estimated by the newest finished training of the same method on
    the same pipeline in the folder `runs`; None without one."""
    samples, earlier = training_samples(plan, name), {}
    for folder in store.list_run_folders(runs):
        try:
            run = folder.read()
        except BadInput:
            continue  # an estimate does without what somebody damaged
        if run.get("config", {}).get("pipeline") != plan.config.pipeline:
            continue
        for c in folder.read("summary.json").get("contestants", ()):
            if c.get("method") == name_of(plan.methods[name]) and c.get("training", {}).get("samples"):
                earlier = earlier or c["training"]
    seconds = earlier["seconds"] / earlier["samples"] * samples if earlier else None
    return {"samples": samples, "seconds": seconds and round(seconds, 1), "peak_mb": earlier.get("peak_mb")}


def training_pipeline(plan: Plan, name: str) -> pipelines.PipelineConfig:
    """The pipeline of contestant `name` with the changes that `train.policy` asks for while it trains."""
    changes, base = train_config.policy_overrides(plan.train_config), plan.pipelines[name]
    return replace(base, kernel=changes.get("kernel", base.kernel), call={**base.call, **changes.get("call", {})})


def load_trainable(plan: Plan, name: str, load: Callable[..., Any], **changes: str) -> pipelines.TrainablePolicy:
    """The policy of contestant `name`, ready to be trained; `changes` override device, dtype and attention."""
    config, recipe = plan.config, plan.train_config
    settings = {
        "lora": train_config.lora_config(recipe),
        "clip": recipe.max_grad_norm,
        "ema": recipe.ema,
        "blocks": recipe.checkpointing,
        "shard": recipe.shard,
        "axes": resolve_dependencies(plan.methods[name]).dial_axes(plan.reward),
    }
    placement = {key: getattr(config, key) for key in ("device", "dtype", "attention")} | changes
    return load(training_pipeline(plan, name), **placement, train=settings)


def delivered_copy(method: Any, copies: Collection[str]) -> str:
    """The copy of the weights that is evaluated and exported: the one that the method names, else the average (EMA),
    else "train"."""
    return next((name for name in (method.delivered_copy, EMA) if name in copies), "train")


def load_best_weights(
    policy: pipelines.TrainablePolicy, checkpoints: CheckpointStore, method: Any, number: int | None = None
) -> tuple[str, int]:
    """Load the best weights of a training, or those of round `number`, into a policy; returns (name of the copy to use,
    its round). Raises TrainingHalted for a damaged checkpoint."""
    update = checkpoints.best_record["update"] if number is None else number
    state = checkpoints.load(update)
    if state is None or not isinstance(state.get("policy"), dict) or "adapters" not in state["policy"]:
        which = "best checkpoint" if number is None else "checkpoint of round"
        raise TrainingHalted(f"the {which}, {update}, is damaged; start anew with --new")
    policy.adapters.load_state_dict(state["policy"]["adapters"])
    return delivered_copy(method, state["policy"]["adapters"]), update


def load_best_policy(
    plan: Plan, folder: store.RunFolder, name: str, load=pipelines.load, number: int | None = None
) -> tuple[Any, str, int]:
    """(policy, name of the copy to use, its round) with the best weights of a finished training, or those of round
    `number`."""
    changes = {"dtype": "fp32"} if plan.train_config.shard else {}  # the dtype of shards; this is one process
    policy = load_trainable(plan, name, load, **changes)
    return policy, *load_best_weights(policy, checkpoint_store(plan, folder, name), plan.methods[name], number)
