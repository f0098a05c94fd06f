"""Training in stages (workbench.runs.stages): one set of weights is trained on one task after the other, and all tasks
are evaluated after each.

Each task has its own pipeline, reward, prompts, method and optimiser, and shares the adapters. A stage begins with
fresh optimisers, and without the copies of weights that methods of earlier stages have made, except the average (EMA).
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pipelines
from workbench.core.types import Event
from workbench.runs import store
from workbench.runs.budget import Meter
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress
from workbench.runs.stages import Step
from workbench.training import monitoring
from workbench.training.trainer import Trainer
from workbench.training.training_batches import Batches
from workbench.training.training_warnings import teaching_sentences


class StagedTrainer(Trainer):
    """Trains one set of weights stage by stage. `batches_done` counts the steps of the stages: rounds and
    evaluations."""

    def __init__(self, plan: Plan, folder: store.RunFolder, name: str, load: Callable[..., Any]):
        super().__init__(plan, folder, name, load)
        self.names = [stage.name for stage in plan.stages.stages]
        self.tasks = [Trainer(task, folder, task.trained_contestants[0], self.as_sibling) for task in plan.tasks]
        self.running_methods: dict[int, Iterator[Event]] = {}  # task -> the events of its method
        self.matrix: list[dict] = []  # {"after": stage, "step": n, "tasks": {task: {reward: mean}}}

    def as_sibling(self, config: pipelines.PipelineConfig, **_: Any) -> pipelines.TrainablePolicy:
        """The weights of this training as another task's pipeline."""
        return pipelines.as_sibling(self.policy, config)

    def train_rounds(self, stop: threading.Event) -> Iterator[Progress]:
        """Take the steps of the stages, rounds and evaluations, until the training ends."""
        for step in self.plan.stages.iterate_steps(self.batches_done):
            if self.should_stop(stop):
                return
            if step.task is None:
                self.batches_done += 1
                if step.number:  # the first evaluation, that of the base, is done
                    yield from self.evaluate()
            elif (event := self.train_turn(step)) is None:
                self.ended = f"the method of {self.names[step.task]} found nothing more to do"
                return
            else:
                metrics = {f"{self.names[step.task]} {k}": v for k, v in event.metrics.items()}
                optimizer = self.tasks[step.task].distributed.current_optimizer
                self.log_metrics("train", metrics | {"lr": optimizer.param_groups[0]["lr"]})
                yield self.make_progress("train", event=replace(event, step=self.rounds_done))
            if step.task is None or self.batches_done % self.train_config.save_every == 0 or self.should_stop(stop):
                self.save_checkpoint()

    def train_turn(self, step: Step) -> Event | None:
        """Train a round of one task; its event, or None where the method has nothing left to do."""
        if step.number == 0:
            self.reset_optimizer()
        task = self.tasks[step.task]
        if step.task not in self.running_methods:
            task.batches_done = step.turn
            self.running_methods[step.task] = task.method(task.distributed, task.training_reward, Batches(task))
        task.cost, task.samples = self.cost, self.samples
        with (meter := Meter(task.distributed, task.training_reward)):
            event = next(self.running_methods[step.task], None)
        task.record_round(event, meter)
        self.cost, self.samples = task.cost, task.samples
        self.batches_done += event is not None
        return event

    def reset_optimizer(self) -> None:
        super().reset_optimizer()
        self.running_methods = {}
        for task in self.tasks:
            task.reset_optimizer()

    def evaluate(self) -> Iterator[Progress]:
        """Evaluate every task on its own prompts; the first evaluation is that of the base model."""
        self.evaluated_at = self.rounds_done
        after = (
            self.names[next(self.plan.stages.iterate_steps(self.batches_done - 1)).stage] if self.batches_done else ""
        )
        folder = self.folder.path / "samples" / self.name / f"{self.rounds_done:06d}"
        with self.policy.use(self.weights_name) if self.rounds_done else self.policy.reference():
            rows_by_task = [
                task.score_held_out(folder / name if self.is_leader else None)
                for name, task in zip(self.names, self.tasks, strict=True)
            ]
            metrics = {"distance": self.policy.adapters.distance_from_base() if self.rounds_done else 0.0}
        self.base = self.base or rows_by_task
        means_by_task, alarms = {}, []
        for name, task, base, rows in zip(self.names, self.tasks, self.base, rows_by_task, strict=True):
            means, alarm = monitoring.compare_to_base(task.plan, self.name, base, rows, was_trained=name == after)
            if name == after:
                alarm = self.extend_alarm(alarm or "", metrics["distance"], base, rows, task.teaching)
            means_by_task[name] = {key.removeprefix("held "): value for key, value in means.items()}
            alarms += [f"{name}: {alarm}"] if alarm else []
        self.matrix.append({"after": after, "step": self.rounds_done, "tasks": means_by_task})
        if not (alarms and self.train_config.on_alarm == "stop"):
            self.best = {"update": self.rounds_done, "score": float(self.rounds_done)}
        metrics |= {f"{name} {key}": value for name, means in means_by_task.items() for key, value in means.items()}
        self.log_metrics("watch", metrics)
        yield self.make_progress("watch", note=", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        yield from self.report_alarm("; ".join(alarms))

    def teaching_warnings(self) -> list[str]:
        named = zip(self.names, self.tasks, strict=True)
        return [f"stage {name}: {text}" for name, task in named for text in teaching_sentences(task.teaching)]

    def check_differences(self, at_end: bool = False) -> None:
        for task in self.tasks:
            task.check_differences(at_end)

    def halve_micro_batch(self) -> Progress:
        progress = super().halve_micro_batch()
        for task in self.tasks:
            task.distributed.micro = self.distributed.micro
        return progress

    def state_dict(self) -> dict[str, Any]:
        learner_states = [task.policy.learner_state() for task in self.tasks]
        teachings = [dataclasses.asdict(task.teaching) for task in self.tasks]
        return super().state_dict() | {"tasks": learner_states, "task_teachings": teachings, "matrix": self.matrix}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.matrix = list(state["matrix"])
        for task, learner_state in zip(self.tasks, state["tasks"], strict=True):
            task.policy.load_learner_state(learner_state)
            task.distributed.micro = self.distributed.micro
        for task, teaching in zip(self.tasks, state.get("task_teachings", ()), strict=False):
            task.teaching = task.teaching.with_counts(teaching)

    def summarise_training(self) -> dict[str, Any]:
        """As of any training, with the scores of all tasks after each stage."""
        steps = itertools.islice(self.plan.stages.iterate_steps(), self.batches_done)
        rounds = sum(step.task is not None for step in steps)  # without the evaluations
        return super().summarise_training() | {"updates": rounds, "stages": self.matrix}
