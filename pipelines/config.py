"""What a pipeline config says, read and checked before torch loads a weight or diffusers is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipelines import lora_loading
from pipelines.weight_folder import class_in, component_class
from workbench.core.paths import CONFIGS, resolve
from workbench.core.schema import build, nearest
from workbench.core.types import BadInput, Count, Modality

from .schedule import FAMILIES

PLACE = CONFIGS / "pipelines"
LONGEST = 1000  # letters of a source; Linux can't look for paths of over 4,096, macOS for those of over 1,024

# Pipelines that can't be policies, and why.
REFUSED = {
    name: reason
    for reason, names in {
        "its states are tokens, not continuous latents": (
            "AmusedPipeline AmusedImg2ImgPipeline AmusedInpaintPipeline VQDiffusionPipeline LLaDA2Pipeline "
            "DiffusionGemmaPipeline"
        ),
        "it steps many times in parallel": "StableDiffusionParadigmsPipeline",
        "its scheduler has no single step": "ScoreSdeVePipeline KarrasVePipeline",
        "it is two pipelines in one, each with its own loop": (
            "KandinskyCombinedPipeline KandinskyV22CombinedPipeline Kandinsky3CombinedPipeline "
            "StableCascadeCombinedPipeline WuerstchenCombinedPipeline UnCLIPPipeline"
        ),
        "it makes video and sound with two schedulers": "LTX2Pipeline",
        "it warps its states between two loops of its own": "TextToVideoZeroPipeline TextToVideoZeroSDXLPipeline",
    }.items()
    for name in names.split()
}

# Their autoencoders can't decode two clips at once.
ONE_BY_ONE = frozenset({"HunyuanVideo15Pipeline"})

# Components that the class makes itself, and that save_pretrained names in model_index.json without saving them.
OPTIONAL = {"LongCatAudioDiTPipeline": frozenset({"scheduler"})}

# Arguments of a pipeline's call that are the workbench's own to give.
COUNTS = frozenset(f"num_{kind}_per_prompt" for kind in ("images", "videos", "waveforms"))
OWN = COUNTS | {"prompt", "generator", "latents", "output_type", "return_dict", "num_inference_steps"}

# What a folder without a config of its own makes; a config says it itself.
MODALITIES: dict[str, tuple[Modality, float]] = {
    **{
        name: ("image", 0.0)
        for name in [
            "StableDiffusionPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusion3Pipeline",
            "FluxPipeline",
            "Flux2KleinPipeline",
            "PixArtAlphaPipeline",
            "PixArtSigmaPipeline",
            "SanaPipeline",
            "SanaSprintPipeline",
            "QwenImagePipeline",
            "ZImagePipeline",
            "LatentConsistencyModelPipeline",
        ]
    },
    "WanPipeline": ("video", 16.0),
    "LTXPipeline": ("video", 25.0),
    "CogVideoXPipeline": ("video", 8.0),
    "HunyuanVideoPipeline": ("video", 24.0),
    "HunyuanVideo15Pipeline": ("video", 24.0),
    "TextToVideoSDPipeline": ("video", 8.0),
    "AnimateDiffPipeline": ("video", 8.0),
    "AudioLDM2Pipeline": ("audio", 16000.0),
    "MusicLDMPipeline": ("audio", 16000.0),
    "StableAudioPipeline": ("audio", 44100.0),
    "StableAudio3Pipeline": ("audio", 44100.0),
    "AceStepPipeline": ("audio", 48000.0),
    "LongCatAudioDiTPipeline": ("audio", 24000.0),
}


@dataclass(frozen=True)
class PipelineConfig:
    """A diffusers pipeline and how to call it. In YAML, `pipeline` is written `class`."""

    pipeline: str  # the diffusers class
    repo: str  # a hub id, a folder, or a part of the starter pack: starter:image/teacher
    steps: Count  # num_inference_steps
    modality: Modality = "image"
    rate: float = 0.0  # video: frames per second; audio: samples per second
    call: dict = field(default_factory=dict)  # further arguments of the pipeline's call
    text: dict = field(default_factory=dict)  # those of them that are repeated for each prompt: negative_prompt, lyrics
    guidance: str = "guidance_scale"  # the argument that scales guidance; "" where a part of the pipeline does
    scheduler: dict = field(default_factory=dict)  # {class: ..., repo: ..., and settings of that scheduler}
    components: dict = field(default_factory=dict)  # name -> null, a repo, or {repo, subfolder, dtype} or {repo, file}
    kernel: dict = field(default_factory=dict)  # {name: ancestral | cps | flow-sde, eta: ...}: sample by it
    lora: str = ""  # a safetensors file, or a folder that a training exported, to be put on
    slicing: bool = False  # the autoencoder decodes one sample at a time: less memory for batches of clips
    dtype: str = ""  # on a GPU: bf16 or fp16; on a CPU it is always fp32 unless asked otherwise
    name: str = ""  # where it was read from

    @property
    def provides(self) -> frozenset[str]:
        """What methods may need, as far as it can be known before weights load. The scheduler of a hub repository that the
        config leaves as it is counts as known; if it isn't, `Policy.transition` says so."""
        name = self.scheduler.get("class")
        if name is None and (local := self.folder):
            name = component_class(local, "scheduler")
        return frozenset({"latents", "trainable"} | ({"stochastic"} if not name or name in FAMILIES else set()))

    @property
    def folder(self) -> Path | None:
        """The local folder of the weights, or None for a hub id."""
        try:
            path = Path(resolve(self.repo)).expanduser()
        except FileNotFoundError as error:
            raise BadInput(str(error)) from error
        return path if path.is_dir() else None


