"""Where the numbers of a training go besides the run's own log: TensorBoard, wandb, trackio, as far as installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.runs.train_config import TRACKERS, Recipe


class Board:
    """TensorBoard event files beside the run. After a resume, what was logged beyond it is purged from the curves."""

    def __init__(self, home: Path, name: str, config: Mapping, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(home / "tensorboard" / name), purge_step=start + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key.replace(" ", "/", 1), value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Service:
    """wandb, or trackio, which speaks like it."""

    def __init__(self, module: str, home: Path, name: str, config: Mapping, start: int):
        self.service = importlib.import_module(module)
        more = {"dir": str(home), "id": f"{home.name}-{name}", "resume": "allow"} if module == "wandb" else {}
        self.run = self.service.init(
            project="media-alignment-workbench", name=f"{home.name}-{name}", config=dict(config), **more
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.service.log(dict(metrics), step=step)

    def close(self) -> None:
        self.service.finish()


def trackers(recipe: Recipe, home: Path, name: str, config: Mapping, start: int) -> list[Any]:
    """Those that the recipe names, or TensorBoard where it is installed."""
    named = recipe.report_to
    if named is None:
        named = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    return [
        Board(home, name, config, start) if n == "tensorboard" else Service(TRACKERS[n], home, name, config, start)
        for n in named
    ]
