"""Where an app works: what its tabs are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .desk import Desk


@dataclass(frozen=True)
class Place:
    runs: Path  # the runs and their index
    temp: Path  # private files of this app, removed when they are old
    desk: Desk
