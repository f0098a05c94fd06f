"""The Python that uses an export in plain diffusers: the pipeline as its config loads it, then the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipelines
from pipelines.call_arguments import read_arguments
from pipelines.conditions import AREA, FREE_SIZE, RATES, UNBATCHED
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
    if config.ip_adapter:
        lines += _load_ip_adapter(pipelines.config.IPAdapterConfig(**config.ip_adapter))
    lines += [*load_lines, _call(config)]
    modules = (
        "PIL.ImageOps",
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


def _load_ip_adapter(adapter: pipelines.config.IPAdapterConfig) -> list[str]:
    folder, _, file = adapter.file.rpartition("/")
    encoder = f"./{adapter.encoder}" if adapter.encoder and folder else adapter.encoder or None  # from the repo's root
    return [
        f"pipe.load_ip_adapter({_place(adapter.repo)}, subfolder={folder!r}, weight_name={file!r}, "
        f"image_encoder_folder={encoder!r})",
        f"pipe.set_ip_adapter_scale({adapter.scale})",
    ]


def _call(config: pipelines.PipelineConfig) -> str:
    inputs = "".join(f", {argument}={_read_input(config, name)}" for name, argument in config.inputs.items())
    implied: dict[str, Any] = {
        RATES[argument]: round(config.rate) for argument in config.inputs.values() if argument in RATES
    }
    if (size := _find_size(config)) and AREA in (read_arguments(config.pipeline) or ()):
        implied[AREA] = size[0] * size[1]
    settings = _arguments(implied | config.call | config.text)
    return f"made = pipe(prompt='a prompt'{inputs}, num_inference_steps={config.steps}{settings})"


def _find_size(config: pipelines.PipelineConfig) -> tuple[int, int] | None:
    """(H,W) to which a run brings pictures, where the config says it."""
    height, width = config.input_size[-2:] or (config.call.get("height"), config.call.get("width"))
    return (height, width) if height and width else None


def _read_input(config: pipelines.PipelineConfig, name: str) -> str:
    """The Python that reads an input from a file of its name, as a run does; sounds are as long, and of as many
    channels and values a second, as they are."""
    argument = config.inputs[name]
    modality = input_checks.argument_modality(config, argument)
    if modality == "audio":
        sound = f"torch.from_numpy(soundfile.read('{name}.wav', always_2d=True)[0].T).float()"
        return sound if argument in UNBATCHED else f"{sound}[None]"
    size = None if name in FREE_SIZE else _find_size(config)
    if modality == "video":
        frames = config.input_size[0] if len(config.input_size) == 3 else config.call.get("num_frames")
        clip = f"diffusers.utils.load_video('{name}.mp4')" + (f"[:{frames}]" if frames else "")
        return f"[{_fit_picture('x', size)} for x in {clip}]" if size else clip
    picture = f"diffusers.utils.load_image('{name}.png')"
    if name == "mask":
        return _fit_picture(f"{picture}.convert('L')", size, "NEAREST") + ".point(lambda x: 255 * (x > 127))"
    return _fit_picture(picture, size)


def _fit_picture(picture: str, size: tuple[int, int] | None, how: str = "BICUBIC") -> str:
    """The Python for a picture that is scaled until it covers (H,W), and cropped at the middle."""
    return f"PIL.ImageOps.fit({picture}, ({size[1]}, {size[0]}), PIL.Image.Resampling.{how})" if size else picture


def _arguments(settings: dict[str, Any]) -> str:
    return "".join(f", {key}={value!r}" for key, value in settings.items())


def _place(repo: str) -> str:
    """The Python for a repository as diffusers takes it; parts of the starter pack are folders of the workbench."""
    return f"workbench.core.paths.resolve_repo({repo!r})" if repo.startswith("starter:") else repr(repo)
