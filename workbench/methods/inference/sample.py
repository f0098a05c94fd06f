"""The pipeline as it is: one sample per prompt and seed. The base that every other method is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.core.types import Batch, Event, Policy, Reward
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class Sample(MethodDefaults):
    """Plain sampling, no alignment."""

    needs = frozenset[str]()

    def calls(self, steps: int) -> int:
        return steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            z = policy.noise(batch.seeds)  # [B,*latent]
            media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z).media
            yield Event(0, media=media, prompts=batch.prompts, seeds=batch.seeds, latents=z, final=True)
