"""Rollouts of methods that train: samples in groups, their rewards and advantages, and the event of an update.

A batch has B prompts, with the G samples of each side by side. NaN means "left out": a sample that could not be scored,
a group whose rewards are equal, or one that the method leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, Media, Policy, Reward, Trajectory, derive_seed, is_composed
from workbench.methods.common.advantages import centre_groups, gdpo_advantages, leave_one_out, zscore

NEEDS = frozenset({"trainable", "latents", "stochastic", "reward"})  # stochastic: the noise levels are known
_NEEDS_KERNEL = "no step of the sampler is random; set train.policy: {kernel: {name: flow-sde}}, "
DETERMINISTIC = _NEEDS_KERNEL + "of models that are no flow: ancestral"
Advantage = Literal["batch", "group", "centre", "leave-one-out", "whole", "gdpo"]
SampledBy = Literal["train", "reference"]
ADVANTAGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "batch": lambda r, group: zscore(r, group, "batch"),  # over the batch's standard deviation (Flow-GRPO)
    "group": zscore,  # over that of each group (DanceGRPO): tiny differences count in full
    # not normalised (Dr. GRPO, RLOO); differences by rounding become 0, as in a z-score
    "centre": lambda r, group: centre_groups(r, group) * (zscore(r, group) != 0),
    "leave-one-out": lambda r, group: leave_one_out(r, group) * (zscore(r, group) != 0),
    "whole": lambda r, group: zscore(r, len(r)),  # no groups at all (DDPO)
}


@dataclass(frozen=True)
class ScoredSamples:
    """Samples [N] = B prompts x G and their rewards [N] float64; NaN where there is none."""

    path: Trajectory
    reward: Tensor
    parts: dict[str, Tensor]  # component -> shaped scores [N]; empty for a reward without components
    weights: dict[str, float]  # of the components
    group: int
    from_policy: bool = True  # False: preference pairs, whose rewards 1 and 0 only mark the winner

    def advantage(self, how: str) -> Tensor:
        """[N] float64 advantages, `how` as in Advantage; NaN in groups whose rewards are equal. Raises BadInput."""
        if how != "gdpo":
            a = ADVANTAGES[how](self.reward, self.group)
        elif self.parts:
            a = gdpo_advantages(self.parts, self.weights, self.group)
        else:
            raise BadInput("method.advantage: gdpo normalises the parts of a reward, and this reward has none")
        flat = (a.view(-1, self.group).nan_to_num(0) == 0).all(1, keepdim=True)
        return a.masked_fill(flat.expand(-1, self.group).reshape(-1), torch.nan)

    def event(self, step: int, advantage: Tensor, grad_norm: float, **metrics: float) -> Event:
        """taught: fraction of samples that the update used; flat: fraction of groups with equal rewards."""
        values = {"reward": self.reward.nanmean().item()} if self.from_policy else {}
        values |= {"grad_norm": grad_norm, "taught": (~advantage.isnan()).double().mean().item()}
        if self.group > 1:
            values["flat"] = (zscore(self.reward, self.group).view(-1, self.group) == 0).all(1).double().mean().item()
        path, scores = self.path, {"reward": self.reward.float()} if self.from_policy else {}
        return Event(step, values | metrics, path.media, path.prompts, path.seeds, scores)


def count_batches(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """(number, batch), numbered from `batches.first` where a training is resumed."""
    return enumerate(batches, getattr(batches, "first", 0))


def expand_groups(batch: Batch, group: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Prompts and seeds [B*G] of `group` samples per prompt, side by side."""
    rows = [
        (p, derive_seed(s, "group", g)) for p, s in zip(batch.prompts, batch.seeds, strict=True) for g in range(group)
    ]
    return tuple(p for p, _ in rows), tuple(s for _, s in rows)


@torch.no_grad()
def sample_groups(
    policy: Policy, batch: Batch, group: int, prompts_per_pass: int = 0, same_noise: bool = False
) -> Trajectory:
    """`group` samples per prompt, `prompts_per_pass` prompts at a time (0: all), with one first noise if same_noise."""
    prompts, seeds = expand_groups(batch, group)
    size, paths = (prompts_per_pass or len(batch)) * group, []
    for low in range(0, len(seeds), size):
        rows = slice(low, low + size)
        noise = policy.noise(seeds[rows][::group]).repeat_interleave(group, 0) if same_noise else None
        paths.append(policy.sample(prompts[rows], seeds=seeds[rows], noise=noise))
    x, log_prob = torch.cat([p.x for p in paths]), torch.cat([p.log_prob for p in paths])
    return Trajectory(prompts, x, log_prob, paths[0].stochastic, Media.cat([p.media for p in paths]), seeds)


@torch.no_grad()
def score_samples(reward: Reward, path: Trajectory, group: int) -> ScoredSamples:
    """The samples of a trajectory with their rewards, and the scores of its components if it has any."""
    parts: dict[str, Tensor] = {}
    if is_composed(reward):
        scores = reward.breakdown(media=path.media, prompts=path.prompts)
        r = reward.total(scores, path.prompts)
        parts = {n: v.to(path.x.device).double() for n, v in reward.shaped(scores, path.prompts).items()}
    else:
        r = reward(media=path.media, prompts=path.prompts)
    r = r.to(path.x.device).double()
    return ScoredSamples(path, r.where(r.isfinite(), torch.nan), parts, getattr(reward, "weights", {}), group)


def stochastic_steps(path: Trajectory) -> tuple[int, ...]:
    """The steps with std > 0, which have a density. Raises BadInput where there is none."""
    if not path.stochastic:
        raise BadInput(DETERMINISTIC)
    return path.stochastic


def check_random_kernel(pipeline, reward, lora) -> None:
    """Raises BadInput for a pipeline without a stochastic kernel; `check` of methods that need log-densities."""
    if not pipeline.kernel:
        raise BadInput(DETERMINISTIC)
