"""Trackers of a training's metrics, besides the run's own log: TensorBoard, wandb and trackio, by accelerate.

A resumed training continues the same curves: TensorBoard's are purged of points beyond the checkpoint, and wandb
resumes the run of the same `id`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from workbench.runs.train_config import TrainConfig

PROJECT = "media-alignment-workbench"


def open_trackers(
    recipe: TrainConfig, folder: Path, name: str, config: Mapping[str, Any], start: int
) -> list[GeneralTracker]:
    """The trackers that the recipe names, or TensorBoard where it is installed; `start` rounds have been logged
    before."""
    names = recipe.report_to
    if names is None:
        names = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    trackers = [create_tracker(tracker, folder, name, config, start) for tracker in names]
    for tracker in trackers:
        if hasattr(tracker, "start"):  # older versions start in the constructor
            tracker.start()
    return trackers


def create_tracker(tracker: str, folder: Path, name: str, config: Mapping[str, Any], start: int) -> GeneralTracker:
    """A tracker ("tensorboard", "wandb" or "trackio") of the training of contestant `name` in a run folder."""
    if tracker == "tensorboard":
        return TensorBoardTracker(name, str(folder / "tensorboard"), purge_step=start + 1)
    run_name = f"{folder.name}-{name}"
    if tracker == "wandb":
        settings = {"dir": str(folder), "id": run_name, "resume": "allow"}
        return WandBTracker(PROJECT, name=run_name, config=dict(config), **settings)
    from accelerate.tracking import TrackioTracker  # only in newer versions of accelerate

    return TrackioTracker(PROJECT, name=run_name, config=dict(config))


def log_metrics(trackers: list[GeneralTracker], step: int, metrics: Mapping[str, float]) -> None:
    """Log to all trackers. `held oracle` becomes `held/oracle` for TensorBoard, which groups metrics by prefix."""
    for tracker in trackers:
        grouped = isinstance(tracker, TensorBoardTracker)
        tracker.log({key.replace(" ", "/", 1) if grouped else key: v for key, v in metrics.items()}, step=step)
