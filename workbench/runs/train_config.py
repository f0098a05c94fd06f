"""How a run trains: the `train` block of its config, checked before any weight loads."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from workbench.core.schema import build, nearest
from workbench.core.types import BadInput, Batch, Count, Natural, NonNegative, derive
from workbench.runs import prompts
from workbench.runs.preference_data import Pairs

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # name -> module


@dataclass(frozen=True)
class Recipe:
    """Everything about a training that is not the method's own."""

    updates: Count = 100  # rounds of the method; each is as many optimiser steps as its own `updates` says
    prompts: Count = 8  # of a round
    accumulate: Count = 1  # such rounds whose gradients gather into one optimiser step
    lora: dict = field(
        default_factory=dict
    )  # {rank, alpha, targets, seed}; targets: weights trains the weights themselves
    policy: dict = field(
        default_factory=dict
    )  # of the pipeline while it trains: {kernel: {name: flow-sde}, call: {...}}
    shard: bool = False  # weights that are trained themselves, in shards: each process holds and steps its part
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    weight_decay: NonNegative = 1e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    warmup: Natural = 0  # updates over which the learning rate rises to the method's
    decay: NonNegative = 0.0  # share of the rounds, at the end, over which it falls to a tenth
    clip: NonNegative = 1.0  # largest norm of the gradient; 0: no limit
    ema: NonNegative = 0.0  # decay of the average that is evaluated and exported in place of the weights; 0: none
    micro: Natural = 0  # rows that go through the denoiser at once; 0: all, until a GPU's memory is full
    checkpointing: bool = False  # the denoiser's blocks recompute their activations: less memory, more time
    save: Count = 20  # rounds between checkpoints
    keep: Count = 2  # checkpoints, besides the best
    evaluate: Natural = 20  # rounds between evaluations; 0: only before and after
    held: Count = 12  # prompts set apart for them: never trained on
    best: str = ""  # what picks the weights that are kept: a judge's name, reward, or last; "" the first of `watch`
    minutes: NonNegative = 0.0  # of training at most; 0: no limit
    on_alarm: Literal["warn", "stop"] = "warn"  # when the optimised reward rises while a held-out judge falls
    report_to: tuple[str, ...] | None = None  # of tensorboard, wandb, trackio; not given: tensorboard where installed

    @property
    def batches(self) -> int:
        return self.updates * self.accumulate


def read(block: Mapping | None, methods: Mapping[str, Any], watch: Sequence[str], reward: Sequence[str]) -> Recipe:
    """The checked block. Raises BadInput."""
    recipe = build(Recipe, block or {}, "train")
    if recipe.report_to is not None:
        for name in recipe.report_to:
            if name not in TRACKERS:
                raise BadInput(f"train.report_to: no tracker {name!r}; {nearest(name, TRACKERS)}")
            if importlib.util.find_spec(TRACKERS[name]) is None:
                raise BadInput(f"train.report_to: {name} is not installed; install it, or leave it out")
    if recipe.shard and adapter(recipe).targets != "weights":
        raise BadInput(
            "train.shard: only weights that are trained themselves are sharded, a LoRA is small; set lora: {targets: weights}, "
            "or leave shard out"
        )
    if recipe.shard and recipe.optimizer == "adamw8bit":
        raise BadInput("train.optimizer: the state of adamw8bit can't be sharded; use: adamw")
    if recipe.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("train.optimizer: adamw8bit needs bitsandbytes, which is not installed; use: adamw")
    if recipe.decay > 1 or len(recipe.betas) != 2:
        raise BadInput("train: decay is a share of the training in [0, 1], and betas are two numbers")
    if recipe.best not in ("", "last", "reward", *watch, *reward):
        raise BadInput(
            f"train.best: {recipe.best!r} judges nothing here; {nearest(recipe.best, ['last', 'reward', *watch, *reward])}"
        )
    adapter(recipe)
    overrides(recipe)
    for name, method in methods.items():
        _sensible(name, method, recipe)
    return recipe


def adapter(recipe: Recipe):
    """The pipelines.Lora that the block asks for. Raises BadInput."""
    from pipelines import Lora

    return build(Lora, recipe.lora, "train.lora")


