"""Where an app works: what each of its tabs is given."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from workbench.ui.jobs import JobQueue


def completed_event() -> threading.Event:
    """One that nobody has to wait for."""
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True)
class AppContext:
    """The folders and the job queue of one app."""

    runs: Path  # the runs and their index
    temp: Path  # private files of this app, removed when they are old
    jobs: JobQueue
    imports_done: threading.Event = field(default_factory=completed_event)  # set once the tabs' modules are imported
