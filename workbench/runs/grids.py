"""Grids: one run whose contestants are the cells of a table, x across, y down, z from table to table.

    grid: {x: {steps: [1, 2, 4]}, y: {method.iterations: [5, 10]}, z: {pipeline: [starter-image, sd-turbo]}}

All cells have the same prompts, noises and judges, so that they differ in what the axes say and in nothing else. What
is one for a whole run can't be an axis, but for two things: `seed`, since a run makes several noises of each prompt
anyway, and the weights of rewards, which a contestant may have of its own.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipelines.variants import merge_changes, merge_variant, pipeline_label
from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_yaml
from workbench.core.schema import suggest_nearest
from workbench.core.text import one_line, quote_value
from workbench.methods import METHODS, find_method, trains_weights

AXES = ("x", "y", "z")
SHORT = {"steps": "pipeline.steps", "guidance_scale": "pipeline.call.guidance_scale"}  # what is varied most
KINDS = ("pipeline", "pipeline.SETTING", "method", "method.SETTING", "lora", "lora_weight", "reward.NAME", "seed")
MAX_CELLS = 256
MAX_NAME = 64  # letters of a contestant's name
NO_LORA = ("none", "None", "", None)


@dataclass(frozen=True)
class Axis:
    """One side of a grid."""

    side: str  # x, y or z
    setting: str  # what varies, dotted, as in SHORT's values and KINDS
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """A word for each value, without the folders of files."""
        return tuple(label_value(value) for value in self.values)

    @property
    def title(self) -> str:
        """What varies, in the words that a reader has for it."""
        return self.setting.removeprefix("pipeline.call.").removeprefix("pipeline.").removeprefix("method.")


def label_value(value: Any) -> str:
    """A word for a value of an axis."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return pipeline_label(value) if isinstance(value.get("name"), str) else one_line(value, 60)
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return text.rstrip("/").rpartition("/")[2].removesuffix(".safetensors") if "/" in text else text


def read_axis(text: str) -> tuple[str, list]:
    """(setting, values) of `steps=1,2,4`; values are read as YAML. Raises BadInput."""
    setting, equals, values = text.partition("=")
    if not equals or not setting.strip() or not values.strip():
        raise BadInput(f"axis {quote_value(text)}: write SETTING=VALUE,VALUE, for example steps=1,2,4")
    return setting.strip(), parse_yaml(f"[{values}]", f"axis {setting}")


def read_axes(grid: Any, method: str = "sample") -> list[Axis]:
    """The axes of a `grid` block, checked: z, y, x, as the cells are made. `method`: whose settings may be named
    without `method.`. Raises BadInput."""
    if not isinstance(grid, Mapping) or not grid or set(grid) - set(AXES):
        raise BadInput(f"grid: expected x, y and z, each {{setting: [values]}}, got {quote_value(grid)}")
    axes = []
    for side in reversed([side for side in AXES if grid.get(side)]):
        block = grid[side]
        if not isinstance(block, Mapping) or len(block) != 1:
            raise BadInput(f"grid.{side}: expected one setting with its values, got {quote_value(block)}")
        ((setting, values),) = block.items()
        axes.append(_check_axis(Axis(side, _full_setting(str(setting), method, side), _list_values(values, side))))
    if not axes:
        raise BadInput("grid: names no axis; give at least --x SETTING=VALUE,VALUE")
    settings = [axis.setting for axis in axes]
    if repeated := [setting for setting in settings if settings.count(setting) > 1]:
        raise BadInput(f"grid: {repeated[0]} is on two axes; give it one")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        raise BadInput(f"grid: {count:,} cells are too many to look at; at most {MAX_CELLS}")
    return axes


def _list_values(values: Any, side: str) -> tuple:
    if not isinstance(values, list) or not values:
        raise BadInput(f"grid.{side}: expected a list of values, got {quote_value(values)}")
    labels = [label_value(value) for value in values]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise BadInput(f"grid.{side}: {quote_value(repeated[0])} stands there twice, or two values are called so")
    return tuple(values)


