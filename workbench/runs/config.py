"""The config of a run: one YAML file of 10-20 lines, read strictly into a RunConfig, which defines the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipelines.variants import current_source, merge_variant, pipeline_label
from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_yaml, read_yaml
from workbench.core.paths import CONFIGS
from workbench.core.schema import announce_rename, build_dataclass, suggest_nearest, with_current_names
from workbench.core.text import one_line, quote_value
from workbench.core.types import Count, Natural
from workbench.methods import METHODS, find_method
from workbench.methods.common.method import short_name
from workbench.runs import grids
from workbench.runs.imported_media import ImportedMedia, is_imported
from workbench.runs.media_pairing import Way
from workbench.runs.stages import NAME, Stage
from workbench.runs.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: contestants on the same prompts and seeds, scored by the same rewards."""

    former_names: ClassVar[Mapping[str, str]] = {"seeds": "samples_per_prompt"}

    # a name in configs/pipelines, a local folder, or a hub id; or {name: one, settings of it}
    pipeline: str | dict = ""
    reward: dict | str = ""  # what is optimised: a name, a preset, or {name: weight or settings}
    # a file, a list, or {folder: of pictures, prompt: one for all}; see docs/inputs.md
    prompts: str | list | dict = ""
    # prompts that trained contestants are evaluated on; not given: `prompts`, which they were trained on
    test: str | list | dict | None = None
    method: dict | str | None = None  # shorthand for `contestants`: the base and this method
    # name -> method, or {name: method, pipeline: another one, lora: FILE or {file: FILE, weight: 0.7}, reward: {name:
    # another weight}, its settings}; in a run of media that were made elsewhere, {media: FOLDER}, and neither pipeline
    # nor reward is needed; see docs/own-media.md
    contestants: dict | None = None
    # preference pairs to learn from in place of samples: fields of workbench.runs.preference_data.PreferencePairs
    pairs: dict | None = None
    # trainings one after the other, each with the fields of workbench.runs.stages.Stage; see docs/training.md
    stages: list | None = None
    train: dict | None = None  # settings of training: the fields of workbench.runs.train_config.TrainConfig
    watch: dict | list | str | None = None  # held-out rewards: never optimised, always reported
    budget: dict | None = None  # the most that a contestant may use per sample: {nfe: 400} or {seconds: 60}
    grid: dict | None = None  # {x: {setting: [values]}, y, z}: the contestants are its cells; see docs/grids.md
    pair: Way = ""  # imported media: which belong together, by prompt, name or order; "": where it is clear
    copy_media: bool = False  # imported media are copied, and not linked, into the run
    curve: bool = False  # score the best so far each time that a contestant has doubled its denoiser calls
    # a run that must NOT gain, or whose scores must fall: see docs/trust.md
    control: Literal["none", "negated", "shuffled", "shuffled_inputs"] = "none"
    name: str = ""  # of the run folder; the file's name when not given
    seed: Natural = 0  # of all random numbers
    samples_per_prompt: Count = 1  # noises per prompt
    limit: Natural = 0  # only the first prompts of the list; 0 for all
    batch: Count = 16  # samples per batch
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: fp32 on a CPU, the pipeline's own or bf16 on a GPU
    attention: Literal["auto", "sdpa", "xformers", "flash"] = "auto"  # kernels; auto: torch's choice


def read_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file, with `key=value` overrides (dotted: `contestants.reno.lr=2`).

    A bare name is looked up in configs/runs. Raises BadInput, naming file and key.
    """
    file = find_config(path)
    values = read_yaml(file)
    if not isinstance(values, Mapping):
        raise BadInput(f"{file}: a run is a mapping of settings; see configs/runs for examples")
    return make_config({"name": file.stem, **values}, overrides, file.name)


def make_config(values: Mapping, overrides: Sequence[str] = (), where: str = "config") -> RunConfig:
    """The config that a mapping of settings says, with `key=value` overrides, and the cells of its grid as contestants.
    Raises BadInput."""
    values = current_config(values)
    for text in overrides:
        apply_override(values, text)
    return check_config(build_dataclass(RunConfig, grids.expand_grid(current_config(values)), where))


def find_config(path: str | Path) -> Path:
    """The file of a run config, by its path or its name in configs/runs. Raises BadInput, naming the nearest."""
    bundled = CONFIGS / "runs"
    for candidate in (Path(path), bundled / f"{path}.yaml", CONFIGS.parent / path):
        if is_file(candidate, "config"):
            return candidate
    nearest = suggest_nearest(str(path), [name for name, _ in bundled_runs()])
    raise BadInput(f"no run config {quote_value(str(path))}: neither a file nor a name in configs/runs; {nearest}")


def bundled_runs() -> list[tuple[str, Path]]:
    """(name, file) of the run configs that come with the workbench: `demo`, `train/sd35-nft`."""
    folder = CONFIGS / "runs"
    return sorted((p.relative_to(folder).with_suffix("").as_posix(), p) for p in folder.rglob("*.yaml"))


def is_file(path: str | Path, where: str) -> bool:
    """Whether the file exists. Raises BadInput for a path that the system can't look up, such as a name of over 255
    letters."""
    try:
        return Path(path).is_file()
    except OSError as error:
        raise BadInput(f"{where}: {one_line(path, 100)} can't be looked for ({error.strerror}); give another") from None


def apply_override(values: dict, text: str) -> None:
    """Set one dotted key in place; the value is read as YAML. `method=reno` on a mapping replaces it. Former names of
    keys, present ones and this one, become current ones. Raises BadInput."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInput(
            f"override {quote_value(text)}: write key=value, for example samples_per_prompt=4 or method.lr=2"
        )
    current = current_config(values)
    values.clear()
    values.update(current)
    *parents, leaf = key.split(".")
    block = values
    for depth, parent in enumerate(parents):
        parent = current_key(values, tuple(parents[:depth]), parent)
        inner = block.get(parent)
        if not isinstance(inner, (Mapping, str, type(None))):
            raise BadInput(
                f"override {quote_value(text)}: {parent} is {quote_value(inner)}, and nothing can be set inside that"
            )
        if parent == "pipeline":
            inner = current_source(inner)
        block[parent] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        block = block[parent]
    block[current_key(values, tuple(parents), leaf)] = parse_yaml(value, f"override {key}")


