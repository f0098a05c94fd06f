"""Training in stages, each on a task of its own; all tasks are evaluated after each stage. PDTR, Skywork UniPic 2.0
(arXiv:2509.04548).

pipeline: starter-edit
reward: starter_edit_clip
method: draft
stages:
  - {name: edit, prompts: starter-edit-strange-train, test: starter-edit-strange-test, rounds: 24}
  - {name: draw, prompts: starter-edit-strange-draw-train, rounds: 8, rehearse: 0.25}

The weights go on from stage to stage. Settings that a stage leaves out are the run's. `rehearse` is the share of a
stage's batches that are batches of earlier stages, each with its own reward and method. How much of a task is forgotten
while others are trained is `TaskScores.forgetting_by_task`.

This file only defines the order of the steps: workbench.training.staged_trainer takes them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.core.text import quote_value
from workbench.core.types import Count, NonNegative, derive_seed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
INHERITED = ("pipeline", "prompts", "test", "reward", "watch", "method")


@dataclass(frozen=True)
class Stage:
    """A task and how it is trained. Settings that are None are the run's."""

    former_names: ClassVar[Mapping[str, str]] = {"updates": "rounds"}

    name: str
    rounds: Count
    pipeline: str | dict | None = None
    prompts: str | list | dict | None = None
    test: str | list | dict | None = None  # prompts that the task is evaluated on; not given: `prompts`
    reward: dict | str | None = None
    watch: dict | list | str | None = None
    method: dict | str | None = None
    rehearse: NonNegative = 0.0  # share of the batches that go to earlier stages


@dataclass(frozen=True)
class Step:
    """One step: batch `number` of stage `stage` is trained, as the `turn`-th of `task`'s own batches; or, where `task`
    is None, all tasks are evaluated."""

    stage: int
    number: int
    task: int | None = None
    turn: int = 0


@dataclass(frozen=True)
class Stages:
    """The checked stages. Their steps are counted 0, 1, ...: a position is all that a resumed run needs."""

    stages: tuple[Stage, ...]
    seed: int = 0

    def __len__(self) -> int:
        return sum(stage.rounds for stage in self.stages) + len(self.stages) + 1

    def iterate_steps(self, position: int = 0) -> Iterator[Step]:
        """The steps from a position on: an evaluation, then each stage's batches and another evaluation."""
        turns = [0] * len(self.stages)
        for n, step in enumerate(self._all_steps()):
            if (task := step.task) is not None:
                step = dataclasses.replace(step, turn=turns[task])
                turns[task] += 1
            if n >= position:
                yield step

    def _all_steps(self) -> Iterator[Step]:
        yield Step(0, 0)
        for s, stage in enumerate(self.stages):
            for k in range(stage.rounds):
                yield Step(s, k, self._task_of_round(s, k))
            yield Step(s, stage.rounds)

    def _task_of_round(self, s: int, k: int) -> int:
        """The stage whose batch is trained in round k of stage s. Rehearsals are spread evenly: the j-th comes as soon
        as k * share reaches j."""
        share = self.stages[s].rehearse if s else 0.0
        before, after = (math.floor(n * share + 1e-9) for n in (k, k + 1))
        return derive_seed(self.seed, "rehearse", s, after) % s if after > before else s


def read_stages(block: Any, run: Mapping[str, Any], seed: int = 0) -> Stages:
    """The stages of a `stages` block; settings that they leave out are the run's. Nothing is loaded.

    Raises BadInput, naming the stage: for an unknown or missing key, two of one name, a task without reward, prompts,
    method or pipeline, and a share of rehearsal outside [0, 1) or in the first stage.
    """
    if not isinstance(block, Sequence) or isinstance(block, str) or not block:
        raise BadInput(f"stages: expected a list of stages, got {quote_value(block)}")
    stages: list[Stage] = []
    for n, entry in enumerate(block):
        stage = build_dataclass(Stage, entry, f"stages[{n}]")
        where = f"stages[{n}] ({stage.name})"
        if not NAME.fullmatch(stage.name):
            raise BadInput(f"{where}: a stage's name has letters, digits, '.', '_' and '-' only")
        if stage.name in [s.name for s in stages]:
            raise BadInput(f"{where}: another stage has this name")
        if stage.rehearse >= 1 or (stage.rehearse and not n):
            raise BadInput(
                f"{where}: rehearse is a share in [0, 1) of earlier stages' batches, and the first has none before it"
            )
        settings = {k: getattr(stage, k) for k in INHERITED if getattr(stage, k) is not None}
        if "prompts" in settings and "test" not in settings:
            settings["test"] = settings["prompts"]  # not the run's, which belong to other prompts
        filled = {k: run.get(k) for k in INHERITED} | settings
        filled["test"] = filled["test"] if filled["test"] is not None else filled["prompts"]
        if missing_keys := [k for k in ("pipeline", "prompts", "reward", "method") if filled[k] is None]:
            raise BadInput(f"{where}: neither it nor the run says its {missing_keys[0]}")
        stages.append(dataclasses.replace(stage, **filled))
    return Stages(tuple(stages), seed)


def check_same_weights(stages: Stages, weights: Mapping[str, tuple[str, str]]) -> None:
    """Raises BadInput for stages that don't share their weights. weights: stage -> (repository, how it is loaded)."""
    first = stages.stages[0]
    for stage in stages.stages[1:]:
        if weights[stage.name] != weights[first.name]:
            raise BadInput(
                f"stages: {stage.name} trains {' '.join(weights[stage.name])}, and {first.name} "
                f"{' '.join(weights[first.name])}: what one learns can't be carried into the other"
            )


@dataclass(frozen=True)
class TaskScores:
    """The mean score of every task before training and after each stage, [1 + stages, tasks], by one reward."""

    names: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    def stage_gains(self) -> list[list[float]]:
        """[stages, tasks]: how much each stage raised each task's score; off the diagonal, interference."""
        return [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(self.scores, self.scores[1:], strict=False)]

    def forgetting_by_task(self) -> dict[str, float]:
        """Task -> its best score from the end of its own stage on, less its last score."""
        return {
            name: max(row[t] for row in self.scores[t + 1 :]) - self.scores[-1][t]
            for t, name in enumerate(self.names)
            if t + 1 < len(self.scores)
        }
