"""The prompts that a page may ask for: what somebody typed, a list in configs/prompts, or those of a stored run, each
with what comes with them. A list is chosen by its name, which never becomes a path."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, prompt_inputs
from workbench.core.paths import CONFIGS
from workbench.report.formatting import count_things
from workbench.runs.config import RunConfig
from workbench.runs.prompt_files import INPUT_COLUMNS, METADATA, READERS
from workbench.runs.prompt_inputs import input_columns, label_input
from workbench.runs.prompts import read_prompt_table, read_prompts
from workbench.runs.run_inputs import find_input, restore_prompt
from workbench.runs.store import RunFolder
from workbench.ui.input_uploads import FOLDER, keep_file
from workbench.ui.run_processes import find_run

RUN = "run:"  # begins the name of a list that holds the prompts of a stored run
MAX_LETTERS = 1000  # of a prompt that somebody typed
ABOVE = ("the prompts above", "")  # the choice of no list
NO_RUN = "prompts: there is no run of this name here, whose prompts could be used again; choose another list"


@dataclass(frozen=True)
class ChosenPrompts:
    """Prompts as a run's config names them."""

    source: Any
    count: int
    texts: tuple[str, ...] = ()  # those without files of their own
    limit: int = 0  # of the source
    inputs: frozenset[str] = frozenset()  # what comes with each of them


@dataclass(frozen=True)
class ListFacts:
    """What is known of a list before it is chosen."""

    count: int = 0
    columns: frozenset[str] = frozenset()  # of INPUT_COLUMNS


def list_prompt_lists() -> dict[str, Path]:
    """Name -> file of prompts, or folder of media with their metadata, in configs/prompts."""
    paths = [path for path in sorted((CONFIGS / "prompts").iterdir()) if _is_prompt_list(path)]
    counts = Counter(path.stem for path in paths)
    return {path.stem if counts[path.stem] == 1 else path.name: path for path in paths}


def _is_prompt_list(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in METADATA)
    return path.suffix != "" and path.suffix.lower() in READERS


def offer_lists(kinds: Collection[str], chosen: str, runs: Path) -> list[tuple[str, str]]:
    """(label, name) of the lists for a pipeline whose samples are made from `kinds`: first those that come with all of
    these, then those of plain prompts, for which one is given to the page, and the `chosen` one whatever it is. The
    prompts of a run only where they are `chosen` already."""
    facts = {name: _list_facts(path) for name, path in list_prompt_lists().items()}
    names = [name for name, list_facts in facts.items() if _covers(list_facts, kinds)]
    names += [name for name, list_facts in facts.items() if kinds and not list_facts.columns]
    offers = [(_describe_list(name, facts[name], kinds), name) for name in names]
    if chosen.startswith(RUN) and kinds and set(kinds) <= _run_inputs(chosen, runs):
        offers.append((f"those of {chosen.removeprefix(RUN)}", chosen))
    elif chosen and chosen not in names:
        offers.append((f"{chosen} (does not go with this pipeline)", chosen))
    return [ABOVE, *offers]


def count_prompts(name: str, runs: Path) -> int:
    """How many prompts a list has; 0 where it can't be read, which is said to whoever compares with it."""
    if name.startswith(RUN):
        try:
            return len(read_run_prompts(name, runs))
        except BadInput:
            return 0
    path = list_prompt_lists().get(name)
    return _list_facts(path).count if path else 0


def _run_inputs(name: str, runs: Path) -> set[str]:
    """What comes with every prompt of a stored run; nothing where the run has been removed since it was chosen."""
    try:
        return _names_of(read_run_prompts(name, runs))
    except BadInput:
        return set()


def suggest_list(pipeline: str, kinds: Collection[str], chosen: str, runs: Path) -> str:
    """The list that a page proposes once this pipeline is chosen: the one that was chosen before, while it fits; for a
    pipeline that makes its samples from something, its own test prompts, where there are such; else none."""
    names = [name for _, name in offer_lists(kinds, chosen if chosen.startswith(RUN) else "", runs)]
    if chosen and chosen in names:
        return chosen
    return f"{pipeline}-test" if kinds and f"{pipeline}-test" in names else ""


def _covers(facts: ListFacts, kinds: Collection[str]) -> bool:
    """Whether a list has all of these columns; for none of them, whether it is one of plain prompts."""
    if not kinds:
        return not facts.columns
    return set(kinds) <= input_columns(facts.columns, dict.fromkeys(kinds, "")).keys()


def _describe_list(name: str, facts: ListFacts, kinds: Collection[str]) -> str:
    inputs = input_columns(facts.columns, dict.fromkeys(kinds, ""))
    notes = [f"each with {' and '.join(map(label_input, inputs))}"] if inputs else []
    notes = [count_things(facts.count, "prompt"), *notes]
    return f"{name} ({', '.join(notes)})"


