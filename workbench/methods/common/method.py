"""Defaults for the members of a method. Our methods inherit them; one from outside this repository that lacks a member
gets it by `complete_method`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.types import Method


class MethodDefaults:
    """The members of workbench.core.types.Method that have a default."""

    scales: str = ""
    paper: str = ""
    measured: str = ""
    yields_predictions: bool = False
    scales_in_turns: bool = False
    learns_from_pairs: bool = False
    optimises_sets: bool = False
    delivered_copy: str = ""
    selects_weights: bool = False
    group: int = 1
    optimizer_steps: int = 1
    advantage: str = "whole"
    former_names: Mapping[str, str] = {}  # a setting's former name -> its current one

    def check(self, pipeline: Any, reward: Any, lora: Any) -> None:
        return None

    def check_prompts(self, prompts: Sequence[str]) -> None:
        return None

    def sampler(self) -> Method | None:
        return None

    def dial_axes(self, reward: Any) -> tuple[str, ...]:
        return ()


REQUIRED = ("needs", "calls", "__call__")
DEFAULTS = {name: value for name, value in vars(MethodDefaults).items() if not name.startswith("_")}


def check_method(cls: Any, name: str, where: str) -> None:
    """Raises BadInput, saying what is missing, unless `cls` is a method's class."""
    if not isinstance(cls, type) or not is_dataclass(cls):
        raise BadInput(f"{where}: {name!r} is no method: it must be a frozen dataclass, see docs/extending.md")
    if absent := [member for member in REQUIRED if not any(member in vars(c) for c in cls.__mro__)]:
        raise BadInput(f"{where}: {name!r} is no method: it lacks {' and '.join(absent)}, see docs/extending.md")


def complete_method(cls: type) -> type:
    """The class itself, after its missing members have been set to defaults."""
    for name, value in DEFAULTS.items():
        if not hasattr(cls, name):
            setattr(cls, name, value)
    return cls


def is_import_path(name: Any) -> bool:
    """Whether it is a text of the form `package.module:Class`."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*", name) is not None


def short_name(name: str) -> str:
    """A method's name as a contestant's name: of an import path, the class."""
    return name.rpartition(":")[2].rpartition(".")[2] if ":" in name else name
