"""Settings of training: the `train` block of a run's config, checked before any weight loads."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pipelines import Lora, processes
from pipelines.config import read_kernel
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import Batch, Count, Natural, NonNegative, derive_seed
from workbench.runs.preference_data import PreferencePairs
from workbench.runs.prompt_inputs import prompt_source

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # name -> module


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training that are not its method's own."""

    former_names: ClassVar[Mapping[str, str]] = {
        "updates": "rounds",
        "prompts": "prompts_per_round",
        "clip": "max_grad_norm",
        "save": "save_every",
        "keep": "keep_last",
        "evaluate": "eval_every",
        "held": "eval_prompts",
    }

    rounds: Count = 100  # rounds of the method; each is as many optimiser steps as its own `optimizer_steps` says
    prompts_per_round: Count = 8  # prompts per batch
    accumulate: Count = 1  # batches per round: their gradients add up to one optimiser step
    # {rank, alpha, targets, seed}; targets: weights trains the weights themselves
    lora: dict = field(default_factory=dict)
    # changes to the pipeline while it trains: {kernel: {name: flow-sde}, call: {...}}
    policy: dict = field(default_factory=dict)
    shard: bool = False  # for targets: weights; each process holds and steps a part of the weights (FSDP)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # adamw8bit needs bitsandbytes
    weight_decay: NonNegative = 1e-4  # of AdamW
    betas: tuple[float, ...] = (0.9, 0.999)  # of AdamW
    warmup: Natural = 0  # rounds over which the learning rate rises to the method's
    decay: NonNegative = 0.0  # share of the rounds, at the end, over which it falls to a tenth
    max_grad_norm: NonNegative = 1.0  # largest norm of the gradient; 0: no limit
    ema: NonNegative = 0.0  # decay of the weights' average, evaluated and exported in their place; 0: none
    micro: Natural = 0  # rows through the denoiser at once; 0: all, halved when a GPU's memory is full
    checkpointing: bool = False  # the denoiser's blocks recompute their activations: less memory, more time
    save_every: Count = 20  # rounds between checkpoints
    keep_last: Count = 2  # checkpoints, besides the best
    eval_every: Natural = 20  # rounds between evaluations; 0: only before and after
    eval_prompts: Count = 12  # prompts of the evaluations, held out from training if the list is long enough
    # selects the weights to keep: a reward's name, "reward", or "last"; "": the first of `watch`, or what a method that
    # validates itself (rpo) found best
    best: str = ""
    minutes: NonNegative = 0.0  # of training at most; 0: no limit
    # when a reward is hacked, or the training collapses or teaches nothing; stop: the best of before is exported
    on_alarm: Literal["warn", "stop"] = "warn"
    report_to: tuple[str, ...] | None = None  # of tensorboard, wandb, trackio; not given: tensorboard where installed

    @property
    def total_batches(self) -> int:
        """Batches that the method gets in the whole training."""
        return self.rounds * self.accumulate


def read_train_config(
    block: Mapping | None, methods: Mapping[str, Any], watch: Sequence[str], reward: Sequence[str]
) -> TrainConfig:
    """The checked `train` block. methods: contestant -> method; watch, reward: names of the held-out and of the
    optimised rewards. Raises BadInput."""
    config = build_dataclass(TrainConfig, block or {}, "train")
    if config.report_to is not None:
        for name in config.report_to:
            if name not in TRACKERS:
                raise BadInput(f"train.report_to: no tracker {quote_value(name)}; {suggest_nearest(name, TRACKERS)}")
            if importlib.util.find_spec(TRACKERS[name]) is None:
                raise BadInput(f"train.report_to: {name} is not installed; install it, or leave it out")
    if config.shard and lora_config(config).targets != "weights":
        raise BadInput(
            "train.shard: only weights that are trained themselves are sharded, a LoRA is small; "
            "set lora: {targets: weights}, or leave shard out"
        )
    if config.shard and config.optimizer == "adamw8bit":
        raise BadInput("train.optimizer: the state of adamw8bit can't be sharded; use: adamw")
    if config.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("train.optimizer: adamw8bit needs bitsandbytes, which is not installed; use: adamw")
    if config.decay > 1 or len(config.betas) != 2:
        raise BadInput("train: decay is a share of the training in [0, 1], and betas are two numbers")
    if config.best not in ("", "last", "reward", *watch, *reward):
        raise BadInput(
            f"train.best: {quote_value(config.best)} judges nothing here; "
            f"{suggest_nearest(config.best, ['last', 'reward', *watch, *reward])}"
        )
    lora_config(config)
    policy_overrides(config)
    for name, method in methods.items():
        _check_method(name, method, config)
    return config


def lora_config(config: TrainConfig) -> Lora:
    """The Lora of the block's `lora`. Raises BadInput."""
    return build_dataclass(Lora, config.lora, "train.lora")


def describe_sharding() -> str:
    """What `train.shard` means with as many processes as there are, for a sentence."""
    if processes.count_processes() > 1:
        return f"in shards over {processes.count_processes()} processes"
    return "and nothing is sharded: this is one process (accelerate launch --num_processes N starts several)"


