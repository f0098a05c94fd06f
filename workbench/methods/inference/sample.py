"""The pipeline as it is: one sample per prompt and seed. The base that every other method is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.core.types import Batch, Event, Natural, Policy, Reward, derive_seed
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class Sample(MethodDefaults):
    """Plain sampling, no alignment."""

    draw: Natural = 0  # 1, 2, ...: further noises of each seed, so that two samples of one model can be compared

    needs = frozenset[str]()

    def calls(self, steps: int) -> int:
        return steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            seeds = [derive_seed(s, "draw", self.draw) for s in batch.seeds] if self.draw else batch.seeds
            z = policy.noise(seeds)  # [B,*latent]
            media = policy.sample(batch.prompts, seeds=seeds, noise=z).media
            yield Event(0, media=media, prompts=batch.prompts, seeds=batch.seeds, latents=z, final=True)
