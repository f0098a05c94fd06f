"""Prompt lists: reading and checking them, seeds for their samples, and batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import Batch, derive_seed
from workbench.runs.config import is_file
from workbench.runs.prompt_files import PromptTable, make_table, read_prompt_file


def read_prompts(source: str | Sequence[str], where: str = "prompts") -> tuple[str, ...]:
    """The distinct prompts of a list or a file, as `read_prompt_table` reads it. Raises BadInput."""
    return read_prompt_table(source, where).distinct_prompts()


def read_prompt_lists(
    sources: Mapping[str, str | Sequence[str] | None],
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """(where -> distinct prompts, sentences on what plays no part) of the lists and files that a run names; None
    names none. Raises BadInput."""
    tables = {where: read_prompt_table(source, where) for where, source in sources.items() if source is not None}
    unused = {where: table.describe_unused() for where, table in tables.items()}
    return (
        {where: table.distinct_prompts() for where, table in tables.items()},
        [f"{where}: {words}" for where, words in unused.items() if words],
    )


def read_prompt_table(source: str | Sequence[str], where: str = "prompts") -> PromptTable:
    """The prompts of a list, or of a file of any kind that workbench.runs.prompt_files knows, with its further columns.

    A name without a folder is looked up in configs/prompts too. Raises BadInput for a file that is missing, can't be
    read, or has no prompt in it.
    """
    if isinstance(source, str):
        return read_prompt_file(find_prompt_file(source, where), where)
    return make_table((("", prompt, {}) for prompt in source), (), f"{where}: the list")


def find_prompt_file(source: str, where: str) -> Path:
    """The file that `source` names, also without its folder or suffix in configs/prompts. Raises BadInput."""
    bundled = CONFIGS / "prompts"
    for path in (Path(source), bundled / source, bundled / f"{source}.txt", CONFIGS.parent / source):
        if is_file(path, where):
            return path
    if Path(source).is_dir():
        raise BadInput(f"{where}: {source} is a folder; name a file in it")
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
