"""Training, as a part of a run: a contestant whose method moves weights is trained first, exported, and then samples like any
other."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator

from . import store
from .lessons import leads, shelf
from .progress import Progress
from .staged import Staged
from .trainer import Training
from .types import BadInput
from .watchdogs import Halted


def train(plan, folder: store.RunFolder, stop: threading.Event, load) -> Iterator[Progress]:
    """Train and export what is not trained yet, one contestant after the other. One that fails is reported in the run's log,
    and the others go on."""
    for name in plan.trained:
        if stop.is_set():
            return
        if shelf(plan, folder, name).finished:
            continue
        try:
            yield from (Staged if plan.stages else Training)(plan, folder, name, load).run(stop)
        except (BadInput, OSError):
            raise
        except Exception as error:
            reason = (
                str(error)
                if isinstance(error, Halted)
                else f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            )
            if leads():
                store.write_atomic(folder.path / f"failure-{name}.txt", traceback.format_exc())
                folder.append({"contestant": name, "batch": 0, "failed": reason})
            yield Progress(name, 0, plan.recipe.updates, failed=reason, phase="train")


follow = train  # what the other processes do: the same, with nothing to write
