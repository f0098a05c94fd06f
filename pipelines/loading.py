"""Loading: from a config to a Policy on a device. Only safetensors are loaded; local folders are checked first."""

from __future__ import annotations

import copy
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines import lora_loading, processes, schedule, seams, transitions, weight_folder
from pipelines.compat import patch_pipeline
from pipelines.trainable_policy import COUNTS, TrainablePolicy
from workbench.core.errors import BadInput
from workbench.core.paths import resolve_repo
from workbench.core.schema import suggest_nearest

from . import attention as kernels
from .config import DECODED_SINGLY, OPTIONAL_COMPONENTS, PipelineConfig, check_call, read_config, refuse_unsupported
from .policy import Policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(
    config: str | Path | PipelineConfig,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    attention: str = "auto",
    train: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Policy:
    """A frozen Policy of a pipeline: `load("starter-image")`, `load("sdxl-turbo", repo="/models/sdxl-turbo")`.

    With `train` it is a TrainablePolicy with these settings of its own: `load("sdxl", train={"lora": Lora(rank=8)})`.
    `overrides` replace fields of the config. device: auto, cpu, cuda, cuda:1. dtype: fp32, bf16, fp16; by default
    fp32 on a CPU and the config's own (or bf16) on a GPU. attention: auto, sdpa, xformers, flash. Raises BadInput
    before any weight loads, for every fault that `plan_loading` finds.
    """
    config = replace(read_config(config), **overrides)
    where, kind, chosen = plan_loading(config, device=device, dtype=dtype, attention=attention, train=train)
    if where.type == "cuda":
        if where.index is not None:
            torch.cuda.set_device(where)  # for code that uses the current device, such as memory statistics
        # float32 adapters and rewards next to half-precision weights may use TF32, which is many times faster
        torch.set_float32_matmul_precision("highest" if kind == torch.float32 else "high")
    kernel = transitions.make_kernel(**config.kernel) if config.kernel else None
    make = partial(_load_pipeline, config, kind, where, chosen)
    pipe = make({})
    make_policy: Callable[..., Policy] = Policy if train is None else partial(TrainablePolicy, source=make, **train)
    policy = make_policy(
        pipe,
        modality=config.modality,
        rate=config.rate,
        steps=config.steps,
        call=config.call,
        text=config.text,
        kernel=kernel,
        guidance=config.guidance,
        attention=chosen,
    )
    policy.config = config
    if "stochastic" not in policy.provides and kernel is not None:
        schedule.noise_levels(pipe.scheduler)  # raises TypeError, naming the known ones
    return policy


def sampling_view(policy: TrainablePolicy, config: PipelineConfig) -> Policy:
    """A policy that samples as `config` says, without the kernel and call settings of training, and shares the live
    weights of `policy`. Costs no memory."""
    pipe = copy.copy(policy.pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    kernel = transitions.make_kernel(**config.kernel) if config.kernel else None
    settings: dict[str, Any] = dict(
        modality=config.modality, rate=config.rate, steps=config.steps, call=config.call, text=config.text
    )
    return Policy(pipe, kernel=kernel, guidance=config.guidance, attention=policy.attention, **settings)


def as_sibling(policy: TrainablePolicy, config: PipelineConfig) -> TrainablePolicy:
    """A policy that shares the weights and adapters of `policy`, but trains and samples as another `config` says, with
    an optimiser and counts of its own."""
    twin = copy.copy(policy)
    for cached in ("structure", "_has_momentum", "levels", "_decode_path", "_output_layer"):  # of the other config
        vars(twin).pop(cached, None)
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
    refuse_unsupported(config.pipeline, config.name or config.repo)
    check_call(config, config.name or config.repo)
    where, kind = resolve_device(device), resolve_dtype(dtype, config, device)
    chosen = kernels.choose_backend(attention, where, kind, config.pipeline)
    if config.lora:
        lora_loading.find_lora(config.lora)
    if local := config.folder:
        weight_folder.check_folder(
            local, config.pipeline, config.components, OPTIONAL_COMPONENTS.get(config.pipeline, ())
        )
    if config.kernel:
        transitions.make_kernel(**config.kernel)
    if train is not None:
        _check_training(train, kind, where, config)
    return where, kind, chosen


def _check_training(train: Mapping[str, Any], dtype: torch.dtype, device: torch.device, config: PipelineConfig) -> None:
    """Check the training settings, and select this process's GPU where several were launched. Raises BadInput."""
    if config.lora:
        raise BadInput(
            f"{config.name or config.repo}: has a LoRA on, {config.lora}; export it merged and train on that"
        )
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
    pipe = patch_pipeline(_without_progress_bars(_build_pipeline, config, dtype, shared))
    if config.slicing or config.pipeline in DECODED_SINGLY:
        pipe.vae.enable_slicing()
    for module in seams.named_networks(pipe).values():
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(where)
    kernels.install_backend(pipe, attention.split()[0])
    return pipe


def _without_progress_bars(work: Callable, *args: Any) -> Any:
    """The result of work(*args), without the loading bars of diffusers and transformers, and without FutureWarnings of
    torch, which only these libraries could act on."""
    import diffusers
    import transformers

    libraries = [lib.utils.logging for lib in (diffusers, transformers)]
    were_enabled = [lib.is_progress_bar_enabled() for lib in libraries]
    for lib in libraries:
        lib.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return work(*args)
    finally:
        for lib, on in zip(libraries, were_enabled, strict=True):
            if on:
                lib.enable_progress_bar()


def _build_pipeline(config: PipelineConfig, dtype: torch.dtype, shared: Mapping[str, Any]) -> Any:
    """The pipeline with the config's components, LoRA and scheduler. Raises BadInput."""
    import diffusers

    cls = getattr(diffusers, config.pipeline, None)
    if not (inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline)):
        class_names = [n for n in dir(diffusers) if n.endswith("Pipeline")]
        raise BadInput(
            f"class: diffusers has no pipeline {config.pipeline!r}; {suggest_nearest(config.pipeline, class_names)}"
        )
    repo = str(config.folder or config.repo)
    index, parts, files = _component_index(cls, repo), {}, {}
    for name, spec in config.components.items():
        if name not in index:
            raise BadInput(f"components: {config.pipeline} has no component {name!r}; {suggest_nearest(name, index)}")
        if name in shared:
            continue
        if isinstance(spec, dict) and "file" in spec:
            files[name] = _load_weights(name, **spec)
        else:
            parts[name] = None if spec is None else _load_component(name, index[name], spec, dtype)
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    parts |= {name: part for name, part in shared.items() if name in index}
    try:
        pipe = cls.from_pretrained(repo, dtype=dtype, use_safetensors=True, **parts)
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"{repo}: {_first_line(error)}") from error
    for name, state in files.items():
        getattr(pipe, name).load_state_dict(state)
    if config.lora:
        lora_loading.install_lora(pipe, config.lora)
    if config.scheduler:
        pipe.scheduler = _make_scheduler(pipe, config)
    return pipe


