"""Loading: from a config to a Policy on a device. Only safetensors are loaded; local folders are checked first."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from pipelines import guards, lora_loading, lora_source, processes, schedule, seams, transitions
from pipelines.compat import patch_pipeline
from pipelines.component_sources import DTYPES, choose_variant
from pipelines.components import build_components, check_components
from pipelines.dial_files import check_dials, check_new_dials
from pipelines.ip_adapter import check_ip_adapter, install_ip_adapter
from pipelines.known_classes import DECODED_SINGLY
from pipelines.lora_start import merge_start
from pipelines.trainable_policy import COUNTS, TrainablePolicy
from workbench.core.errors import BadInput
from workbench.core.paths import resolve_repo
from workbench.core.schema import suggest_nearest
from workbench.core.weights.libraries import quiet_libraries

from . import attention as kernels
from .config import PipelineConfig, check_call, read_config, refuse_unsupported
from .policy import Policy


def load(
    config: str | Path | PipelineConfig,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    attention: str = "auto",
    train: Mapping[str, Any] | None = None,
    like: Policy | None = None,
    **overrides: Any,
) -> Policy:
    """A frozen Policy of a pipeline: `load("starter-image")`, `load("sdxl-turbo", repo="/models/sdxl-turbo")`.

    With `train` it is a TrainablePolicy with these settings of its own: `load("sdxl", train={"lora": Lora(rank=8)})`.
    `overrides` replace fields of the config. device: auto, cpu, cuda, cuda:1. dtype: fp32, bf16, fp16; by default
    fp32 on a CPU and the config's own (or bf16) on a GPU. attention: auto, sdpa, xformers, flash. Raises BadInput
    before any weight loads, for every fault that `plan_loading` finds. like: a policy whose config `shares_weights`
    with this one, whose networks are used again.
    """
    config = replace(read_config(config), **overrides)
    where, kind, chosen = plan_loading(config, device=device, dtype=dtype, attention=attention, train=train)
    config = replace(config, variant=choose_variant(config))  # which exports record
    if where.type == "cuda":
        if where.index is not None:
            torch.cuda.set_device(where)  # for code that uses the current device, such as memory statistics
        # float32 adapters and rewards next to half-precision weights may use TF32, which is many times faster
        torch.set_float32_matmul_precision("highest" if kind == torch.float32 else "high")
    kernel = transitions.make_kernel(**config.kernel) if config.kernel else None
    if like is not None:
        policy, notes = sampling_view(like, config), like.notes
    else:
        make = partial(_load_pipeline, config, kind, where, chosen)  # without the LoRA
        pipe = make({})
        installation = lora_loading.install_lora(pipe, config) if config.lora else None
        make_policy: Callable[..., Policy] = Policy
        if train is not None:
            start = merge_start(pipe, installation.replaced) if installation else None
            make_policy = partial(TrainablePolicy, source=make, start_lora=start, **train)
        policy = make_policy(pipe, kernel=kernel, attention=chosen, **config.policy_settings)
        notes = installation.notes if installation else ()
    policy.config, policy.notes = config, notes
    if "stochastic" not in policy.provides and kernel is not None:
        schedule.noise_levels(policy.pipe.scheduler)  # raises TypeError, naming the known ones
    return policy


def shares_weights(one: PipelineConfig, other: PipelineConfig) -> bool:
    """Whether two pipelines differ in nothing but how they are called: how often, with which arguments and kernel."""
    names = ("name", "steps", "call", "text", "guidance", "kernel")
    return replace(one, **{name: getattr(other, name) for name in names}) == other


def sampling_view(policy: Policy, config: PipelineConfig) -> Policy:
    """A policy that samples as `config` says, without the kernel and call settings of training, and shares the live
    weights of `policy`. Costs no memory."""
    pipe = copy.copy(policy.pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    kernel = transitions.make_kernel(**config.kernel) if config.kernel else None
    return Policy(pipe, kernel=kernel, attention=policy.attention, **config.policy_settings)


def as_sibling(policy: TrainablePolicy, config: PipelineConfig) -> TrainablePolicy:
    """A policy that shares the weights and adapters of `policy`, but trains and samples as another `config` says, with
    an optimiser and counts of its own."""
    twin = copy.copy(policy)
    for name, member in vars(Policy).items():  # of the other config
        if isinstance(member, cached_property):
            vars(twin).pop(name, None)
    vars(twin).update(vars(sampling_view(policy, config)))
    twin.load_learner_state({"optimizer": None, "counts": dict.fromkeys(COUNTS, 0)})
    twin._optimizer = None
    return twin


def plan_loading(
    config: PipelineConfig,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    attention: str = "auto",
    train: Mapping[str, Any] | None = None,
) -> tuple[torch.device, torch.dtype, str]:
    """Device, dtype and attention kernels that `load` will use. Raises BadInput for every fault that can be found
    without loading weights: in the pipeline class, device, kernels, files of a local folder, and training settings."""
    refuse_unsupported(
        config.pipeline, config.name or config.repo, {*config.call, *config.text, *config.inputs.values()}
    )
    check_call(config, config.name or config.repo)
    where, kind = resolve_device(device), resolve_dtype(dtype, config, device)
    chosen = kernels.choose_backend(attention, where, kind, config.pipeline)
    if config.lora:
        lora_source.find_lora(config.lora)
    check_components(config)
    check_ip_adapter(config)
    check_dials(config)
    if config.kernel:
        transitions.make_kernel(**config.kernel)
    if train is not None:
        _check_training(train, kind, where)
        if train.get("axes"):
            check_new_dials(config, bool(train.get("shard")))
        if config.ip_adapter and getattr(train.get("lora"), "targets", "") == "weights":
            raise BadInput("targets: weights can't be trained beside an IP-Adapter, which changes them; train a LoRA")
    return where, kind, chosen


def describe_loading(config: PipelineConfig) -> list[str]:
    """Sentences on what `load` does that a config does not say: files of a variant, one file for all, safety checkers
    that are off. Raises BadInput for a folder that can't be read."""
    lines, base = guards.describe_guards(config), config.folder
    if config.file:
        lines.append(f"made of the one file {config.file}, with the settings of {config.repo}")
    elif base is not None and not config.variant and (variant := choose_variant(config)):
        lines.append(f"its folder has only files of the variant {variant}, so these are loaded")
    return lines


