"""Contestants named on the command line or in Python become one run, with the same prompts, seeds, budget and rewards.

A contestant is a pipeline (plain sampling), a method, a method with settings, either of the two with `@PIPELINE`, or a
run folder, which stands for the contestants of that run or for the weights that it trained. The base is always among
them, and so is best-of-n at the budget of the largest contestant, if that is enough for two samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pipelines
from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_yaml
from workbench.core.paths import CONFIGS
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import Method
from workbench.engine.user_objects import UserObjects
from workbench.methods import METHODS, find_method, name_of, trains_weights
from workbench.methods.common.method import is_import_path, short_name
from workbench.runs import config, store
from workbench.training import training_runs

ENDLESS = 100_000  # denoiser calls: the effort of contestants that a time limit will stop


def contestant_blocks(
    contestants: Sequence[Any] | Mapping[str, Any],
    pipeline: str | None,
    calls: int | None,
    timed: bool = False,
    objects: UserObjects | None = None,
) -> tuple[str, dict]:
    """(pipeline of the base, contestant blocks of a RunConfig).

    calls: denoiser calls per sample, a guided call counted once; each method's measure of effort (`Method.scales`:
    particles, iterations, candidates) is set to the largest that they allow. timed: a time limit will stop the
    contestants, so without `calls` those that it can stop between iterations (`Method.scales_in_turns`) get practically
    endless effort.
    From Python, contestants may be objects, which are added to `objects`, and a mapping gives them names.

    Raises BadInput for what is neither a pipeline, nor a method, nor a run folder, or can't work within the budget.
    """
    objects = objects or UserObjects()
    if isinstance(contestants, (str, bytes)) or not isinstance(contestants, (Mapping, Sequence)):
        raise BadInput(f"compare: expected a list of contestants, got {contestants!r:.60}")
    if isinstance(contestants, Mapping):
        entries = [
            (label, *part[1:]) for label, item in contestants.items() for part in _read_item(item, objects, label)
        ]
    else:
        entries = [part for item in contestants for part in _read_item(item, objects)]
    base_pipeline = pipeline or next((repo for _, _, repo in entries if repo), None)
    if base_pipeline is None:
        raise BadInput("compare: name a pipeline, as a contestant or with --pipeline; see: workbench list pipelines")
    methods = {"base": (METHODS["sample"](), base_pipeline)}
    for name, method, repo in entries:
        if (method, repo or base_pipeline) not in methods.values():
            methods[_free_name(name, methods)] = (method, repo or base_pipeline)
    steps = {repo: objects.read_pipeline(repo).steps for repo in {repo for _, repo in methods.values()}}
    if calls or timed:
        methods = {
            n: (fit_to_budget(m, steps[repo], calls or ENDLESS, n) if calls or m.scales_in_turns else m, repo)
            for n, (m, repo) in methods.items()
        }
    if not any(name_of(method) == "best_of_n" for method, _ in methods.values()):
        largest = (
            ENDLESS if timed and not calls else max(method.calls(steps[repo]) for method, repo in methods.values())
        )
        if largest >= 2 * steps[base_pipeline]:
            methods["best_of_n"] = (METHODS["best_of_n"](n=largest // steps[base_pipeline]), base_pipeline)
    return base_pipeline, {
        n: _method_block(m, objects) | ({"pipeline": repo} if repo != base_pipeline else {})
        for n, (m, repo) in methods.items()
    }


def _method_block(method: Method, objects: UserObjects) -> dict:
    """A contestant's block; a method from outside the registries is named by its import path."""
    if type(method) in {*METHODS.values(), *map(type, objects.methods.values())}:
        return objects.method_block(method)
    return {"name": name_of(method)} | {f.name: getattr(method, f.name) for f in fields(method) if f.init}


def fit_to_budget(method: Method, steps: int, calls: int, where: str) -> Method:
    """The method with the largest value of its setting `scales` for which it makes at most `calls` denoiser calls per
    sample. Raises BadInput where even the smallest makes more."""
    if not method.scales:
        if method.calls(steps) > calls:
            raise BadInput(f"{where}: makes {method.calls(steps)} denoiser calls a sample, the budget has {calls}")
        return method

    def with_size(n: int):
        return replace(method, **{method.scales: n})

    low, high = 0 if method.scales == "iterations" else 1, 2
    if with_size(low).calls(steps) > calls:
        raise BadInput(
            f"{where}: makes at least {with_size(low).calls(steps)} denoiser calls a sample, the budget has {calls}"
        )
    while with_size(high).calls(steps) <= calls:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if with_size(middle).calls(steps) <= calls else (low, middle)
    return with_size(low)


