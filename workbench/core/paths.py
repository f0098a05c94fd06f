"""Locations of the files that ship with the workbench, and atomic writing. Standard library only."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
STARTER = ROOT / "pipelines" / "starter" / "weights"


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
    """Write a file completely or not at all, also beside other writers: a unique temporary file, fsync, rename."""
    temp = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temp, "xb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
