"""The base of methods that learn from the log-densities of a stochastic denoising chain."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Batch, Count, Natural, NonNegative, Policy, TrainablePolicy, Trajectory, Transition
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.rollout import NEEDS, check_random_kernel, sample_groups
from workbench.methods.common.windows import sample_from_branch


@dataclass(frozen=True)
class ChainMethod(MethodDefaults):
    """The settings and the sampling that these methods share."""

    group: Count = 24  # samples per prompt
    clip_range: NonNegative = 1e-4  # of density ratios, whose logs are means over dimensions
    lr: NonNegative = 3e-4  # step size of AdamW
    optimizer_steps: Count = 1  # per batch
    prompts_per_pass: Natural = 0  # prompts whose groups go through the denoiser together; 0: all

    needs = NEEDS
    window = "all"  # which steps are stochastic
    window_size = 4
    same_noise = False
    advantage = "centre"
    former_names = {"clip": "clip_range", "updates": "optimizer_steps", "at_once": "prompts_per_pass"}

    def check(self, pipeline, reward, lora) -> None:
        if self.window in ("all", "random"):
            check_random_kernel(pipeline, reward, lora)

    def sample_chains(self, policy: TrainablePolicy, batch: Batch, k: int) -> Trajectory:
        """`group` chains per prompt of batch k, stochastic by the policy's kernel, in all steps or (window "fast") in a
        few steps after a branch point."""
        if self.window == "fast":
            return sample_from_branch(policy, batch, self.group, self.window_size, self.prompts_per_pass)
        return sample_groups(policy, batch, self.group, self.prompts_per_pass, self.same_noise)


def predict_step(policy: Policy, path: Trajectory, i: int, rows: Tensor) -> Transition:
    """p(x_{i+1} | x_i) of rows [n] of `path`, by the policy's current weights."""
    return policy.transition(path.x[rows, i], i, [path.prompts[n] for n in rows.tolist()])
