"""A training in stages (workbench.runs.stages): one set of weights, taught one task after the other, all of them judged after each.

Each task has a pipeline, a reward, prompts, a method and an optimiser of its own, and the same adapters. A stage begins with
fresh optimisers and without the copies that the methods of earlier ones have left, but for the average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pipelines
from workbench.core.types import Event
from workbench.runs import store
from workbench.runs.progress import Progress
from workbench.runs.stages import Step
from workbench.training import monitoring
from workbench.training.trainer import Batches, Training


class Staged(Training):
    """It under way. What it counts are steps of the plan's stages: rounds of training, and judgements of all tasks."""

    def __init__(self, plan, folder: store.RunFolder, name: str, load):
        super().__init__(plan, folder, name, load)
        self.names = [stage.name for stage in plan.stages.stages]
        self.tasks = [Training(task, folder, task.trained[0], self.through) for task in plan.tasks]
        self.under_way: dict[int, Iterator[Event]] = {}  # task -> its method at work
        self.matrix: list[dict] = []  # {"after": stage, "step": n, "tasks": {task: {judge: mean}}}

    def through(self, config: pipelines.PipelineConfig, **_: Any) -> pipelines.TrainablePolicy:
        """The weights of this training as another task's pipeline."""
        return pipelines.sibling(self.policy, config)

    @property
    def taught(self) -> int:
        return sum(step.task is not None for step, _ in zip(self.plan.stages.steps(), range(self.number), strict=False))

    def rounds(self, stop) -> Iterator[Progress]:
        for step in self.plan.stages.steps(self.number):
            if self.over(stop):
                return
            if step.task is None:
                self.number += 1
                if step.number:  # the first is the base's, and has been looked at
                    yield from self.look()
            elif (event := self.turn(step)) is None:
                self.ended = f"the method of {self.names[step.task]} found nothing more to do"
                return
            else:
                rate = self.tasks[step.task].rows.optimizer_.param_groups[0]["lr"]
                self.log("train", {f"{self.names[step.task]} {k}": v for k, v in event.metrics.items()} | {"lr": rate})
                yield self.progress("train", event=replace(event, step=self.update))
            if step.task is None or self.number % self.recipe.save == 0 or self.over(stop):
                self.save()

    def turn(self, step: Step) -> Event | None:
        """A batch of one task."""
        if step.number == 0:
            self.afresh()
        task = self.tasks[step.task]
        if step.task not in self.under_way:
            task.number = step.turn
            self.under_way[step.task] = task.method(task.rows, task.judge, Batches(task))
        task.cost, task.samples = self.cost, self.samples
        event = task.round(self.under_way[step.task])
        self.cost, self.samples = task.cost, task.samples
        self.number += event is not None
        return event

    def afresh(self) -> None:
        super().afresh()
        self.under_way = {}
        for task in self.tasks:
            task.afresh()

    def look(self) -> Iterator[Progress]:
        """Judge every task on its own prompts; the first time, that is the base."""
        self.looked = self.update
        after = self.names[next(self.plan.stages.steps(self.number - 1)).stage] if self.number else ""
        home = self.folder.path / "samples" / self.name / f"{self.update:06d}"
        with self.policy.use(self.weights) if self.update else self.policy.reference():
            found = [
                task.watched(task.plan, home / name if self.leads else None)
                for name, task in zip(self.names, self.tasks, strict=True)
            ]
            told = {"distance": self.policy.adapters.distance() if self.update else 0.0}
        self.base = self.base or found
        judged, alarms = {}, []
        for name, task, base, now in zip(self.names, self.tasks, self.base, found, strict=True):
            means, alarm = monitoring.verdict(task.plan, self.name, base, now)
            judged[name] = {key.removeprefix("held "): value for key, value in means.items()}
            alarms += [f"{name}: {alarm}"] if alarm else []
        self.matrix.append({"after": after, "step": self.update, "tasks": judged})
        self.best = {"update": self.update, "score": float(self.update)}
        told |= {f"{name} {key}": value for name, means in judged.items() for key, value in means.items()}
        self.log("watch", told)
        yield self.progress("watch", note=", ".join(f"{k} {v:.3f}" for k, v in told.items()))
        yield from self.alarmed("; ".join(alarms))

    def shrink(self) -> Progress:
        told = super().shrink()
        for task in self.tasks:
            task.rows.micro = self.rows.micro
        return told

    def state(self) -> dict[str, Any]:
        learners = [task.policy.learner() for task in self.tasks]
        return super().state() | {"tasks": learners, "matrix": self.matrix}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.matrix = list(state["matrix"])
        for task, learner in zip(self.tasks, state["tasks"], strict=True):
            task.policy.load_learner(learner)
            task.rows.micro = self.rows.micro

    def about(self) -> dict[str, Any]:
        return super().about() | {"stages": self.matrix}
