"""Contestants named on the command line become one run: same prompts, same seeds, same budget, every judge.

A contestant is a pipeline (plain sampling), a method, a method with settings, either of them `@PIPELINE`, or a run folder, which
stands for what that run aligned or trained. The base is always among them, and so is best-of-n at the budget of the largest
contestant where that holds two samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

import pipelines
from workbench.core.paths import CONFIGS
from workbench.core.schema import build, nearest
from workbench.core.types import BadInput
from workbench.methods import METHODS, name_of, trains
from workbench.runs import config, store
from workbench.training import training_runs

FAR = 100_000  # denoiser calls: what a contestant that is to be stopped by the clock is made to last for


def blocks(texts: Sequence[str], pipeline: str | None, calls: int | None, timed: bool = False) -> tuple[str, dict]:
    """(pipeline of the base, contestant blocks of a RunConfig). `calls` are denoiser calls a sample, a guided one counted
    once: a method's own measure of effort (particles, iterations, candidates) is set to the most that they allow. Without them,
    what is `timed` is made to last longer than any clock, where more effort makes it last (`Method.lasts`).

    Raises BadInput for what is neither a pipeline, nor a method, nor a run folder, or can't work within the budget.
    """
    named = [part for text in texts for part in _read(text)]
    home = pipeline or next((repo for _, _, repo in named if repo), None)
    if home is None:
        raise BadInput("compare: name a pipeline, as a contestant or with --pipeline; see: workbench list pipelines")
    methods = {"base": (METHODS["sample"](), home)}
    for name, method, repo in named:
        if (method, repo or home) not in methods.values():
            methods[_free(name, methods)] = (method, repo or home)
    steps = {repo: pipelines.read(repo).steps for repo in {repo for _, repo in methods.values()}}
    if calls or timed:
        methods = {
            n: (fit(m, steps[repo], calls or FAR, n) if calls or getattr(m, "lasts", False) else m, repo)
            for n, (m, repo) in methods.items()
        }
    if not any(name_of(method) == "best_of_n" for method, _ in methods.values()):
        most = FAR if timed and not calls else max(method.calls(steps[repo]) for method, repo in methods.values())
        if most >= 2 * steps[home]:
            methods["best_of_n"] = (METHODS["best_of_n"](n=most // steps[home]), home)
    return home, {n: _block(m) | ({"pipeline": repo} if repo != home else {}) for n, (m, repo) in methods.items()}


def fit(method, steps: int, calls: int, where: str):
    """The method with the largest value of its scaling setting that keeps it within `calls` denoiser calls a sample."""
    if not method.scales:
        if method.calls(steps) > calls:
            raise BadInput(f"{where}: makes {method.calls(steps)} denoiser calls a sample, the budget has {calls}")
        return method

    def sized(n: int):
        return replace(method, **{method.scales: n})

    low, high = 0 if method.scales == "iterations" else 1, 2
    if sized(low).calls(steps) > calls:
        raise BadInput(
            f"{where}: makes at least {sized(low).calls(steps)} denoiser calls a sample, the budget has {calls}"
        )
    while sized(high).calls(steps) <= calls:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sized(middle).calls(steps) <= calls else (low, middle)
    return sized(low)


def _read(text: str) -> list[tuple[str, object, str | None]]:
    """(name, method, pipeline or None) of each contestant that `text` stands for."""
    if os.path.isfile(Path(text) / "run.json"):  # which unlike Path's takes a text that is no path for no file
        kept = build(config.RunConfig, store.RunFolder(Path(text)).read().get("config"), f"{text}/run.json")
        made, repos = config.contestants(kept, METHODS), config.repos(kept)
        if trained := [name for name, method in made.items() if trains(method)]:
            return _trained(Path(text), {name: made[name] for name in trained})
        return [(n, m, repos[n]) for n, m in made.items() if name_of(m) != "sample" or repos[n] != kept.pipeline]
    head, at, repo = text.rpartition("@")
    head, repo = (head, repo) if at else (text, None)
    try:
        value = yaml.safe_load(head)
    except yaml.YAMLError:
        raise BadInput(f"compare: {text!r} is not valid YAML; write it like '{{reno: {{iterations: 20}}}}'") from None
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
    else:
        name, settings = value, {}
    if isinstance(name, (list, Mapping)):
        raise BadInput(f"compare: {text!r} names no single method; write it like '{{reno: {{iterations: 20}}}}'")
    if name in METHODS:
        return [(name, build(METHODS[name], settings or {}, str(name)), repo)]
    if at or isinstance(value, Mapping):
        raise BadInput(f"compare: unknown method {name!r}; {nearest(str(name), METHODS)}")
    known = [p.stem for p in (CONFIGS / "pipelines").glob("*.yaml")]
    if text not in known and not os.path.isdir(text) and "/" not in text:
        raise BadInput(f"compare: {text!r} is no pipeline, method or run folder; {nearest(text, [*known, *METHODS])}")
    return [(Path(text).name, METHODS["sample"](), text)]


def _trained(run: Path, methods: Mapping) -> list[tuple[str, object, str | None]]:
    """What a training run has exported."""
    homes = {n: run if len(methods) == 1 else run / "export" / n for n in methods}
    done = [n for n, home in homes.items() if any((p / "export.json").is_file() for p in (home, home / "export"))]
    if not done:
        raise BadInput(f"compare: {run} has not finished its training; go on with: workbench run {run}")
    return [(run.name if len(methods) == 1 else n, training_runs.delivers(methods[n]), str(homes[n])) for n in done]


def _free(name: str, taken: Mapping) -> str:
    name = "".join(c if config.NAME.fullmatch(f"a{c}") else "-" for c in name)
    return next(n for n in (name, *(f"{name}-{k}" for k in range(2, 100))) if n not in taken)


def _block(method) -> dict:
    return {"name": name_of(method)} | asdict(method)  # its fields alone: not what it remembers beside them
