"""Scores of media from any source: files, folders, PIL pictures, tensors, Media."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io import image as pictures
from workbench.core.io import media as media_files
from workbench.core.types import Media, Reward
from workbench.engine.alignment import AlignedSample, Alignment

ROWS = 16  # media of equal shape that a reward scores at once
ACCEPTED = (
    "a path, a PIL picture, a tensor [3,H,W] or [N,3,H,W] in [0,1], a Media, what align returned, or a list of these"
)


@dataclass(frozen=True)
class Item:
    """One medium to score, with its file and the prompt stored in it, if any."""

    media: Media  # one row
    file: str = ""
    prompt: str | None = None


def read_items(source: Any) -> Iterator[Item]:
    """The media in `source`, one by one. Raises BadInput for a source without media, or one that can't be read."""
    if isinstance(source, (str, Path)):
        for path in media_paths(Path(source)):
            file = media_files.inspect_media(path)
            words = file.story.get("prompt")
            yield Item(file.media, str(path), words if isinstance(words, str) else None)
    elif isinstance(source, (Alignment, AlignedSample)):
        prompts = source.prompts if isinstance(source, Alignment) else (source.prompt,)
        for n, prompt in enumerate(prompts):
            yield Item(source.media[n], prompt=prompt)
    elif isinstance(source, Media):
        for n in range(len(source)):
            yield Item(source[n])
    elif isinstance(source, Tensor):
        data = source[None] if source.dim() == 3 else source
        if data.dim() != 4 or data.shape[1] != 3 or not data.is_floating_point():
            raise BadInput(
                f"media: a tensor is a picture, float [3,H,W] or [N,3,H,W] in [0,1], got {source.dtype} "
                f"{list(source.shape)}; clips and sounds have a rate: Media(data, 'video', frames_per_second)"
            )
        yield from read_items(Media(data, "image"))
    elif hasattr(source, "getbands"):  # PIL
        yield Item(Media(pictures.image_to_tensor(source)[0][None], "image"))
    elif isinstance(source, Sequence):
        for part in source:
            yield from read_items(part)
    else:
        raise BadInput(f"media: expected {ACCEPTED}, got {type(source).__name__}")


def media_paths(path: Path) -> list[Path]:
    """The file itself, or the media files in a folder and its subfolders, sorted. Raises BadInput where there is
    none."""
    if not path.is_dir():
        return [path]
    inside = [p for p in path.rglob("*") if p.suffix.lower() in media_files.READABLE_SUFFIXES and p.is_file()]
    inside = sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts))
    if not inside:
        raise BadInput(
            f"{path}: no media files in this folder; known kinds: {', '.join(sorted(media_files.READABLE_SUFFIXES))}"
        )
    return inside


def with_prompts(items: Sequence[Item], prompts: str | Sequence[str] | None) -> list[str | None]:
    """A prompt for each item: the one text, the item's of a list, or, without `prompts`, the one stored with it. Raises
    BadInput for a list of another length."""
    if prompts is None:
        return [item.prompt for item in items]
    if isinstance(prompts, str):
        return [prompts] * len(items)
    if len(prompts) != len(items):
        raise BadInput(f"prompts: {len(prompts)} for {len(items)} media; give one for each, or one text for all")
    return list(prompts)


def check_rewards(rewards: Mapping[str, Reward], items: Sequence[Item], prompts: Sequence[str | None]) -> None:
    """Raises BadInput for a reward that needs more than media and prompts, or can't score one of the items."""
    for name, reward in rewards.items():
        spec = reward.spec
        if spec.scope == "group":
            raise BadInput(
                f"reward {name}: compares the samples of one prompt made together, so it can't score single media"
            )
        if "source" in spec.needs:
            raise BadInput(f"reward {name}: needs what each picture was made from, which score doesn't take")
        for item, prompt in zip(items, prompts, strict=True):
            if item.media.modality not in spec.modalities:
                modalities = " and ".join(sorted(spec.modalities))
                raise BadInput(f"reward {name} judges {modalities}, and {item.file or 'this'} is {item.media.modality}")
            if "prompt" in spec.needs and prompt is None:
                raise BadInput(f"reward {name} needs the prompt of {item.file or 'every sample'}; give prompts=")


@torch.no_grad()
def score_items(
    items: Sequence[Item], rewards: Mapping[str, Reward], prompts: Sequence[str | None]
) -> list[dict[str, Any]]:
    """One dict per item: its file or number, its prompt, and a float for each reward, NaN where it can't score. With a
    set reward, every row has the score of all items together. Raises BadInput."""
    check_rewards(rewards, items, prompts)
    rows = [
        {"file": item.file or n, "prompt": prompt} for n, (item, prompt) in enumerate(zip(items, prompts, strict=True))
    ]
    for name, reward in rewards.items():
        if reward.spec.scope == "set":
            features = torch.cat([reward.features(item.media) for item in items])
            value = float(reward.score_rows(features, reward.target(None, features.device)))
            values = [value] * len(items)
        else:
            values = score_in_chunks(reward, items, [prompt or "" for prompt in prompts])
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def score_in_chunks(reward: Reward, items: Sequence[Item], prompts: Sequence[str]) -> list[float]:
    """One float per item; up to ROWS neighbours of equal shape are scored in one call."""
    values: list[float] = []
    while len(values) < len(items):
        first = len(values)
        last = first + 1
        while last < min(len(items), first + ROWS) and is_alike(items[last].media, items[first].media):
            last += 1
        media = Media.cat([item.media for item in items[first:last]])
        values += reward(media=media, prompts=prompts[first:last]).float().tolist()
    return values


def is_alike(one: Media, other: Media) -> bool:
    """Whether both media can be rows of one batch."""
    return (one.modality, one.rate, one.data.shape) == (other.modality, other.rate, other.data.shape)