def sharded() -> str:
    """What becomes of `train.shard` in this process."""
    from pipelines import processes

    if processes.count() > 1:
        return f"in shards over {processes.count()} processes"
    return "and nothing is sharded: this is one process (accelerate launch --num_processes N starts several)"


def overrides(recipe: Recipe) -> dict[str, dict]:
    """What differs while the pipeline trains: its kernel, and arguments of its call. Raises BadInput."""
    known = ("kernel", "call")
    for key, value in recipe.policy.items():
        if key not in known:
            raise BadInput(f"train.policy: unknown key {key!r}; {nearest(str(key), known)}")
        if not isinstance(value, Mapping):
            raise BadInput(f"train.policy.{key}: expected a mapping of settings, got {value!r}")
    if "num_inference_steps" in recipe.policy.get("call", {}):
        raise BadInput("train.policy.call: the number of steps belongs to the pipeline's config: steps")
    return {key: dict(value) for key, value in recipe.policy.items()}


def _sensible(name: str, method, recipe: Recipe) -> None:
    group = getattr(method, "group", None)
    if group == 1 and getattr(method, "advantage", "") != "whole":
        raise BadInput(f"{name}.group: one sample a prompt has nothing to be compared with; give 2 or more")
    if recipe.accumulate > 1 and getattr(method, "updates", 1) > 1:
        raise BadInput(
            f"train.accumulate: {name} makes {method.updates} updates of a batch, which can't gather into one; set its updates to 1"
        )


def setting_apart(found: Sequence[str], recipe: Recipe, seed: int) -> tuple[list[str], list[str], bool]:
    """(prompts to train on, prompts to watch, whether those are truly apart), by a seeded draw.

    A list too short to spare them is trained on whole, and watched with other noise.
    """
    order = sorted(found, key=lambda p: derive(seed, "held", p))
    if len(order) >= 3 * recipe.held:
        held = set(order[: recipe.held])
        return [p for p in found if p not in held], [p for p in found if p in held], True
    return list(found), order[: recipe.held], False


def batch(found: Sequence[str], recipe: Recipe, seed: int, number: int) -> Batch:
    """Batch `number` of a training, 0 the first: the prompts pass in shuffled epochs, each batch with seeds of its own."""
    rows, size = [], recipe.prompts
    for place in range(number * size, (number + 1) * size):
        epoch, at = divmod(place, len(found))
        rows.append(_shuffled(tuple(found), derive(seed, "epoch", epoch))[at])
    return Batch(tuple(rows), tuple(derive(seed, "train", number, b) for b in range(size)))


@lru_cache(maxsize=2)
def _shuffled(found: tuple[str, ...], seed: int) -> list[str]:
    return sorted(found, key=lambda p: derive(seed, p))


def factor(recipe: Recipe, number: int) -> float:
    """Of the learning rate in batch `number`: up linearly over `warmup` updates, level, down linearly to a tenth."""
    up = min(1.0, (number // recipe.accumulate + 1) / recipe.warmup) if recipe.warmup else 1.0
    fall = recipe.decay * recipe.batches
    left = recipe.batches - number
    return up * (max(0.1, left / fall) if fall and left < fall else 1.0)


def told(recipe: Recipe, held: Sequence[str], apart: bool, train: Sequence[str] | Pairs) -> list[str]:
    """What the plan says of it."""
    pairs = isinstance(train, Pairs)
    lora = adapter(recipe)
    what = (
        "all weights" + (f", {sharded()}" if recipe.shard else "")
        if lora.targets == "weights"
        else f"LoRA of rank {lora.rank} (alpha {lora.alpha:g}) on {lora.targets}"
    )
    lines = [
        f"training: {what}, {recipe.updates} rounds of {recipe.prompts * recipe.accumulate} {'pairs' if pairs else 'prompts'}"
        + (f", at most {recipe.minutes:g} minutes" if recipe.minutes else ""),
        f"{len(train):,} {'pairs to learn from' if pairs else 'prompts to train on'}, {len(held)} watched every {recipe.evaluate or recipe.updates} rounds",
    ]
    if not apart:
        lines.append(
            f"warning: {len(train)} prompts are too few to set any apart, so the watched ones are trained on too"
        )
    return lines


def prompts_of(config) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """(those of `prompts`, those of `test` or None)."""
    return prompts.prompts(config.prompts), prompts.prompts(config.test, "test") if config.test is not None else None
