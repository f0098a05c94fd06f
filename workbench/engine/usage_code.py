"""The Python that uses an export in plain diffusers: the pipeline as its config loads it, then the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipelines
from workbench.core.paths import resolve_repo
from workbench.engine import input_checks

DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}


def write_usage(config: pipelines.PipelineConfig, load_lines: list[str], dtype: str) -> str:
    """Python, ready to run but for a prompt, that loads the base of an export, its weights, and samples. `load_lines`
    load the weights into `pipe`; `dtype` is the name of one of torch's."""
    dtype = f"torch.{dtype}"
    lines = [_load_base(config, dtype)]
    for name, spec in config.components.items():
        lines += _load_component(name, spec, dtype)
    if config.scheduler:
        lines.append(_make_scheduler(config.scheduler))
    lines += [*load_lines, _call(config)]
    modules = (
        "diffusers",
        "huggingface_hub",
        "peft",
        "safetensors.torch",
        "soundfile",
        "torch",
        "workbench.core.paths",
    )
    imports = [f"import {name}" for name in modules if any(f"{name}." in line for line in lines)]
    return "\n".join([*imports, "", *lines])


def list_base_repos(config: pipelines.PipelineConfig) -> list[str]:
    """The repositories whose weights the export needs: those of replaced networks, the denoiser's first, then that of
    the pipeline."""
    names = sorted(config.components, key=lambda name: not name.startswith(("unet", "transformer")))
    specs = [config.components[name] for name in names]
    repos = [spec.get("repo") if isinstance(spec, dict) else spec for spec in specs]
    return list(dict.fromkeys([*(repo for repo in repos if isinstance(repo, str)), config.repo]))


def _load_base(config: pipelines.PipelineConfig, dtype: str) -> str:
    settings = {name: None for name, spec in config.components.items() if spec is None}
    settings |= {"requires_safety_checker": False} if "safety_checker" in settings else {}
    if config.variant:
        settings["variant"] = config.variant
    rest = f"torch_dtype={dtype}{_arguments(settings)}"
    if config.file:
        place = f"{config.file!r}, config={_place(config.repo)}"
        return f"pipe = diffusers.{config.pipeline}.from_single_file({place}, {rest})"
    return f"pipe = diffusers.{config.pipeline}.from_pretrained({_place(config.repo)}, {rest})"


def _load_component(name: str, spec: Any, dtype: str) -> list[str]:
    if spec is None or spec is True:
        return []
    spec = {"repo": spec} if isinstance(spec, str) else spec
    if "file" in spec:
        repo = spec.get("repo", "")
        local = Path(resolve_repo(repo) if repo else "", spec["file"]).expanduser()
        file = repr(str(local)) if local.is_file() else f"huggingface_hub.hf_hub_download({repo!r}, {spec['file']!r})"
        return [f"pipe.{name}.load_state_dict(safetensors.torch.load_file({file}))"]
    own = DTYPES.get(spec.get("dtype", ""), dtype)
    settings = {"subfolder": spec["subfolder"]} if "subfolder" in spec else {}
    return [
        f"pipe.{name} = type(pipe.{name}).from_pretrained({_place(spec['repo'])}, torch_dtype={own}"
        f"{_arguments(settings)})"
    ]


def _make_scheduler(settings: dict[str, Any]) -> str:
    settings = dict(settings)
    name, repo = settings.pop("class", None), settings.pop("repo", None)
    cls = f"diffusers.{name}" if name else "type(pipe.scheduler)"
    if repo:
        return f"pipe.scheduler = {cls}.from_pretrained({_place(repo)}, subfolder='scheduler'{_arguments(settings)})"
    return f"pipe.scheduler = {cls}.from_config(pipe.scheduler.config{_arguments(settings)})"


def _call(config: pipelines.PipelineConfig) -> str:
    inputs = "".join(f", {argument}={_read_input(config, name)}" for name, argument in config.inputs.items())
    settings = _arguments(config.call | config.text)
    return f"made = pipe('a prompt'{inputs}, num_inference_steps={config.steps}{settings})"


def _read_input(config: pipelines.PipelineConfig, name: str) -> str:
    """The Python that reads an input from a file of its name."""
    modality = input_checks.argument_modality(config, config.inputs[name])
    if modality == "audio":
        return f"torch.from_numpy(soundfile.read('{name}.wav', always_2d=True)[0].T[None]).float()"
    if modality == "video":
        return f"diffusers.utils.load_video('{name}.mp4')"
    return f"diffusers.utils.load_image('{name}.png')"


def _arguments(settings: dict[str, Any]) -> str:
    return "".join(f", {key}={value!r}" for key, value in settings.items())


def _place(repo: str) -> str:
    """The Python for a repository as diffusers takes it; parts of the starter pack are folders of the workbench."""
    return f"workbench.core.paths.resolve_repo({repo!r})" if repo.startswith("starter:") else repr(repo)
