"""Training as a part of a run: contestants whose methods train weights are trained and exported before samples are
made."""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pipelines import processes
from workbench.core.errors import BadInput, is_disk_full
from workbench.runs import store
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress
from workbench.training.monitoring import TrainingHalted
from workbench.training.staged_trainer import StagedTrainer
from workbench.training.trainer import Trainer
from workbench.training.training_runs import checkpoint_store


class ProcessEnded(RuntimeError):  # noqa: N818
    """One of several processes failed. The others wait for it until it exits; then the launcher ends them."""


def train_contestants(
    plan: Plan, folder: store.RunFolder, stop: threading.Event, load: Callable[..., Any]
) -> Iterator[Progress]:
    """Train and export the contestants that are not trained yet, one after the other. A failure is written to the run's
    log, and the next contestant is trained; with several processes it raises ProcessEnded, as none can go on without
    the others."""
    for name in plan.trained_contestants:
        if stop.is_set():
            return
        if checkpoint_store(plan, folder, name).finished_record:
            continue
        try:
            own_plan = replace(plan, reward=plan.reward_of(name))
            yield from (StagedTrainer if plan.stages else Trainer)(own_plan, folder, name, load).run(stop)
        except Exception as error:
            if is_disk_full(error) or (isinstance(error, (BadInput, OSError)) and processes.count_processes() == 1):
                raise
            reason = (
                str(error)
                if isinstance(error, (TrainingHalted, BadInput))
                else f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            )
            rank = processes.process_rank()
            path = folder.path / (f"failure-{name}-rank{rank}.txt" if rank else f"failure-{name}.txt")
            store.write_atomic(path, traceback.format_exc())
            if processes.is_main_process():
                folder.append_event({"contestant": name, "batch": 0, "failed": reason})
            if processes.count_processes() > 1:
                raise ProcessEnded(
                    f"{name} failed in process {rank} of {processes.count_processes()}: {reason} (see {path})"
                ) from error
            yield Progress(name, 0, plan.train_config.rounds, failed=reason, phase="train")
        gc.collect()  # the modules of some pipelines refer to each other, and the next one needs their memory
