"""Prompt lists: reading and checking them, seeds for their samples, and batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS
from workbench.core.schema import suggest_nearest
from workbench.core.types import Batch, derive_seed
from workbench.runs.config import is_file


def read_prompts(source: str | Sequence[str], where: str = "prompts") -> tuple[str, ...]:
    """The distinct prompts of a list, a .txt file (one a line, '#' starts a comment line) or a .jsonl file (key
    `prompt`).

    A name without a folder is looked up in configs/prompts too. Raises BadInput for a file that is missing, not text,
    or has no prompt in it.
    """
    if not isinstance(source, str):
        if not_texts := [p for p in source if not isinstance(p, str)]:
            raise BadInput(f"{where}: a prompt is a text, got {not_texts[0]!r:.60}; put quotes around it")
        lines = [p.strip() for p in source]
    else:
        lines = _read_prompt_file(_find_prompt_file(source, where), where)
    lines = list(dict.fromkeys(p for p in lines if p))
    if not lines:
        raise BadInput(f"{where}: {source if isinstance(source, str) else 'the list'} has no prompt in it")
    return tuple(lines)


def _find_prompt_file(source: str, where: str) -> Path:
    bundled = CONFIGS / "prompts"
    for path in (Path(source), bundled / source, bundled / f"{source}.txt", CONFIGS.parent / source):
        if is_file(path, where):
            return path
    if Path(source).is_dir():
        raise BadInput(f"{where}: {source} is a folder; name a .txt or .jsonl file")
    raise BadInput(
        f"{where}: no prompt file {source!r}; {suggest_nearest(source, (p.stem for p in bundled.glob('*.*')))}"
    )


def _read_prompt_file(path: Path, where: str) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise BadInput(f"{where}: can't read {path}: {error.strerror}") from None
    if "\0" in text:
        raise BadInput(f"{where}: {path} is not a text file; give one prompt a line, in UTF-8")
    if path.suffix != ".jsonl":
        return [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    lines = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at U+2028 inside JSON
        try:
            lines += [json.loads(line)["prompt"].strip()] if line.strip() else []
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f'{where}: {path}, line {number} is not of the form {{"prompt": "…"}}') from None
    return lines


def sample_rows(prompts: Sequence[str], seed: int, samples_per_prompt: int) -> list[tuple[int, str, int, int]]:
    """(position of the prompt, prompt, k, noise seed) for k in 0..samples_per_prompt-1. The noise seed depends on the
    run's seed, the prompt and k alone: a shorter or reordered list makes the same media."""
    return [(n, p, k, derive_seed(seed, p, k)) for n, p in enumerate(prompts) for k in range(samples_per_prompt)]


def iterate_batches(rows: Sequence[tuple[int, str, int, int]], size: int) -> Iterator[tuple[Sequence[tuple], Batch]]:
    """(rows, Batch of their prompts and noise seeds) for every `size` rows of `sample_rows`."""
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        yield part, Batch(tuple(r[1] for r in part), tuple(r[3] for r in part))
