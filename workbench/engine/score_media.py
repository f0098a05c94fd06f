"""Scores of media from any source: files, folders, PIL pictures, tensors, Media."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, FileInput, MediaInput, input_needs, prompt_inputs, stack_sources
from workbench.core.io import image as pictures
from workbench.core.io import media as media_files
from workbench.core.io.clips import StoredClip
from workbench.core.schema import suggest_nearest
from workbench.core.text import one_line, quote_value
from workbench.core.types import Input, Media, Modality, Prompt, Reward
from workbench.engine.alignment import AlignedSample, Alignment
from workbench.evaluation.file_prompts import restore_inputs
from workbench.evaluation.score_batches import rows_at_once, score_row, shape_key
from workbench.evaluation.score_pairs import plan_paired_scoring
from workbench.evaluation.scoring import check_file_rewards, list_samples
from workbench.runs.media_folders import prompt_in_name
from workbench.runs.media_pairing import WAYS
from workbench.runs.media_prompts import find_prompt
from workbench.runs.prompt_files import check_prompt
from workbench.runs.prompt_inputs import open_input

log = logging.getLogger(__name__)
ACCEPTED = (
    "a path, a PIL picture, a tensor [3,H,W] or [N,3,H,W] in [0,1], a Media, what align returned, or a list of these"
)


@dataclass(frozen=True)
class Item:
    """One medium to score: in memory, or a file, which is read when its turn comes."""

    media: Media | None  # one row
    file: str = ""
    prompt: str | None = None
    in_folder: bool = False  # found in a folder and not named: if it can't be read, that costs its row and no more
    inputs: Mapping[str, Input] = field(default_factory=dict)  # what it was made from, beside what its prompt brings

    def made_from(self, prompt: str | None) -> str:
        """The prompt with all that this was made from."""
        inputs = {**prompt_inputs(prompt or ""), **self.inputs}
        return Prompt(prompt or "", inputs) if inputs else prompt or ""

    def read(self) -> media_files.MediaFile:
        """Raises BadInput for a file that can't be read."""
        return media_files.MediaFile(self.media, {}) if self.media is not None else media_files.inspect_media(self.file)


def read_items(source: Any) -> Iterator[Item]:
    """The media in `source`, one by one. Raises BadInput for a source without media."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_dir():
            media_files.known_format(path)
        yield from _read_folder(path) if path.is_dir() else (Item(None, str(path)),)
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


def collect_items(media: Any, sources: Any = None) -> list[Item]:
    """All media in `media`, with what they were made from. Raises BadInput, also where there is nothing."""
    items = list(read_items(media))
    if not items:
        raise BadInput("media: nothing to score")
    return items if sources is None else with_sources(items, list(read_items(sources)))


def _read_folder(folder: Path) -> Iterator[Item]:
    """The media files in a folder and its subfolders, sorted, with what its metadata say of them. Raises BadInput where
    there is none, and for an input that can't be read."""
    files, metadata = list_samples(folder)
    if not files:
        raise BadInput(f"{folder}: no media files in this folder")
    for path in files:
        named = metadata.find_prompt(path)
        inputs = prompt_inputs(named[0]) if named else {}
        yield Item(None, str(path), (named and str(named[0])) or None, in_folder=True, inputs=inputs)


def with_sources(items: Sequence[Item], sources: Sequence[Item]) -> list[Item]:
    """The items with what each was made from: one source for all, or one for each. Raises BadInput for another number,
    and for a source that can't be read."""
    if len(sources) not in (1, len(items)):
        raise BadInput(f"sources: {len(sources)} for {len(items)} media; give one for each, or one for all")
    inputs = [MediaInput.of(s.media) if s.media is not None else FileInput.at(s.file) for s in sources]
    inputs = inputs * len(items) if len(inputs) == 1 else inputs
    return [replace(item, inputs={**item.inputs, "source": value}) for item, value in zip(items, inputs, strict=True)]


def with_prompts(items: Sequence[Item], prompts: str | Sequence[str | Mapping[str, Any]] | None) -> list[str | None]:
    """A prompt for each item: the one text, the item's of a list, or, without `prompts`, the one that came with it;
    None where its file may have one. A mapping is a prompt with its inputs: {"prompt": text, "source": file}. Raises
    BadInput for a list of another length, and for an input that can't be read."""
    if prompts is None:
        return [item.prompt for item in items]
    if isinstance(prompts, str):
        return [prompts] * len(items)
    if len(prompts) != len(items):
        raise BadInput(f"prompts: {len(prompts)} for {len(items)} media; give one for each, or one text for all")
    return [read_prompt(p) if isinstance(p, Mapping) else p for p in prompts]


def read_prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt that a mapping says, with its inputs. Raises BadInput."""
    if unknown := [key for key in row if key not in ("prompt", *NAMES)]:
        raise BadInput(f"prompts: unknown key {quote_value(unknown[0])}; {suggest_nearest(str(unknown[0]), NAMES)}")
    text = row.get("prompt", "")
    check_prompt(text, "prompts")
    return Prompt(text, {name: open_input(row[name], name, "", Path()) for name in NAMES if row.get(name) is not None})


def check_rewards(rewards: Mapping[str, Reward], items: Sequence[Item], prompts: Sequence[str | None]) -> None:
    """Raises BadInput for a reward that needs more than media and prompts, or can't score one of the items, as far as
    that is known before files are read."""
    for name, reward in rewards.items():
        if reward.spec.scope == "group":
            raise BadInput(
                f"reward {name}: compares the samples of one prompt made together, so it can't score single media"
            )
    for item, prompt in zip(items, prompts, strict=True):
        if item.media is not None:
            check_item(rewards, item, item.media.modality, prompt)


def check_item(rewards: Mapping[str, Reward], item: Item, modality: Modality, prompt: str | None) -> None:
    """Raises BadInput for a reward that can't score this item."""
    for name, reward in rewards.items():
        if modality not in reward.spec.modalities:
            modalities = " and ".join(sorted(reward.spec.modalities))
            raise BadInput(f"reward {name} judges {modalities}, and {item.file or 'this'} is {modality}")
        if "prompt" in reward.spec.needs and prompt is None:
            raise BadInput(f"reward {name} needs the prompt of {item.file or 'every sample'}; give prompts=")
        if unmet := [need for need in input_needs(reward.spec) if need not in prompt_inputs(item.made_from(prompt))]:
            way_out = "sources=, or " if unmet[0] == "source" else ""
            raise BadInput(
                f"reward {name} needs the {unmet[0]} of {item.file or 'every sample'}; give {way_out}prompts= with a "
                f"{{'prompt': text, {unmet[0]!r}: file}} for each"
            )


