"""The arguments that a diffusers pipeline's call takes, read from its source: a plan is checked without importing
diffusers, which takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.schema import convert_value, suggest_nearest
from workbench.core.source_trees import parse_source
from workbench.core.types import Count

SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
SIZES = frozenset({"height", "width", "num_frames", "max_sequence_length"})  # whole numbers from 1


def check_arguments(cls: str, arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments, numbers in quotes made numbers; None stands for the pipeline's own default.

    Raises BadInput for an argument that the pipeline `cls` doesn't take, and for a value that is no number, text or
    boolean where it wants one. A class that isn't diffusers' own takes anything.
    """
    kinds = read_arguments(cls)
    if kinds is None:
        return dict(arguments)
    if unknown := [name for name in arguments if name not in kinds]:
        raise BadInput(f"{where}: {cls} takes no {unknown[0]!r}; {suggest_nearest(str(unknown[0]), kinds)}")
    return {
        name: value
        if (kind := kinds[name]) is None or value is None
        else convert_number(value, kind, f"{where}.{name}")
        for name, value in arguments.items()
    }


def convert_number(value: Any, kind: Any, where: str) -> Any:
    """The value, or the number that it is as text. Raises BadInput for another type than `kind`."""
    converted = convert_value(value, kind, where)
    return converted if isinstance(value, str) else value


@lru_cache(maxsize=64)
def read_arguments(cls: str) -> Mapping[str, Any] | None:
    """Name -> type of each argument of a pipeline's call; None where the type is no plain one. None as a whole for a
    class that diffusers has no call of its own for."""
    signature = _find_signature(cls)
    if signature is None:
        return None
    return {a.arg: _argument_type(a) for a in [*signature.args, *signature.kwonlyargs] if a.arg != "self"}


def required_arguments(cls: str) -> list[str]:
    """The arguments of a pipeline's call that have no default; none for a class that diffusers has no call of its own
    for."""
    signature = _find_signature(cls)
    if signature is None:
        return []
    by_place = [a.arg for a in signature.args[: len(signature.args) - len(signature.defaults)] if a.arg != "self"]
    by_name = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    return by_place + [a.arg for a, default in by_name if default is None]


def read_default(cls: str, argument: str) -> Any:
    """The default of an argument of a pipeline's call, where it is a plain value; None where there is none."""
    signature = _find_signature(cls)
    if signature is None:
        return None
    by_place = zip(signature.args[len(signature.args) - len(signature.defaults) :], signature.defaults, strict=True)
    by_name = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    value = next((d for a, d in (*by_place, *by_name) if a.arg == argument), None)
    return value.value if isinstance(value, ast.Constant) else None


@lru_cache(maxsize=64)
def _find_signature(cls: str) -> ast.arguments | None:
    path = _class_files().get(cls)
    if path is None:
        return None
    tree = parse_source(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    return next((n.args for n in body if isinstance(n, ast.FunctionDef) and n.name == "__call__"), None)


def _argument_type(argument: ast.arg) -> Any:
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    optional = re.fullmatch(r"Optional\[(\w+)\]|(\w+) \| None", annotation)
    name = next(filter(None, optional.groups())) if optional else annotation
    return Count if argument.arg in SIZES and name == "int" else SCALARS.get(name)


@lru_cache(maxsize=1)
def _class_files() -> dict[str, Path]:
    """Class -> file of diffusers' pipelines."""
    spec = importlib.util.find_spec("diffusers")
    folder = Path(spec.origin).parent / "pipelines" if spec and spec.origin else Path()
    return {
        name: path
        for path in sorted(folder.rglob("pipeline_*.py"))
        for name in re.findall(r"^class (\w+Pipeline)\b", path.read_text(encoding="utf-8"), re.M)
    }
