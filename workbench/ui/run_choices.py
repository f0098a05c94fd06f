"""The configs that a page may start: those that come with the workbench, and those in the folder of runs."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS

OWN_FOLDERS = ("configs", "grids")  # folders in the folder of runs, for configs of one's own and for saved grids
TRAININGS = re.compile(r"^(train|stages):", re.MULTILINE)
COMMENT = 90  # letters of a config's first line that are shown
GROUPS = ("yours", "grids", "compare", "train", "dragon", "video")  # the order in which they are offered


def list_configs(runs: Path) -> dict[str, Path]:
    """name -> file of every config that is offered, those of one's own first: `yours/NAME`, `grids/NAME`,
    `train/sd35-nft`, `demo`."""
    configs = {f"yours/{path.stem}": path for folder in OWN_FOLDERS for path in sorted((runs / folder).glob("*.yaml"))}
    configs |= {f"grids/{path.stem}": path for path in sorted((CONFIGS / "grids").glob("*.yaml"))}
    bundled = CONFIGS / "runs"
    paths = sorted(bundled.rglob("*.yaml"), key=lambda path: (len(path.relative_to(bundled).parts), str(path)))
    return configs | {path.relative_to(bundled).with_suffix("").as_posix(): path for path in paths}


def offer_configs(runs: Path) -> list[tuple[str, str]]:
    """(label, name) of every config, by groups: the group comes first in the label, and what the config says of itself
    last, so that a search finds any of them."""
    rows = []
    for name, path in list_configs(runs).items():
        text = _read_beginning(path)
        group = name.partition("/")[0] if "/" in name else "train" if TRAININGS.search(text) else "compare"
        first = text.partition("\n")[0].lstrip("# ") if text.startswith("#") else ""
        comment = f"  ({first if len(first) <= COMMENT else first[:COMMENT].rsplit(' ', 1)[0] + ' …'})" if first else ""
        rows.append((group, f"{group}: {name.removeprefix(f'{group}/')}{comment}", name))
    rank = {group: n for n, group in enumerate(GROUPS)}
    rows.sort(key=lambda row: rank.get(row[0], len(rank)))
    return [(label, name) for _, label, name in rows]


def _read_beginning(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return ""  # starting it says why


def find_config(runs: Path, name: object) -> Path:
    """The file of an offered config: what was typed never becomes a path. Raises BadInput."""
    configs = list_configs(runs)
    if name not in configs:
        raise BadInput("there is no config of this name; choose one of the list")
    return configs[str(name)]


def short_path(file: Path) -> Path:
    """A bundled config as `workbench run` takes it; another by its path."""
    folder = CONFIGS / "runs"
    return file.relative_to(folder).with_suffix("") if file.is_relative_to(folder) else file
