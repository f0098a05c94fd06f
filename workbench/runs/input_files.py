"""The files that a run reads: which they are, and digests by which a change is noticed when the run goes on.

A reward or method names files in its settings. Those of the names in PLACES are found here, also in rewards inside
rewards; a class that reads more has `input_files() -> list of paths` (files or folders).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.component_sources import list_weight_files
from pipelines.config import FOLDER as PIPELINE_CONFIGS
from pipelines.variants import current_source
from workbench.core.errors import BadInput
from workbench.core.inputs import FileInput, prompt_inputs
from workbench.core.paths import CONFIGS, ROOT, resolve_repo
from workbench.runs import config as configs
from workbench.runs.plan import Plan
from workbench.runs.prompt_files import METADATA
from workbench.runs.prompts import find_prompt_file
from workbench.runs.resolve import list_dependency_files, name_prompts

# settings of rewards and methods that may name a file or folder of this machine
PLACES = ("model", "weights", "tokenizer", "backbone", "reference", "references", "path", "head", "base")
OURS = ("rewards", "workbench", "pipelines")  # packages whose code belongs to the workbench's own revision
# read for what they say: their prompts and settings are recorded and compared, so a comment may change
BY_CONTENT = ("prompts", "pipeline config")
PROMPT_INPUTS = "inputs of prompts"  # known by their content alone: their files may be moved

WHOLE, SPREAD, BLOCK = 64 << 20, 4 << 20, 1 << 14  # bytes
SOURCE_TOTAL, SMALLEST = 512 << 20, 1 << 16  # bytes read of all files of one source; of each at least
MAX_NAMED = 500  # files of a source; of more there is one digest for all
NOT_READ = frozenset({".md", ".bin", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".lock", ".tmp"})  # in folders
NO_WEIGHTS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})  # beside weights: examples of a model's page


def digest_inputs(plan: Plan) -> dict[str, dict[str, str]]:
    """What reads it ("reward learned") -> file -> SHA-256, as run.json records it.

    Of a file over 64 MiB, and of many files that hold more than 512 MiB together, blocks spread over all of the file
    are read, and the header of safetensors; the digest then begins with "blocks:". Times of files play no part.
    """
    sources = {source: tuple(paths) for source, paths in list_inputs(plan).items() if paths}
    by_files = {paths: digest_files(paths) for paths in set(sources.values())}  # variants of a pipeline share theirs
    digests = {source: by_files[paths] for source, paths in sources.items()}
    inputs = _digest_prompt_inputs(plan)
    return digests | ({PROMPT_INPUTS: inputs} if inputs else {})


def list_inputs(plan: Plan) -> dict[str, list[Path]]:
    """What reads it -> the files of this machine that a run reads."""
    sources: dict[str, list[Path]] = {"prompts": list_prompt_files(plan.config)}
    labels = configs.pipeline_labels(plan.config) if plan.config.stages is None else {}
    for name, pipeline in plan.pipelines.items():
        label = labels.get(name) or pipeline.name
        sources["pipeline config"] = sources.get("pipeline config", []) + _pipeline_config_file(label)
        sources[f"pipeline {label}"] = sources.get(f"pipeline {label}", []) + list_weight_files(pipeline)
    for part in (plan.reward, plan.watch) if plan.watch else (plan.reward,):
        for name, reward in part.rewards.items():
            sources[f"reward {name}"] = list_object_files(reward)
        sources["reward"] = sources.get("reward", []) + _of_choices(part)
    for name, method in plan.methods.items():
        sources[f"method {name}"] = list_object_files(method) + list_dependency_files(method)
    sources["pairs"] = plan.pairs.input_files() if plan.pairs is not None else []
    for stage, task in zip(plan.stages.stages if plan.stages else (), plan.tasks, strict=True):
        sources |= {f"stage {stage.name}, {source}": paths for source, paths in list_inputs(task).items()}
    return {source: list(dict.fromkeys(paths)) for source, paths in sources.items()}


def _digest_prompt_inputs(plan: Plan) -> dict[str, str]:
    """File -> SHA-256 of what comes with the prompts of a run."""
    tasks = [plan, *plan.tasks]
    prompts = [
        p for task in tasks for p in (*(row[1] for row in task.rows), *task.train_prompts, *task.held_out_prompts)
    ]
    own = [source for task in tasks for source in name_prompts(task.methods).values()]  # read, where they are no texts
    prompts += [p for source in own for p in source]
    inputs = [value for prompt in dict.fromkeys(prompts) for value in prompt_inputs(prompt).values()]
    return {show_path(Path(value.path)): value.digest for value in inputs if isinstance(value, FileInput)}


def list_prompt_files(config: configs.RunConfig) -> list[Path]:
    """The prompt files of a run."""
    sources = (config.prompts, config.test)
    paths = [find_prompt_file(source, "prompts") for source in sources if isinstance(source, str) and source]
    folders = [Path(str(source.get("folder", ""))) for source in sources if isinstance(source, dict)]
    metadata_files = [path / name for path in paths + folders for name in METADATA]
    return [path for path in paths + metadata_files if path.is_file()]


def _pipeline_config_file(label: str) -> list[Path]:
    source = current_source(label, announce=False)
    name = str(source.get("name") if isinstance(source, Mapping) else source)
    try:
        paths = [p for p in (PIPELINE_CONFIGS / f"{name}.yaml", Path(name).expanduser()) if p.is_file()]
    except OSError:  # a name that is too long for a file
        return []
    return [p for p in paths[:1] if p.suffix in (".yaml", ".yml")]


def list_object_files(part: Any) -> list[Path]:
    """The files that a reward or method reads: its own `input_files()`, those that its settings name, and its Python
    file, unless it comes with the workbench."""
    if hasattr(part, "input_files"):
        files = [file for place in part.input_files() for file in list_files(str(place))]
    else:
        files = [file for place in _named_places(part) for file in list_files(place)]
    return files + _source_file(type(part)) + _of_choices(part)


def _named_places(part: Any) -> Iterator[str]:
    """The texts in a dataclass's settings that may name files, also in rewards and embedders inside it."""
    components = getattr(part, "rewards", None)
    values: list[tuple[str, Any]] = [*components.items()] if isinstance(components, Mapping) else []
    if dataclasses.is_dataclass(part):
        values += [(f.name, getattr(part, f.name, None)) for f in dataclasses.fields(part)]
    for name, value in values:
        if isinstance(value, (str, Path)):
            yield from (str(value),) if name in PLACES and str(value) else ()
        elif hasattr(value, "rewards") or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            yield from map(str, list_object_files(value))