def _read_item(item: Any, objects: UserObjects, label: str | None = None) -> list[tuple[str, Method, str | None]]:
    """(name, method, pipeline or None) of each contestant that a text or an object stands for. Raises BadInput."""
    if isinstance(item, (str, Path)):
        return _read_contestant(str(item))
    if hasattr(item, "path") and hasattr(item, "summary"):  # the result of a run
        return _read_contestant(str(item.path))
    if isinstance(item, tuple) and len(item) == 2:
        (name, method, _), *_ = _read_item(item[0], objects, label)
        return [(name, method, objects.name_pipeline(item[1]))]
    if isinstance(item, Mapping) and "name" not in item and len(item) == 1:
        ((name, settings),) = item.items()
        item = {"name": name, **(settings or {})}
    if isinstance(item, Mapping) or hasattr(item, "needs"):
        block = objects.method_block(item)
        name = block.pop("name")
        method = objects.methods[name] if name in objects.methods else build_dataclass(find_method(name), block, name)
        return [(short_name(name), method, None)]
    name = objects.name_pipeline(item)
    return [(label or name, METHODS["sample"](), name)]


def _read_contestant(text: str) -> list[tuple[str, Method, str | None]]:
    """(name, method, pipeline or None) of each contestant that `text` stands for."""
    if os.path.isfile(Path(text) / "run.json"):  # Path.is_file raises for text that can't be a path
        run_config = build_dataclass(
            config.RunConfig, store.RunFolder(Path(text)).read().get("config"), f"{text}/run.json"
        )
        methods, repos = config.build_methods(run_config, METHODS), config.pipeline_labels(run_config)
        if trained := [name for name, method in methods.items() if trains_weights(method)]:
            return _exported_contestants(Path(text), {name: methods[name] for name in trained})
        return [
            (n, m, repos[n])
            for n, m in methods.items()
            if name_of(m) != "sample" or repos[n] != pipelines.pipeline_label(run_config.pipeline)
        ]
    head, separator, repo = text.rpartition("@")
    head, repo = (head, repo) if separator else (text, None)
    value = parse_yaml(head, f"compare: {quote_value(text)}")
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
    else:
        name, settings = value, {}
    if isinstance(name, (list, Mapping)):
        raise BadInput(f"compare: {text!r} names no single method; write it like '{{reno: {{iterations: 20}}}}'")
    if name in METHODS or separator or isinstance(value, Mapping) or is_import_path(text):
        cls = find_method(name, where="compare")
        return [(short_name(name), build_dataclass(cls, settings or {}, str(name)), repo)]
    pipeline_names = [p.stem for p in (CONFIGS / "pipelines").glob("*.yaml")]
    if text not in pipeline_names and not os.path.isdir(text) and "/" not in text:
        raise BadInput(
            f"compare: {quote_value(text)} is no pipeline, method or run folder; "
            f"{suggest_nearest(text, [*pipeline_names, *METHODS])}"
        )
    return [(Path(text).name, METHODS["sample"](), text)]


def _exported_contestants(run: Path, methods: Mapping) -> list[tuple[str, Method, str | None]]:
    """(name, sampling method, export folder) of each contestant that a training run exported. Raises BadInput where
    there is none."""
    folders = {n: run if len(methods) == 1 else run / "export" / n for n in methods}
    exported = [
        n for n, folder in folders.items() if any((p / "export.json").is_file() for p in (folder, folder / "export"))
    ]
    if not exported:
        raise BadInput(f"compare: {run} has not finished its training; go on with: workbench run {run}")
    return [
        (run.name if len(methods) == 1 else n, training_runs.delivery_method(methods[n]), str(folders[n]))
        for n in exported
    ]


def _free_name(name: str, used: Mapping) -> str:
    name = "".join(c if config.NAME.fullmatch(f"a{c}") else "-" for c in name)
    return next(n for n in (name, *(f"{name}-{k}" for k in range(2, 100))) if n not in used)
