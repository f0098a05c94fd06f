"""Rewards as a run hands them to its methods: counted, and, in a control that must fail, negated or shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.types import Reward, derive_seed
from workbench.runs.config import RunConfig


class CountedReward:
    """A reward that counts the samples it judges."""

    def __init__(self, reward: Reward):
        self.reward, self.spec, self.samples_scored = reward, reward.spec, 0

    def __call__(self, *, media, prompts, references=None):
        self.samples_scored += len(media)
        return self.reward(media=media, prompts=prompts, references=references)


@dataclass(frozen=True)
class NegatedReward:
    """A control that must fail: the method is paid for what the reward dislikes."""

    reward: Reward
    spec: Any = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "spec", self.reward.spec)

    def __call__(self, *, media, prompts, references=None):
        return -self.reward(media=media, prompts=prompts, references=references)


@dataclass(frozen=True)
class ShuffledReward(NegatedReward):
    """A control that must fail: each sample is judged against another sample's prompt."""

    other: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *, media, prompts, references=None):
        return self.reward(media=media, prompts=[self.other[p] for p in prompts], references=references)


def apply_control(reward: Reward, config: RunConfig, prompts: Sequence[str]) -> Reward:
    if config.control == "negated":
        return NegatedReward(reward)
    if config.control == "shuffled":
        ring = sorted(set(prompts), key=lambda p: derive_seed(config.seed, "shuffle", p))
        return ShuffledReward(
            reward, other=dict(zip(ring, ring[1:] + ring[:1], strict=True))
        )  # no prompt keeps its own
    return reward
