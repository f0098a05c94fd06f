"""What a run is once it has passed every check that needs no weights: made by workbench.engine.plan, read by all that
follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines import PipelineConfig
from rewards.compose import WeightedReward
from workbench.core.types import Method
from workbench.methods import trains_weights
from workbench.runs.budget import Budget
from workbench.runs.config import RunConfig
from workbench.runs.preference_data import PreferencePairs
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
    rows: Sequence[tuple[int, str, int, int]]  # (position, prompt, k, noise seed), one a sample
    checks: Sequence[str]
    command: str = ""  # what repeats it
    budget: Budget | None = None
    train_config: TrainConfig | None = None  # of the methods that train
    train_prompts: Sequence[str] = ()  # prompts that they train on
    held_out_prompts: Sequence[str] = ()  # prompts that are watched meanwhile
    pairs: PreferencePairs | None = None  # what they learn from in place of samples
    stages: Stages | None = None  # trainings one after the other,
    tasks: Sequence[Plan] = ()  # and a plan for each, whose held_out_prompts it is judged on

    @property
    def trained_contestants(self) -> list[str]:
        """The contestants that are trained first."""
        return [name for name, method in self.methods.items() if trains_weights(method)]

    @property
    def modality(self) -> str:
        return next(iter(self.pipelines.values())).modality

    @property
    def batch_count(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def denoiser_calls(self, name: str) -> int:
        """Denoiser calls that contestant `name` will make, CFG pairs counted once."""
        method, steps = self.methods[name], self.pipelines[name].steps
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
