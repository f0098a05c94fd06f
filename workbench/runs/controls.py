"""Rewards as methods of a run get them: with a count of samples, and negated or shuffled in a control run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.finite import score_finite
from workbench.core.types import Reward, derive_seed
from workbench.runs.config import RunConfig


class CountedReward:
    """A reward that counts the samples it scores. A sample that is not finite is NaN, and the reward never sees it."""

    def __init__(self, reward: Reward):
        self.reward, self.spec, self.samples_scored = reward, reward.spec, 0

    def __call__(self, *, media, prompts, references=None):
        self.samples_scored += len(media)
        return score_finite(self.reward, media=media, prompts=prompts, references=references)


@dataclass(frozen=True)
class NegatedReward:
    """A control: the method optimises the negated reward, so the reward must not rise."""

    reward: Reward
    spec: Any = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "spec", self.reward.spec)

    def __call__(self, *, media, prompts, references=None):
        return -self.reward(media=media, prompts=prompts, references=references)


@dataclass(frozen=True)
class ShuffledReward(NegatedReward):
    """A control: each sample is scored with another sample's prompt, so the reward must not rise."""

    other: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *, media, prompts, references=None):
        return self.reward(media=media, prompts=[self.other[p] for p in prompts], references=references)


def apply_control(reward: Reward, config: RunConfig, prompts: Sequence[str]) -> Reward:
    """The reward that a run's methods get: itself, or the control of it that the config asks for."""
    if config.control == "negated":
        return NegatedReward(reward)
    if config.control == "shuffled":
        ring = sorted(set(prompts), key=lambda p: derive_seed(config.seed, "shuffle", p))
        other = dict(zip(ring, ring[1:] + ring[:1], strict=True))  # no prompt is its own
        return ShuffledReward(reward, other=other)
    return reward