def _of_choices(part: Any) -> list[Path]:
    """Files of how components are put together: base scores."""
    choices = [getattr(part, key, None) for key in ("shape", "combine")]
    return [p for c in choices if dataclasses.is_dataclass(c) for place in _named_places(c) for p in list_files(place)]


def _source_file(cls: type) -> list[Path]:
    """The Python file of a class from outside the workbench; none of a notebook's or a script's own."""
    if cls.__module__.partition(".")[0] in OURS or cls.__module__ in ("__main__", "builtins"):
        return []
    module = sys.modules.get(cls.__module__)
    path = getattr(module, "__file__", None) or inspect.getsourcefile(cls)
    return [Path(path)] if path and Path(path).is_file() else []


def _resolve(place: str) -> str:
    try:
        return resolve_repo(place)
    except FileNotFoundError:  # named where it is loaded
        return place


def list_files(place: str) -> list[Path]:
    """The file `place`, or the files in the folder `place` that can be read for content; none where there is neither.

    Of a run's folder only the log is read. After `open_clip:MODEL/` a file may stand.
    """
    path = Path(_resolve(place)).expanduser()
    if place.startswith("open_clip:"):
        path = Path(place.partition("/")[2]).expanduser()
    try:
        if path.is_file():
            beside = path.with_name("config.json")  # by which its network is built
            return [path, beside] if path.suffix == ".safetensors" and beside.is_file() else [path]
        if str(place).strip("./") == "" or not path.is_dir():
            return []
    except OSError:  # not the name of a file
        return []
    if (path / "run.json").is_file():
        return [p for p in (path / "events.jsonl",) if p.is_file()]
    skipped = NOT_READ | (
        NO_WEIGHTS if any((path / f"{n}.json").is_file() for n in ("model_index", "config")) else set()
    )
    return sorted(
        p
        for p in path.rglob("*")
        if p.suffix.lower() not in skipped and p.is_file()
        if not any(part.startswith((".", "LICENSE")) for part in p.relative_to(path).parts)
    )


def show_path(path: Path) -> str:
    """A file's name in run.json and messages: as it was given; of files of the workbench, from its root on."""
    absolute = Path(os.path.abspath(path))
    for root in (CONFIGS.parent, ROOT):
        if absolute.is_relative_to(root) and path.is_absolute():
            return absolute.relative_to(root).as_posix()
    return path.as_posix()


def digest_files(paths: Iterable[Path]) -> dict[str, str]:
    """File -> digest; of more than MAX_NAMED files one digest under the name of their common folder. Raises BadInput
    for a file that can't be read."""
    paths = list(paths)
    budget = min(WHOLE, max(SMALLEST, SOURCE_TOTAL // max(len(paths), 1)))
    sizes = {path: _stat(path).st_size for path in paths}
    if sum(sizes.values()) <= SOURCE_TOTAL:
        budget = WHOLE
    digests = {show_path(path): digest_file(path, budget) for path in paths}
    if len(digests) <= MAX_NAMED:
        return digests
    together = hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in sorted(digests.items())).encode())
    common = Path(os.path.commonpath([os.path.abspath(path) for path in paths]))
    return {f"{show_path(common)}/": f"{len(digests):,} files, {together.hexdigest()}"}


def digest_file(path: Path, budget: int = WHOLE) -> str:
    """SHA-256 of a file of at most `budget` bytes; of a longer one "blocks:" and that of blocks spread over it. Raises
    BadInput for a file that can't be read."""
    stat = _stat(path)
    try:
        return _digest_cached(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, budget)
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror})") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror})") from None


@functools.lru_cache(4096)  # an app plans the same pipelines again and again
def _digest_cached(path: str, size: int, mtime: int, ctime: int, inode: int, budget: int) -> str:
    with open(path, "rb") as file:
        if size <= budget:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        if path.endswith(".safetensors"):
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(header, SPREAD)))
        count = max(2, min(budget, SPREAD) // BLOCK)
        for n in range(count):
            file.seek(n * (size - BLOCK) // (count - 1))
            digest.update(file.read(BLOCK))
        return f"blocks:{digest.hexdigest()}"
