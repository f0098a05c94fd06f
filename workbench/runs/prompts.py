"""Prompt lists: reading and checking them, seeds for their samples, and batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import Batch, derive_seed
from workbench.runs.config import is_file
from workbench.runs.prompt_files import (
    METADATA,
    READERS,
    PromptTable,
    read_prompt_file,
    read_prompt_folder,
    read_prompt_list,
)
from workbench.runs.prompt_inputs import PromptList, take_prompts

Source = str | Sequence[Any] | Mapping[str, Any]  # of prompts: a file or folder, a list, or {folder: …, prompt: …}


def read_prompts(source: Source, where: str = "prompts") -> tuple[str, ...]:
    """The distinct prompts of a source, as `read_prompt_table` reads it, without inputs. Raises BadInput."""
    return take_prompts(read_prompt_table(source, where), {}, where).prompts


def read_prompt_lists(
    sources: Mapping[str, Source | None], modalities: Mapping[str, str], limits: Mapping[str, int] | None = None
) -> dict[str, PromptList]:
    """where -> prompts, with the inputs that are wanted (take_prompts), of the sources that a run names; None names
    none. limits: where -> how many are needed. Raises BadInput."""
    return {
        where: take_prompts(read_prompt_table(source, where), modalities, where, (limits or {}).get(where, 0))
        for where, source in sources.items()
        if source is not None
    }


def read_prompt_table(source: Source, where: str = "prompts") -> PromptTable:
    """The prompts of a list, of a file of any kind that workbench.runs.prompt_files knows, or of a folder of media,
    with their further columns.

    A name without a folder is looked up in configs/prompts too. Raises BadInput for a file that is missing, can't be
    read, or has no prompt in it.
    """
    if isinstance(source, str):
        path = find_prompt_file(source, where)
        return read_prompt_folder(path, where=where) if path.is_dir() else read_prompt_file(path, where)
    if isinstance(source, Mapping):
        return read_prompt_folder(*_read_folder_block(source, where), where)
    return read_prompt_list(source, where)


def _read_folder_block(block: Mapping[str, Any], where: str) -> tuple[Path, str | None]:
    """(folder, the prompt of all its media or None) of `{folder: …, prompt: …}`. Raises BadInput."""
    for key in block:
        if key not in ("folder", "prompt"):
            raise BadInput(
                f"{where}: unknown key {quote_value(key)}; {suggest_nearest(str(key), ('folder', 'prompt'))}"
            )
    folder, prompt = block.get("folder"), block.get("prompt", "")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise BadInput(f"{where}: folder: {quote_value(folder)} is no folder")
    if not isinstance(prompt, str):
        raise BadInput(f"{where}: prompt: a prompt is a text, got {quote_value(prompt)}; put quotes around it")
    has_metadata = any((Path(folder) / name).is_file() for name in METADATA)
    return Path(folder), None if has_metadata and "prompt" not in block else prompt


def find_prompt_file(source: str, where: str) -> Path:
    """The file that `source` names, also without its folder or suffix in configs/prompts; or the folder that it names.
    Raises BadInput."""
    bundled = CONFIGS / "prompts"
    named = [bundled / f"{source}{suffix}" for suffix in ("", *filter(None, READERS))]
    for path in (Path(source), *named, CONFIGS.parent / source):
        if is_file(path, where):
            return path
    for path in (Path(source), bundled / source, CONFIGS.parent / source):
        if path.is_dir():
            return path
    nearest = suggest_nearest(source, (p.stem for p in bundled.glob("*.*")))
    raise BadInput(f"{where}: no prompt file {quote_value(source)}; {nearest}")


def sample_rows(prompts: Sequence[str], seed: int, samples_per_prompt: int) -> list[tuple[int, str, int, int]]:
    """(position of the prompt, prompt, k, noise seed) for k in 0..samples_per_prompt-1. The noise seed depends on the
    run's seed, the prompt and k alone: a shorter or reordered list makes the same media."""
    return [(n, p, k, derive_seed(seed, p, k)) for n, p in enumerate(prompts) for k in range(samples_per_prompt)]


def iterate_batches(rows: Sequence[tuple[int, str, int, int]], size: int) -> Iterator[tuple[Sequence[tuple], Batch]]:
    """(rows, Batch of their prompts and noise seeds) for every `size` rows of `sample_rows`."""
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        yield part, Batch(tuple(r[1] for r in part), tuple(r[3] for r in part))
