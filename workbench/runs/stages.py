"""Training in stages, each on a task of its own, every task watched after each: PDTR, Skywork UniPic 2.0 (arXiv:2509.04548).

stages:
  - {name: edit, pipeline: kontext, prompts: edits.txt, reward: {clip: 1.0}, method: {name: grpo}, updates: 200}
  - {name: draw, prompts: prompts.txt, reward: {oracle: 1.0}, method: nft, updates: 100, rehearse: 0.2}

The weights go on from stage to stage. What a stage leaves out it takes from the run. `rehearse` is the share of its batches that are
those of earlier stages, each with its own reward and method. What a task loses while another is trained is `Matrix.forgotten`.

This file is only the order of things: it loads, trains and judges nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.schema import build
from workbench.core.types import BadInput, Count, NonNegative, derive

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
INHERITED = ("pipeline", "prompts", "test", "reward", "watch", "method")


@dataclass(frozen=True)
class Stage:
    """A task, and how it is trained. None: as in the run."""

    name: str
    updates: Count
    pipeline: str | None = None
    prompts: str | list | None = None
    test: str | list | None = None  # prompts that the task is judged on; not given: `prompts`
    reward: dict | str | None = None
    watch: dict | list | str | None = None
    method: dict | str | None = None
    rehearse: NonNegative = 0.0  # share of the batches that go to earlier stages


@dataclass(frozen=True)
class Step:
    """What happens at one point: batch `number` of stage `stage` is trained, as the `turn`-th of `task`'s own batches; or, where
    `task` is None, all tasks are judged."""

    stage: int
    number: int
    task: int | None = None
    turn: int = 0


@dataclass(frozen=True)
class Stages:
    """The checked list. Positions 0, 1, ... count its steps: a position is all that a resumed run needs."""

    stages: tuple[Stage, ...]
    seed: int = 0

    def __len__(self) -> int:
        return sum(stage.updates for stage in self.stages) + len(self.stages) + 1

    def steps(self, position: int = 0) -> Iterator[Step]:
        """From a position on: all tasks judged, then each stage's batches and all tasks judged again."""
        turns = [0] * len(self.stages)
        for n, step in enumerate(self._all()):
            if step.task is not None:
                step = dataclasses.replace(step, turn=turns[step.task])
                turns[step.task] += 1
            if n >= position:
                yield step

    def _all(self) -> Iterator[Step]:
        yield Step(0, 0)
        for s, stage in enumerate(self.stages):
            for k in range(stage.updates):
                yield Step(s, k, self._task(s, k))
            yield Step(s, stage.updates)

    def _task(self, s: int, k: int) -> int:
        """Earlier stages take their share evenly: the j-th batch that is theirs comes as soon as k * share reaches j."""
        share = self.stages[s].rehearse if s else 0.0
        before, now = (math.floor(n * share + 1e-9) for n in (k, k + 1))
        return derive(self.seed, "rehearse", s, now) % s if now > before else s


def read(block: Any, run: Mapping[str, Any], seed: int = 0) -> Stages:
    """The `stages` block, with what it leaves out taken from the run's own settings. Nothing is loaded.

    Raises BadInput, naming the stage: for an unknown or missing key, two of one name, a task without reward, prompts, method or
    pipeline, and a share of rehearsal outside [0, 1) or in the first stage.
    """
    if not isinstance(block, Sequence) or isinstance(block, str) or not block:
        raise BadInput(f"stages: expected a list of stages, got {block!r}")
    found = []
    for n, entry in enumerate(block):
        stage = build(Stage, entry, f"stages[{n}]")
        where = f"stages[{n}] ({stage.name})"
        if not NAME.fullmatch(stage.name):
            raise BadInput(f"{where}: a stage's name has letters, digits, '.', '_' and '-' only")
        if stage.name in [s.name for s in found]:
            raise BadInput(f"{where}: another stage has this name")
        if stage.rehearse >= 1 or (stage.rehearse and not n):
            raise BadInput(
                f"{where}: rehearse is a share in [0, 1) of earlier stages' batches, and the first has none before it"
            )
        own = {k: getattr(stage, k) for k in INHERITED if getattr(stage, k) is not None}
        if "prompts" in own and "test" not in own:
            own["test"] = own["prompts"]  # not the run's, which is of other prompts
        filled = {k: run.get(k) for k in INHERITED} | own
        filled["test"] = filled["test"] if filled["test"] is not None else filled["prompts"]
        if lacking := [k for k in ("pipeline", "prompts", "reward", "method") if filled[k] is None]:
            raise BadInput(f"{where}: neither it nor the run says its {lacking[0]}")
        found.append(dataclasses.replace(stage, **filled))
    return Stages(tuple(found), seed)


def same_weights(stages: Stages, repos: Mapping[str, tuple[str, str]]) -> None:
    """repos: pipeline -> (repository, what loads it). Raises BadInput for stages whose weights are not each other's."""
    first = stages.stages[0]
    for stage in stages.stages[1:]:
        if repos[stage.pipeline] != repos[first.pipeline]:
            raise BadInput(
                f"stages: {stage.name} trains {' '.join(repos[stage.pipeline])}, and {first.name} "
                f"{' '.join(repos[first.pipeline])}: what one learns can't be carried into the other"
            )


@dataclass(frozen=True)
class Matrix:
    """What every task scored before training and after each stage: [1 + stages, tasks] of one judge's means."""

    names: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    def gained(self) -> list[list[float]]:
        """[stages, tasks]: what each stage brought each task; off the diagonal it is interference."""
        return [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(self.scores, self.scores[1:], strict=False)]

    def forgotten(self) -> dict[str, float]:
        """Of each task: its score right after its own stage, or a later one that was better, less the last."""
        return {
            name: max(row[t] for row in self.scores[t + 1 :]) - self.scores[-1][t]
            for t, name in enumerate(self.names)
            if t + 1 < len(self.scores)
        }
