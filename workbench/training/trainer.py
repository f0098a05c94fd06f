"""The training of one contestant: a loop over the events of its method, one per batch, that logs, evaluates, saves and
stops. The newest checkpoint holds the whole state of a training, so it can be killed at any moment and resumes bit for
bit.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker

import pipelines
from pipelines import processes
from workbench.core.errors import BadInput
from workbench.core.types import Event
from workbench.evaluation.set_rewards import TrainingReward
from workbench.runs import store, train_config
from workbench.runs.budget import Cost, Meter
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress, json_number
from workbench.runs.resolve import resolve_dependencies
from workbench.training import monitoring, trackers, training_warnings
from workbench.training.monitoring import TrainingHalted
from workbench.training.random_states import random_states, set_random_states
from workbench.training.training_batches import Batches, pack_memory, unpack_memory
from workbench.training.training_end import finish_training
from workbench.training.training_runs import (
    checkpoint_store,
    delivered_copy,
    delivery_method,
    load_trainable,
)
from workbench.training.training_warnings import TeachingRecord

# key in a checkpoint -> attribute of Trainer
SAVED_FIELDS = {"alarm": "alarm", "ended": "ended", "looked": "evaluated_at"}


class Trainer:
    """Trains contestant `name` of a plan. `load` has the signature of pipelines.load."""

    def __init__(self, plan: Plan, folder: store.RunFolder, name: str, load: Callable[..., Any]):
        self.plan, self.folder, self.name, self.train_config = plan, folder, name, plan.train_config
        self.method, self.is_leader = resolve_dependencies(plan.methods[name]), processes.is_main_process()
        self.checkpoints = checkpoint_store(plan, folder, name)
        self.policy = load_trainable(plan, name, load)
        self.distributed = pipelines.DistributedPolicy(
            self.policy, self.train_config.micro, self.train_config.accumulate
        )
        self.distributed.settings = {
            "betas": tuple(self.train_config.betas),
            "weight_decay": self.train_config.weight_decay,
            "eight_bit": self.train_config.optimizer == "adamw8bit",
        }
        self.sampler = pipelines.DistributedPolicy(pipelines.sampling_view(self.policy, plan.pipelines[name]))
        self.training_reward = TrainingReward(plan.reward, self.distributed, plan.config, plan.train_prompts)
        self.trackers: list[GeneralTracker] = []
        self.batches_done, self.cost, self.samples = 0, Cost(), 0  # samples: drawn for training
        self.memory: dict[str, Any] = {}  # see Batches
        self.base: list[dict] = []  # scores of the held-out prompts before training
        self.best: dict[str, Any] = {}  # {"update": round, "score"}
        self.alarm, self.ended, self.evaluated_at = "", "", -1
        self.teaching = TeachingRecord(self.train_config.rounds, self.train_config.accumulate)
        self.pairs_left_out = -1  # of those that have been told of

    @property
    def rounds_done(self) -> int:
        """Rounds that are done, by which logs and checkpoints are numbered; of a training in stages, its steps."""
        return self.batches_done // self.train_config.accumulate

    @property
    def weights_name(self) -> str:
        """The copy of the weights that is evaluated and exported."""
        return delivered_copy(self.method, self.policy.adapters.copies)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> Iterator[Progress]:
        """Train from the newest checkpoint to the end, then export; saves and returns once `stop` is set."""
        yield from self.restore_checkpoint()
        self.check_same_weights("at the start")
        if self.train_config.shard:
            yield self.make_progress("message", note=f"train.shard: all weights, {train_config.describe_sharding()}")
        if note := self.describe_left_out():
            yield self.make_progress("message", note=note)
        config = dataclasses.asdict(self.plan.config)
        if self.is_leader:
            self.trackers = trackers.open_trackers(
                self.train_config, self.folder.path, self.name, config, self.rounds_done
            )
        try:
            if not self.batches_done and not self.base:
                if self.policy.kernel is not None:
                    log_ratio = monitoring.check_replay(
                        self.policy, [*self.plan.held_out_prompts, *self.plan.train_prompts][:2]
                    )
                    if log_ratio:
                        yield self.make_progress(
                            "message", note=f"the log-ratio before the first update is {log_ratio:.1g}, not exactly 0"
                        )
                yield from self.evaluate()
                self.save_checkpoint()
            while not self.should_stop(stop):
                out_of_memory = False
                try:
                    yield from self.train_rounds(stop)
                except torch.OutOfMemoryError:
                    out_of_memory = True  # handled below: here the traceback keeps the round's activations
                if out_of_memory:
                    yield self.halve_micro_batch()
            if stop.is_set():
                return
            yield from finish_training(self)
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def train_rounds(self, stop: threading.Event) -> Iterator[Progress]:
        """Train rounds until the training ends. Raises torch.OutOfMemoryError."""
        events = self.method(self.distributed, self.training_reward, Batches(self))
        while not self.should_stop(stop):
            with (meter := Meter(self.distributed, self.training_reward)):
                event = next(events, None)
            self.record_round(event, meter)
            if event is None:
                self.ended = "the method found nothing more to do"
                return
            if note := self.teaching.first_round_note or self.describe_left_out():
                yield self.make_progress("message", note=note)
            if self.batches_done % self.train_config.accumulate:
                continue
            self.log_metrics("train", event.metrics | {"lr": self.distributed.current_optimizer.param_groups[0]["lr"]})
            yield self.make_progress("train", event=replace(event, step=self.rounds_done))
            k, config = self.rounds_done, self.train_config
            is_last = k == config.rounds
            if is_last or (config.eval_every and k % config.eval_every == 0):
                yield from self.evaluate()
            if is_last or k % config.save_every == 0 or self.best.get("update") == k or self.should_stop(stop):
                self.save_checkpoint()
        events.close()

    def record_round(self, event: Event | None, meter: Meter) -> None:
        """Count a batch and its cost, and check its event (None: the method is at its end). Raises BadInput and
        TrainingHalted."""
        self.add_cost(meter)
        if event is None:
            return
        self.samples += len(event.prompts)
        if self.batches_done == 0:
            monitoring.check_first_log_ratio(event, self.method)
        self.batches_done += 1
        self.teaching.count(event, is_update=self.batches_done % self.train_config.accumulate == 0)
        self.check_differences()
        monitoring.check_finite(self.policy, self.policy.has_loss_scaler)

    def describe_left_out(self) -> str:
        """A sentence on the preference pairs that can't be used; "" where there is none, or no new one."""
        pairs = self.plan.pairs
        if pairs is None or len(pairs.left_out) == self.pairs_left_out:
            return ""
        self.pairs_left_out = len(pairs.left_out)
        return pairs.describe_left_out()

    def should_stop(self, stop: threading.Event) -> bool:
        """Whether to stop now, agreed on by all processes; never between the batches of one optimiser step."""
        if self.batches_done % self.train_config.accumulate and not self.ended:
            return False
        late = self.train_config.minutes and self.cost.seconds >= 60 * self.train_config.minutes
        if any(self.gather_values(stop.is_set())):
            stop.set()
        if any(self.gather_values(bool(late))):
            self.ended = self.ended or f"the {self.train_config.minutes:g} minutes were over"
        return stop.is_set() or bool(self.ended) or self.rounds_done >= self.train_config.rounds

    def check_differences(self, at_end: bool = False) -> None:
        """Raises BadInput where there is nothing to learn from (TeachingRecord.check_differences); TrainingHalted where
        the run has other trainings, which go on."""
        try:
            self.teaching.check_differences(at_end)
        except BadInput as error:
            if len(self.plan.trained_contestants) > 1:
                raise TrainingHalted(str(error)) from None
            raise

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.distributed.world.num_processes == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def add_cost(self, meter: Meter) -> None:
        """Add the cost of a round: the sum of work over processes, the maximum of time and memory."""
        costs = self.gather_values(dataclasses.asdict(meter.cost))
        largest = {key: max(c[key] for c in costs) for key in ("seconds", "peak_mb")}
        self.cost += Cost(**({key: sum(c[key] for c in costs) for key in costs[0]} | largest))

    def check_same_weights(self, when: str) -> None:
        """Raises TrainingHalted unless all processes have the same weights, or shards of the same, bit for bit."""
        if len(set(self.gather_values((self.policy.adapters.content_hash(), self.policy.updates)))) > 1:
            raise TrainingHalted(f"the processes have different weights {when}; they no longer train one model")

    def halve_micro_batch(self) -> Progress:
        """Halve the rows that go through the denoiser at once, and go back to the newest checkpoint."""
        rows = self.distributed.micro or 2 * self.train_config.prompts_per_round * self.method.group
        if self.distributed.world.num_processes > 1:  # the others are still in the round and wait for this one
            raise TrainingHalted(
                "the GPU's memory is full, and several processes can't go on with fewer rows by themselves; "
                "set train.micro to fewer rows, or checkpointing: true"
            )
        if rows <= 1:
            raise TrainingHalted(
                "the GPU's memory is full; set checkpointing: true, "
                "or the reward's own checkpoint: true where it has one"
            )
        self.distributed.micro = min(rows // 2, 64)
        torch.cuda.empty_cache()
        update, state, _ = self.checkpoints.load_newest()
        self.load_state_dict(state)
        if self.is_leader:
            self.folder.keep_events(lambda event: event["contestant"] != self.name or event.get("step", 0) <= update)
        return self.make_progress(
            "message", note=f"out of memory: {self.distributed.micro} rows at once from here, recomputing activations"
        )

    # --- evaluation and logs -----------------------------------------------------------------------------------------

    def evaluate(self) -> Iterator[Progress]:
        """Evaluate on the held-out prompts; the first evaluation is that of the base model."""
        self.evaluated_at = self.rounds_done
        folder = self.folder.path / "samples" / self.name / f"{self.rounds_done:06d}" if self.is_leader else None
        with self.policy.use(self.weights_name) if self.rounds_done else self.policy.reference():
            rows = self.score_held_out(folder)
            distance = self.policy.adapters.distance_from_base() if self.rounds_done else 0.0
        self.base = self.base or rows
        metrics, alarm = monitoring.compare_to_base(self.plan, self.name, self.base, rows)
        alarm = self.extend_alarm(alarm or "", distance, self.base, rows, self.teaching)
        metric = monitoring.selection_metric(self.plan, self.method)
        score = monitoring.selection_score(metric, rows, self.base, self.rounds_done)
        (alarm, score), *_ = self.gather_values((alarm, score))  # remote rewards may fail in one process only
        if monitoring.is_better(score, self.best) and not (alarm and self.train_config.on_alarm == "stop"):
            self.best = {"update": self.rounds_done, "score": score}
        metrics["distance"] = distance
        if "saturated_pixels" in rows[0]["scores"]:
            metrics["saturated"] = monitoring.mean_saturation(rows)
        self.log_metrics("watch", metrics)
        yield self.make_progress("watch", note=", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        yield from self.report_alarm(alarm)

    def extend_alarm(
        self, alarm: str, distance: float, base: Sequence[Mapping], rows: Sequence[Mapping], teaching: TeachingRecord
    ) -> str:
        """The alarm's sentences, with those on weights that went too far or stand still and on rounds that taught
        nothing. base, rows: an evaluation before training and now."""
        if not self.rounds_done:
            return alarm
        patience = max(teaching.silent_rounds, self.train_config.warmup + 1)
        sentences = training_warnings.silence_sentences(teaching)
        if not sentences or distance:
            sentences += training_warnings.movement_sentences(distance, base, rows, self.rounds_done, patience)
        clauses = [sentence.removesuffix(".") for sentence in (alarm, *sentences) if sentence]
        return "; ".join(clauses) + "." if clauses else ""

    def score_held_out(self, folder: Path | None) -> list[dict]:
        """Rows of the held-out prompts (monitoring.evaluate_held_out), sampled as after an export of the live weights,
        with merged adapters, unless the sampler reads the adapters as a branch (HyperNoise)."""
        method = delivery_method(self.method)
        with nullcontext() if self.method.sampler() else self.policy.merged():
            try:
                return monitoring.evaluate_held_out(self.plan, self.sampler, method, folder)
            except torch.OutOfMemoryError:
                raise TrainingHalted(
                    f"the GPU's memory is full where watched prompts are sampled, {self.plan.config.batch} at once; "
                    "set batch to fewer"
                ) from None

    def report_alarm(self, alarm: str) -> Iterator[Progress]:
        """Log and report a new alarm; end the training where `on_alarm` says so."""
        if alarm and alarm != self.alarm:
            if self.is_leader:
                self.folder.append_event({"contestant": self.name, "step": self.rounds_done, "alarm": alarm})
            yield self.make_progress("message", note=f"alarm: {alarm}")
        self.alarm = alarm
        if alarm and self.train_config.on_alarm == "stop":
            self.ended = f"the alarm was raised: {alarm}"

    def log_metrics(self, phase: str, metrics: Mapping[str, float]) -> None:
        """Write metrics of a round ("train") or an evaluation ("watch") to the run's log and to the trackers."""
        if not self.is_leader:
            return
        metrics = {key: json_number(value) for key, value in metrics.items()}
        cost = dataclasses.asdict(self.cost)
        self.folder.append_event(
            {"contestant": self.name, "phase": phase, "step": self.rounds_done, "metrics": metrics, "cost": cost}
        )
        trackers.log_metrics(self.trackers, self.rounds_done, {k: v for k, v in metrics.items() if v is not None})

    def make_progress(self, phase: str, **details: Any) -> Progress:
        """A Progress report of this training at its current round."""
        return Progress(
            self.name, self.rounds_done, self.train_config.rounds, folder=self.folder.path, phase=phase, **details
        )

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the current round. Raises TrainingHalted where processes have different weights."""
        self.check_same_weights(f"at update {self.rounds_done}")
        state = self.state_dict()
        if self.is_leader:
            self.checkpoints.save(self.rounds_done, state)
            if self.best.get("update") == self.rounds_done:
                self.checkpoints.mark_best(**self.best)

    def state_dict(self) -> dict[str, Any]:
        """The whole state of the training, gathered from all processes, which must all call this."""
        return {
            "number": self.batches_done,
            "policy": self.policy.state_dict(),
            "ranks": self.gather_values(random_states()),
            "micro": self.distributed.micro,
            "cost": dataclasses.asdict(self.cost),
            "samples": self.samples,
            "memory": pack_memory(self.memory),
            "base": self.base,
            "best": self.best,
            "told": {key: getattr(self, attribute) for key, attribute in SAVED_FIELDS.items()},
            "teaching": dataclasses.asdict(self.teaching),
            "left_out": dict(self.plan.pairs.left_out) if self.plan.pairs else {},
        }

    def restore_checkpoint(self) -> Iterator[Progress]:
        """Resume from the newest intact checkpoint, if there is one."""
        update, state, damaged = self.checkpoints.load_newest()
        (update, damaged), *_ = self.gather_values((update, damaged))
        for checkpoint in damaged:
            origin = update if state else "the start"
            yield self.make_progress(
                "message", note=f"checkpoint {checkpoint} is damaged or unfinished; going on from {origin}"
            )
        if state is not None:
            self.load_state_dict(state if self.is_leader else self.checkpoints.load(update))
            if (planned := state.get("teaching", {}).get("planned", 0)) and planned < self.train_config.rounds:
                more = f"{self.train_config.rounds} rounds, and was to have {planned}"
                yield self.make_progress("message", note=f"goes on from round {update} of this run: it has {more}")
        if self.is_leader:
            self.checkpoints.discard(damaged)
            if self.best.get("update") in set(self.checkpoints):
                self.checkpoints.mark_best(**self.best)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that `state_dict` returned."""
        self.reset_optimizer()
        self.policy.load_state_dict(state["policy"])
        self.distributed.rounds_gathered = 0
        set_random_states(state["ranks"][min(self.distributed.world.process_index, len(state["ranks"]) - 1)])
        self.batches_done, self.samples, self.cost = state["number"], state["samples"], Cost(**state["cost"])
        self.distributed.micro = min(filter(None, (self.distributed.micro, state["micro"])), default=0)
        self.base, self.best = state["base"], dict(state["best"])
        self.memory = unpack_memory(state["memory"], self.plan.train_prompts)
        for key, attribute in SAVED_FIELDS.items():
            setattr(self, attribute, state["told"][key])
        self.teaching = self.teaching.with_counts(state.get("teaching", {}))  # older checkpoints have none
        if self.plan.pairs is not None:
            self.plan.pairs.left_out.update(state.get("left_out", {}))

    # --- the end -----------------------------------------------------------------------------------------------------

    def teaching_warnings(self) -> list[str]:
        """Sentences on rounds and samples that taught nothing."""
        left_out = self.plan.pairs.describe_left_out(faults_only=True) if self.plan.pairs else ""
        return training_warnings.teaching_sentences(self.teaching) + ([f"{left_out}."] if left_out else [])

    def reset_optimizer(self) -> None:
        """Drop the optimiser with its state; a checkpoint holds it."""
        self.policy.reset_optimizer()
        self.distributed.current_optimizer = None

    def summarise_training(self) -> dict[str, Any]:
        """Rounds ("updates"), samples and cost of the training, its alarm and why it ended."""
        totals = {"updates": self.rounds_done, "samples": self.samples, **dataclasses.asdict(self.cost)}
        return totals | {"alarm": self.alarm, "ended": self.ended, "micro": self.distributed.micro}
