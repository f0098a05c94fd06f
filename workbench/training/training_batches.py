"""The batches of a training, in an order that the run's seed and their numbers determine. `trainer` is a Trainer
(workbench.training.trainer, which imports this file)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from workbench.core.types import Batch, PairBatch, derive_seed, prompt_key
from workbench.runs import train_config


def pack_memory(memory: Mapping[str, Any]) -> dict[str, Any]:
    """A method's memory as a checkpoint holds it: prompts with inputs, which are no plain values, by their keys."""
    return _map_texts(memory, prompt_key)


def unpack_memory(memory: Mapping[str, Any], prompts: Iterable[str]) -> dict[str, Any]:
    """What `pack_memory` packed; `prompts` are those of the training."""
    with_inputs = {prompt_key(prompt): prompt for prompt in prompts}
    return _map_texts(memory, lambda text: with_inputs.get(text, text))


def _map_texts(memory: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {
        key: [change(v) if isinstance(v, str) else v for v in value] if isinstance(value, list) else value
        for key, value in memory.items()
    }


class Batches:
    """The batches of a training from number `first` on. Global random generators are seeded by a batch's number, on
    every device. `memory` is the method's own state: plain values, saved in checkpoints."""

    def __init__(self, trainer: Any):
        self.trainer, self.first, self.memory = trainer, trainer.batches_done, trainer.memory

    def __iter__(self) -> Iterator[Batch]:
        plan = self.trainer.plan
        for n in itertools.count(self.first):
            seed = derive_seed(plan.config.seed, "round", n)
            torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
            self.trainer.distributed.scale_learning_rate(train_config.learning_rate_factor(plan.train_config, n))
            yield (
                train_config.training_batch(plan.train_prompts, plan.train_config, plan.config.seed, n)
                if plan.pairs is None
                else self.pair_batch(n)
            )

    def pair_batch(self, n: int) -> PairBatch:
        """Batch n of preference pairs. In a control run winners and losers are swapped, or prompts shuffled."""
        plan, size = self.trainer.plan, self.trainer.train_config.prompts_per_round
        policy = self.trainer.distributed
        batch = plan.pairs.batch(n * size, size, policy.size, policy.rate)
        if plan.config.control == "negated":
            return replace(batch, winners=batch.losers, losers=batch.winners)
        if plan.config.control == "shuffled":
            return replace(batch, prompts=batch.prompts[1:] + batch.prompts[:1])
        return batch
