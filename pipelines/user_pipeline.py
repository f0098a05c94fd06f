"""Policies of diffusers pipelines that the user has loaded, which are restored afterwards."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from pipelines import seams, transitions
from pipelines.compat import patch_pipeline
from pipelines.config import PipelineConfig, check_call, list_names, read_config, refuse_unsupported
from pipelines.known_classes import INPUTS, MODALITIES
from pipelines.policy import Policy
from workbench.core.errors import BadInput
from workbench.core.schema import convert_value, suggest_nearest

GUIDANCE = ("guidance_scale", "true_cfg_scale", "audio_guidance_scale")  # arguments that scale guidance, by preference


class UserPipeline:
    """A loaded diffusers pipeline. Its policies share its weights; only the scheduler is copied.

    While a policy is in use, networks are frozen and in eval mode; `restore` undoes that. The pipeline object itself
    (scheduler, progress bar, attention) is never changed.
    """

    def __init__(self, pipe: Any, **overrides: Any):
        """`overrides` are fields of PipelineConfig: steps, call, modality, ... Raises BadInput."""
        self.pipe = pipe
        self.config = override_config(describe_pipeline(pipe, overrides.get("modality")), overrides)
        self._modes: list[tuple[torch.nn.Module, bool]] = []
        self._gradients: list[tuple[torch.nn.Parameter, bool]] = []
        self._mended: Any = None

    def as_policy(self, *, device: str = "auto", dtype: str = "auto", attention: str = "auto") -> Policy:
        """A frozen Policy of the pipeline on its device. Raises BadInput for another device, dtype or attention than
        the pipeline's."""
        self._check_placement(device, dtype, attention)
        self._freeze()
        pipe = copy.copy(self.pipe)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        pipe._progress_bar_config = {"disable": True}
        config, had_patch = self.config, "get_text_features" in vars(getattr(pipe, "text_encoder", None) or object)
        patch_pipeline(pipe)
        if not had_patch and "get_text_features" in vars(getattr(pipe, "text_encoder", None) or object):
            self._mended = pipe.text_encoder
        kernel = transitions.make_kernel(**config.kernel) if config.kernel else None
        policy = Policy(pipe, kernel=kernel, **config.policy_settings)
        policy.config = config
        return policy

    def _check_placement(self, device: str, dtype: str, attention: str) -> None:
        parameter = next(
            (p for module in seams.named_networks(self.pipe).values() for p in module.parameters()), torch.empty(0)
        )
        if device not in ("auto", parameter.device.type, str(parameter.device)):
            raise BadInput(f"device: the pipeline is on {parameter.device}; move it there with pipe.to({device!r})")
        if dtype not in (
            "auto",
            {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(parameter.dtype),
        ):
            raise BadInput(f"dtype: the pipeline's weights are {parameter.dtype}; load it in another one first")
        if attention != "auto":
            raise BadInput("attention: is set on the pipeline itself; leave it at auto")

    def _freeze(self) -> None:
        if self._modes:  # frozen already
            return
        modules = seams.named_networks(self.pipe).values()
        self._modes = [(part, part.training) for module in modules for part in module.modules()]
        self._gradients = [(p, p.requires_grad) for module in modules for p in module.parameters()]
        for module in modules:
            module.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the pipeline by save_pretrained, of a copy, as diffusers would change the pipeline's config."""
        pipe = copy.copy(self.pipe)
        pipe._internal_dict = type(pipe.config)(dict(pipe.config))
        pipe.save_pretrained(folder, safe_serialization=True)

    def restore(self) -> None:
        """Restore every network's training mode and requires_grad. Idempotent."""
        for part, training in self._modes:
            part.training = training
        for parameter, requires_grad in self._gradients:
            parameter.requires_grad_(requires_grad)
        if self._mended is not None:
            vars(self._mended).pop("get_text_features", None)
        self._modes, self._gradients, self._mended = [], [], None


def describe_pipeline(pipe: Any, modality: str | None = None) -> PipelineConfig:
    """The config of a loaded pipeline: that of configs/pipelines for the same weights, or its class's defaults. Raises
    BadInput for what is no diffusers pipeline, or can't be a policy."""
    cls = type(pipe).__name__
    if not callable(getattr(pipe, "from_pretrained", None)) or not seams.find_schedulers(pipe):
        raise BadInput(f"pipeline: expected a name, a folder or a diffusers pipeline with a scheduler, got {cls}")
    refuse_unsupported(cls, cls, INPUTS.get(cls, {}).values())
    source = str(getattr(pipe, "name_or_path", "") or "")
    scheduler = {"class": type(pipe.scheduler).__name__}
    alike = [c for c in map(read_config, list_names()) if c.pipeline == cls and is_source(c, source)] if source else []
    if alike:
        nearest = min(alike, key=lambda c: len(c.name))
        return replace(nearest, scheduler=scheduler, components={}, name=cls)
    arguments = inspect.signature(type(pipe).__call__).parameters
    if cls not in MODALITIES and modality is None:
        raise BadInput(f"pipeline: what {cls} makes is not known; say it: load(pipeline, modality='image')")
    known_modality, rate = MODALITIES.get(cls, ("image", 0.0))
    return PipelineConfig(
        cls,
        source or f"a loaded {cls}",
        steps=arguments["num_inference_steps"].default if "num_inference_steps" in arguments else 1,
        modality=known_modality,
        rate=rate,
        inputs=INPUTS.get(cls, {}),
        guidance=next((name for name in GUIDANCE if name in arguments), ""),
        scheduler=scheduler,
        name=cls,
    )


def is_source(config: PipelineConfig, source: str) -> bool:
    """Whether a config's weights are those of `source`, a hub id or a folder."""
    if config.repo == source:
        return True
    try:
        return config.folder is not None and Path(source).is_dir() and config.folder.samefile(source)
    except BadInput:  # a part of the starter pack that is not there
        return False


def override_config(config: PipelineConfig, overrides: Mapping[str, Any]) -> PipelineConfig:
    """The config with some of its fields replaced, checked as in a file. Raises BadInput, naming the nearest field."""
    kinds = get_type_hints(PipelineConfig, include_extras=True)
    names = {f.name for f in fields(PipelineConfig)} - {"name", "pipeline"}
    for key in overrides:
        if key not in names:
            raise BadInput(f"load: unknown setting {key!r}; {suggest_nearest(key, names)}")
    changed = {key: convert_value(value, kinds[key], f"load.{key}") for key, value in overrides.items()}
    config = replace(config, **changed)
    check_call(config, config.name or config.repo)
    return config
