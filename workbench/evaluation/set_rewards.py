"""The reward of a training: distributed over processes, counted, and negated or shuffled in a control run. And the
scores of set rewards, which score all samples of a contestant together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.finite import score_finite_rows
from workbench.core.inputs import prompt_inputs, reword_prompt
from workbench.core.types import Media, Prompt, Reward
from workbench.evaluation import statistics
from workbench.methods.common.set_scores import can_embed, prepare_set_score
from workbench.runs.config import RunConfig
from workbench.runs.controls import shuffle_prompts
from workbench.runs.plan import Plan

HALF_DRAWS = 100  # random halves of the prompts, for an interval
MIN_PROMPTS = 8  # with fewer prompts there is no interval


class TrainingReward:
    """A ComposedReward that wraps a WeightedReward for training.

    rows: a DistributedPolicy, whose processes share the samples to score; rewards that compare the samples of one
    prompt see all of them. `samples_scored` counts the samples scored by this process. A control run negates the total,
    or scores each sample with another one's prompt."""

    def __init__(self, reward: Any, rows: Any, config: RunConfig, prompts: Sequence[str]):
        self.reward, self.rows, self.spec, self.samples_scored = reward, rows, reward.spec, 0
        self.rewards = reward.rewards
        self.sign = -1.0 if config.control == "negated" else 1.0
        self.weights = reward.weights
        self.scores_alone = all(r.spec.scope == "sample" for r in reward.rewards.values())
        self.shuffled_prompts: dict[str, str] = {}
        if config.control == "shuffled":
            self.shuffled_prompts = shuffle_prompts(prompts, config.seed)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self.total(self.breakdown(media=media, prompts=prompts), prompts)

    def breakdown(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> dict[str, Tensor]:
        """Component -> scores [B] of all samples, not negated in a control run."""
        reward_prompts = [self.prompt_for_reward(p) for p in prompts]

        def score(rows: list[int]) -> dict[str, Tensor]:
            return self.reward.breakdown(media=media[rows], prompts=[reward_prompts[k] for k in rows])

        def some(rows: list[int]) -> dict[str, Tensor]:
            self.samples_scored += len(rows)
            if not self.scores_alone:
                return score(rows)
            return score_finite_rows(lambda good: score([rows[k] for k in good]), media[rows], list(self.rewards))

        return self.rows.score_rows(some, len(media)) if self.scores_alone else some([*range(len(media))])

    def prompt_for_reward(self, prompt: str) -> str:
        """The prompt with which a sample is scored: another one, with its inputs, where prompts are shuffled, after the
        prefix that a method may have added. Raises BadInput for a prompt that can't be shuffled: the control would be
        scored correctly."""
        if not self.shuffled_prompts or prompt in self.shuffled_prompts:
            return self.shuffled_prompts.get(prompt, prompt)
        inputs = prompt_inputs(prompt)
        endings = (p for p in self.shuffled_prompts if prompt.endswith(p) and p == Prompt(p, inputs))
        listed_prompt = max(endings, key=len, default=None)
        if listed_prompt is None:
            raise BadInput(f"control: shuffled can't be had of a method that asks the reward about {prompt!r}")
        other = self.shuffled_prompts[listed_prompt]
        return reword_prompt(other, prompt.removesuffix(listed_prompt) + other)

    def embed_samples(self, media: Media) -> dict[str, Tensor]:
        """name -> [N,D]: the features of the samples, by which set rewards score them."""

        def some(rows: list[int]) -> dict[str, Tensor]:
            self.samples_scored += len(rows)
            return {name: part.features(media[rows]) for name, part in self.rewards.items()}

        return self.rows.score_rows(some, len(media))

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor:
        """[B]: the combination of a breakdown, negated in a negated control."""
        return self.sign * self.reward.total(scores, prompts)

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        """Component -> shaped scores [B], negated in a negated control."""
        return {name: self.sign * values for name, values in self.reward.shaped(scores, prompts).items()}


@dataclass(frozen=True)
class SetScore:
    """A set reward's score of all samples, and of those of random halves of the prompts, equal for all contestants."""

    value: float
    halves: tuple[float, ...]
    n: int  # samples
    bounds: tuple[float, float] | None = None  # of the reward's scores

    def estimate(self, base: SetScore | None = None) -> dict:
        """{"mean", "ci95", "n", "set"} of the value, or of its difference from the base's. The interval is that of the
        delete-half jackknife (Shao and Wu, Annals of Statistics 1989), which takes the standard deviation over halves
        for that of the value, cut at the reward's bounds. In a bootstrap prompts would occur twice, which distances of
        sets mistake for a smaller spread. The interval is None without halves."""
        zero = (0.0,) * len(self.halves)
        value = self.value - (base.value if base else 0.0)
        gaps = np.subtract(self.halves, base.halves if base else zero)
        is_finite = math.isfinite(value)
        has_interval = is_finite and len(gaps) > 1 and bool(np.isfinite(gaps).all())
        half_width = 1.96 * float(np.std(gaps)) if has_interval else 0.0
        low, high = self.bounds or (-math.inf, math.inf)
        low, high = (low - high, high - low) if base else (low, high)
        interval = [max(value - half_width, low), min(value + half_width, high)] if has_interval else None
        return {"mean": value if is_finite else None, "ci95": interval, "n": self.n, "set": True}


def set_rewards_of(plan: Plan) -> dict[str, Reward]:
    """The rewards of a run, optimised or held out, of scope "set"."""
    rewards = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {name: reward for name, reward in rewards.items() if reward.spec.scope == "set"}


def score_set(
    reward: Reward, media: Media | Iterable[Media], prompts: Sequence[str], count: int = HALF_DRAWS
) -> SetScore:
    """The score of all media [N], and of `count` random halves of their prompts; none with fewer than MIN_PROMPTS, or
    where the reward doesn't embed media."""
    score, valid_rows = prepare_set_score(reward, media, prompts)
    names = {p: n for n, p in enumerate(dict.fromkeys(prompts))}
    prompt_index, rng, halves = torch.tensor([names[p] for p in prompts])[valid_rows], np.random.default_rng(0), []
    for _ in range(count if len(names) >= MIN_PROMPTS and can_embed(reward) else 0):
        chosen = torch.from_numpy(rng.permutation(len(names))[: len(names) // 2])
        halves.append(score(valid_rows[torch.isin(prompt_index, chosen)]))
    return SetScore(score(valid_rows), tuple(halves), len(valid_rows), reward.spec.bounds)


def add_set_scores(
    part: Mapping,
    set_scores: Mapping[str, SetScore],
    base: Mapping[str, SetScore] | None,
    optimised: Mapping[str, float],
) -> dict:
    """A contestant's part of a summary (statistics.summarise_contestant), with the scores of set rewards and their
    differences from the base's. They have no win rate, as single samples have no scores."""
    estimates = {n: w.estimate() | statistics.optimisation_flags(n, optimised) for n, w in set_scores.items()}
    out = {**part, "rewards": part["rewards"] | estimates}
    if "versus_base" in part:
        out["versus_base"] = part["versus_base"] | {n: w.estimate((base or {}).get(n)) for n, w in set_scores.items()}
        out["wins"] = {n: e for n, e in part["wins"].items() if n not in set_scores}
    return out
