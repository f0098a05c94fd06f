"""Builds of a starter pack that are killed right after a checkpoint and begun again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.starter import resumable_training


class Killed(BaseException):
    """Nothing in a recipe catches this, as nothing catches a real kill."""


class KilledBuilds:
    """Builds that save a checkpoint after every step. `modules`: those of the recipe, which save and train."""

    def __init__(self, monkeypatch: Any, build: Callable[..., Any], *modules: ModuleType):
        self.monkeypatch, self.build = monkeypatch, build
        self.savers = [m for m in (resumable_training, *modules) if hasattr(m, "save_atomically")]
        self.save, train = resumable_training.save_atomically, resumable_training.train_stage
        for module in modules:
            if hasattr(module, "train_stage"):
                monkeypatch.setattr(module, "train_stage", lambda *a, **k: train(*a, **(k | {"every": 0.0})))

    def run(self, folder: Path, *stages: str, saves: float = float("inf")) -> bool:
        """Build in the folder, or go on there; False where it was killed after so many checkpoints."""
        left = [saves]

        def save_and_die(state: Any, path: Path) -> None:
            self.save(state, path)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        for module in self.savers:
            self.monkeypatch.setattr(module, "save_atomically", save_and_die)
        try:
            self.build(folder, folder / "pack", fast=True, stages=stages)
        except Killed:
            return False
        return True


def find_equal_weights(ours: Path, theirs: Path) -> list[Path]:
    """The weight files of a pack in `ours`, relative to it, all of which have the same bits in `theirs`."""
    names = sorted(path.relative_to(ours) for path in (ours / "pack").rglob("*.safetensors"))
    for name in names:
        left, right = load_file(ours / name), load_file(theirs / name)
        assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left), name
    return names
