"""Training, as a part of a run: a contestant whose method moves weights is trained first, exported, and then samples like any
other."""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Iterator

from pipelines import processes
from workbench.core.types import BadInput
from workbench.runs import store
from workbench.runs.progress import Progress
from workbench.training.monitoring import Halted
from workbench.training.staged_trainer import Staged
from workbench.training.trainer import Training
from workbench.training.training_runs import shelf


class Ended(RuntimeError):  # noqa: N818
    """This process of several can't go on. The others wait for it in vain until it has exited, and their launcher ends them."""


def train(plan, folder: store.RunFolder, stop: threading.Event, load) -> Iterator[Progress]:
    """Train and export what is not trained yet, one contestant after the other. One that fails is reported in the run's log,
    and the others go on; but of several processes none can go on without the others. Then this raises Ended."""
    for name in plan.trained:
        if stop.is_set():
            return
        if shelf(plan, folder, name).finished:
            continue
        try:
            yield from (Staged if plan.stages else Training)(plan, folder, name, load).run(stop)
        except Exception as error:
            if isinstance(error, (BadInput, OSError)) and processes.count() == 1:
                raise
            reason = (
                str(error)
                if isinstance(error, (Halted, BadInput))
                else f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            )
            rank = processes.rank()
            path = folder.path / (f"failure-{name}-rank{rank}.txt" if rank else f"failure-{name}.txt")
            store.write_atomic(path, traceback.format_exc())
            if processes.leads():
                folder.append({"contestant": name, "batch": 0, "failed": reason})
            if processes.count() > 1:
                raise Ended(f"{name} failed in process {rank} of {processes.count()}: {reason} (see {path})") from error
            yield Progress(name, 0, plan.recipe.updates, failed=reason, phase="train")
        gc.collect()  # the modules of some pipelines refer to each other, and the next one needs their place


follow = train  # what the other processes do: the same, with nothing to write but why they failed