def settings_class(values: Mapping, path: tuple[str, ...]) -> type | None:
    """The dataclass whose fields are the keys of the block at `path` of a run's config: () is the config itself."""
    match path:
        case ():
            return RunConfig
        case ("train",):
            return TrainConfig
        case ("stages", _):
            return Stage
        case ("method",) | ("contestants", _) | ("stages", _, "method"):
            block: Any = values
            for key in path:
                block = block[key] if isinstance(block, (Mapping, list)) else None  # type: ignore[call-overload]  # a list's key is its index
            default = path[1] if path[0] == "contestants" else None
            name = block.get("name", default) if isinstance(block, Mapping) else block or default
            return METHODS.get(name) if isinstance(name, str) else None
    return None


def current_config(values: Mapping, announce: bool = True) -> dict:
    """A run's config with all keys and pipelines under their current names. Raises BadInput where a key is given under
    both its former and its current name."""
    values = with_current_names(settings_class(values, ()), values, "", announce)

    def rename_block(path: tuple, where: str, block: Any) -> Any:
        if not isinstance(block, Mapping):
            return block
        block = with_current_names(settings_class(values, path), block, where, announce)
        if "pipeline" in block and path[0] in ("contestants", "stages"):
            block["pipeline"] = current_source(block["pipeline"], announce)
        return block

    if "pipeline" in values:
        values["pipeline"] = current_source(values["pipeline"], announce)
    for key in {"train", "method"} & set(values):
        values[key] = rename_block((key,), key, values[key])
    if isinstance(contestants := values.get("contestants"), Mapping):
        values["contestants"] = {
            name: rename_block(("contestants", name), f"contestants.{name}", block)
            for name, block in contestants.items()
        }
    if isinstance(stages := values.get("stages"), list):
        stages = [rename_block(("stages", n), f"stages[{n}]", stage) for n, stage in enumerate(stages)]
        for n, stage in enumerate(stages):
            if isinstance(stage, Mapping) and "method" in stage:
                method = rename_block(("stages", n, "method"), f"stages[{n}].method", stage["method"])
                stages[n] = {**stage, "method": method}
        values["stages"] = stages
    return values


def complete_config(values: Mapping) -> dict:
    """A stored config under current names, with the defaults of settings that came after it: two that are equal then
    are of one run."""
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    return {**defaults, **current_config(values, announce=False)}


def current_key(values: Mapping, path: tuple[str, ...], key: str) -> str:
    """The current name of the setting `key` of the block at `path`; a former name is reported on stderr."""
    cls = settings_class(values, path)
    name = getattr(cls, "former_names", {}).get(key, key)
    if name != key:
        announce_rename(cls, key, name, ".".join(path))
    return name


def check_config(config: RunConfig) -> RunConfig:
    """The config itself. Raises BadInput for settings that exclude each other."""
    if not NAME.fullmatch(config.name):
        raise BadInput(f"name: {quote_value(config.name)} can't name a folder; use letters, digits, '.', '_' and '-'")
    if isinstance(config.watch, list) and (not_names := [name for name in config.watch if not isinstance(name, str)]):
        raise BadInput(
            f"watch: a list has names of rewards only, got {quote_value(not_names[0])}; write a mapping "
            "{name: {setting: value}}"
        )
    if not is_import(config):
        for key in ("pipeline", "prompts", "reward"):
            if getattr(config, key) == "":
                raise BadInput(f"{config.name}: the key {key!r} is missing")
    if config.grid is not None:
        grids.check_cells(config.grid, config.contestants)
    if config.stages is not None:
        if config.contestants is not None or config.pairs is not None:
            raise BadInput(
                "stages: each says its own method, so there are neither `contestants` nor `pairs` beside them"
            )
    elif (config.method is None) == (config.contestants is None):
        raise BadInput("give either `method` (compared with the base) or `contestants`, and not both")
    return config


