"""What the builders of the pack's three parts share: stages in order, folders that appear whole, prompt files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypedDict, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from pipelines import weight_folder
from pipelines.fingerprint import RECORD, fingerprint_tensors
from workbench.core.errors import BadInput
from workbench.core.paths import resolve_repo
from workbench.core.weights.files import is_network, select_weights

Part = TypeVar("Part", bound=nn.Module)
LICENCE = Path(__file__).with_name("LICENSE.txt")  # of the weights; it lies beside them in each pack


class Sampling(TypedDict):
    """How a pipeline is sampled."""

    steps: int
    guidance: float


class DiffusersPipeline(Protocol):
    """What is used of a diffusers pipeline. Its classes can't say so: for a type checker, what `diffusers` exports are
    stand-ins without methods."""

    scheduler: Any

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def set_progress_bar_config(self, **kwargs: Any) -> None: ...

    def save_pretrained(self, save_directory: Path) -> None: ...


@dataclass(frozen=True)
class PackRecipe:
    """How one part of the pack is built: its stages in order, their amounts, and what is done in them."""

    stages: tuple[str, ...]  # the last two are always "save" and "report"
    plan: Any  # optimiser steps and amounts of each stage
    micro_plan: Any  # the same for a build that only shows that the recipe runs
    train_parts: Callable[..., tuple[Any, dict]]  # (workdir, plan, seed=, last_stage=) -> parts, what training took
    save_parts: Callable[[Any, Path, Any], None]  # (parts, out, plan)
    measure_pack: Callable[..., dict]  # (parts, out, plan, seed=) -> the numbers of report.json
    # "base/vae" -> a network that is not saved again: "starter:video/base/vae", of another part of the pack
    shared: Mapping[str, str] = field(default_factory=dict)


def build_pack(
    recipe: PackRecipe,
    workdir: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    fast: bool = False,
    stages: Sequence[str] | None = None,
) -> dict:
    """Train what is not trained yet, write the pack's folders and `out`/report.json; returns the report.

    `stages` runs only up to the last one named (earlier ones load from `workdir`). Raises BadInput for an unknown
    stage.
    """
    order = recipe.stages
    unknown = set(stages or ()) - set(order)
    if unknown:
        raise BadInput(f"stages: there is no {sorted(unknown)[0]!r}; the stages are {', '.join(order)}")
    workdir, out = Path(workdir), Path(out)
    workdir.mkdir(parents=True, exist_ok=True)
    last_stage = max(map(order.index, stages)) if stages else len(order) - 1
    plan = recipe.micro_plan if fast else recipe.plan
    parts, training = recipe.train_parts(workdir, plan, seed=seed, last_stage=last_stage)
    if last_stage >= order.index("save"):
        recipe.save_parts(parts, out, plan)
        drop_build_paths(out)
        record_fingerprints(out, recipe.shared)
        shutil.copyfile(LICENCE, out / LICENCE.name)
    report = {"seed": seed, "micro": fast, "plan": asdict(plan), "training": training}
    if last_stage >= order.index("report"):
        report["measured"] = recipe.measure_pack(parts, out, plan, seed=seed)
        write_json(report, out / "report.json")
    return report


def record_fingerprints(out: Path, shared: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write `out`/fingerprints.json: "teacher/unet" -> the fingerprint of that network's files. Loading compares what
    has arrived in the network with it. shared: networks that lie elsewhere in the pack."""
    networks = {name: Path(resolve_repo(place)) for name, place in shared.items()}
    for index in sorted(out.glob("*/model_index.json")):
        for name in weight_folder.list_components(index.parent):
            if is_network(part := index.parent / name):
                networks[f"{index.parent.name}/{name}"] = part
    write_json({name: _fingerprint_files(part) for name, part in networks.items()}, out / RECORD)


def _fingerprint_files(part: Path) -> str:
    tensors = (tensor for file in select_weights(part) for tensor in load_file(file).values())
    return fingerprint_tensors(t for t in tensors if t.is_floating_point())


def cast_part(part: Part | None, dtype: torch.dtype) -> Part:
    """A trained part in that precision, cast in place. It is there once its stage has run, before "save"."""
    assert part is not None
    return part.to(dtype)


def write_prompt_files(folder: Path, stem: str, lists: Mapping[str, tuple[str, str, Sequence[str]]]) -> None:
    """`folder`/`stem`-NAME.txt for each name: two lines of comment, then a prompt a line."""
    for name, (first_comment, second_comment, prompts) in lists.items():
        text = "\n".join((f"# {first_comment}", f"# {second_comment}", *prompts)) + "\n"
        (folder / f"{stem}-{name}.txt").write_text(text)


def save_in_float32_config(path: Path) -> None:
    """The files are half precision, the models are meant to run in single: a plain from_pretrained upcasts them."""
    config = json.loads(path.read_text())
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        for name in ("dtype", "torch_dtype"):
            if name in part:
                part[name] = "float32"
    write_json(config, path)


def drop_build_paths(out: Path) -> None:
    """Take out of the configs where parts that were loaded came from: a folder of the machine that built the pack."""
    for path in out.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_json(config, path)


def swap_folder_in(folder: Path, write_folder: Callable[[Path], None]) -> None:
    """Written beside its place and renamed into it: a reader sees the old folder or the new one, never half of one."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for stale in (fresh, old):
        shutil.rmtree(stale, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    write_folder(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(content: dict, path: Path) -> None:
    part = path.with_suffix(".part")
    with part.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
