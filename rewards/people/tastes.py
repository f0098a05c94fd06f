"""Tastes by name: what was learned from votes lies in RUNS/learned/NAME, and `taste:NAME` finds it from the folder in
which one works; `taste:SOME/FOLDER` finds it anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value

PREFIX = "taste:"
FOLDER = "learned"  # in a folder of runs
RUNS = Path("runs")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def list_tastes(runs: Path = RUNS) -> dict[str, Path]:
    """Name -> folder of the tastes that were learned in this folder of runs, by name."""
    return {head.parent.name: head.parent for head in sorted((runs / FOLDER).glob("*/head.json"))}


def find_taste(name: str, where: str = "reward") -> Path:
    """The folder that `taste:NAME` or `taste:FOLDER` stands for. Raises BadInput, naming the nearest."""
    place = name.removeprefix(PREFIX)
    if "/" in place:
        if (Path(place).expanduser() / "head.json").is_file():
            return Path(place).expanduser()
        raise BadInput(f"{where}: {quote_value(place)} holds no taste that was learned from votes")
    tastes = list_tastes()
    if place not in tastes:
        raise BadInput(f"{where}: no taste {quote_value(place)} in {RUNS / FOLDER}; {suggest_nearest(place, tastes)}")
    return tastes[place]


def taste_block(folder: Path) -> dict[str, Any]:
    """The settings of a taste as a component of a reward: which reward it is, and where. Raises BadInput."""
    record = read_json(folder / "head.json")
    if not isinstance(record, dict):
        raise BadInput(f"{folder}: its head is damaged; fit it again")
    return {"reward": "personal" if "people" in record else "learned", "path": str(folder)}


def taste_label(name: str) -> str:
    """The label of a component `taste:NAME` in tables: without a colon, which stands for an import elsewhere."""
    return re.sub(r"[^\w-]", "-", f"{PREFIX}{Path(name.removeprefix(PREFIX)).name}")