def is_import(config: RunConfig) -> bool:
    """Whether the contestants of a run are media that were made elsewhere. Raises BadInput where only some are."""
    blocks = config.contestants if isinstance(config.contestants, Mapping) else {}
    folders = [name for name, block in blocks.items() if is_imported(block)]
    if folders and len(folders) < len(blocks):
        raise BadInput(
            f"contestants.{folders[0]}: a folder of media can't stand beside samples that are yet to be made; make "
            "these in a run of their own, then: workbench import FOLDER RUN"
        )
    return bool(folders)


def build_methods(config: RunConfig, methods: Mapping[str, Any]) -> dict[str, Any]:
    """Contestant -> method, in the order of the config; `method: X` is short for the base and X. `methods`: name ->
    class or instance. Raises BadInput."""
    blocks = _contestant_blocks(config)
    if not blocks:
        raise BadInput("contestants: name at least one")
    built_methods = {}
    for name, block in blocks.items():
        where = f"contestants.{name}" if config.contestants is not None else "method"
        if not NAME.fullmatch(str(name)):
            raise BadInput(f"{where}: a contestant's name has letters, digits, '.', '_' and '-' only")
        if not isinstance(block, (Mapping, str, type(None))):  # dict() would accept a list of pairs
            raise BadInput(f"{where}: expected a method's name or a mapping of its settings, got {quote_value(block)}")
        if is_imported(block):
            built_methods[str(name)] = build_dataclass(ImportedMedia, block, where)
            continue
        settings = {"name": block} if isinstance(block, str) else dict(block or {})
        repo = settings.pop("pipeline", config.pipeline)
        for key in ("lora", "reward"):  # see contestant_loras, contestant_weights
            settings.pop(key, None)
        if not isinstance(repo, (str, Mapping)):
            raise BadInput(f"{where}.pipeline: expected a name, a folder or a hub id, got {quote_value(repo)}")
        method = settings.pop("name", name)
        cls = find_method(method, methods, where)
        if not isinstance(cls, type):  # an instance, with settings
            if settings:
                raise BadInput(
                    f"{where}: {method} has its settings already, so there is no {next(iter(settings))!r} to set"
                )
            built_methods[str(name)] = cls
            continue
        built_methods[str(name)] = build_dataclass(cls, settings, where)
    return built_methods


def pipeline_labels(config: RunConfig) -> dict[str, str]:
    """Contestant -> label of its pipeline, which pipelines.read_config understands: the run's own; X where its block
    has `pipeline: X`; the run's own with changes where it has `pipeline: {steps: 8}`."""
    return {str(n): pipeline_of(b, config.pipeline) for n, b in _contestant_blocks(config).items()}


def pipeline_of(block: Any, pipeline: str | Mapping) -> str:
    """The label of the pipeline that a contestant's block asks for; `pipeline` is the run's own."""
    source = block.get("pipeline", pipeline) if isinstance(block, Mapping) else pipeline
    if isinstance(source, Mapping) and "name" not in source:
        source = merge_variant(pipeline, source)
    return pipeline_label(source)


@dataclasses.dataclass(frozen=True)
class ContestantLora:
    """A LoRA for one contestant, in its block `lora: FILE` or `lora: {file: FILE, weight: 0.7}`."""

    file: str  # a safetensors file, or a folder that a training exported
    weight: float = 1.0  # its strength


def contestant_loras(config: RunConfig) -> dict[str, ContestantLora]:
    """Contestant -> LoRA, for those whose block names one. Raises BadInput."""
    loras = {}
    for name, block in (config.contestants or {}).items():
        if isinstance(block, Mapping) and (lora := block.get("lora")):
            values = lora if isinstance(lora, Mapping) else {"file": lora}
            loras[str(name)] = build_dataclass(ContestantLora, values, f"contestants.{name}.lora")
    return loras


def contestant_weights(config: RunConfig) -> dict[str, Mapping[str, float]]:
    """Contestant -> its own weights of the run's rewards, for those whose block has `reward: {name: weight}`. Raises
    BadInput."""
    weights = {}
    for name, block in (config.contestants or {}).items():
        if isinstance(block, Mapping) and (changes := block.get("reward")) is not None:
            if not isinstance(changes, Mapping):
                raise BadInput(f"contestants.{name}.reward: other weights of the run's rewards, as {{name: weight}}")
            weights[str(name)] = changes
    return weights


def _contestant_blocks(config: RunConfig) -> Mapping:
    """Name -> method block. Stages are one contestant, whose method is that of the last of them."""
    if config.contestants is not None:
        return config.contestants
    if config.stages is not None:
        last = config.stages[-1] if config.stages and isinstance(config.stages[-1], Mapping) else {}
        return {"base": "sample", "staged": last.get("method") or config.method}
    method_name = str(config.method.get("name") if isinstance(config.method, Mapping) else config.method)
    return {"base": "sample"} | ({short_name(method_name): config.method} if method_name != "sample" else {})
