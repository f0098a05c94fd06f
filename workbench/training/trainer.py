"""One contestant's training. A method yields after each round; between two rounds the driver logs, watches, saves, and may stop.
All that a training is lies in its newest checkpoint, so it can be killed at any moment and goes on to the very bits it would
have come to.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import pipelines
from pipelines import processes
from workbench.core.types import Batch, Event, PairBatch, derive
from workbench.evaluation.set_rewards import Judging
from workbench.runs import store, train_config
from workbench.runs.budget import Cost, Meter
from workbench.runs.progress import Progress, number
from workbench.runs.resolve import supplied
from workbench.training import monitoring, trackers
from workbench.training.monitoring import Halted
from workbench.training.training_runs import copy_of, delivers, exported, policy_of, put_best, shelf

TOLD = ("alarm", "ended", "looked")  # of a training, in its checkpoints


class Batches:
    """The batches of a training from its `first` on. Global randomness follows from a batch's number, on every device.
    `memory` is what the method wants to find again when the training goes on later: plain values."""

    def __init__(self, training: Training):
        self.training, self.first, self.memory = training, training.number, training.memory

    def __iter__(self) -> Iterator[Batch]:
        plan, rows = self.training.plan, self.training.rows
        for n in itertools.count(self.first):
            seed = derive(plan.config.seed, "round", n)
            torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
            rows.pace(train_config.factor(plan.recipe, n))
            yield (
                train_config.batch(plan.train, plan.recipe, plan.config.seed, n)
                if plan.pairs is None
                else self.pairs(n)
            )

    def pairs(self, n: int) -> PairBatch:
        """Pairs instead of prompts; a control's are turned round, or have each other's prompts."""
        plan, size = self.training.plan, self.training.recipe.prompts
        given = plan.pairs.batch(n * size, size, self.training.rows.size)
        if plan.config.control == "negated":
            return replace(given, winners=given.losers, losers=given.winners)
        if plan.config.control == "shuffled":
            return replace(given, prompts=given.prompts[1:] + given.prompts[:1])
        return given


class Training:
    """It under way."""

    def __init__(self, plan, folder: store.RunFolder, name: str, load):
        self.plan, self.folder, self.name, self.recipe = plan, folder, name, plan.recipe
        self.method, self.shelf, self.leads = supplied(plan.methods[name]), shelf(plan, folder, name), processes.leads()
        self.policy = policy_of(plan, name, load)
        self.rows = pipelines.Rows(self.policy, self.recipe.micro, self.recipe.accumulate)
        self.rows.settings = {
            "betas": tuple(self.recipe.betas),
            "weight_decay": self.recipe.weight_decay,
            "eight_bit": self.recipe.optimizer == "adamw8bit",
        }
        self.sampler = pipelines.Rows(pipelines.beside(self.policy, plan.pipelines[name]))
        self.judge = Judging(plan.reward, self.rows, plan.config, plan.train)
        self.boards: list[Any] = []
        self.number, self.cost, self.samples = 0, Cost(), 0  # batches done, and what they took
        self.memory: dict[str, Any] = {}  # the method's own
        self.base: list[dict] = []  # the watched prompts before training
        self.best: dict[str, Any] = {}
        self.alarm, self.ended, self.looked = "", "", -1

    @property
    def update(self) -> int:
        return self.number // self.recipe.accumulate

    @property
    def taught(self) -> int:
        """Rounds of training done."""
        return self.update

    @property
    def weights(self) -> str:
        """What is watched and exported."""
        return copy_of(self.method, self.policy.adapters.copies)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> Iterator[Progress]:
        yield from self.restore()
        self.agree("at the start")
        if self.recipe.shard:
            yield self.progress("told", note=f"train.shard: all weights, {train_config.sharded()}")
        config = dataclasses.asdict(self.plan.config)
        self.boards = (
            trackers.trackers(self.recipe, self.folder.path, self.name, config, self.update) if self.leads else []
        )
        try:
            if not self.number and not self.base:
                if self.policy.kernel is not None:
                    far = monitoring.replayed(self.policy, [*self.plan.held, *self.plan.train][:2])
                    if far:
                        yield self.progress(
                            "told", note=f"the log-ratio before the first update is {far:.1g}, not exactly 0"
                        )
                yield from self.look()
                self.save()
            while not self.over(stop):
                full = False
                try:
                    yield from self.rounds(stop)
                except torch.OutOfMemoryError:
                    full = True  # acted on outside: in here the traceback still holds the round's activations
                if full:
                    yield self.shrink()
            if stop.is_set():
                return
            yield from self.finish()
        finally:
            for board in self.boards:
                board.close()

    def rounds(self, stop: threading.Event) -> Iterator[Progress]:
        """Rounds until the training is over, or memory is."""
        events = self.method(self.rows, self.judge, Batches(self))
        while not self.over(stop):
            if (event := self.round(events)) is None:
                self.ended = "the method found nothing more to do"
                return
            if self.number % self.recipe.accumulate:
                continue
            self.log("train", event.metrics | {"lr": self.rows.optimizer_.param_groups[0]["lr"]})
            yield self.progress("train", event=replace(event, step=self.update))
            at = self.update
            last = at == self.recipe.updates
            if last or (self.recipe.evaluate and at % self.recipe.evaluate == 0):
                yield from self.look()
            if last or at % self.recipe.save == 0 or self.best.get("update") == at or self.over(stop):
                self.save()
        events.close()

    def round(self, events: Iterator[Event]) -> Event | None:
        """The next of the method's rounds, measured and checked; None where it has come to its own end. Raises Halted."""
        with (meter := Meter(self.rows, self.judge)):
            event = next(events, None)
        self.count(meter)
        if event is None:
            return None
        self.samples += len(event.prompts)
        if self.number == 0:
            monitoring.first(event, self.method)
        self.number += 1
        monitoring.sound(self.policy, self.policy.scaled)
        return event

    def over(self, stop: threading.Event) -> bool:
        """Whether to stop here, agreed on by all processes; only between two optimiser steps."""
        if self.number % self.recipe.accumulate and not self.ended:
            return False
        late = self.recipe.minutes and self.cost.seconds >= 60 * self.recipe.minutes
        if any(self.share(stop.is_set())):
            stop.set()
        if any(self.share(bool(late))):
            self.ended = self.ended or f"the {self.recipe.minutes:g} minutes were over"
        return stop.is_set() or bool(self.ended) or self.update >= self.recipe.updates

    def share(self, value: Any) -> list[Any]:
        """What every process says."""
        if self.rows.world.num_processes == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def count(self, meter: Meter) -> None:
        """Add what the last round took: work of all processes, time and memory of the slowest and largest."""
        everyone = self.share(dataclasses.asdict(meter.cost))
        most = {key: max(c[key] for c in everyone) for key in ("seconds", "peak_mb")}
        self.cost += Cost(**({key: sum(c[key] for c in everyone) for key in everyone[0]} | most))

    def agree(self, when: str) -> None:
        """Raises Halted unless all processes have the same weights, bit for bit; or, of shards, parts of the same."""
        if len(set(self.share((self.policy.adapters.hash(), self.policy.updates)))) > 1:
            raise Halted(f"the processes have different weights {when}; they no longer train one model")

    def shrink(self) -> Progress:
        """Half the rows at once, from the newest checkpoint on, as if nothing had come after it."""
        rows = self.rows.micro or 2 * self.recipe.prompts * getattr(self.method, "group", 1)
        if self.rows.world.num_processes > 1:  # the others are in the round still, and wait for this one's part
            raise Halted(
                "the GPU's memory is full, and several processes can't go on with fewer rows by themselves; set train.micro to "
                "fewer rows, or checkpointing: true"
            )
        if rows <= 1:
            raise Halted(
                "the GPU's memory is full; set checkpointing: true, or the reward's own checkpoint: true where it has one"
            )
        self.rows.micro = min(rows // 2, 64)
        torch.cuda.empty_cache()
        update, state, _ = self.shelf.newest()
        self.load(state)
        if self.leads:
            self.folder.keep(lambda event: event["contestant"] != self.name or event.get("step", 0) <= update)
        return self.progress(
            "told", note=f"out of memory: {self.rows.micro} rows at once from here, recomputing activations"
        )

    # --- what is watched and said ------------------------------------------------------------------------------------

    def look(self) -> Iterator[Progress]:
        """Evaluate on the watched prompts; the first time, that is the base."""
        self.looked = self.update
        place = self.folder.path / "samples" / self.name / f"{self.update:06d}" if self.leads else None
        with self.policy.use(self.weights) if self.update else self.policy.reference():
            rows = self.watched(self.plan, place)
            distance = self.policy.adapters.distance() if self.update else 0.0
        self.base = self.base or rows
        told, alarm = monitoring.verdict(self.plan, self.name, self.base, rows)
        score = monitoring.score(self.plan, rows, self.base, self.update)
        (alarm, score), *_ = self.share((alarm, score))  # judges elsewhere may fail one process alone
        if not self.best or score > self.best["score"]:
            self.best = {"update": self.update, "score": score}
        told |= (
            {"distance": distance, "saturated": saturated(rows)}
            if "saturated_pixels" in rows[0]["scores"]
            else {"distance": distance}
        )
        self.log("watch", told)
        yield self.progress("watch", note=", ".join(f"{k} {v:.3f}" for k, v in told.items()))
        yield from self.alarmed(alarm or "")

    def watched(self, plan, place) -> list[dict]:
        """What is delivered with the weights as they are, looked at. The branch that HyperNoise reads is not merged."""
        method = delivers(self.method)
        with nullcontext() if hasattr(self.method, "delivers") else self.policy.merged():
            try:
                return monitoring.look(plan, self.sampler, method, place)
            except torch.OutOfMemoryError:
                raise Halted(
                    f"the GPU's memory is full where watched prompts are sampled, {plan.config.batch} at once; set batch to fewer"
                ) from None

    def alarmed(self, alarm: str) -> Iterator[Progress]:
        if alarm and alarm != self.alarm:
            if self.leads:
                self.folder.append({"contestant": self.name, "step": self.update, "alarm": alarm})
            yield self.progress("told", note=f"alarm: {alarm}")
        self.alarm = alarm
        if alarm and self.recipe.on_alarm == "stop":
            self.ended = f"the alarm was raised: {alarm}"

    def log(self, phase: str, metrics: Mapping[str, float]) -> None:
        if not self.leads:
            return
        metrics = {key: number(value) for key, value in metrics.items()}
        cost = dataclasses.asdict(self.cost)
        self.folder.append(
            {"contestant": self.name, "phase": phase, "step": self.update, "metrics": metrics, "cost": cost}
        )
        for board in self.boards:
            board.log(self.update, {k: v for k, v in metrics.items() if v is not None})

    def progress(self, phase: str, **told: Any) -> Progress:
        return Progress(self.name, self.update, self.recipe.updates, folder=self.folder.path, phase=phase, **told)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.agree(f"at update {self.update}")
        state = self.state()
        if self.leads:
            self.shelf.save(self.update, state)
            if self.best.get("update") == self.update:
                self.shelf.choose(**self.best)

    def state(self) -> dict[str, Any]:
        """All that a training is; every process asks."""
        return {
            "number": self.number,
            "policy": self.policy.state_dict(),
            "ranks": self.share(_randomness()),
            "micro": self.rows.micro,
            "cost": dataclasses.asdict(self.cost),
            "samples": self.samples,
            "memory": self.memory,
            "base": self.base,
            "best": self.best,
            "told": {key: getattr(self, key) for key in TOLD},
        }

    def restore(self) -> Iterator[Progress]:
        """Go on from the newest checkpoint that is whole, if there is one."""
        update, state, damaged = self.shelf.newest()
        (update, damaged), *_ = self.share((update, damaged))
        for lost in damaged:
            back = update if state else "the start"
            yield self.progress("told", note=f"checkpoint {lost} is damaged or unfinished; going on from {back}")
        if state is not None:
            self.load(state if self.leads else self.shelf.load(update))
        if self.leads:
            self.shelf.discard(damaged)
            if self.best.get("update") in set(self.shelf):
                self.shelf.choose(**self.best)

    def load(self, state: Mapping[str, Any]) -> None:
        self.afresh()
        self.policy.load_state_dict(state["policy"])
        self.rows.gathered = 0
        _randomise(state["ranks"][min(self.rows.world.process_index, len(state["ranks"]) - 1)])
        self.number, self.samples, self.cost = state["number"], state["samples"], Cost(**state["cost"])
        self.rows.micro = min(filter(None, (self.rows.micro, state["micro"])), default=0)
        self.base, self.best, self.memory = state["base"], dict(state["best"]), dict(state["memory"])
        for key in TOLD:
            setattr(self, key, state["told"][key])

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> Iterator[Progress]:
        """Export the best weights, and say what it took. The other processes are done here, unless they hold parts of them."""
        if self.looked != self.update:  # it was ended early
            yield from self.look()
        self.save()
        out = exported(self.plan, self.folder, self.name)
        (there, *_) = self.share(out.exists())  # and what was saved is on disk
        if not self.leads and not self.policy.adapters.sharded:
            return
        self.afresh()  # exporting asks for memory of its own
        weights, best = put_best(self.policy, self.shelf, self.method)
        self.policy.adapters.forget({weights})
        if self.leads:
            for torn in out.parent.glob(f".{out.name}.*"):
                shutil.rmtree(torn)  # of a writer that was killed
        if not there:
            base = self.plan.pipelines[self.name]
            about = {"method": self.name, "run": self.folder.path.name, "update": str(best)}
            told = pipelines.export(self.policy, out, name=weights, about=about, pipeline=base)
            for note in told.notes:
                yield self.progress("told", note=note)
        with self.policy.use(weights):
            distance = self.policy.adapters.distance()
        if not self.leads:
            return
        self.shelf.finish(self.about() | {"distance": distance, "best": best})
        yield self.progress("told", note=f"exported the weights of update {best} to {out}")

    def afresh(self) -> None:
        """Let go of what only training needs, and a checkpoint has."""
        self.policy.afresh()
        self.rows.optimizer_ = None

    def about(self) -> dict[str, Any]:
        """What it took and how it ended."""
        done = {"updates": self.taught, "samples": self.samples, **dataclasses.asdict(self.cost)}
        return done | {"alarm": self.alarm, "ended": self.ended, "micro": self.rows.micro}


def saturated(rows) -> float:
    return sum(r["scores"]["saturated_pixels"] for r in rows) / len(rows)


def _randomness() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


def _randomise(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
