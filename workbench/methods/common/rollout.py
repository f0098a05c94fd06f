"""What the methods that train share: samples in groups, what they are worth, and what an event says of an update.

A batch is one round: B prompts, G samples of each side by side. NaN means "takes no part": a sample that could not be
judged, a group whose rewards are equal, and what a method leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Event, Media, Policy, Reward, Trajectory, derive_seed, is_composed
from workbench.methods.common.advantages import centre_groups, gdpo_advantages, leave_one_out, zscore

NEEDS = frozenset({"trainable", "latents", "stochastic", "reward"})  # stochastic: the noise levels are known
DETERMINISTIC = (
    "no step of the sampler is random; set train.policy: {kernel: {name: flow-sde}}, "
    "of models that are no flow: ancestral"
)
Advantage = Literal["batch", "group", "centre", "leave-one-out", "whole", "gdpo"]
SampledBy = Literal["train", "reference"]
ADVANTAGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "batch": lambda r, group: zscore(r, group, "batch"),  # over the batch's deviation (Flow-GRPO)
    "group": zscore,  # over each group's own (DanceGRPO): tiny differences count in full
    # over none (Dr. GRPO, RLOO); differences that are rounding count for nothing, as in a z-score
    "centre": lambda r, group: centre_groups(r, group) * (zscore(r, group) != 0),
    "leave-one-out": lambda r, group: leave_one_out(r, group) * (zscore(r, group) != 0),
    "whole": lambda r, group: zscore(r, len(r)),  # no groups at all (DDPO)
}


@dataclass(frozen=True)
class ScoredSamples:
    """Samples [N] = B prompts x G and their rewards [N] float64; NaN where there is none."""

    path: Trajectory
    reward: Tensor
    parts: dict[str, Tensor]  # each component's own, shaped as its combination takes it; empty if there is only a total
    weights: dict[str, float]
    group: int
    from_policy: bool = True  # the policy's own samples; the rewards of pairs from elsewhere say who won, and no more

    def advantage(self, how: str) -> Tensor:
        """[N] float64, by one of Advantage; NaN in groups whose rewards are equal, which teach nothing."""
        if how != "gdpo":
            a = ADVANTAGES[how](self.reward, self.group)
        elif self.parts:
            a = gdpo_advantages(self.parts, self.weights, self.group)
        else:
            raise BadInput("method.advantage: gdpo normalises the parts of a reward, and this reward has none")
        flat = (a.view(-1, self.group).nan_to_num(0) == 0).all(1, keepdim=True)
        return a.masked_fill(flat.expand(-1, self.group).reshape(-1), torch.nan)

    def event(self, step: int, advantage: Tensor, grad_norm: float, **metrics: float) -> Event:
        """taught: share of the samples that the update learnt from; flat: of the groups whose rewards are equal."""
        values = {"reward": self.reward.nanmean().item()} if self.from_policy else {}
        values |= {"grad_norm": grad_norm, "taught": (~advantage.isnan()).double().mean().item()}
        if self.group > 1:
            values["flat"] = (zscore(self.reward, self.group).view(-1, self.group) == 0).all(1).double().mean().item()
        path, scores = self.path, {"reward": self.reward.float()} if self.from_policy else {}
        return Event(step, values | metrics, path.media, path.prompts, path.seeds, scores)


def count_batches(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """The batches and their numbers, which go on from `batches.first` where a training is resumed."""
    return enumerate(batches, getattr(batches, "first", 0))


def expand_groups(batch: Batch, group: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Prompts and seeds [B*G] of `group` samples a prompt, side by side."""
    rows = [
        (p, derive_seed(s, "group", g)) for p, s in zip(batch.prompts, batch.seeds, strict=True) for g in range(group)
    ]
    return tuple(p for p, _ in rows), tuple(s for _, s in rows)


@torch.no_grad()
def sample_groups(
    policy: Policy, batch: Batch, group: int, prompts_per_pass: int = 0, same_noise: bool = False
) -> Trajectory:
    """`group` samples a prompt, by `prompts_per_pass` prompts at a time (0: all);
    same_noise: a prompt's samples share their first noise."""
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
    """The steps that have a density. Raises BadInput where there is none."""
    if not path.stochastic:
        raise BadInput(DETERMINISTIC)
    return path.stochastic


def check_random_kernel(pipeline, reward, lora) -> None:
    """The check of methods that learn from all random steps of the sampler. Raises BadInput."""
    if not pipeline.kernel:
        raise BadInput(DETERMINISTIC)
