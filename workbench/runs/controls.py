"""Rewards as methods of a run get them: with a count of samples, and negated or shuffled in a control run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.finite import score_finite
from workbench.core.inputs import input_needs, reword_prompt
from workbench.core.types import Reward, derive_seed
from workbench.runs.config import RunConfig
from workbench.runs.prompt_inputs import prompt_source


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
    """A control: each sample is scored with another sample's prompt and its inputs, so the reward must not rise."""

    other: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *, media, prompts, references=None):
        return self.reward(media=media, prompts=[self.other[p] for p in prompts], references=references)


def apply_control(reward: Reward, config: RunConfig, prompts: Sequence[str]) -> Reward:
    """The reward that a run's methods get: itself, or the control of it that the config asks for."""
    if config.control == "negated":
        return NegatedReward(reward)
    if config.control == "shuffled":
        return ShuffledReward(reward, other=shuffle_prompts(prompts, config.seed))
    return reward


def shuffle_prompts(prompts: Iterable[str], seed: int) -> dict[str, str]:
    """Prompt -> another one, with which its samples are scored in a control: one that shares neither its text nor what
    it is made from, so that a reward of either must not rise. Where each other one shares one of them, text and inputs
    are those of two others; what is the same in all prompts stays."""
    ring = sorted(set(prompts), key=lambda p: derive_seed(seed, "shuffle", p))
    sources = {prompt: prompt_source(prompt) for prompt in ring}
    has_texts, has_sources = len({str(p) for p in ring}) > 1, len(set(sources.values())) > 1

    def find_other(n: int, text: bool, source: bool) -> str:
        """The next prompt after the n-th that differs from it in these; itself where there is none."""
        prompt = ring[n]
        candidates = (ring[(n + step) % len(ring)] for step in range(1, len(ring)))
        texts = (p for p in candidates if not text or str(p) != str(prompt))
        return next((p for p in texts if not source or sources[p] != sources[prompt]), prompt)

    others = {}
    for n, prompt in enumerate(ring):
        other = find_other(n, has_texts, has_sources)
        if other == prompt:
            other = reword_prompt(find_other(n, False, has_sources), str(find_other(n, has_texts, False)))
        others[prompt] = other
    return others


def check_shuffled(reward: Reward, prompts: Iterable[str]) -> None:
    """Raises BadInput for prompts whose texts, or whose inputs, are all the same where the reward reads these: there is
    nothing to shuffle."""
    prompts = set(prompts)
    reads_inputs = bool(input_needs(reward.spec))
    if len({str(p) for p in prompts}) < 2 and ("prompt" in reward.spec.needs or not reads_inputs):
        raise BadInput("control: shuffled prompts need at least two different prompts")
    if reads_inputs and len(set(map(prompt_source, prompts))) < 2:
        raise BadInput("control: shuffled prompts need at least two different sources")
