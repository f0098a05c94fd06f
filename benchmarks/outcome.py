"""What a finished training brought: base and trained on the same prompts, from the same noises, sample by sample."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.core import paths
from workbench.evaluation import statistics as evaluate
from workbench.runs import store


def paired(folder: store.RunFolder) -> list[tuple[dict, dict]]:
    """[(base's sample, the trained contestant's)] of the test prompts, prompt by prompt."""
    found: dict[tuple[int, int], dict[bool, dict]] = {}
    for event in folder.events():
        for sample in event["samples"] if event.get("final") else ():
            found.setdefault((sample["index"], sample["k"]), {})[event["contestant"] == "base"] = sample
    return [(found[key][True], found[key][False]) for key in sorted(found)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One training, as tables need it: by judge, `before` and `after` have for each test prompt its samples' numbers
    (None: could not judge); `kinds` is each prompt's category; `watched` has (samples drawn, reward of the watched
    prompts) of each look."""

    kinds: list[str]
    before: dict[str, list[list[float | None]]]
    after: dict[str, list[list[float | None]]]
    diversity: list[float]  # of base and trained
    training: dict[str, Any]
    cpu: float  # seconds of a processor, judging included
    watched: list[list[float]]

    @classmethod
    def of(cls, folder: store.RunFolder) -> Outcome:
        pairs = paired(folder)
        summed = {c["name"] == "base": c for c in folder.read("summary.json")["contestants"]}
        spent = summed[False]["training"]
        each = spent["samples"] // spent["updates"]
        looks = [e for e in folder.events() if e.get("phase") == "watch"]
        by_prompt = [list(found) for _, found in itertools.groupby(pairs, lambda pair: pair[0]["index"])]
        before, after = (
            {
                judge: [[_short(pair[side]["scores"][judge]) for pair in found] for found in by_prompt]
                for judge in pairs[0][0]["scores"]
            }
            for side in (0, 1)
        )
        return cls(
            kinds=[found[0][0]["category"] for found in by_prompt],
            before=before,
            after=after,
            diversity=[_short(summed[who]["diversity"]) for who in (True, False)],
            training={what: spent[what] for what in ("samples", "peak_mb", "distance")},
            cpu=round(folder.read("took.json")["cpu"], 1),
            watched=[[each * e["step"], _short(e["metrics"]["held reward"])] for e in looks],
        )


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def pooled(outcomes: Sequence[Outcome], judge: str, but: Collection[str] = ()) -> dict:
    """{"base", "after", "gain"} of a judge over all seeds of training and all prompts `but` those of some kinds, each
    with an interval over prompts, and the mean of each seed."""
    places = [[n for n, kind in enumerate(o.kinds) if kind not in but] for o in outcomes]
    rows = [(o, n) for o, found in zip(outcomes, places, strict=True) for n in found for _ in o.after[judge][n]]
    prompts, kinds = [n for _, n in rows], [o.kinds[n] for o, n in rows]
    each = [_flat(o.after[judge], found) for o, found in zip(outcomes, places, strict=True)]
    before = sum((_flat(o.before[judge], found) for o, found in zip(outcomes, places, strict=True)), [])
    after = sum(each, [])
    values = {"base": before, "after": after, "gain": [b - a for a, b in zip(before, after, strict=True)]}
    share = judge.startswith("oracle")  # 0 to 1
    ends = {"base": evaluate.SHARE, "after": evaluate.SHARE, "gain": (-1.0, 1.0)} if share else {}
    intervals = {
        what: evaluate.mean_with_interval(found, prompts, kinds, ends.get(what)) for what, found in values.items()
    }
    return intervals | {"seeds": [statistics.mean(found) for found in each]}


def _flat(by_prompt: Sequence[Sequence[float | None]], places: Sequence[int]) -> list[float]:
    return [evaluate.none_to_nan(value) for n in places for value in by_prompt[n]]


def shown(estimate: Mapping, sign: str = "") -> str:
    if estimate["ci95"] is None:  # a judge that could judge nothing
        return "–"
    low, high = estimate["ci95"]
    return f"{estimate['mean']:{sign}.3f} [{low:{sign}.2f}, {high:{sign}.2f}]"


# --- a record of outcomes, which outlives the runs' folders: a line each, by what was asked
# ---------------------------------


def recorded(path: Path) -> dict[tuple[str, ...], Outcome]:
    """{overrides of the run: its outcome} of a record; empty where there is none."""
    return {tuple(line.pop("asked")): Outcome(**line) for line in _lines(path)}


def record(path: Path, found: Mapping[tuple[str, ...], Outcome]) -> None:
    """The record with these outcomes added, each in the place of the one that was asked for in the same words."""
    both = recorded(path) | found
    lines = [json.dumps({"asked": asked, **dataclasses.asdict(o)}, separators=(",", ":")) for asked, o in both.items()]
    paths.write_atomic(path, "".join(line + "\n" for line in lines))


def _lines(path: Path) -> Iterator[dict]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())
