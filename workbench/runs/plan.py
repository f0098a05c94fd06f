"""The plan of a run: its config, methods, pipelines, rewards and prompts, checked. Made by workbench.engine.plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipelines import PipelineConfig
from rewards.compose import WeightedReward
from workbench.core.types import Method
from workbench.methods import trains_weights
from workbench.runs.budget import Budget
from workbench.runs.config import RunConfig
from workbench.runs.preference_data import PreferencePairs
from workbench.runs.prompt_inputs import prompt_source
from workbench.runs.stages import Stages
from workbench.runs.train_config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no weights."""

    config: RunConfig
    methods: Mapping[str, Method]  # contestant -> method
    pipelines: Mapping[str, PipelineConfig]  # of each contestant
    reward: WeightedReward  # optimised
    watch: WeightedReward | None  # held out
    rows: Sequence[tuple[int, str, int, int]]  # (position, prompt, k, noise seed), one per sample
    checks: Sequence[str]  # sentences for the user on what was checked
    command: str = ""  # the command line that repeats the run
    budget: Budget | None = None
    own_rewards: Mapping[str, WeightedReward] = field(default_factory=dict)  # contestant -> reward of its own weights
    train_config: TrainConfig | None = None  # of the methods that train
    train_prompts: Sequence[str] = ()  # prompts that they train on
    held_out_prompts: Sequence[str] = ()  # prompts of the evaluations during training
    pairs: PreferencePairs | None = None  # preference pairs to learn from in place of samples
    stages: Stages | None = None  # of a training in stages
    tasks: Sequence[Plan] = ()  # a plan for each stage; its task is evaluated on its held_out_prompts
    imported: Mapping[str, Sequence[Path]] = field(default_factory=dict)  # contestant -> its file of each row
    objects: Mapping[str, str] = field(default_factory=dict)  # pipelines from Python: label -> fingerprint

    def reward_of(self, name: str) -> WeightedReward:
        """What contestant `name` optimises."""
        return self.own_rewards.get(name, self.reward)

    @property
    def trained_contestants(self) -> list[str]:
        """The contestants whose methods train weights."""
        return [name for name, method in self.methods.items() if trains_weights(method)]

    @cached_property
    def trained_sources(self) -> frozenset[str]:
        """What a training learns from (prompt_inputs.prompt_source), which nothing held out may be made from."""
        if self.pairs is not None:
            return self.pairs.list_sources()
        return frozenset(prompt_source(prompt) for prompt in self.train_prompts)

    @property
    def modality(self) -> str:
        return next(iter(self.pipelines.values())).modality

    @property
    def batch_count(self) -> int:
        """Batches per contestant."""
        return -(-len(self.rows) // self.config.batch)

    def denoiser_calls(self, name: str) -> int:
        """Denoiser calls that contestant `name` will make, a guided call counted once."""
        method, steps = self.methods[name], self.pipelines[name].steps_taken
        if not trains_weights(method):
            return method.calls(steps) * len(self.rows)
        if self.tasks:
            return sum(task.denoiser_calls(task.trained_contestants[0]) for task in self.tasks)
        assert self.train_config is not None, "the plan of a training has a train block"
        prompts = self.train_config.prompts_per_round * self.train_config.total_batches
        if self.pairs is not None:  # nothing is sampled
            calls_per_prompt = replace(method, group=2).calls(steps) - 2 * steps
        else:
            calls_per_prompt = method.calls(steps)
        return calls_per_prompt * prompts + steps * len(self.rows)
