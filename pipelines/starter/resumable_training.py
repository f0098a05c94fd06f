"""One resumable loop for every training stage of the pack.

Step k draws everything from a generator seeded by (seed, stage, k), so a run that was killed and started again does
the same arithmetic as one that was not.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from workbench.core.types import derive_seed


@dataclass(frozen=True)
class Draw:
    """The randomness of one step."""

    torch: torch.Generator
    python: random.Random

    @staticmethod
    def at_step(seed: int, *path: int | str) -> Draw:
        number = derive_seed(seed, *path)
        return Draw(torch.Generator().manual_seed(number), random.Random(number))


@dataclass
class TrainingStage:
    """What a stage trains: modules by name, one optimiser, an optional running average of some modules.

    `loss(k, draw)` gives the loss of step k and what to report; `lr(k)` multiplies the base rate.
    """

    name: str
    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    loss: Callable[[int, Draw], tuple[Tensor, dict[str, float]]]
    steps: int
    warmup: int = 100
    averages: Mapping[str, nn.Module] = field(default_factory=dict)  # name of a module -> its running average
    decay: float = 0.999
    after: Callable[[int], None] = lambda k: None

    def learning_rate_factor(self, k: int) -> float:
        """Linear warm-up, then a cosine to 2 %."""
        share = min(k / max(self.steps, 1), 1.0)
        return min((k + 1) / self.warmup, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))

    def state_tensors(self) -> dict:
        parts = {f"module.{n}": m.state_dict() for n, m in self.modules.items()}
        parts |= {f"average.{n}": m.state_dict() for n, m in self.averages.items()}
        return parts | {"optimizer": self.optimizer.state_dict()}

    def load_state(self, saved: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(saved[f"module.{name}"])
        for name, module in self.averages.items():
            module.load_state_dict(saved[f"average.{name}"])
        self.optimizer.load_state_dict(saved["optimizer"])


def save_atomically(state: object, path: Path) -> None:
    """Written beside, synced, renamed: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def train_stage(stage: TrainingStage, folder: Path, *, seed: int, every: float = 60.0) -> dict[str, float]:
    """Run the stage to its end from where it was left, with a checkpoint every `every` seconds.

    Returns seconds and steps.
    """
    path = folder / f"{stage.name}.pt"
    k, seconds_before = 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        stage.load_state(saved)
        k, seconds_before = saved["step"], saved["seconds"]
    rates = [
        group["lr"] if "initial_lr" not in group else group["initial_lr"] for group in stage.optimizer.param_groups
    ]
    for group, lr in zip(stage.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = lr
    running_means: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[shown]}"), refresh_per_second=1) as bar:
        task = bar.add_task(stage.name, total=stage.steps, completed=k, shown="")
        started = saved_at = time.monotonic()
        while k < stage.steps:
            for group, lr in zip(stage.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * stage.learning_rate_factor(k)
            loss, metrics = stage.loss(k, Draw.at_step(seed, stage.name, k))
            stage.optimizer.zero_grad()
            loss.backward()
            for group in stage.optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            stage.optimizer.step()
            _update_averages(stage, k)
            stage.after(k)
            k += 1
            running_means = {
                n: 0.98 * running_means.get(n, v) + 0.02 * v for n, v in ({"loss": loss.item()} | metrics).items()
            }
            bar.update(task, completed=k, shown=" ".join(f"{n} {v:.4f}" for n, v in running_means.items()))
            if k % 100 == 0:
                _append_log(folder, stage.name, k, seconds_before + time.monotonic() - started, running_means)
            if time.monotonic() - saved_at > every or k == stage.steps:
                saved_at = time.monotonic()
                save_atomically(
                    stage.state_tensors() | {"step": k, "seconds": seconds_before + saved_at - started}, path
                )
    return {"steps": k, "seconds": round(seconds_before + time.monotonic() - started, 1)}


@torch.no_grad()
def _update_averages(stage: TrainingStage, k: int) -> None:
    decay = min(stage.decay, (1 + k) / (10 + k))
    for name, average in stage.averages.items():
        live = stage.modules[name]
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in live.parameters()], 1 - decay)


def _append_log(folder: Path, name: str, k: int, seconds: float, running_means: Mapping[str, float]) -> None:
    with (folder / f"{name}.log").open("a") as file:
        file.write(f"{k} {seconds:.0f}s " + " ".join(f"{n}={v:.5f}" for n, v in running_means.items()) + "\n")
