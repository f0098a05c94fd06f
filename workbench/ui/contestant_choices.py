"""What a page may ask for: pipelines, methods and rewards that fit one another, and a contestant as one line of text.

A line is `METHOD[@PIPELINE] key=value …`: `reno iterations=20 lr=2`, `fk@starter-image-teacher particles=8`. What was
typed never becomes a path: pipelines are those of configs/pipelines and of the runs folder's trainings, chosen by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pipelines
from pipelines.config import list_names
from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.setting_help import describe_settings, summarise_class
from workbench.engine.input_checks import argument_modality
from workbench.methods import METHODS, trains_weights
from workbench.runs import config, store
from workbench.ui import lora_uploads, reward_offers
from workbench.ui.form import KNOBS
from workbench.ui.limits import SLOTS
from workbench.ui.overrides import check_overrides

MAX_LETTERS = 300  # of a contestant's line
FILE_METHODS = frozenset({"nrg", "reuse", "corrected"})  # methods that need a file of this machine
LINE = re.compile(r"([\w-]+)(?:@([\w.:/+-]+))?(?:[\s,:]+(.*))?", re.S)


def list_trained(runs: Path) -> dict[str, str]:
    """What trainings left in the runs folder: `run:NAME` or `run:NAME/CONTESTANT` -> its export."""
    exports = {}
    for folder in store.list_run_folders(runs):
        for record in sorted([*folder.path.glob("export/export.json"), *folder.path.glob("export/*/export.json")]):
            export = record.parent
            name = folder.path.name if export.name == "export" else f"{folder.path.name}/{export.name}"
            exports[f"run:{name}"] = str(export)
    return exports


def list_pipelines(runs: Path) -> dict[str, str]:
    """Name -> what a run config calls it: all that the page may load."""
    return {name: name for name in list_names()} | list_trained(runs)


def find_pipeline(name: str, runs: Path) -> str:
    """Raises BadInput for a pipeline that is not configured here."""
    source_by_name = list_pipelines(runs)
    if name not in source_by_name:
        raise BadInput(f"pipeline: only configured ones can be loaded from here; {_suggest_name(name, source_by_name)}")
    return source_by_name[name]


def read_source(source: str) -> pipelines.PipelineConfig:
    """The config of a pipeline as a run config calls it: read again where its file has changed. Raises BadInput."""
    config_file, exported = pipelines.config.FOLDER / f"{source}.yaml", Path(source) / "export.json"
    file = config_file if config_file.is_file() else exported
    return _read_cached(source, file.stat().st_mtime_ns if file.is_file() else 0, str(config_file))


@functools.lru_cache(512)  # a page asks for all of them with every choice
def _read_cached(source: str, stamp: int, config_file: str) -> pipelines.PipelineConfig:
    return pipelines.read_config(source)


def read_pipeline(name: str, runs: Path) -> pipelines.PipelineConfig:
    """Its config, under the name by which the page knows it. Raises BadInput."""
    return replace(read_source(find_pipeline(name, runs)), name=name)


def list_inputs(pipeline: str, runs: Path) -> dict[str, str]:
    """What this pipeline makes its samples from besides a prompt: name -> modality, "" where it may be any."""
    return inputs_of(find_pipeline(pipeline, runs))


def inputs_of(repo: str) -> dict[str, str]:
    """The same of a pipeline as a run config calls it."""
    config = read_source(repo)
    return {name: argument_modality(config, argument) for name, argument in config.inputs.items()}


def list_alternatives(pipeline: str, runs: Path) -> list[tuple[str, str]]:
    """(label, name) of what a contestant may run on instead: pipelines of the same kind of media, which are made from
    nothing that this one is not made from."""
    own_config = read_pipeline(pipeline, runs)
    alternatives = [
        n for n, repo in list_pipelines(runs).items() if n != pipeline and _is_alternative(repo, own_config)
    ]
    alternatives += lora_uploads.list_loras(runs)
    return [("the same pipeline", "")] + [
        (n.replace("run:", "trained: ").replace("lora:", "with LoRA: "), n) for n in alternatives
    ]


def _is_alternative(repo: str, own_config: pipelines.PipelineConfig) -> bool:
    try:
        other = read_source(repo)
    except BadInput:
        return False  # an export that is damaged
    return other.modality == own_config.modality and other.inputs.keys() <= own_config.inputs.keys()


def list_methods(pipeline: str, optimised: Sequence[str], runs: Path) -> list[tuple[str, str]]:
    """(label, name) of the methods that this pipeline and these rewards can serve."""
    config = read_pipeline(pipeline, runs)
    return [(label, name) for label, name in _comparable() if not explain_method(name, config, optimised)]


def offer_methods(pipeline: str, optimised: Sequence[str], runs: Path) -> list[tuple[str, str]]:
    """The same, and then the others, each with what it lacks."""
    config = read_pipeline(pipeline, runs)
    reasons = {name: explain_method(name, config, optimised) for _, name in _comparable()}
    offers = [(f"{label} — {reasons[name]}" if reasons[name] else label, name) for label, name in _comparable()]
    return sorted(offers, key=lambda offer: bool(reasons[offer[1]]))


def _comparable() -> list[tuple[str, str]]:
    """(label, name) of all methods that a comparison on the page can have."""
    return [
        (f"{name.replace('_', ' ')} · {summarise_method(cls)}", name)
        for name, cls in METHODS.items()
        if name not in FILE_METHODS and not trains_weights(cls)
    ]


def explain_method(name: str, config: pipelines.PipelineConfig, optimised: Sequence[str]) -> str:
    """Why a method can't work with this pipeline and these rewards, in a few words; "" where it can."""
    unmet_needs = METHODS[name].needs - {"latents", "reward"} - config.provides
    flat = [r for r in optimised if not reward_offers.reward_class(r).spec.differentiable]
    if "differentiable" in unmet_needs:
        if flat:
            return f"needs a gradient of the reward, and {' and '.join(flat)} {'have' if flat[1:] else 'has'} none"
        unmet_needs -= {"differentiable"}
    if "stochastic" in unmet_needs:
        return f"needs noise at every step, which the sampler of {config.name} does not add"
    return f"needs what {config.name} lacks: {', '.join(sorted(unmet_needs))}" if unmet_needs else ""


