"""Beam search over denoising: a few states a prompt are kept at every step,
by the reward of what they are about to become.

Each of W states draws M candidates of its next one from the policy's kernel; of these W M the W with the best reward of
their x0-prediction stay, whoever their parents were. W = 1 is the argmax of SVDD (Li et al. 2024, arXiv:2408.08252).
Greedy on purpose: it looks for the best sample and keeps to no distribution, which FK steering and SVDD with a
temperature do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from workbench.core.types import Batch, Count, Event, Policy, Reward
from workbench.methods.common import particles
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class Beam(MethodDefaults):
    """Beam search over denoising steps: the best states stay, by the reward of their predicted clean sample."""

    width: Count = 2  # W, states that stay, a prompt
    branches: Count = 2  # M, candidates drawn from each

    needs = frozenset({"latents", "stochastic", "reward"})
    scales = "width"
    measured = "no difference from best_of_n shown at equal calls"
    yields_predictions = True  # its media on the way are what a chain under way is going to be, not samples

    def calls(self, steps: int) -> int:
        return self.width * self.branches * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            yield from self._sample_batch(policy, reward, batch)

    def _sample_batch(self, policy: Policy, reward: Reward, batch: Batch) -> Iterator[Event]:
        size, best = (len(batch), self.width * self.branches), None
        prompts = [p for p in batch.prompts for _ in range(size[1])]
        x, generators = particles.start_particles(policy, batch, size[1])
        for i in range(policy.steps):
            law = policy.transition(x, i, prompts)
            media = policy.decode(law.x0, prompts)
            v = reward(media=media, prompts=prompts).double().cpu().view(size)
            best = particles.best_so_far(best, media, v)
            yield particles.particle_event(i, batch, *best, spread=v.std(1, correction=0))
            if i < policy.steps - 1:  # the last step adds no noise: all go on to their end
                if self.branches > 1:
                    particles.check_stochastic(law, i)
                order = v.where(v.isfinite(), -torch.inf).argsort(dim=1, descending=True, stable=True)  # [B,W*M]
                rows = (order[:, : self.width] + size[1] * torch.arange(len(batch))[:, None]).flatten()
                law = particles.take_rows(law, rows.repeat_interleave(self.branches))
            x = law.sample(generators)  # [B*W*M,*latent]
        media = policy.decode(x, prompts)
        r = reward(media=media, prompts=prompts).double().cpu().view(size)
        row = particles.choose_particle(r, r, "best", batch.seeds)
        yield particles.particle_event(policy.steps, batch, media[row], r.flatten()[row], final=True)
