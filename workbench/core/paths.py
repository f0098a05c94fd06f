"""Locations of the files that ship with the workbench, and atomic writing. Standard library only."""

from __future__ import annotations

import errno
import os
import re
import uuid
from pathlib import Path

from workbench.core.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
STARTER = ROOT / "pipelines" / "starter" / "weights"
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")  # names of the files that `write_atomic` renames


def resolve_repo(repo: str) -> str:
    """The folder of a part of the starter pack (`starter:image/clip`); any other repository is returned as it is.

    Raises FileNotFoundError when the pack has no such part.
    """
    if not repo.startswith("starter:"):
        return repo
    folder = (STARTER / repo.removeprefix("starter:")).resolve()
    if not folder.is_relative_to(STARTER) or not folder.is_dir():
        raise FileNotFoundError(f"the starter pack has no part {repo!r}; build it with: workbench starter build")
    return str(folder)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file completely or not at all, also beside other writers: a unique temporary file, fsync, rename. Raises
    BadInput where a folder has the file's name."""
    if path.is_dir():
        raise BadInput(f"{path}: a folder of this name is in the way of a file; move it away")
    temp = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temp, "xb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
        sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: without it, a file that was renamed may be lost in a power cut."""
    if os.name != "posix":  # elsewhere folders can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems don't sync folders
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, before: float) -> None:
    """Remove what writers that died in `write_atomic` left in a folder and those below it. `before`: seconds since the
    epoch; newer files may belong to a writer at work."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
