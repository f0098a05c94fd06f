"""Helpers of workbench.api: a call from Python becomes a plan, and a plan becomes a run."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, FileInput, prompt_inputs
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.types import Prompt
from workbench.engine import extension
from workbench.engine import plan as planning
from workbench.engine import run as driver
from workbench.engine.progress_bar import watch_run
from workbench.engine.run_results import Run
from workbench.engine.user_objects import UserObjects
from workbench.methods import find_method
from workbench.runs import config as configs
from workbench.runs import prompts as prompt_lists
from workbench.runs import store
from workbench.runs.plan import Plan
from workbench.runs.prompt_files import read_prompt_list
from workbench.runs.prompt_inputs import take_prompts
from workbench.runs.run_inputs import store_inputs
from workbench.runs.train_config import TrainConfig
from workbench.training import training_runs


def read_prompts(
    prompts: str | Path | Mapping[str, Any] | Sequence[str | Mapping[str, Any]], folder: str | Path | None = None
) -> str | dict[str, Any] | list[Any]:
    """Prompts in the form of a config: a file's name, a list, or a folder of media ({folder, prompt}). In a list a
    Prompt, or {"prompt": text, "source": path, PIL picture or Media}, comes with inputs; with `folder` they are named
    by their files, and media from memory are written into `folder`/inputs, so that a run can go on without them.

    Raises BadInput for a text that names no file, and for an input that can't be read."""
    if isinstance(prompts, (str, Path)):
        try:
            prompt_lists.read_prompt_table(str(prompts))
        except BadInput as error:
            raise BadInput(f"{error}; a prompt of your own goes into a list: prompts=[{str(prompts)!r:.40}]") from None
        return str(prompts)
    if isinstance(prompts, Mapping):
        if "folder" not in prompts:
            raise BadInput("prompts: a prompt of your own goes into a list: prompts=[{…}]")
        return {key: str(value) if isinstance(value, Path) else value for key, value in prompts.items()}
    items = list(prompts)
    if not any(isinstance(item, Mapping) or (isinstance(item, str) and prompt_inputs(item)) for item in items):
        return items
    table = read_prompt_list(items)
    if unknown := [key for key in table.columns if key not in NAMES]:
        raise BadInput(f"prompts: unknown key {unknown[0]!r}; {suggest_nearest(unknown[0], NAMES)}")
    texts = take_prompts(table, dict.fromkeys(NAMES, "")).prompts
    return [*texts] if folder is None else [_name_inputs(prompt, Path(folder)) for prompt in texts]


def _name_inputs(prompt: str, folder: Path) -> str | dict[str, str]:
    """A prompt as a config's list has it."""
    if not (inputs := prompt_inputs(prompt)):
        return prompt
    in_memory = {name: value for name, value in inputs.items() if not isinstance(value, FileInput)}
    files = store_inputs(folder, [Prompt("", in_memory)])
    paths = {n: Path(v.path) if isinstance(v, FileInput) else folder / files[v.digest] for n, v in inputs.items()}
    return {"prompt": str(prompt), **{name: str(path.absolute()) for name, path in paths.items()}}


def split_settings(method: Any, settings: Mapping[str, Any], objects: UserObjects) -> tuple[dict, dict]:
    """(settings of the method, settings of the training). Raises BadInput, naming the nearest, for one of neither."""
    registry = objects.method_registry()
    name = method.get("name") if isinstance(method, Mapping) else method
    cls = find_method(name, registry) if isinstance(name, str) else method if isinstance(method, type) else type(method)
    of_method, of_training = setting_names(cls), setting_names(TrainConfig)
    for key in settings:
        if key not in of_method | of_training:
            raise BadInput(f"train: unknown setting {key!r}; {suggest_nearest(key, of_method | of_training)}")
    method_settings = {key: value for key, value in settings.items() if key in of_method}
    return method_settings, {key: value for key, value in settings.items() if key not in of_method}


def describe_argument(pipeline: Any) -> str:
    """A pipeline argument, as an error message names it."""
    return f"{str(pipeline)!r:.60}" if isinstance(pipeline, (str, Path)) else "pipeline"


def check_former_names(settings: Mapping[str, Any], where: str) -> None:
    """Raises BadInput for an argument under a former name of a run's setting."""
    for key in settings:
        if key in configs.RunConfig.former_names:
            raise BadInput(f"{where}: unknown setting {key!r}; did you mean {configs.RunConfig.former_names[key]!r}?")


def setting_names(cls: type) -> set[str]:
    """The settings of a dataclass, by their current and former names."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {f.name for f in fields if f.init} | set(getattr(cls, "former_names", {}))


def plan_objects(
    values: dict[str, Any], objects: UserObjects, pipeline: Any, reward: Any, watch: Any, where: str
) -> Plan:
    """The plan of a run whose pipeline and rewards are names or objects. Raises BadInput."""
    values = {key: value for key, value in values.items() if value is not None}
    values |= {"pipeline": objects.name_pipeline(pipeline), "reward": objects.name_rewards(reward, "reward")}
    values |= {"watch": objects.name_rewards(watch, "watch")} if watch is not None else {}
    values.setdefault("name", where)
    plan = planning.plan_run(
        configs.check_config(build_dataclass(configs.RunConfig, values, where)), f"workbench.{where}", objects
    )
    return dataclasses.replace(plan, objects=objects.fingerprints())


def run_in_folder(plan: Plan, objects: UserObjects, runs: Path, new: bool, progress: bool) -> Run:
    """Execute a plan in a run folder in `runs`, an unfinished one of the same config unless `new` (extension.open_run).
    Raises RuntimeError where a training failed; failures of other contestants are in the result's table."""
    path = training_runs.open_on_leader(lambda: extension.open_run(plan, runs, new), plan.config.device)
    rounds = plan.train_config.rounds if plan.train_config else 0
    stream = driver.execute_run(plan, store.RunFolder(path), load=objects.load)
    for failure in watch_run(stream, rounds, progress):
        if failure.phase == "train":
            raise RuntimeError(
                f"{failure.contestant} failed: {failure.failed} (see {path / f'failure-{failure.contestant}.txt'})"
            )
    return Run(path, objects)


@contextmanager
def folder_of_runs(runs: str | Path | None) -> Iterator[Path]:
    """The folder `runs`, or a temporary one that is removed afterwards."""
    if runs is not None:
        yield Path(runs)
        return
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        yield Path(folder)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the context, diffusers and transformers show no loading bars."""
    import diffusers
    import transformers

    libraries = [library.utils.logging for library in (diffusers, transformers)]
    bars_enabled = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, enabled in zip(libraries, bars_enabled, strict=True):
            if enabled:
                library.enable_progress_bar()
