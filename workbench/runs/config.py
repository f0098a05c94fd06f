"""A run is one YAML file of 10-20 lines: it becomes a RunConfig, strictly. Defaults live in the dataclasses alone."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from workbench.core.paths import CONFIGS
from workbench.core.schema import build, nearest
from workbench.core.types import BadInput, Count, Natural

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: contestants on the same prompts and seeds, scored by the same rewards."""

    pipeline: str  # a name in configs/pipelines, a local folder, or a hub id
    reward: dict | str  # what is optimised: a name, a preset, or {name: weight or settings}
    prompts: str | list  # a .txt or .jsonl file, or a list
    test: str | list | None = (
        None  # what a trained contestant is judged on; not given: `prompts`, which it was trained on
    )
    method: dict | str | None = None  # shorthand for `contestants`: the base and this method
    contestants: dict | None = (
        None  # name -> method, or {name: method, pipeline: another one, lora: FILE, its settings}
    )
    pairs: dict | None = None  # what is learnt from in place of samples: the fields of workbench.preference_data.Pairs
    stages: list | None = None  # trainings one after the other, each of workbench.stages.Stage; see docs/training.md
    train: dict | None = None  # how methods that train do it: the fields of workbench.recipe.Recipe
    watch: dict | list | str | None = None  # held out: never optimised, always reported
    budget: dict | None = None  # what a contestant may spend on a sample: {nfe: 400} or {seconds: 60}
    curve: bool = False  # judge the best so far each time that a contestant has doubled its denoiser calls
    control: Literal["none", "negated", "shuffled"] = "none"  # a run that must NOT gain: see docs/trust.md
    name: str = ""  # of the run folder; the file's name when not given
    seed: Natural = 0  # everything random follows from it
    seeds: Count = 1  # noises per prompt
    limit: Natural = 0  # only the first prompts of the list; 0 for all
    batch: Count = 16  # samples made at once
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "sdpa", "xformers", "flash"] = "auto"


