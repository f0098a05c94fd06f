"""Rewards and prompts as methods of a run get them: rewards with a count of samples, and negated or shuffled in a
control run; prompts with another one's inputs where those are shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.finite import score_finite
from workbench.core.inputs import input_needs, prompt_inputs, reword_prompt
from workbench.core.types import Batch, Event, Input, Prompt, Reward, derive_seed
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


@dataclass(frozen=True)
class InputExchange:
    """A control: each sample is made from what another prompt comes with, and scored by what its own comes with, so
    scores that depend on it must fall. Without inputs to exchange, everything stays as it is."""

    inputs: Mapping[str, Mapping[str, Input]] = field(default_factory=dict)  # what is in place of inputs, by their key
    own: Mapping[str, Mapping[str, Input]] = field(default_factory=dict)  # and back

    @staticmethod
    def between(prompts: Iterable[str], seed: int) -> InputExchange:
        """Each set of inputs goes to the prompts of the next one, in a seeded order."""
        sets = {_input_key(p): prompt_inputs(p) for p in prompts}
        ring = sorted(sets, key=lambda key: derive_seed(seed, "inputs", key))
        after = dict(zip(ring, [*ring[1:], *ring[:1]], strict=True))
        return InputExchange({a: sets[b] for a, b in after.items()}, {b: sets[a] for a, b in after.items()})

    def exchange(self, batch: Batch) -> Batch:
        """The batch as a method gets it."""
        return replace(batch, prompts=tuple(_with_inputs(p, self.inputs) for p in batch.prompts))

    def restore(self, event: Event) -> Event:
        """A method's event, with the prompts' own inputs."""
        return replace(event, prompts=tuple(_with_inputs(p, self.own) for p in event.prompts))


@dataclass(frozen=True)
class OwnInputsReward(NegatedReward):
    """The reward of samples whose inputs are exchanged, by the inputs of their own prompts."""

    exchange: InputExchange = field(default_factory=InputExchange)

    def __call__(self, *, media, prompts, references=None):
        own = [_with_inputs(p, self.exchange.own) for p in prompts]
        return self.reward(media=media, prompts=own, references=references)


def _input_key(prompt: str) -> str:
    return Prompt("", prompt_inputs(prompt)).key


def _with_inputs(prompt: str, inputs: Mapping[str, Mapping[str, Input]]) -> str:
    """The prompt with what is in place of its inputs; itself where nothing is."""
    other = inputs.get(_input_key(prompt))
    return prompt if other is None else Prompt(prompt, other, getattr(prompt, "dials", None))


def exchange_inputs(config: RunConfig, prompts: Iterable[str]) -> InputExchange:
    """The exchange of inputs that the config asks for."""
    return InputExchange.between(prompts, config.seed) if config.control == "shuffled_inputs" else InputExchange()


def apply_control(reward: Reward, config: RunConfig, prompts: Sequence[str]) -> Reward:
    """The reward that a run's methods get: itself, or the control of it that the config asks for."""
    if config.control == "negated":
        return NegatedReward(reward)
    if config.control == "shuffled_inputs":
        return OwnInputsReward(reward, exchange=exchange_inputs(config, prompts))
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


def check_exchanged(prompts: Iterable[str]) -> None:
    """Raises BadInput for prompts without different inputs: there is nothing to exchange."""
    if len(set(map(_input_key, prompts))) < 2:
        raise BadInput("control: shuffled_inputs needs prompts that come with at least two different inputs")
