"""Prompt rewriting against a reward: several wordings of each prompt are tried,
and the ORIGINAL prompt judges what they make.

Rewrite samples each wording and keeps the best, the search by which prompt optimisers are trained (Promptist, Hao et
al. 2023, arXiv:2212.09611; PromptEnhancer, arXiv:2509.04545) done for one prompt at a time. Centred samples with both
prompts, so that a wording can't lead away from what was asked: Parrot's original-prompt-centred guidance (Lee et al.,
ECCV 2024, arXiv:2401.05675),

    w1 eps(x_i, prompt) + w2 eps(x_i, wording) + (1 - w1 - w2) eps(x_i, nothing).

A policy's guided prediction is w eps(x_i, c) + (1 - w) eps(x_i, nothing), so the mean of the two guided predictions
with shares 1 - share and share is exactly that with w1 = w (1 - share) and w2 = w share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from workbench.core.errors import BadInput
from workbench.core.inputs import reword_prompt
from workbench.core.types import Batch, Event, Media, Natural, NonNegative, Policy, Reward, derive_seed
from workbench.methods.common.best_sample import BestSample
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.schedule import mix_predictions, ode_step


@runtime_checkable
class Expander(Protocol):
    """Says prompts in other words: up to n wordings of each, none of them the prompt itself, no two alike."""

    def expand(self, prompts: Sequence[str], n: int, modality: str) -> list[list[str]]: ...


@dataclass(frozen=True)
class Rewrite(MethodDefaults):
    """Sample each prompt in several wordings and keep what the reward of the ORIGINAL prompt likes most."""

    n: Natural = 4  # wordings of each prompt; the prompt itself is always tried first
    expander: str | dict | Expander = "details"  # by whom: details, closed, or {url, model, ...} of a chat endpoint
    fresh_noise: bool = False  # a noise of its own for each wording, instead of the prompt's

    needs = frozenset({"latents", "reward"})
    scales = "n"
    paper = "arXiv:2212.09611, arXiv:2509.04545"
    measured = "no difference from best_of_n shown at equal calls on a one-step model, worse on eight steps"
    former_names = {"fresh": "fresh_noise"}

    def calls(self, steps: int) -> int:
        return (self.n + 1) * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        """Where there are fewer than n wordings, the prompt itself is tried again with another noise."""
        for batch in batches:
            wordings, best = self.find_wordings(policy, batch), BestSample(batch)
            is_reworded = torch.zeros(len(batch), dtype=torch.bool)
            for j in range(self.n + 1):
                texts = [words[j] if j < len(words) else p for words, p in zip(wordings, batch.prompts, strict=True)]
                is_new_noise = [j > 0 and (self.fresh_noise or j >= len(words)) for words in wordings]
                seeds = [
                    derive_seed(s, "wording", j) if new else s for s, new in zip(batch.seeds, is_new_noise, strict=True)
                ]
                media = self.sample_wordings(policy, batch, texts, seeds) if j else sample_prompts(policy, texts, seeds)
                r = reward(media=media, prompts=batch.prompts)  # [B], by the original prompts
                better = best.take(media, r).cpu()
                other = torch.tensor([a != b for a, b in zip(texts, batch.prompts, strict=True)])
                is_reworded = torch.where(better, other, is_reworded)
                yield best.event(j, final=j == self.n, reworded=is_reworded.float().mean().item())

    def find_wordings(self, policy: Policy, batch: Batch) -> list[list[str]]:
        """[B]: each prompt, then its wordings, with its inputs."""
        if not self.n:
            return [[p] for p in batch.prompts]
        if not isinstance(self.expander, Expander):
            raise BadInput(
                f"rewrite: `expander` {self.expander!r} is only a name; make it with "
                "workbench.runs.prompt_expanders.make_expander"
            )
        distinct = list(dict.fromkeys(batch.prompts))
        by_prompt = dict(zip(distinct, self.expander.expand(distinct, self.n, policy.modality), strict=True))
        return [[p, *(reword_prompt(p, words) for words in by_prompt[p][: self.n])] for p in batch.prompts]

    def sample_wordings(self, policy: Policy, batch: Batch, texts: Sequence[str], seeds: Sequence[int]) -> Media:
        """Media of the wordings `texts` [B] from the noise of the seeds [B]."""
        return sample_prompts(policy, texts, seeds)


@dataclass(frozen=True)
class Centred(Rewrite):
    """Rewrite, each wording guided beside the original prompt (Parrot): two predictions a step, combined."""

    wording_fraction: NonNegative = 0.5  # of the guidance: the wording's; the original has the rest; Parrot's is a half

    needs = frozenset({"latents", "stochastic", "reward"})
    paper = "arXiv:2401.05675"
    measured = "worse than best_of_n at equal calls"
    former_names = Rewrite.former_names | {"share": "wording_fraction"}

    def calls(self, steps: int) -> int:
        return (2 * self.n + 1) * steps

    def sample_wordings(self, policy: Policy, batch: Batch, texts: Sequence[str], seeds: Sequence[int]) -> Media:
        """By deterministic first-order steps; see Rewrite."""
        x = policy.start(policy.noise(seeds), batch.prompts)
        for i in range(policy.steps):
            p = mix_predictions(policy.predict(x, i, batch.prompts), policy.predict(x, i, texts), self.wording_fraction)
            x = ode_step(policy, i, p)
        return policy.decode(x, batch.prompts)


def sample_prompts(policy: Policy, texts: Sequence[str], seeds: Sequence[int]) -> Media:
    return policy.sample(texts, seeds=seeds).media
