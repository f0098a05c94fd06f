"""Pipeline configs: read and checked before any weight loads or diffusers is imported."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipelines import lora_source, variants
from pipelines.call_arguments import check_arguments, read_arguments, read_default, required_arguments
from pipelines.known_classes import (
    BLENDING,
    FIXED_ARGUMENTS,
    INPUTS,
    MODALITIES,
    OPTIONAL_INPUTS,
    REFUSED,
    TRUNCATING,
    text_class,
)
from pipelines.weight_folder import component_class, read_pipeline_class
from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES
from workbench.core.io.parsing import read_yaml
from workbench.core.paths import CONFIGS, resolve_repo
from workbench.core.schema import build_dataclass, convert_value, suggest_nearest
from workbench.core.text import one_line, quote_value
from workbench.core.types import Count, Modality

from .schedule import FAMILIES

FOLDER = CONFIGS / "pipelines"
MAX_SOURCE_LENGTH = 1000  # letters; paths are limited to 4,096 on Linux, 1,024 on macOS

# Arguments of a pipeline's call that only the workbench sets.
COUNT_ARGUMENTS = frozenset(f"num_{kind}_per_prompt" for kind in ("images", "videos", "waveforms"))
RESERVED_ARGUMENTS = COUNT_ARGUMENTS | {
    "prompt",
    "generator",
    "latents",
    "output_type",
    "return_dict",
    "num_inference_steps",
}


@dataclass(frozen=True)
class KernelConfig:
    """How a chain is sampled with noise at every step; see pipelines.transitions."""

    name: str  # ancestral, cps or flow-sde
    eta: float | None = None  # how much noise; not given: the kernel's own


@dataclass(frozen=True)
class IPAdapterConfig:
    """Weights by which a denoiser reads a reference picture; see pipelines.ip_adapter."""

    repo: str  # a hub id or a folder
    file: str  # its safetensors file
    encoder: str = ""  # the folder of its picture encoder; not given: the pipeline's own
    scale: float = 1.0  # how much the picture counts


def read_kernel(block: Mapping, where: str) -> dict:
    """The settings of a `kernel` block, checked. Raises BadInput."""
    kernel = build_dataclass(KernelConfig, block, where)
    return {key: value for key, value in asdict(kernel).items() if value is not None}


@dataclass(frozen=True)
class PipelineConfig:
    """A diffusers pipeline and how to call it. In YAML, `pipeline` is written `class`."""

    pipeline: str  # the diffusers class
    repo: str  # a hub id, a folder, or a part of the starter pack: starter:image/teacher
    steps: Count  # num_inference_steps
    modality: Modality = "image"
    rate: float = 0.0  # video: frames per second; audio: samples per second
    call: dict = field(default_factory=dict)  # further arguments of the pipeline's call
    text: dict = field(default_factory=dict)  # arguments that are repeated for each prompt: negative_prompt, lyrics
    # input that comes with each prompt (source, mask, reference, control, first, last, audio) -> argument of the call;
    # by default those of the class; null: the class does without
    inputs: dict = field(default_factory=dict)
    # [H,W] of pictures or [T,H,W] of clips that come with prompts, where no argument of the call says it
    input_size: list = field(default_factory=list)
    guidance: str = "guidance_scale"  # the argument that scales guidance; "" where it is no argument of the call
    scheduler: dict = field(default_factory=dict)  # {class: ..., repo: ..., and settings of that scheduler}
    # name -> null (none), true (the pipeline's own), a repo, {repo, subfolder, dtype}, {repo, file} or {file}
    components: dict = field(default_factory=dict)
    ip_adapter: dict = field(default_factory=dict)  # {repo, file, encoder, scale}: reads a reference picture
    kernel: dict = field(default_factory=dict)  # {name: ancestral | cps | flow-sde, eta: ...}, to sample by
    variant: str = ""  # of the weight files: fp16 for model.fp16.safetensors; by default plain ones, or the only ones
    file: str = ""  # one safetensors file with the whole pipeline; `repo` has the settings and what the file lacks
    lora: str = ""  # a safetensors file, or a folder that a training exported, to load
    lora_weight: float = 1.0  # its strength: 0 is the pipeline without it, 1 as it was trained
    any_base: bool = False  # take a LoRA whose record says that it was trained on other weights
    slicing: bool = False  # the autoencoder decodes one sample at a time: less memory for batches of clips
    dtype: str = ""  # on a GPU: bf16 or fp16; on a CPU the default is always fp32
    # of weights trained by reward_condition: axis -> 0 to 5, the best; 5 where it is not given; null: not said
    dials: dict = field(default_factory=dict)
    name: str = ""  # the name or path that it was read from

    @property
    def provides(self) -> frozenset[str]:
        """The capabilities that methods may need, as far as they are known before weights load. An unchanged scheduler
        of a hub repository counts as known; if it isn't, `Policy.transition` raises TypeError."""
        name = self.scheduler.get("class")
        if name is None and (local := self.folder):
            name = component_class(local, "scheduler")
        is_known = (not name or name in FAMILIES) and self.pipeline not in BLENDING
        return frozenset({"latents", "trainable"} | ({"stochastic"} if is_known else set()))

    @property
    def steps_taken(self) -> int:
        """How many of the schedule's `steps` a call takes: fewer where it starts from a source, whose share `strength`
        says."""
        strength = self.call.get("strength", read_default(self.pipeline, "strength"))
        if not isinstance(strength, (int, float)):
            return self.steps
        share = min(self.steps * float(strength), self.steps)
        return int(share) if self.pipeline in TRUNCATING else self.steps - int(self.steps - share)

    @property
    def policy_settings(self) -> dict[str, Any]:
        """The settings of a Policy that samples as this config says, but for its kernel."""
        names = ("modality", "rate", "steps", "call", "text", "inputs", "input_size", "guidance", "dials")
        return {name: getattr(self, name) for name in names}

    @property
    def folder(self) -> Path | None:
        """The local folder of the weights, or None for a hub id. Raises BadInput for a missing part of the pack."""
        try:
            path = Path(resolve_repo(self.repo)).expanduser()
        except FileNotFoundError as error:
            raise BadInput(str(error)) from error
        try:
            return path if path.is_dir() else None
        except OSError as error:
            raise BadInput(f"repo: {one_line(path, 100)} can't be looked for ({error.strerror})") from None


