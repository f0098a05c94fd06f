"""Which files of several folders belong together: by their prompt, by their name, or by their order. Nothing is
guessed: where two ways would pair other files, the person says which is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from workbench.core.errors import BadInput
from workbench.core.inputs import prompt_inputs
from workbench.core.text import one_line
from workbench.core.types import Prompt, prompt_key
from workbench.runs.media_folders import MediaFolder, MediaRow

Way = Literal["", "prompt", "name", "order"]  # "": the one that is clear


@dataclass(frozen=True)
class PairedRow:
    """Files of several folders that belong together, one of each."""

    index: int  # of the prompt
    prompt: str
    k: int  # which sample of the prompt
    files: tuple[MediaRow, ...]


@dataclass(frozen=True)
class Pairing:
    """The files of several folders, paired."""

    way: Way
    rows: tuple[PairedRow, ...]
    unpaired: Mapping[str, tuple[MediaRow, ...]] = field(default_factory=dict)  # label of a folder -> its other files
    notes: tuple[str, ...] = ()  # sentences for the person


def pair_media(folders: Mapping[str, MediaFolder], way: Way = "") -> Pairing:
    """The files of these folders that belong together; label -> folder. Raises BadInput for folders of several
    modalities, where nothing belongs together, where two ways disagree and none is named, and for another number of
    files where the order is to tell."""
    if len({folder.modality for folder in folders.values()}) > 1:
        words = ", ".join(f"{label} holds {folder.modality}" for label, folder in folders.items())
        raise BadInput(f"media: they can't be compared, for {words}")
    if len(folders) == 1:
        ((label, folder),) = folders.items()
        chosen: Way = way or ("prompt" if any(row.prompt for row in folder.rows) else "name")
        return _number_rows(chosen, [(row,) for row in folder.rows], {label: folder})
    if way:
        groups = WAYS[way](folders)
        if not groups:
            raise BadInput(
                f"media: by {way} no file of one folder belongs to one of another; {_describe_ways(folders)}"
            )
        return _number_rows(way, groups, folders)
    by_prompt, by_name = _group_by_prompt(folders), _group_by_name(folders)
    if by_prompt and by_name and _paths(by_prompt) != _paths(by_name):
        raise BadInput(
            f"media: by prompt {len(by_prompt)} samples belong together and by name {len(by_name)} others; say which "
            "is meant: --pair prompt or --pair name"
        )
    if not (by_prompt or by_name):
        raise BadInput(
            f"media: no file of one folder belongs to one of another, by prompt or by name; {_describe_ways(folders)}"
        )
    return _number_rows("prompt" if by_prompt else "name", by_prompt or by_name, folders)


def _group_by_prompt(folders: Mapping[str, MediaFolder]) -> list[tuple[MediaRow, ...]]:
    """Samples of one prompt in the order of their names. () of what no other folder has."""
    by_prompt = []
    for folder in folders.values():
        rows: dict[str, list[MediaRow]] = {}
        for row in folder.rows:
            if row.prompt or prompt_inputs(row.prompt):
                rows.setdefault(_matching_key(row.prompt), []).append(row)
        by_prompt.append(rows)
    shared = [key for key in by_prompt[0] if all(key in rows for rows in by_prompt[1:])]
    return [group for key in shared for group in zip(*(rows[key] for rows in by_prompt), strict=False)]


def _matching_key(prompt: str) -> str:
    """By which prompts of several folders are the same: of one that a sample was made from something, that too."""
    words = " ".join(str(prompt).split())
    return prompt_key(Prompt(words, prompt_inputs(prompt))) if prompt_inputs(prompt) else words


def _group_by_name(folders: Mapping[str, MediaFolder]) -> list[tuple[MediaRow, ...]]:
    by_name = [{row.name: row for row in folder.rows} for folder in folders.values()]
    shared = [name for name in by_name[0] if all(name in rows for rows in by_name[1:])]
    return [tuple(rows[name] for rows in by_name) for name in shared]


def _group_by_order(folders: Mapping[str, MediaFolder]) -> list[tuple[MediaRow, ...]]:
    counts = {label: len(folder.rows) for label, folder in folders.items()}
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{label} has {count}" for label, count in counts.items())
        raise BadInput(f"media: by order each folder needs as many files, and {words}")
    return list(zip(*(folder.rows for folder in folders.values()), strict=True))


WAYS = {"prompt": _group_by_prompt, "name": _group_by_name, "order": _group_by_order}


def _paths(groups: Sequence[tuple[MediaRow, ...]]) -> set[tuple]:
    return {tuple(row.path for row in group) for group in groups}


def _describe_ways(folders: Mapping[str, MediaFolder]) -> str:
    """What would pair them, as the end of a sentence."""
    counts = {way: len(group(folders)) for way, group in WAYS.items() if way != "order"}
    works = [f"--pair {way} would pair {count}" for way, count in counts.items() if count]
    if len({len(folder.rows) for folder in folders.values()}) == 1:
        works.append("--pair order takes them as they are sorted")
    return " and ".join(works) or "give --prompts, or name them alike"


def _number_rows(way: Way, groups: Sequence[tuple[MediaRow, ...]], folders: Mapping[str, MediaFolder]) -> Pairing:
    """The pairing with numbers of prompts and samples; a file whose prompt nobody knows is called by its name."""
    numbers: dict[str, int] = {}
    counts: dict[str, int] = {}
    rows, nameless, differing = [], 0, 0
    for group in groups:
        prompts = [row.prompt for row in group if row.prompt or prompt_inputs(row.prompt)]
        prompt = prompts[0] if prompts else group[0].name
        nameless += not prompts
        differing += len({_matching_key(p) for p in prompts}) > 1
        key = _matching_key(prompt)
        index = numbers.setdefault(key, len(numbers))
        k = counts[key] = counts.get(key, -1) + 1
        rows.append(PairedRow(index, prompt, k, group))
    rows.sort(key=lambda row: (row.index, row.k))
    paired = {row.path for group in groups for row in group}
    unpaired = {
        label: others
        for label, folder in folders.items()
        if (others := tuple(row for row in folder.rows if row.path not in paired))
    }
    notes = [f"{len(rows):,} samples of {len(numbers):,} prompts" + (f", paired by {way}" if len(folders) > 1 else "")]
    for label, others in unpaired.items():
        names = ", ".join(one_line(row.name, 60) for row in others[:4]) + (" …" if len(others) > 4 else "")
        notes.append(f"warning: {label}: {len(others):,} files without a counterpart are left out: {names}")
    if differing:
        notes.append(
            f"warning: the prompts of {differing:,} pairs differ between folders; the first folder's are shown"
        )
    if nameless:
        notes.append(f"warning: no prompt is known of {nameless:,} samples; their names stand in its place")
    return Pairing(way, tuple(rows), unpaired, tuple(notes))


def knows_prompts(pairing: Pairing) -> bool:
    """Whether each sample has a prompt, as a reward that reads it needs."""
    return all(any(file.prompt for file in row.files) for row in pairing.rows)