def policy_overrides(config: TrainConfig) -> dict[str, dict]:
    """The changes to the pipeline while it trains: "kernel", and "call" arguments. Raises BadInput."""
    keys = ("kernel", "call")
    for key, value in config.policy.items():
        if key not in keys:
            raise BadInput(f"train.policy: unknown key {quote_value(key)}; {suggest_nearest(str(key), keys)}")
        if not isinstance(value, Mapping):
            raise BadInput(f"train.policy.{key}: expected a mapping of settings, got {quote_value(value)}")
    if "num_inference_steps" in config.policy.get("call", {}):
        raise BadInput("train.policy.call: the number of steps belongs to the pipeline's config: steps")
    overrides = {key: dict(value) for key, value in config.policy.items()}
    if "kernel" in overrides:
        overrides["kernel"] = read_kernel(overrides["kernel"], "train.policy.kernel")
    return overrides


def _check_method(name: str, method, config: TrainConfig) -> None:
    if method.group == 1 and method.advantage != "whole":
        raise BadInput(f"{name}.group: one sample a prompt has nothing to be compared with; give 2 or more")
    if config.accumulate > 1 and method.optimizer_steps > 1:
        raise BadInput(
            f"train.accumulate: {name} makes {method.optimizer_steps} updates of a batch, which can't gather into one; "
            "set its optimizer_steps to 1"
        )


def split_prompts(prompts: Sequence[str], config: TrainConfig, seed: int) -> tuple[list[str], list[str], bool]:
    """(prompts to train on, prompts for evaluation, whether the latter are held out), by a seeded draw.

    Sources are drawn, not prompts: what a held-out prompt is made from is trained on with no other prompt. Where fewer
    than twice `eval_prompts` would be left to train on, all are trained on, and evaluations use other noise.
    """
    groups = group_by_source(prompts, seed)
    set_apart: list[str] = []
    for group in groups:
        if len(set_apart) >= config.eval_prompts:
            break
        set_apart += group
    if len(prompts) - len(set_apart) >= 2 * config.eval_prompts:
        excluded, held_out = set(set_apart), set(set_apart[: config.eval_prompts])
        return [p for p in prompts if p not in excluded], [p for p in prompts if p in held_out], True
    return list(prompts), [p for group in groups for p in group][: config.eval_prompts], False


def hold_out_prompts(
    prompts: Sequence[str], config: TrainConfig, seed: int, trained: Collection[str]
) -> tuple[list[str], bool]:
    """(prompts for the evaluations of a training on pairs, whether their sources are held out): prompts that aren't
    made from `trained` (Plan.trained_sources), unless all are."""
    order = [p for group in group_by_source(prompts, seed) for p in group]
    fresh = [p for p in order if prompt_source(p) not in trained]
    return (fresh or order)[: config.eval_prompts], bool(fresh)


def group_by_source(prompts: Sequence[str], seed: int) -> list[list[str]]:
    """The prompts by what they are made from, in a seeded order; one without inputs stands alone."""
    groups: dict[str, list[str]] = {}
    for prompt in prompts:
        groups.setdefault(prompt_source(prompt), []).append(prompt)
    return [groups[source] for source in sorted(groups, key=lambda source: derive_seed(seed, "held", source))]


def training_batch(prompts: Sequence[str], config: TrainConfig, seed: int, number: int) -> Batch:
    """Batch `number` of a training, from 0: prompts in shuffled epochs, and seeds of the batch's own."""
    rows, size = [], config.prompts_per_round
    for position in range(number * size, (number + 1) * size):
        epoch, at = divmod(position, len(prompts))
        rows.append(_shuffle_prompts(tuple(prompts), derive_seed(seed, "epoch", epoch))[at])
    return Batch(tuple(rows), tuple(derive_seed(seed, "train", number, b) for b in range(size)))


@lru_cache(maxsize=2)
def _shuffle_prompts(prompts: tuple[str, ...], seed: int) -> list[str]:
    return sorted(prompts, key=lambda p: derive_seed(seed, p))


def learning_rate_factor(config: TrainConfig, number: int) -> float:
    """The factor on the learning rate in batch `number`: a linear rise over `warmup` rounds, 1, a linear fall to
    0.1."""
    up = min(1.0, (number // config.accumulate + 1) / config.warmup) if config.warmup else 1.0
    fall = config.decay * config.total_batches
    remaining = config.total_batches - number
    return up * (max(0.1, remaining / fall) if fall and remaining < fall else 1.0)


def describe_training(
    config: TrainConfig, held_out: Sequence[str], is_set_apart: bool, train: Sequence[str] | PreferencePairs
) -> list[str]:
    """Sentences about the training for the plan's checks."""
    pairs = isinstance(train, PreferencePairs)
    lora = lora_config(config)
    what = (
        "all weights" + (f", {describe_sharding()}" if config.shard else "")
        if lora.targets == "weights"
        else f"LoRA of rank {lora.rank} (alpha {lora.alpha:g}) on {lora.targets}"
    )
    lines = [
        f"training: {what}, {config.rounds} rounds of {config.prompts_per_round * config.accumulate} "
        f"{'pairs' if pairs else 'prompts'}" + (f", at most {config.minutes:g} minutes" if config.minutes else ""),
        f"{len(train):,} {'pairs to learn from' if pairs else 'prompts to train on'}, {len(held_out)} watched every "
        f"{config.eval_every or config.rounds} rounds",
    ]
    if not is_set_apart and isinstance(train, PreferencePairs):
        lines.append("warning: the pairs have the sources of all prompts, so the watched ones are trained on too")
    elif not is_set_apart and not isinstance(train, PreferencePairs):
        sources = {prompt_source(prompt) for prompt in train}
        kinds = f" of {len(sources)} sources" if len(sources) < len(train) else ""
        lines.append(
            f"warning: {len(train)} prompts{kinds} are too few to set any apart, so the watched ones are trained on too"
        )
    return lines
