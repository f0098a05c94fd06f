"""Noise that another run has found, given to this pipeline: what was optimised on a one-step student carries over to
its many-step teacher as far as the two share their noise ("multi apply" in the code of ReNO, arXiv:2406.04312)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, Policy, Reward
from workbench.methods.common.method import MethodDefaults


@runtime_checkable
class NoiseSource(Protocol):
    """Noise by prompt and seed. Its text says where it is from."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor: ...  # [B,*latent]; raises BadInput


@dataclass(frozen=True)
class Reuse(MethodDefaults):
    """Plain sampling from the noise that a contestant of an earlier run ended with, for the same prompts and seeds."""

    noise: str | NoiseSource = ""  # RUN_FOLDER/CONTESTANT; empty for the pipeline's own noise, which is plain sampling

    needs = frozenset({"latents"})
    paper = "arXiv:2406.04312"

    def calls(self, steps: int) -> int:
        return steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        if self.noise and isinstance(self.noise, str):
            raise BadInput(
                f"reuse: `noise` {self.noise!r} is only a name; make it with workbench.runs.run_noise.RunNoise"
            )
        for batch in batches:
            base = policy.noise(batch.seeds)  # [B,*latent]
            z = self.noise(batch.prompts, batch.seeds).to(base) if self.noise else base
            if z.shape != base.shape:
                raise BadInput(
                    f"noise: {self.noise} holds noise of {tuple(z.shape[1:])}, but this pipeline draws "
                    f"{tuple(base.shape[1:])}"
                )
            media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z).media
            yield Event(0, media=media, prompts=batch.prompts, seeds=batch.seeds, latents=z, final=True)