def _full_setting(setting: str, method: str, side: str) -> str:
    """The dotted name of what an axis varies. Raises BadInput for what no axis can be."""
    setting = {"lora.weight": "lora_weight", "lora.file": "lora"}.get(setting, SHORT.get(setting, setting))
    method_settings = {f.name for f in fields(METHODS[method]) if f.init} if method in METHODS else set()
    if setting in method_settings:
        return f"method.{setting}"
    head, _, inner_setting = setting.partition(".")
    if setting in ("pipeline", "method", "lora", "lora_weight", "seed"):
        return setting
    if inner_setting and head in ("pipeline", "method", "reward"):
        return setting
    choices = [*SHORT, *method_settings, "pipeline", "method", "lora", "lora_weight", "seed"]
    raise BadInput(
        f"grid.{side}: {quote_value(setting)} is no setting that cells can differ in; "
        f"{suggest_nearest(setting, choices)}; an axis is one of {', '.join(KINDS)}, and what is one for a whole run "
        "takes a grid for each value"
    )


def _check_axis(axis: Axis) -> Axis:
    """The axis itself. Raises BadInput for values that its setting can't have."""
    where = f"grid.{axis.side}: {axis.setting}"
    if axis.setting == "seed" and [*axis.values] != [*range(len(axis.values))]:
        raise BadInput(
            f"{where}: the noises of a prompt are numbered from 0, as seed=0,1,2; for others change the run's seed, "
            "as an override: seed=7"
        )
    is_number = axis.setting == "lora_weight" or axis.setting.startswith("reward.")
    for value in axis.values:
        if is_number and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
            raise BadInput(f"{where}: expected numbers, got {quote_value(value)}")
        if axis.setting in ("pipeline", "method") and not isinstance(value, str | Mapping):
            raise BadInput(f"{where}: expected names, got {quote_value(value)}")
        if axis.setting == "lora" and value is not None and not isinstance(value, str):
            raise BadInput(f"{where}: expected files, or none, got {quote_value(value)}")
    return axis


def expand_grid(values: Mapping) -> dict:
    """A run's config with a grid, its cells as contestants; one without a grid, or with its cells, as it is. Raises
    BadInput."""
    values = dict(values)
    if values.get("grid") is None or values.get("contestants"):
        return values
    if values.get("stages") or values.get("pairs"):
        raise BadInput("grid: its cells are contestants of a run, which a training in stages or of pairs has not")
    block = _method_block(values.pop("method", None), "method")
    axes = read_axes(values["grid"], block["name"])
    values["grid"] = {axis.side: {axis.setting: [*axis.values]} for axis in reversed(axes)}
    contestant_axes = [axis for axis in axes if axis.setting != "seed"]
    for axis in axes:
        if axis.setting == "seed":
            values["samples_per_prompt"] = len(axis.values)
    values["contestants"] = {}
    for name, cell in name_cells(contestant_axes):
        values["contestants"][name] = _make_block(block, values.get("pipeline", ""), cell)
    return values


def _method_block(method: Any, where: str) -> dict:
    """{name: …, its settings} of a method as configs name it; nothing named is plain sampling. Raises BadInput."""
    if method is None or isinstance(method, str):
        return {"name": method or "sample"}
    if not isinstance(method, Mapping) or not isinstance(method.get("name"), str):
        raise BadInput(f"{where}: expected a method's name or {{name: …, its settings}}, got {quote_value(method)}")
    return dict(method)


