"""Where the files that ship with the workbench lie. Standard library only: anyone may import it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
STARTER = ROOT / "pipelines" / "starter" / "weights"


def resolve(repo: str) -> str:
    """`starter:image/clip` -> the folder of that part of the embedded pack; anything else (a hub id, a path) unchanged.

    Raises FileNotFoundError when the pack has no such part.
    """
    if not repo.startswith("starter:"):
        return repo
    folder = (STARTER / repo.removeprefix("starter:")).resolve()
    if not folder.is_relative_to(STARTER) or not folder.is_dir():
        raise FileNotFoundError(f"the starter pack has no part {repo!r}; build it with: workbench starter build")
    return str(folder)