def list_names() -> list[str]:
    """The names of the configs in configs/pipelines."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_config(source: str | Path | Mapping | PipelineConfig) -> PipelineConfig:
    """A config by its name in configs/pipelines, by a YAML file, or made for a folder of weights.

    The folder of a training run, or of its export, is the base with the trained weights. Each of these can be changed:
    {name: flux-dev, steps: 8, call: {height: 384}}.

    Raises BadInput, in one sentence, for an unknown name or key, a wrong type, or a pipeline class that can't be a
    policy.
    """
    if isinstance(source, PipelineConfig):
        return source
    current: str | Path | Mapping = variants.current_source(source)
    if isinstance(current, Mapping):
        name, changes = variants.split_variant(current)
        return change_config(read_config(name), changes)
    source = current
    if len(str(source)) > MAX_SOURCE_LENGTH or any(len(part) > 255 for part in Path(source).parts):
        letters = len(str(source))  # looking it up would raise OSError
        raise BadInput(f"no pipeline {str(source)[:60]!r}… ({letters} letters); see: workbench list pipelines")
    source_path = Path(source).expanduser()
    if exported := _read_exported(lora_source.find_round_export(source_path) or source_path):
        return exported
    config_file = FOLDER / f"{source}.yaml"
    path = config_file if config_file.is_file() else source_path
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        return _parse_config(path)
    if path.is_dir():
        return _config_for_class(read_pipeline_class(path), str(path))
    if str(source).startswith("starter:"):
        config = PipelineConfig("", str(source), steps=1)
        folder = config.folder
        assert folder is not None  # a part of the pack that isn't there raises BadInput
        return _config_for_class(read_pipeline_class(folder), str(source))
    if str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        raise BadInput(
            f"{source}: a hub id needs a config that says how to call it; copy one of configs/pipelines, with "
            f"repo: {source}"
        )
    raise BadInput(f"there is no pipeline {str(source)!r}; {suggest_nearest(str(source), list_names())}")


def with_lora(config: PipelineConfig, lora: str | None, weight: float = 1.0) -> PipelineConfig:
    """The config with a LoRA to load, at a strength: a safetensors file, or a folder that a training exported. Raises
    BadInput."""
    if not lora:
        return config
    if config.lora:
        raise BadInput(f"lora: {config.name} has one already, {config.lora}")
    lora_source.find_lora(lora)
    return _check_strength(replace(config, lora=str(lora), lora_weight=weight), "lora")


def _check_strength(config: PipelineConfig, where: str) -> PipelineConfig:
    """The config itself. Raises BadInput for a strength that no LoRA can have."""
    if not math.isfinite(config.lora_weight):
        raise BadInput(f"{where}: lora_weight: {config.lora_weight} is no strength; give a number such as 0.7")
    if config.lora_weight != 1 and not config.lora:
        raise BadInput(f"{where}: lora_weight: there is no LoRA to weigh; name one with lora")
    if config.lora_weight != 1:
        lora_source.check_scalable(config.lora)
    return config


def _read_exported(folder: Path) -> PipelineConfig | None:
    """The config of exported weights, if `folder` is an export or a training run with one; else None. Raises
    BadInput."""
    export_folder = next((p for p in (folder, folder / "export") if (p / lora_source.RECORD).is_file()), None)
    if export_folder is None:
        several = sorted(p.parent.name for p in (folder / "export").glob(f"*/{lora_source.RECORD}"))
        if several:
            raise BadInput(f"{folder}: trained several contestants; name one: {folder / 'export' / several[0]}")
        if (folder / "run.json").is_file():
            raise BadInput(f"{folder}: this run exported no trained weights, so it is no pipeline")
        return None
    settings = dict(lora_source.read_record(export_folder)["pipeline"])
    settings.pop("name", None)
    config = build_dataclass(PipelineConfig, settings, str(export_folder / lora_source.RECORD))
    return replace(config, lora=str(export_folder), name=str(folder))


def _parse_config(path: Path) -> PipelineConfig:
    where = f"pipeline {path.stem}"
    values = read_yaml(path)
    if isinstance(values, Mapping):
        values = _field_names(values, where)
        if "pipeline" not in values:
            raise BadInput(f"{where}: the key 'class' is missing: the diffusers class of the pipeline")
        values["inputs"] = _settle_inputs(values.get("inputs"), values["pipeline"], {}, where)
    return _check_config(replace(build_dataclass(PipelineConfig, values, where), name=path.stem), where)


def change_config(config: PipelineConfig, changes: Mapping) -> PipelineConfig:
    """A config with some settings changed, as a run's `pipeline: {name: ..., steps: 8}` says. Raises BadInput."""
    where = f"pipeline {config.name or config.repo}"
    label = variants.pipeline_label({"name": config.name or config.repo, **changes})
    values = {f.name: getattr(config, f.name) for f in fields(PipelineConfig) if f.name != "name"}
    values = variants.merge_changes(values, _field_names(changes, where))
    if "inputs" in changes or values["pipeline"] != config.pipeline:
        values["inputs"] = _settle_inputs(values["inputs"], values["pipeline"], config.inputs, where)
    return _check_config(replace(build_dataclass(PipelineConfig, values, where), name=label), where)


