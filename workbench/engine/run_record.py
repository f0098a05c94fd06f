"""The record of a run (run.json): all that its results depend on, resolved, with digests of the files that it reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pipelines
from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.core.paths import ROOT
from workbench.core.types import prompt_key
from workbench.engine.user_objects import is_plain
from workbench.methods import name_of
from workbench.runs import config as configs
from workbench.runs import input_files
from workbench.runs.plan import Plan

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory: another in every process


def describe_run(plan: Plan) -> dict:
    """The content of run.json, without the status. Raises BadInput for a file of the run that can't be read."""
    config = dataclasses.asdict(plan.config)
    everyone = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {
        "name": plan.config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": plan.command,
        "config": config,
        **describe_parts(plan),
        "rewards": {n: r.spec.version for n, r in everyone.items()},
        "prompts": digest_prompts(plan),
        "inputs": input_files.digest_inputs(plan),
        "placement": {label: describe_placement(plan, p) for label, p in pipelines_by_label(plan).items()},
        "seed": plan.config.seed,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "git": _git_revision(),
        "device": plan.config.device,
    }


def describe_parts(plan: Plan) -> dict[str, Any]:
    """The resolved settings of a run's methods, pipelines and rewards; of a training in stages, also of each stage."""
    parts: dict[str, Any] = {
        "methods": {n: {"name": name_of(m)} | settings_as_json(m) for n, m in plan.methods.items()},
        "pipelines": {label: settings_as_json(p) for label, p in pipelines_by_label(plan).items()},
        "reward_settings": {
            name: {"class": class_path(r), "weight": part.weights[name], **settings_as_json(r)}
            for part in (plan.reward, plan.watch)
            if part is not None
            for name, r in part.rewards.items()
        },
    }
    for name, reward in plan.own_rewards.items():
        parts["methods"][name]["reward"] = dict(reward.weights)
    if plan.objects:
        parts["objects"] = dict(plan.objects)
    if plan.stages is not None:
        stages = zip(plan.stages.stages, plan.tasks, strict=True)
        parts["stages"] = {stage.name: describe_parts(task) for stage, task in stages}
    return parts


def pipelines_by_label(plan: Plan) -> dict[str, pipelines.PipelineConfig]:
    """The pipelines of a run by the text that names them in its config; those with a LoRA by that too."""
    if plan.config.stages is not None:
        return {pipeline_label(plan.config.pipeline): next(iter(plan.pipelines.values()))}
    labels = configs.pipeline_labels(plan.config)
    return {labels[n] + describe_lora(p): p for n, p in plan.pipelines.items()}


def describe_lora(pipeline: pipelines.PipelineConfig) -> str:
    """A clause on the LoRA that a pipeline is loaded with, "" for none."""
    strength = f" at {pipeline.lora_weight:g}" if pipeline.lora_weight != 1 else ""
    return f" with {pipeline.lora}{strength}" if pipeline.lora else ""


def describe_placement(plan: Plan, pipeline: pipelines.PipelineConfig) -> dict[str, str]:
    """Device and dtype that a pipeline is loaded with on this machine; {} for one that was loaded by the caller."""
    where = {key: getattr(plan.config, key) for key in ("device", "dtype", "attention")}
    try:
        device, dtype, _ = pipelines.plan_loading(pipeline, **where)
    except BadInput:  # a pipeline from Python, whose weights are in no folder
        return {}
    return {"device": device.type, "dtype": str(dtype).removeprefix("torch.")}


def class_path(part: Any) -> str:
    """`package.module:Class` of an object."""
    return f"{type(part).__module__}:{type(part).__qualname__}"


def settings_as_json(part: Any) -> dict[str, Any]:
    """The settings of a dataclass as JSON values, with the repr of other objects; {} for another object."""
    if not dataclasses.is_dataclass(part):
        return {}
    values = {f.name: getattr(part, f.name, None) for f in dataclasses.fields(part) if f.init}
    return {name: json_value(value) for name, value in values.items()}


def json_value(value: Any) -> Any:
    """The value itself where JSON can hold it (tuples become lists); else its repr without addresses in memory."""
    return json.loads(json.dumps(value)) if is_plain(value) else ADDRESS.sub("", repr(value))[:300]


def digest_prompts(plan: Plan) -> str:
    """SHA-256 of the prompts, their inputs and the seeds of a run: its config only names prompt files, which may be
    edited, and these name other files."""
    prompts: dict[str, Any] = {
        "rows": [[n, prompt_key(prompt), k, seed] for n, prompt, k, seed in plan.rows],
        "train": [*map(prompt_key, plan.train_prompts)],
        "held": [*map(prompt_key, plan.held_out_prompts)],
    }
    prompts |= {"stages": [[*map(prompt_key, task.train_prompts)] for task in plan.tasks]}
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def first_difference(before: Any, now: Any, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Any, Any] | None:
    """(keys on the way, value before, value now) of the first value that differs; None where none does. A key that one
    of two mappings lacks does not count: another version of the workbench wrote it."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        shared = [key for key in before if key in now]
        return next(filter(None, (first_difference(before[k], now[k], (*path, str(k))) for k in shared)), None)
    return None if before == now else (path, before, now)


def _git_revision() -> str:
    """The workbench's own revision, or '' outside a checkout."""
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        return ""
    process = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return process.stdout.strip()