def names() -> list[str]:
    return sorted(path.stem for path in PLACE.glob("*.yaml"))


def read(source: str | Path | PipelineConfig) -> PipelineConfig:
    """A config by its name in configs/pipelines, by a YAML file, or made for a folder of weights or a hub id. The folder of
    a training run, or of what it exported, stands for its base with what was trained.

    Raises BadInput, in one sentence, for an unknown name or key, a wrong type, or a pipeline class that can't be a policy.
    """
    if isinstance(source, PipelineConfig):
        return source
    if len(str(source)) > LONGEST or any(len(part) > 255 for part in Path(source).parts):  # can't even be looked for
        raise BadInput(f"no pipeline {str(source)[:60]!r}… ({len(str(source))} letters); see: workbench list pipelines")
    if exported := _exported(Path(source).expanduser()):
        return exported
    named = PLACE / f"{source}.yaml"
    path = named if named.is_file() else Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        return _parse(path)
    if path.is_dir():
        return _bare(class_in(path), str(path))
    if str(source).startswith("starter:"):
        config = PipelineConfig("", str(source), steps=1)
        return _bare(class_in(config.folder), str(source))
    if str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        raise BadInput(
            f"{source}: a hub id needs a config that says how to call it; copy one of configs/pipelines, with repo: {source}"
        )
    raise BadInput(f"there is no pipeline {str(source)!r}; {nearest(str(source), names())}")


def adapted(config: PipelineConfig, lora: str | None) -> PipelineConfig:
    """With a LoRA put on: a safetensors file, or a folder that a training exported. Raises BadInput."""
    if not lora:
        return config
    if config.lora:
        raise BadInput(f"lora: {config.name} has one already, {config.lora}")
    lora_loading.find(lora)
    return replace(config, lora=str(lora))


def _exported(folder: Path) -> PipelineConfig | None:
    """The config in what a training run exported, if `folder` is that run or its export."""
    home = next((p for p in (folder, folder / "export") if (p / lora_loading.RECORD).is_file()), None)
    if home is None:
        several = sorted(p.parent.name for p in (folder / "export").glob(f"*/{lora_loading.RECORD}"))
        if several:
            raise BadInput(f"{folder}: trained several contestants; name one: {folder / 'export' / several[0]}")
        if (folder / "run.json").is_file():
            raise BadInput(f"{folder}: this run exported no trained weights, so it is no pipeline")
        return None
    kept = dict(lora_loading.record(home)["pipeline"])
    config = build(PipelineConfig, {k: v for k, v in kept.items() if k != "name"}, str(home / lora_loading.RECORD))
    return replace(config, lora=str(home), name=str(folder))


def _parse(path: Path) -> PipelineConfig:
    where = f"pipeline {path.stem}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(values, Mapping):
        for key in values:  # said here, in the words of the file
            allowed = {"class" if k == "pipeline" else k for k in PipelineConfig.__dataclass_fields__} - {"name"}
            if key not in allowed:
                raise BadInput(f"{where}: unknown key {key!r}; {nearest(str(key), allowed)}")
        if "class" not in values:
            raise BadInput(f"{where}: the key 'class' is missing: the diffusers class of the pipeline")
        values = {"pipeline" if key == "class" else key: value for key, value in values.items()}
    config = replace(build(PipelineConfig, values, where), name=path.stem)
    refuse(config.pipeline, where)
    check_call(config, where)
    if config.modality != "image" and config.rate <= 0:
        raise BadInput(f"{where}: rate must say how many {_unit(config.modality)} a second has")
    if config.dtype not in ("", "bf16", "fp16", "fp32"):
        raise BadInput(f"{where}: dtype: {config.dtype!r} is not a choice; known: bf16, fp16, fp32")
    if unknown := set(config.kernel) - {"name", "eta"}:
        raise BadInput(f"{where}: kernel: unknown key {min(unknown)!r}; known: eta, name")
    return config


def refuse(cls: str, where: str) -> None:
    if cls in REFUSED:
        raise BadInput(f"{where}: {cls} can't be aligned here: {REFUSED[cls]}")


def check_call(config: PipelineConfig, where: str) -> None:
    """Raises BadInput for an argument that the config can't set."""
    for block in ("call", "text"):
        if taken := sorted(OWN & set(getattr(config, block))):
            instead = "; say steps: instead" if taken[0] == "num_inference_steps" else ""
            raise BadInput(f"{where}: {block}: {taken[0]!r} is given by the workbench itself, so leave it out{instead}")


def _bare(cls: str, repo: str) -> PipelineConfig:
    refuse(cls, repo)
    if cls not in MODALITIES:
        raise BadInput(f"{repo}: what {cls} makes is not known; write a config with class, repo, modality, rate, steps")
    return PipelineConfig(
        cls, repo, steps=_default_steps(cls), modality=MODALITIES[cls][0], rate=MODALITIES[cls][1], name=repo
    )


def _default_steps(cls: str) -> int:
    import inspect

    import diffusers

    return inspect.signature(getattr(diffusers, cls).__call__).parameters["num_inference_steps"].default


def _unit(modality: str) -> Any:
    return {"video": "frames", "audio": "samples"}[modality]
