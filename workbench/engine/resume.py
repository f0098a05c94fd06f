"""What may have changed while a run was stopped: its inputs, and what it has made. Asked before it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.text import one_line, shorten_path
from workbench.engine.run_record import first_difference
from workbench.runs import input_files, store, stored_media

PARTS = {"pipelines": "pipeline", "methods": "contestant", "reward_settings": "reward", "objects": "object"}
BEGAN = "since this run began"


def check_same_run(folder: store.RunFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises BadInput, naming the file or the setting, where what a resumed run reads or how it works is not as it was
    when it began: what it has made could not be compared with what is missing. What the record of an older workbench
    does not say is not compared."""
    for difference in find_differences(before, now):
        raise BadInput(f"{folder.path.name}: {difference}; put it back, or start anew with --new")


def find_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Clauses on what differs between two records of a run: settings, files, prompts, versions of rewards."""
    if "inputs" in before:
        yield from _setting_differences(before, now)
        yield from _file_differences(before["inputs"], now["inputs"])
    if before.get("prompts", now["prompts"]) != now["prompts"]:
        yield from _input_differences(before.get("inputs", {}), now["inputs"])
        names = ", ".join(one_line(name, 80) for name in now["inputs"].get("prompts", {}))
        yield f"its prompts have changed {BEGAN}{f' ({names})' if names else ''}"
    for name, old_version in before.get("rewards", {}).items():
        if (version := now["rewards"].get(name, old_version)) != old_version:
            yield f"{name} was {old_version!r} when this run began and is {version!r} now"


def _setting_differences(before: Mapping, now: Mapping) -> Iterator[str]:
    for key, noun in PARTS.items():
        if difference := first_difference(before.get(key, {}), now.get(key, {})):
            (name, *setting), old, new = difference
            what = f"{'.'.join(setting)} of {noun} {one_line(name, 80)}" if setting else f"{noun} {one_line(name, 80)}"
            yield f"{what} was {one_line(repr(old), 40)} when this run began and is {one_line(repr(new), 40)} now"
    for name, old in before.get("stages", {}).items():
        for clause in _setting_differences(old, now.get("stages", {}).get(name, {})):
            yield f"stage {name}: {clause}"


def _file_differences(before: Mapping, now: Mapping) -> Iterator[str]:
    for source in (s for s in before if s in now):
        if source.rpartition(", ")[2] in (*input_files.BY_CONTENT, input_files.PROMPT_INPUTS):
            continue
        old, new = before[source], now[source]
        for verb, names in (
            ("is gone", [n for n in old if n not in new]),
            ("was added", [n for n in new if n not in old]),
            ("has changed", [n for n in old if n in new and old[n] != new[n]]),
        ):
            if names:
                more = f", and {len(names) - 1} more" if len(names) > 1 else ""
                yield f"{shorten_path(names[0], 100)} ({one_line(source, 60)}) {verb} {BEGAN}{more}"


def _input_differences(before: Mapping, current: Mapping) -> Iterator[str]:
    """A clause on files of inputs that have another content now. One that was moved with its content is the same."""
    old, new = (record.get(input_files.PROMPT_INPUTS, {}) for record in (before, current))
    names = [name for name in old if name in new and old[name] != new[name]]
    if names:
        more = f", and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{shorten_path(names[0], 100)} (what a prompt comes with) has changed {BEGAN}{more}"


def placement_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each pipeline that another machine loads in another dtype than the one that the run began on: no
    fault, as its config leaves that to the machine, but its samples are not made alike."""
    old, new = before.get("placement", {}), now.get("placement", {})
    return [
        f"pipeline {label} was in {old[label]['dtype']} on {old[label]['device']} when this run began and is in "
        f"{new[label]['dtype']} on {new[label]['device']} now: samples made before and after differ in rounding; "
        "a dtype in the config fixes it"
        for label in old
        if old[label].get("dtype") and new.get(label, {}).get("dtype", old[label]["dtype"]) != old[label]["dtype"]
    ]


def forget_damaged_batches(folder: store.RunFolder) -> dict[tuple[str, int], str]:
    """Remove from the log the finished batches of which a stored file is not the one that was logged, so that they are
    made again; returns (contestant, batch) -> what is wrong, as a clause."""
    damage = stored_media.find_damage(folder)
    if damage:
        folder.keep_events(lambda e: not (e.get("final") and (e["contestant"], e["batch"]) in damage))
    return damage