def compare_folders(
    media: Any, against: str | Path, rewards: Mapping[str, Reward], pair: str, prompts: Any, sources: Any
) -> list[dict[str, Any]]:
    """Two folders whose files belong together: a dict for each reward, as `PairedTask.compare` gives it. Raises
    BadInput, also where a file can't be scored."""
    if not isinstance(media, (str, Path)) or not isinstance(sources, (str, Path, type(None))):
        raise BadInput("against: compares two folders; give the paths of both, and of their sources")
    if pair not in ("", *WAYS):
        raise BadInput(f"pair: {quote_value(pair)} is none of {', '.join(WAYS)}")
    if not isinstance(prompts, (str, type(None))):
        raise BadInput("prompts: of two folders are in their metadata.jsonl or beside the files; or give one for all")
    check_file_rewards(rewards)
    source = None if sources is None else Path(sources)
    paired = plan_paired_scoring(Path(media), Path(against), rewards, None, pair, prompts, source=source)  # type: ignore[arg-type]
    for note in paired.notes:
        log.warning("%s", note.removeprefix("warning: ")) if note.startswith("warning: ") else log.info("%s", note)
    return paired.compare(tuple(dict(task.score()) for task in paired.tasks))  # type: ignore[arg-type]


@torch.no_grad()
def score_items(
    items: Sequence[Item], rewards: Mapping[str, Reward], prompts: Sequence[str | None]
) -> list[dict[str, Any]]:
    """One dict per item: its file or number, its prompt, and a float for each reward, NaN where it can't score. With a
    set reward, every row has the score of all items together; a file of a folder that can't be read has an `error`.

    Files are read one after the other, and no more than ROWS of them are held. Raises BadInput.
    """
    check_rewards(rewards, items, prompts)
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[dict, Media, str]] = []  # rows to be scored in one call
    features: dict[str, list[Tensor]] = {name: [] for name, r in rewards.items() if r.spec.scope == "set"}
    for n, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        row = {"file": item.file or n, "prompt": prompt, **dict.fromkeys(rewards, math.nan)}
        rows.append(row)
        try:
            content = item.read()
        except BadInput as error:
            if not item.in_folder:
                raise
            row["error"] = str(error)
            continue
        row["prompt"] = prompt if prompt is not None or not item.file else _prompt_of(item.file, content.story)
        item = replace(item, inputs={**restore_inputs(Path(item.file), content.story), **item.inputs})
        check_item(rewards, item, content.modality, row["prompt"])
        origin = item.made_from(row["prompt"])
        if isinstance(content.content, StoredClip):
            _score_clip(rewards, content, origin, row, features)
            continue
        media = content.media
        if waiting and not (shape_key(media) == shape_key(waiting[0][1]) and len(waiting) < rows_at_once(media)):
            _score_waiting(rewards, waiting, features)
        waiting.append((row, media, origin))
    _score_waiting(rewards, waiting, features)
    if rows and all("error" in row for row in rows):
        raise BadInput(rows[0]["error"])
    for name, parts in features.items():
        x = torch.cat(parts)
        value = float(rewards[name].score_rows(x, rewards[name].target(None, x.device)))
        for row in rows:
            row[name] = math.nan if "error" in row else value
    return rows


def _score_waiting(
    rewards: Mapping[str, Reward], waiting: list[tuple[dict, Media, str]], features: Mapping[str, list[Tensor]]
) -> None:
    """Fill the rows that wait, in one call a reward, and forget them."""
    if not waiting:
        return
    rows, parts, prompts = zip(*waiting, strict=True)
    media = Media.cat(parts)
    for name, reward in rewards.items():
        if name in features:
            features[name].append(reward.features(media))
            continue
        scores = reward(media=media, prompts=[*prompts], references=stack_sources(reward, media, prompts))
        for row, value in zip(rows, scores.float().tolist(), strict=True):
            row[name] = value
    waiting.clear()


def _score_clip(
    rewards: Mapping[str, Reward],
    content: media_files.MediaFile,
    prompt: str,
    row: dict,
    features: Mapping[str, list[Tensor]],
) -> None:
    """Fill the row of a clip from a file, whose frames become numbers as they are needed."""
    for name, reward in rewards.items():
        if name in features:
            features[name].append(reward.features(content.media))
        else:
            row[name] = score_row(reward, content, prompt)


def _prompt_of(file: str, story: Mapping[str, Any]) -> str | None:
    """The prompt of a file that nothing else names; None where there is none, or it can't be told."""
    try:
        return find_prompt(Path(file), story)[0] or prompt_in_name(Path(file)) or None
    except BadInput as error:
        log.warning("%s: no prompt: %s", one_line(file), error)
        return None