def summarise_method(cls: type, limit: int = 64) -> str:
    """A method in a few words: the first sentence of its help."""
    first = re.split(r"[:.] |\.$| \(arXiv", summarise_class(cls))[0]
    return first if len(first) <= limit else first[:limit].rsplit(" ", 1)[0] + " …"


@dataclass(frozen=True)
class Knob:
    """A setting that has a field of its own."""

    name: str
    default: float
    help: str


def list_knobs(method: str) -> list[Knob]:
    """The few settings that matter most: what grows with the budget, then the first numbers that there are."""
    cls = METHODS[method]
    candidates = [Knob(*row) for row in describe_settings(cls) if type(row[1]) in (int, float)]
    return sorted(candidates, key=lambda k: k.name != cls.scales)[:KNOBS]


def other_settings(method: str) -> str:
    """The settings without a field of their own, as a hint: key=value."""
    knob_names = {k.name for k in list_knobs(method)}
    return " ".join(f"{n}={default}" for n, default, _ in describe_settings(METHODS[method]) if n not in knob_names)


def describe_method(method: str) -> str:
    """A method and its settings in a few sentences."""
    cls = METHODS[method]
    settings = "; ".join(f"{k.name}: {k.help}" for k in list_knobs(method))
    return f"{summarise_class(cls)} {settings + '.' if settings else ''}"


def format_line(method: str, values: Sequence[float | None], more: str = "", target: str = "") -> str:
    """What the fields of one contestant say, as text."""
    pairs = zip(list_knobs(method), values, strict=False)
    settings = [f"{k.name}={int(v) if float(v).is_integer() else v}" for k, v in pairs if v is not None]
    return " ".join([f"{method}@{target}" if target else method, *settings, *more.split()])