def _check_training(train: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    """Check the training settings, and select this process's GPU where several were launched. Raises BadInput."""
    several = processes.join_processes(device).num_processes > 1
    sharded = train.get("shard") and several  # shards are float32, whatever the dtype of computation
    lora = train.get("lora")
    if lora is not None and lora.targets == "weights" and dtype not in {torch.float32, sharded and torch.bfloat16}:
        raise BadInput(
            f"targets: weights are trained in float32, and this pipeline loads in {dtype}; use dtype: fp32, "
            "or bf16 and train.shard with several processes"
        )


def _load_pipeline(
    config: PipelineConfig, dtype: torch.dtype, where: torch.device, attention: str, shared: Mapping[str, Any]
) -> Any:
    """The pipeline, frozen and on its device, with `shared` components of another one in place of its own."""
    with quiet_libraries():
        pipe = patch_pipeline(_build_pipeline(config, dtype, shared))
    if config.slicing or config.pipeline in DECODED_SINGLY:
        pipe.vae.enable_slicing()
    for module in seams.named_networks(pipe).values():
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(where)
    kernels.install_backend(pipe, attention.split()[0])
    return pipe


def _build_pipeline(config: PipelineConfig, dtype: torch.dtype, shared: Mapping[str, Any]) -> Any:
    """The pipeline with the config's components, IP-Adapter and scheduler. Raises BadInput."""
    pipe = build_components(config, dtype, shared)
    if config.ip_adapter:
        install_ip_adapter(pipe, config, dtype, shared)
    if config.scheduler:
        pipe.scheduler = _make_scheduler(pipe, config)
    return pipe


def _make_scheduler(pipe: Any, config: PipelineConfig) -> Any:
    """The scheduler of another class, or with other settings. Raises BadInput for an unknown setting, which diffusers
    would drop silently."""
    import diffusers

    settings = dict(config.scheduler)
    name, repo = settings.pop("class", type(pipe.scheduler).__name__), settings.pop("repo", None)
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise BadInput(f"scheduler: diffusers has no {name!r}; {suggest_nearest(name, schedule.FAMILIES)}")
    setting_names = set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
    if unknown := set(settings) - setting_names:
        raise BadInput(
            f"scheduler: {name} has no setting {min(unknown)!r}; {suggest_nearest(min(unknown), setting_names)}"
        )
    base = cls.load_config(resolve_repo(repo), subfolder="scheduler") if repo else dict(pipe.scheduler.config)
    # without _use_default_values, which would undo settings
    base = {key: value for key, value in base.items() if not key.startswith("_")}
    return cls.from_config({**base, **settings})


def resolve_device(device: str) -> torch.device:
    """The device that a text names; "auto" is a GPU if there is one. Raises BadInput."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise BadInput(f"device: {device!r} is not one; known: auto, cpu, cuda, cuda:1, ...") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device: torch sees {torch.cuda.device_count()} GPUs here, so {device} can't be used; try: cpu")
    if where.type == "cuda" and where.index is not None and processes.count_processes() > 1:
        raise BadInput(f"device: {device} would put every process on one GPU; with accelerate launch use: auto")
    return where


def resolve_dtype(dtype: str | torch.dtype | None, config: PipelineConfig, device: str) -> torch.dtype:
    """The dtype that is asked for; by default fp32 on a CPU, the config's own or bf16 on a GPU. Raises BadInput."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "", "auto"):
        gpu = resolve_device(device).type != "cpu"
        return DTYPES[config.dtype or "bf16"] if gpu else torch.float32
    if dtype not in DTYPES:
        raise BadInput(f"dtype: {dtype!r} is not a choice; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]
