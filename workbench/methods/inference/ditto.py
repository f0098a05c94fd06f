"""DITTO: diffusion inference-time T-optimisation. Novack et al., ICML 2024, arXiv:2401.12179, Eq. 3 and Algorithm 1.

    x_T* = argmax r(Sampler(x_T, c), c)

by Adam on the initial latent, its exact gradient through the whole deterministic chain. The denoiser calls of the chain
are checkpointed by the policy, so memory grows by a latent a step and not by a network. Made for music; nothing in it
is of audio.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from workbench.core.types import Batch, Event, Natural, NonNegative, Policy, Reward
from workbench.methods.common.best_sample import BestSample
from workbench.methods.common.method import MethodDefaults
from workbench.methods.inference.reno import ascend_noise, norm_nll


@dataclass(frozen=True)
class DITTO(MethodDefaults):
    """DITTO (arXiv:2401.12179): Adam on the initial noise of a chain of many steps, the model frozen."""

    iterations: Natural = 49  # gradient steps; the untouched noise is a candidate too
    lr: NonNegative = 0.05  # step size of Adam: how far each number of the noise moves in an iteration, at most
    regularise: NonNegative = 0.0  # weight of the negative log-density of the noise's norm; the paper has none

    needs = frozenset({"latents", "reward", "differentiable"})
    scales = "iterations"
    scales_in_turns = True
    paper = "arXiv:2401.12179"
    measured = "worse than best_of_n at equal calls on a one-step model, no difference shown on eight steps"

    def calls(self, steps: int) -> int:
        return (self.iterations + 1) * steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            z = policy.noise(batch.seeds).requires_grad_()  # [B,*latent] float32
            optimizer, best = torch.optim.Adam([z], lr=self.lr), BestSample(batch)
            for step in range(self.iterations + 1):
                last = step == self.iterations
                with torch.set_grad_enabled(not last):
                    media = policy.sample(
                        batch.prompts, seeds=batch.seeds, noise=z, grad=0 if last else policy.steps
                    ).media
                    r = reward(media=media, prompts=batch.prompts)  # [B]
                best.take(media, r, z)
                norm = z.detach().flatten(1).norm(dim=1).mean().item()
                yield best.event(step, final=last, reward_now=r.detach().nanmean().item(), norm=norm)
                if not last:
                    ascend_noise(optimizer, z, r - self.regularise * norm_nll(z))