def read_contestants(lines: Sequence[str], runs: Path) -> dict[str, dict]:
    """Contestant blocks of a RunConfig. Raises BadInput."""
    blocks: dict[str, dict] = {}
    if not lines:
        raise BadInput("contestants: name at least one")
    if len(lines) > SLOTS:
        raise BadInput(f"contestants: {len(lines)} are too many to look at; name at most {SLOTS}")
    for text in lines:
        if len(text) > MAX_LETTERS:
            raise BadInput(f"contestants: a line of {len(text):,} letters; at most {MAX_LETTERS}")
        match = LINE.fullmatch(text.strip())
        if not match:
            raise BadInput(
                f"contestants: can't read {text.strip()[:60]!r}; write METHOD key=value, like: reno iterations=20"
            )
        method, target, settings = match.groups()
        if method not in METHODS:
            raise BadInput(f"contestants: unknown method {method!r}; {_suggest_name(method, METHODS)}")
        if method in FILE_METHODS or trains_weights(METHODS[method]):
            reason = "reads a file that it names" if method in FILE_METHODS else "trains weights"
            raise BadInput(
                f"contestants: {method} {reason}, which a comparison here does not do; give it a config in configs/runs"
            )
        blocks[_unused_name(_contestant_name(method, target), blocks)] = (
            {"name": method} | _parse_settings(settings) | _parse_target(target, runs)
        )
    return blocks


def _parse_settings(text: str | None) -> dict:
    tokens = [t for t in re.split(r"[\s,]+(?=[\w.]+\s*=)", (text or "").strip()) if t]
    check_overrides(tokens)
    values: dict = {}
    for token in tokens:
        key, equals, value = token.partition("=")
        config.apply_override(values, f"{key.strip()}{equals}{value.strip()}")
    if reserved := values.keys() & {"name", "pipeline", "lora"}:
        raise BadInput(f"contestants: {reserved.pop()!r} is no setting; write METHOD@PIPELINE key=value")
    return values


def _parse_target(name: str | None, runs: Path) -> dict:
    if name and name.startswith("lora:"):
        loras = lora_uploads.list_loras(runs)
        if name not in loras:
            raise BadInput(f"contestants: no such LoRA was given to this page; {_suggest_name(name, loras)}")
        return {"lora": loras[name]}
    return {"pipeline": find_pipeline(name, runs)} if name else {}


def _contestant_name(method: str, target: str | None) -> str:
    if method != "sample":
        return method
    return re.sub(r"[^\w.-]", "-", target.removeprefix("run:").removeprefix("lora:"))[:60] if target else "base"


def _unused_name(name: str, used: Mapping) -> str:
    return next(n for n in (name, *(f"{name}-{k}" for k in range(2, SLOTS + 2))) if n not in used)


def format_lines(blocks: Mapping[str, Mapping | str], runs: Path) -> list[str]:
    """The lines that `read_contestants` would make these blocks of: a stored comparison back in the editor. Raises
    BadInput."""
    sources = list_pipelines(runs) | lora_uploads.list_loras(runs)
    names_by_source, lines = {repo: name for name, repo in sources.items()}, []
    for label, block in blocks.items():
        block = {"name": block} if isinstance(block, str) else dict(block or {})
        if "reward" in block or isinstance(block.get("lora"), Mapping):
            raise BadInput("this comparison has weights of rewards or LoRAs of its own; repeat it on the command line")
        method, target = block.pop("name", label), block.pop("pipeline", None) or block.pop("lora", None)
        if target is not None and (target := pipeline_label(target)) not in names_by_source:
            raise BadInput("this comparison used a pipeline or a LoRA that is not here; repeat it on the command line")
        settings = [f"{k}={_format_value(v)}" for k, v in block.items()]
        lines.append(" ".join([f"{method}@{names_by_source[target]}" if target else method, *settings]))
    return lines


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value).replace("'", "")


def parse_line(text: str) -> tuple[str, list[float | None], str, str]:
    """(method, values of its knobs, the rest as text, the pipeline or '') of a line: what the editor shows of it."""
    method, target, settings = LINE.fullmatch(text.strip()).groups()
    values, knob_names = _parse_settings(settings), [k.name for k in list_knobs(method)]
    knob_values = [values.pop(name, None) for name in knob_names]
    defaults = {name: default for name, default, _ in describe_settings(METHODS[method])}
    knob_values = [defaults[name] if v is None else v for name, v in zip(knob_names, knob_values, strict=True)]
    further = " ".join(f"{k}={_format_value(v)}" for k, v in values.items() if defaults.get(k) != v)
    return method, knob_values, further, target or ""


def _suggest_name(word: object, choices: Mapping) -> str:
    tail = suggest_nearest(str(word)[:60], choices)
    return tail if tail.startswith("did you") else "choose one of the list"