def take_contestant(values: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A run's config with one of its contestants as the method that is varied, on the prompts that it was judged on.
    Raises BadInput."""
    values = dict(values)
    contestants = values.pop("contestants", None)
    if contestants is None:
        if name:
            raise BadInput(f"contestant {quote_value(name)}: this config has no contestants; vary its method")
        return values
    if not isinstance(contestants, Mapping) or (name or "") not in contestants:
        names = ", ".join(map(str, contestants))
        tail = f"{quote_value(name)} is none of them; {suggest_nearest(name, contestants)}" if name else ""
        raise BadInput(f"contestant: this config has {names}; {tail or 'say which one is varied'}")
    block = contestants[name]
    block = {"name": block} if isinstance(block, str) else {"name": name, **(block or {})}
    if not trains_weights(find_method(block["name"], where=f"contestants.{name}")):
        values.pop("train", None)
        values["prompts"] = values.pop("test", None) or values.get("prompts")
    return values | {"method": block}


def name_cells(axes: Sequence[Axis]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(contestant, [(setting, value)]) of each cell, x varying fastest: `steps-2_iterations-5`. Without axes it is one
    cell."""
    used: set[str] = set()
    for cell in itertools.product(*(zip(axis.values, axis.labels, strict=True) for axis in axes)):
        parts = [_name_part(axis, label) for axis, (_, label) in zip(axes, cell, strict=True)]
        name = re.sub(r"^[^A-Za-z0-9]+", "", "_".join(reversed(parts))) or "cell"
        name = name[:MAX_NAME].rstrip("-_.")
        if name in used:
            tail = next(f"-{n}" for n in itertools.count(2) if f"{name[: MAX_NAME - 5]}-{n}" not in used)
            name = f"{name[: MAX_NAME - 5]}{tail}"
        used.add(name)
        yield name, [(axis.setting, value) for axis, (value, _) in zip(axes, cell, strict=True)]


def _name_part(axis: Axis, label: str) -> str:
    word = re.sub(r"[^A-Za-z0-9.-]+", "-", label).strip("-") if not re.fullmatch(r"-?[\d.e+-]+", label) else label
    return word if axis.setting in ("pipeline", "method") else f"{axis.setting.rpartition('.')[2]}-{word}"


def _make_block(base: Mapping, pipeline: Any, cell: Sequence[tuple[str, Any]]) -> dict:
    """The block of one cell's contestant. Whole pipelines and methods come before their settings."""
    block: dict[str, Any] = copy.deepcopy(dict(base))
    changes: dict[str, Any] = {}
    for setting, value in sorted(cell, key=lambda part: part[0].count(".")):
        head, _, inner_setting = setting.partition(".")
        if setting == "pipeline":
            block["pipeline"] = value
        elif setting == "method":
            other = _method_block(value, "grid: method")
            block = other if other["name"] != block["name"] else {**block, **other}
        elif head == "pipeline":
            changes = merge_changes(changes, _nest(inner_setting, value))
        elif head == "reward":
            block["reward"] = {**block.get("reward", {}), inner_setting: value}
        elif head == "method":
            block = _set_inside(block, inner_setting, value)
        elif setting == "lora" and value not in NO_LORA:
            block["lora"] = {"file": value}
    weights = [value for setting, value in cell if setting == "lora_weight"]
    if weights and block.get("lora"):
        lora = block["lora"]
        block["lora"] = {**(lora if isinstance(lora, Mapping) else {"file": lora}), "weight": weights[0]}
    elif weights and not any(setting == "lora" for setting, _ in cell):  # of the pipeline, such as a training's
        changes = changes | {"lora_weight": weights[0]}
    if changes:
        block["pipeline"] = merge_variant(block["pipeline"], changes) if block.get("pipeline") else changes
    return block


def _nest(setting: str, value: Any) -> dict:
    *parents, leaf = setting.split(".")
    nested = {leaf: value}
    for parent in reversed(parents):
        nested = {parent: nested}
    return nested


def _set_inside(block: Mapping, setting: str, value: Any) -> dict:
    """The block with a dotted setting changed. Raises BadInput where nothing can be set inside another value."""
    head, _, inner_setting = setting.partition(".")
    if not inner_setting:
        return {**block, head: value}
    inner = block.get(head, {})
    if not isinstance(inner, Mapping):
        raise BadInput(f"grid: method.{setting}: {head} is {quote_value(inner)}, and nothing can be set inside that")
    return {**block, head: _set_inside(inner, inner_setting, value)}


def check_cells(grid: Any, contestants: Any) -> None:
    """Raises BadInput where the contestants of a run are not the cells of its grid."""
    count = math.prod(len(axis.values) for axis in read_axes(grid) if axis.setting != "seed")
    if not isinstance(contestants, Mapping) or len(contestants) != count:
        raise BadInput("grid: its cells are the contestants, so give one method and no contestants beside it")
