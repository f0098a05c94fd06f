"""The bin: runs that were deleted, until they are restored or removed for good.

A run in the bin keeps all its files, and the votes on its media keep counting in ratings; nobody is asked about it any
more, and what needs its media, such as a training on these votes, needs it restored.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.runs.store import RunFolder, list_run_folders, open_index

BIN = ".bin"  # in the folder of runs


def list_binned(runs: Path) -> list[RunFolder]:
    """The runs in the bin, newest first."""
    return list_run_folders(runs / BIN)


def move_to_bin(folder: RunFolder) -> Path:
    """Move a run to the bin; returns where it is. Raises BadInput while a process works on it."""
    runs = folder.path.absolute().parent
    (runs / BIN).mkdir(exist_ok=True)
    target = runs / BIN / folder.path.name
    if target.exists():
        target = target.with_name(f"{target.name}-{time.strftime('%Y%m%d%H%M%S')}")
    try:
        with folder.exclusive_lock():
            os.rename(folder.path, target)
    except OSError as error:
        raise BadInput(f"{folder.path}: can't be moved to the bin ({error.strerror})") from None
    return target


def restore_run(runs: Path, name: str) -> RunFolder:
    """Move a run back from the bin. Raises BadInput where there is none of this name, or another is in its place."""
    binned = find_binned(runs, name)
    target = runs / binned.path.name
    if target.exists():
        raise BadInput(f"{target}: another run is in its place; move that one away first")
    os.rename(binned.path, target)
    return RunFolder(target)


def remove_binned(runs: Path, name: str) -> None:
    """Remove a run in the bin for good, with all its files. Raises BadInput where there is none of this name."""
    shutil.rmtree(find_binned(runs, name).path)


def find_binned(runs: Path, name: str) -> RunFolder:
    """The run of this very name in the bin: what was typed never becomes a path. Raises BadInput."""
    binned = {folder.path.name: folder for folder in list_binned(runs)}
    if name not in binned:
        raise BadInput(f"the bin has no run {name!r}; {suggest_nearest(name, binned)}")
    return binned[name]


def count_votes(runs: Path, name: str) -> int:
    """The votes on media of a run."""
    if not (runs / "workbench.db").is_file():
        return 0
    with open_index(runs) as db:
        (count,) = db.execute(
            "SELECT COUNT(*) FROM votes v JOIN battles b ON b.id = v.battle JOIN artefacts a ON a.id = b.left_artefact "
            "JOIN runs r ON r.id = a.run WHERE r.folder = ? AND v.undoes IS NULL",
            (name,),
        ).fetchone()
    return count


def describe_votes(count: int) -> str:
    """What becomes of the votes on a run in the bin; "" where there are none."""
    if not count:
        return ""
    votes = "the vote on its media keeps" if count == 1 else f"the {count:,} votes on its media keep"
    return f"{votes} counting, and a training on them needs it restored"