def _field_names(values: Mapping, where: str) -> dict:
    """The settings of a YAML file by the fields of PipelineConfig ("class" is `pipeline`). Raises BadInput."""
    allowed = {"class" if k == "pipeline" else k for k in PipelineConfig.__dataclass_fields__} - {"name"}
    for key in values:
        if key not in allowed:
            raise BadInput(f"{where}: unknown key {key!r}; {suggest_nearest(str(key), allowed)}")
    return {"pipeline" if key == "class" else key: value for key, value in values.items()}


def _settle_inputs(named: Any, cls: Any, inherited: Mapping[str, str], where: str) -> Any:
    """The inputs that a config names, by default those of the class; one that is null is left out of those that it
    inherits. Raises BadInput for one that the class can't do without."""
    default = INPUTS.get(cls, {}) if isinstance(cls, str) else {}
    if not isinstance(named, Mapping) or not named:
        return default if named is None or named == {} else named
    given = {name: argument for name, argument in named.items() if argument is not None}
    for name in named:
        if name in given or (name in NAMES and (name not in default or cls in OPTIONAL_INPUTS)):
            continue
        if name not in NAMES:
            raise BadInput(f"{where}: inputs: unknown {name!r}; {suggest_nearest(str(name), NAMES)}")
        instead = text_class(cls)
        way_out = f"; for prompts alone take {instead}" if read_arguments(instead) and instead != cls else ""
        raise BadInput(f"{where}: inputs: {name}: null: {cls} can't do without it{way_out}")
    return given or {name: argument for name, argument in (inherited or default).items() if name not in named}


