"""Where an app works: what its tabs are given."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from workbench.ui.jobs import Desk


def already() -> threading.Event:
    done = threading.Event()
    done.set()
    return done


@dataclass(frozen=True)
class Place:
    runs: Path  # the runs and their index
    temp: Path  # private files of this app, removed when they are old
    desk: Desk
    ready: threading.Event = field(default_factory=already)  # set once what the tabs work with is imported