def _list_facts(path: Path) -> ListFacts:
    files = [path, *(path / name for name in METADATA)]
    stamps = tuple((f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.exists())
    return _read_facts(str(path), stamps)


@functools.lru_cache(256)  # a page asks for all of them again and again
def _read_facts(path: str, stamps: tuple) -> ListFacts:
    try:
        table = read_prompt_table(path)
    except BadInput:
        return ListFacts()  # what is wrong with it is said to whoever chooses it
    return ListFacts(len(table), frozenset(name for name in INPUT_COLUMNS if any(table.columns.get(name, ()))))


def choose_prompts(asked: Sequence[str] | str, wanted: Mapping[str, str], runs: Path, limit: int = 0) -> ChosenPrompts:
    """What a page asked for, texts or the name of a list, of which `limit` takes the first so many. wanted: input that
    a pipeline or reward of the comparison takes -> its modality. Raises BadInput, also for a list whose prompts come
    with what nothing here takes."""
    if not isinstance(asked, str):
        prompts = read_prompts([line.replace("\0", "") for line in asked], "prompts: write at least one;")
        if (longest := max(map(len, prompts))) > MAX_LETTERS:
            raise BadInput(f"prompts: one has {longest:,} letters; at most {MAX_LETTERS:,}")
        return ChosenPrompts(list(prompts), len(prompts), prompts)
    if asked.startswith(RUN):
        items = read_run_prompts(asked, runs)[: limit or None]
        inputs = _names_of(items)
        _check_wanted(asked, inputs, wanted)
        return ChosenPrompts(items, len(items), inputs=frozenset(inputs))
    lists = list_prompt_lists()
    if asked not in lists:
        raise BadInput(f"prompts: there is no list of this name; known: {', '.join(lists)}")
    path = lists[asked]
    source = path.relative_to(CONFIGS.parent).as_posix()
    if not (facts := _list_facts(path)).columns:
        texts = read_prompts(str(path))
        used = texts[: limit or None]
        return ChosenPrompts(source, len(used), used, limit if len(used) < len(texts) else 0)
    _check_wanted(asked, facts.columns, wanted)
    is_cut = 0 < limit < facts.count
    inputs = frozenset(input_columns(facts.columns, wanted))
    return ChosenPrompts(source, limit if is_cut else facts.count, (), limit if is_cut else 0, inputs)


def _check_wanted(name: str, columns: Collection[str], wanted: Mapping[str, str]) -> None:
    if columns and not input_columns(columns, wanted):
        labels = " and ".join(label_input(column) for column in columns)
        raise BadInput(
            f"prompts: those of {name} come with {labels}, and nothing in this comparison takes one; choose another "
            "list, or a pipeline that takes one"
        )


# The prompts of stored runs


def ask_again(stored: RunConfig, folder: RunFolder, runs: Path) -> tuple[Sequence[str] | str, dict[str, str], int]:
    """(texts or the name of a list, what comes with all of them, how many of the list, 0 for all) by which a page asks
    for the prompts of a stored run once more. Raises BadInput where they are gone."""
    if isinstance(stored.prompts, str):
        names = {path.relative_to(CONFIGS.parent).as_posix(): name for name, path in list_prompt_lists().items()}
        if (name := names.get(stored.prompts)) is not None:
            return name, {}, stored.limit
    asked = {"prompts": stored.prompts, "limit": stored.limit}  # by one that is yet to begin, too
    items = _configured_items(asked, folder, runs) or _stored_items(folder, runs)
    inputs = [{k: v for k, v in item.items() if k != "prompt"} for item in items]
    if all(given == inputs[0] for given in inputs):
        return [item["prompt"] for item in items], inputs[0], 0
    return f"{RUN}{folder.path.name}", {}, 0


def read_run_prompts(name: str, runs: Path) -> list[dict[str, str]]:
    """The prompts of the stored run that a list `run:NAME` means, as a run's config names them. Raises BadInput."""
    return _stored_items(find_run(runs, name.removeprefix(RUN), NO_RUN), runs)


def _stored_items(folder: RunFolder, runs: Path) -> list[dict[str, str]]:
    """The distinct prompts of a stored run, each {"prompt": text, name of an input: file}, whose files are kept for
    pages. Raises BadInput where one is gone, and for a run that was stopped, where only its log names them."""
    record = folder.read()
    if (items := _configured_items(record.get("config", {}), folder, runs)) is not None:
        return items
    if record.get("status") != "done":
        raise BadInput(
            "this run is not finished, so not all of its prompts are known; go on with it, or repeat it, with: "
            "workbench run FOLDER"
        )
    samples = (s for event in folder.events() if event.get("final") for s in event["samples"])
    items = []
    for prompt in dict.fromkeys(restore_prompt(folder.path, sample) for sample in samples):
        files = {}
        for name, value in prompt_inputs(prompt).items():
            if (stored_file := find_input(folder.path, value.digest)) is None:
                raise BadInput(f"{label_input(name)} of this run is gone from its folder, {folder.path.name}")
            files[name] = keep_file(stored_file, runs)
        items.append({"prompt": str(prompt), **files})
    return items


def _configured_items(config: Mapping[str, Any], folder: RunFolder, runs: Path) -> list[dict[str, str]] | None:
    """The same of a run whose config lists its prompts, where all of their files were kept for pages; else None."""
    prompts = config.get("prompts")
    if not isinstance(prompts, list):
        return None
    items = []
    for item in prompts[: config.get("limit") or None]:
        item = {"prompt": item} if isinstance(item, str) else dict(item)
        files = {name: _find_kept(str(value), folder, runs) for name, value in item.items() if name != "prompt"}
        if not set(files) <= set(NAMES) or None in files.values():
            return None
        items.append({"prompt": item.get("prompt", ""), **{n: keep_file(f, runs) for n, f in files.items() if f}})
    return items


def _find_kept(path: str, folder: RunFolder, runs: Path) -> Path | None:
    """The file that a page has kept under this path, which may be that of another machine; None for any other file."""
    if Path(path).parent.name != FOLDER:
        return None
    kept = runs / FOLDER / Path(path).name
    return kept if kept.is_file() else find_input(folder.path, Path(path).stem)


def _names_of(items: Sequence[Mapping[str, str]]) -> set[str]:
    """The inputs that every one of these prompts comes with."""
    return set.intersection(*(set(item) for item in items)) - {"prompt"}
