"""DRAGON's demonstrations: own samples, possibly drawn in fewer steps, split into good and bad (set_splits.py)."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Media, Reward, TrainablePolicy, Trajectory, derive_seed
from workbench.methods.common.rollout import expand_groups, sample_groups, score_samples
from workbench.methods.common.schedule import ode_step
from workbench.methods.common.set_scores import prepare_set_score
from workbench.methods.common.set_splits import (
    Demonstrations,
    leave_one_out_credit,
    random_halves,
    rank_pairs,
    swap_pairs,
)


class DemonstrationSettings(Protocol):
    """The settings of a method that learns from demonstrations."""

    @property
    def group(self) -> int: ...  # samples per prompt

    @property
    def sampling_steps(self) -> int: ...  # of the sampler; 0: the policy's own

    @property
    def prompts_per_pass(self) -> int: ...  # prompts drawn together; 0: all

    @property
    def build(self) -> str: ...  # "swap" or "credit", for rewards of whole sets

    @property
    def paired(self) -> bool: ...  # D+ and D- have equally many samples of each prompt

    @property
    def contrast(self) -> float: ...

    @property
    def max_sweeps(self) -> int: ...

    @property
    def keep_fraction(self) -> float: ...


def check_group_size(method: DemonstrationSettings) -> None:
    """Raises BadInput where pairs are made within prompts and a prompt has an odd number of samples."""
    if method.paired and method.group % 2:
        raise BadInput(f"method.group: {method.group} samples of a prompt don't make pairs; give an even number")


@torch.no_grad()
def draw_samples(method: DemonstrationSettings, policy: TrainablePolicy, batch: Batch) -> Trajectory:
    """`group` samples per prompt, with the clean ends [N,1,*latent] of their chains, by the policy's own sampler or in
    `sampling_steps` first-order ODE steps. Raises BadInput for more steps than the policy has."""
    if method.sampling_steps > policy.steps:
        raise BadInput(
            f"method.sampling_steps: the pipeline makes a sample in {policy.steps} steps; set {policy.steps} or fewer"
        )
    if not method.sampling_steps:
        with policy.merged():
            path = sample_groups(policy, batch, method.group, method.prompts_per_pass)
        return Trajectory(path.prompts, path.x[:, -1:].clone(), path.log_prob[:, :0], (), path.media, path.seeds)
    levels = [n * policy.steps // method.sampling_steps for n in range(method.sampling_steps + 1)]
    (prompts, seeds), size = expand_groups(batch, method.group), (method.prompts_per_pass or len(batch)) * method.group
    ends, media = [], []
    for low in range(0, len(seeds), size):
        texts = prompts[low : low + size]
        x = policy.start(policy.noise(seeds[low : low + size]), texts)
        with policy.merged():
            for i, j in pairwise(levels):
                x = ode_step(policy, j - 1, policy.predict(x, i, texts))  # from level i to level j in one step
        ends.append(x)
        media.append(policy.decode(x, texts))
    x = torch.cat(ends)[:, None]
    return Trajectory(prompts, x, torch.zeros(len(x), 0, dtype=torch.float64), (), Media.cat(media), seeds)


def build_demonstrations(
    method: DemonstrationSettings, reward: Reward, path: Trajectory, seed: int
) -> tuple[Demonstrations, Tensor, dict[str, float]]:
    """(the demonstrations among these samples; the value of each sample [N], NaN for those left out; metrics: "swaps",
    and the reward F of all samples, of D+ ("good") and of D- ("bad"), for a reward of samples their means)."""
    n, g = len(path.seeds), torch.Generator().manual_seed(derive_seed(seed, "demonstrations"))
    group, everyone = method.group if method.paired else n, torch.arange(n)
    if reward.spec.scope != "set":
        values = score_samples(reward, path, method.group).reward.cpu()
        sets, score = rank_pairs(values, group), lambda rows: values[rows].nanmean().item()
    else:
        score, everyone = prepare_set_score(reward, path.media, path.prompts)
        values = torch.full((n,), torch.nan, dtype=torch.float64)
        if method.build == "swap":
            pairs = random_halves(everyone, group, g)
            sets = swap_pairs(score, pairs, g, method.max_sweeps, method.contrast, across=not method.paired)
            values[sets.up], values[sets.down] = sets.gain / 2, -sets.gain / 2
        else:
            values[everyone] = leave_one_out_credit(score, everyone)
            sets = rank_pairs(values, group)
    sets = sets.select_pairs(method.keep_fraction)
    metrics = {"good": score(sets.up), "bad": score(sets.down)} if len(sets.up) else {}
    return sets, values.float(), {"reward": score(everyone), "swaps": sets.swaps} | metrics
