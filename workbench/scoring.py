"""Any files, any rewards, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rewards import compose

from . import media
from .judges import judges
from .types import BadInput, Media

MEDIA = media.IMAGES | {".wav"}


def score(files: Sequence[Path], names: Sequence[str], prompt: str | None) -> list[dict]:
    """One row a file: `file`, `prompt`, a score per reward (None where it can't be judged), and `error`, empty when the
    file could be read; the others are scored all the same.

    Raises BadInput for a path that isn't there, a folder without media, or a reward that needs a prompt where none is.
    """
    reward = compose.from_config(dict.fromkeys(names, 1.0), judges())
    rows = []
    for path in _expand(files):
        row = {"file": str(path), "prompt": prompt}
        try:
            item = media.read(path)
            row["prompt"] = prompt if prompt is not None else media.read_meta(path).get("prompt")
        except BadInput as error:
            rows.append(row | dict.fromkeys(names) | {"error": str(error)})
            continue
        rows.append(row | _judge(reward, item, row["prompt"], path) | {"error": ""})
    return rows


def _expand(files: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA and not p.name.startswith("."))
            if not inside:
                raise BadInput(f"{path}: no media files in this folder; known kinds: {', '.join(sorted(MEDIA))}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise BadInput(f"{path}: no such file or folder")
    return found


@torch.no_grad()
def _judge(reward: compose.Weighted, item: Media, prompt: str | None, path: Path) -> dict[str, float | None]:
    for name, part in reward.rewards.items():
        if item.modality not in part.spec.modalities:
            raise BadInput(f"reward {name} can't judge {path}: it judges {', '.join(sorted(part.spec.modalities))}")
        if "prompt" in part.spec.needs and prompt is None:
            raise BadInput(f"reward {name} needs the prompt of {path}, and the file carries none; give --prompt TEXT")
    scores = reward.breakdown(media=item, prompts=[prompt or ""])
    return {name: float(v[0]) if v[0].isfinite() else None for name, v in scores.items()}