def _component_index(cls: Any, repo: str) -> dict[str, Any]:
    """Component -> [module, class], as in model_index.json, and for further networks that the class accepts."""
    from diffusers import ModelMixin

    kinds = {name: next(iter(types), None) for name, types in cls._get_signature_types().items()}
    nets = {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, ModelMixin)}
    try:
        return {name: [kind.__module__, kind.__name__] for name, kind in nets.items()} | cls.load_config(repo)
    except OSError as error:
        raise BadInput(f"repo: {repo} is neither a local folder nor a reachable hub repository") from error


def _load_component(name: str, entry: list, spec: Any, dtype: torch.dtype) -> Any:
    """A component loaded from another repository, of the class that model_index.json names. Raises BadInput."""
    spec = {"repo": spec} if isinstance(spec, str) else dict(spec)
    if unknown := set(spec) - {"repo", "subfolder", "dtype"}:
        raise BadInput(f"components.{name}: unknown key {min(unknown)!r}; known: dtype, file, repo, subfolder")
    repo, sub, dtype = resolve_repo(spec["repo"]), spec.get("subfolder", ""), DTYPES.get(spec.get("dtype"), dtype)
    if Path(repo, sub).is_dir():
        weight_folder.check_weights(Path(repo, sub))
    cls = getattr(importlib.import_module(entry[0]), entry[1])
    try:
        return cls.from_pretrained(repo, subfolder=sub, dtype=dtype, use_safetensors=True)
    except OSError as error:
        raise BadInput(f"components.{name}: {repo}: {_first_line(error)}") from error


def _load_weights(name: str, repo: str, file: str) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file in another repository, to be loaded into a component of the base pipeline."""
    import safetensors.torch
    from huggingface_hub import hf_hub_download

    local = Path(resolve_repo(repo), file)
    if not local.is_file():
        try:
            local = Path(hf_hub_download(repo, file))
        except (OSError, ValueError) as error:
            raise BadInput(f"components.{name}: {repo}/{file}: {_first_line(error)}") from error
    weight_folder.check_file(local)
    return safetensors.torch.load_file(local)


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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