def _check_config(config: PipelineConfig, where: str) -> PipelineConfig:
    """The config, numbers in quotes made numbers. Raises BadInput for invalid values."""
    refuse_unsupported(config.pipeline, where, {*config.call, *config.text, *config.inputs.values()})
    check_inputs(config, where)
    check_call(config, where)
    config = replace(config, call=check_arguments(config.pipeline, config.call, f"{where}: call"))
    for key in {"class", "repo"} & set(config.scheduler):
        convert_value(config.scheduler[key], str, f"{where}: scheduler.{key}")
    if config.kernel:
        config = replace(config, kernel=read_kernel(config.kernel, f"{where}: kernel"))
    if config.ip_adapter:
        adapter = build_dataclass(IPAdapterConfig, config.ip_adapter, f"{where}: ip_adapter")
        config = replace(config, ip_adapter=asdict(adapter))
    if config.steps_taken < 1:
        strength = config.call.get("strength")
        raise BadInput(f"{where}: strength: {strength} leaves none of the {config.steps} steps; give more of either")
    if config.modality != "image" and config.rate <= 0:
        raise BadInput(f"{where}: rate must say how many {_rate_unit(config.modality)} a second has")
    if config.dtype not in ("", "bf16", "fp16", "fp32"):
        raise BadInput(f"{where}: dtype: {config.dtype!r} is not a choice; known: bf16, fp16, fp32")
    return _check_strength(config, where)


def refuse_unsupported(cls: str, where: str, given: Collection[str] = ()) -> None:
    """Raises BadInput for a pipeline class that can't be a policy: one of those that are known, one whose call takes no
    prompt, or one that needs more than a prompt and the arguments `given`."""
    reason = REFUSED.get(cls, "")
    if not reason and (arguments := read_arguments(cls)) is not None and "prompt" not in arguments:
        reason = "its call takes no prompt"
    if not reason and (missing := [name for name in required_arguments(cls) if name not in {"prompt", *given}]):
        reason = (
            f"its call needs {', '.join(missing)} besides a prompt; say what comes with each prompt, such as "
            f"inputs: {{source: {missing[0]}}}"
        )
    if reason:
        raise BadInput(f"{where}: {cls} can't be aligned here: {reason}")


def check_inputs(config: PipelineConfig, where: str) -> None:
    """Raises BadInput for an input that isn't known, or that goes to an argument which the pipeline doesn't take, or
    which something else is given to."""
    for name, argument in config.inputs.items():
        if name not in NAMES:
            raise BadInput(f"{where}: inputs: unknown {name!r}; {suggest_nearest(str(name), NAMES)}")
        if not isinstance(argument, str):
            raise BadInput(f"{where}: inputs: {name} names an argument of the call, got {quote_value(argument)}")
        if argument in {*RESERVED_ARGUMENTS, *config.call, *config.text}:
            raise BadInput(f"{where}: inputs: {name}: {argument!r} is given already; leave it out here or there")
    size = config.input_size
    if size and (len(size) not in (2, 3) or any(type(side) is not int or side < 1 for side in size)):
        raise BadInput(
            f"{where}: input_size: is [height, width] of pictures or [frames, height, width] of clips, got "
            f"{quote_value(size)}"
        )
    check_arguments(config.pipeline, dict.fromkeys(config.inputs.values()), f"{where}: inputs")


def check_call(config: PipelineConfig, where: str) -> None:
    """Raises BadInput for an argument that the config can't set, or that the pipeline doesn't take."""
    for block in ("call", "text"):
        if reserved := sorted(RESERVED_ARGUMENTS & set(getattr(config, block))):
            instead = "; say steps: instead" if reserved[0] == "num_inference_steps" else ""
            raise BadInput(
                f"{where}: {block}: {reserved[0]!r} is given by the workbench itself, so leave it out{instead}"
            )
    for name, value in FIXED_ARGUMENTS.get(config.pipeline, {}).items():
        if config.call.get(name) != value:
            raise BadInput(
                f"{where}: call: {name}: must be {value} with {config.pipeline}, which would draw noise at every step, "
                "so that none could be repeated"
            )
    check_arguments(config.pipeline, config.call, f"{where}: call")
    check_arguments(config.pipeline, dict.fromkeys(config.text), f"{where}: text")


def _config_for_class(cls: str, repo: str) -> PipelineConfig:
    refuse_unsupported(cls, repo, INPUTS.get(cls, {}).values())
    if cls not in MODALITIES:
        raise BadInput(f"{repo}: what {cls} makes is not known; write a config with class, repo, modality, rate, steps")
    return PipelineConfig(
        cls,
        repo,
        steps=_default_steps(cls),
        modality=MODALITIES[cls][0],
        rate=MODALITIES[cls][1],
        inputs=INPUTS.get(cls, {}),
        name=repo,
    )


def _default_steps(cls: str) -> int:
    import diffusers

    return inspect.signature(getattr(diffusers, cls).__call__).parameters["num_inference_steps"].default


def _rate_unit(modality: str) -> str:
    return {"video": "frames", "audio": "samples"}[modality]
