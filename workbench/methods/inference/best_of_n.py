"""Best of n: draw n noises for each prompt, keep the sample that the reward likes most.

The plainest search there is, and the baseline that any cleverer one has to beat at equal denoiser calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from workbench.core.types import Batch, Count, Event, Policy, Reward, derive_seed
from workbench.methods.common.best_sample import BestSample
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class BestOfN(MethodDefaults):
    """Draw n samples per prompt and keep the one with the highest reward."""

    n: Count = 8  # candidates per prompt; the first is the base sample itself

    needs = frozenset({"latents", "reward"})
    scales = "n"
    scales_in_turns = True

    def calls(self, steps: int) -> int:
        return self.n * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            best = BestSample(batch)
            for j in range(self.n):
                seeds = (
                    batch.seeds if j == 0 else [derive_seed(s, "candidate", j) for s in batch.seeds]
                )  # of all that is drawn
                z = policy.noise(seeds)
                path = policy.sample(batch.prompts, seeds=seeds, noise=z)
                latents = None if path.stochastic else z  # with later draws no noise alone makes the sample
                best.take(path.media, reward(media=path.media, prompts=batch.prompts), latents)
                yield best.event(step=j, final=j == self.n - 1)