def read(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file, with `key=value` overrides (dotted: `contestants.reno.lr=2`).

    A bare name is looked up in configs/runs. Raises BadInput, naming file and key.
    """
    file = locate(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise BadInput(f"{file}{line}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    except (OSError, UnicodeDecodeError):
        raise BadInput(f"{file}: can't be read as text; give a YAML file") from None
    if not isinstance(values, Mapping):
        raise BadInput(f"{file}: a run is a mapping of settings; see configs/runs for examples")
    values = dict(values)
    for text in overrides:
        override(values, text)
    values.setdefault("name", file.stem)
    return check(build(RunConfig, values, file.name))


def locate(path: str | Path) -> Path:
    bundled = CONFIGS / "runs"
    for candidate in (Path(path), bundled / f"{path}.yaml", CONFIGS.parent / path):
        if is_file(candidate, "config"):
            return candidate
    known = [name for name, _ in bundled_runs()]
    raise BadInput(
        f"no run config {str(path)!r}: neither a file nor a name in configs/runs; {nearest(str(path), known)}"
    )


def bundled_runs() -> list[tuple[str, Path]]:
    """(name, file) of the run configs that come with the workbench: `demo`, `train/sd35-nft`."""
    home = CONFIGS / "runs"
    return sorted((p.relative_to(home).with_suffix("").as_posix(), p) for p in home.rglob("*.yaml"))


def is_file(path: str | Path, where: str) -> bool:
    """Whether there is this file. Raises BadInput for what the system can't even look for, such as a name of over 255
    letters."""
    try:
        return Path(path).is_file()
    except OSError as error:
        told = f"{str(path)[:60]}… ({len(str(path))} letters)" if len(str(path)) > 60 else str(path)
        raise BadInput(f"{where}: {told} can't be looked for ({error.strerror}); give another") from None


def override(values: dict, text: str) -> None:
    """Set one dotted key in place. `method=reno` on a mapping replaces it; the value is read as YAML."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise BadInput(f"override {text!r}: write key=value, for example seeds=4 or method.lr=2")
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, (Mapping, str, type(None))):
            raise BadInput(f"override {text!r}: {parent} is {inner!r:.60}, and nothing can be set inside that")
        values[parent] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        values = values[parent]
    try:
        values[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise BadInput(f"override {text!r}: the value is not valid YAML") from None


def check(config: RunConfig) -> RunConfig:
    if not NAME.fullmatch(config.name):
        raise BadInput(f"name: {config.name!r} can't name a folder; use letters, digits, '.', '_' and '-'")
    if isinstance(config.watch, list) and (odd := [name for name in config.watch if not isinstance(name, str)]):
        raise BadInput(
            f"watch: a list has names of rewards only, got {odd[0]!r}; write a mapping {{name: {{setting: value}}}}"
        )
    if config.stages is not None:
        if config.contestants is not None or config.pairs is not None:
            raise BadInput(
                "stages: each says its own method, so there are neither `contestants` nor `pairs` beside them"
            )
    elif (config.method is None) == (config.contestants is None):
        raise BadInput("give either `method` (compared with the base) or `contestants`, and not both")
    return config


def contestants(config: RunConfig, methods: Mapping[str, type]) -> dict[str, Any]:
    """Name -> method object, in the order of the table; `method: X` is short for the base and X."""
    blocks = _blocks(config)
    if not blocks:
        raise BadInput("contestants: name at least one")
    made = {}
    for name, block in blocks.items():
        where = f"contestants.{name}" if config.contestants is not None else "method"
        if not NAME.fullmatch(str(name)):
            raise BadInput(f"{where}: a contestant's name has letters, digits, '.', '_' and '-' only")
        if not isinstance(block, (Mapping, str, type(None))):  # dict() would take a list of pairs, looked at by nobody
            raise BadInput(f"{where}: expected a method's name or a mapping of its settings, got {block!r}")
        settings = {"name": block} if isinstance(block, str) else dict(block or {})
        repo, _ = settings.pop("pipeline", config.pipeline), settings.pop("lora", None)  # see `repos` and `loras`
        if not isinstance(repo, str):
            raise BadInput(f"{where}.pipeline: expected a name, a folder or a hub id, got {repo!r}")
        method = settings.pop("name", name)
        if not isinstance(method, str) or method not in methods:
            raise BadInput(f"{where}: unknown method {method!r}; {nearest(str(method), methods)}")
        made[str(name)] = build(methods[method], settings, where)
    return made


def repos(config: RunConfig) -> dict[str, str]:
    """Name -> pipeline of each contestant: the run's own, unless its block says `pipeline: X`."""
    return {
        str(n): b.get("pipeline", config.pipeline) if isinstance(b, Mapping) else config.pipeline
        for n, b in _blocks(config).items()
    }


def loras(config: RunConfig) -> dict[str, str]:
    """Name -> LoRA file of the contestants whose block names one."""
    blocks = config.contestants or {}
    return {str(n): str(b["lora"]) for n, b in blocks.items() if isinstance(b, Mapping) and b.get("lora")}


def _blocks(config: RunConfig) -> Mapping:
    """Name -> method block. Stages are one contestant, whose method is that of the last of them."""
    if config.contestants is not None:
        return config.contestants
    if config.stages is not None:
        last = config.stages[-1] if config.stages and isinstance(config.stages[-1], Mapping) else {}
        return {"base": "sample", "staged": last.get("method") or config.method}
    named = str(config.method if isinstance(config.method, str) else config.method.get("name"))
    return {"base": "sample"} | ({named: config.method} if named != "sample" else {})


def settings_of(cls: type) -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of each setting of a method: the comment beside a field, or above it, is its help. A field
    that a subclass only gives another default keeps its help."""
    said = {}
    for c in reversed(cls.__mro__):
        if dataclasses.is_dataclass(c):
            said |= {name: comment for name, comment in _comments(c).items() if comment}
    return [(f.name, f.default, said.get(f.name, "")) for f in dataclasses.fields(cls) if f.init]


@lru_cache
def _comments(cls: type) -> dict[str, str]:
    """Field -> the comment on its lines, which are several where the formatter wrapped it, else the one on the line above."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens, lines = tokenize.generate_tokens(io.StringIO(source).readline), source.splitlines()
    said = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}  # by line, 1 the first
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            own = [said[n] for n in range(node.lineno, node.end_lineno + 1) if n in said]
            above = said.get(node.lineno - 1, "") if lines[node.lineno - 2].lstrip().startswith("#") else ""
            found[node.target.id] = " ".join(own) or above
    return found
