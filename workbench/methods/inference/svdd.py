"""SVDD: soft value-based decoding. Li et al. 2024, arXiv:2408.08252,
Algorithm 1 with the posterior-mean value (SVDD-PM).

M candidates are drawn for each next state from the policy's kernel, as for the first noise, and one goes on, by its
value, the reward of its own x0-prediction:

    x_{i+1} ~ softmax over its candidates of v / alpha,        v(x) = r(decode(x0(x))).

alpha 0 takes the best, as the authors' code does. The samples follow p(x_S) exp(r(x_S) / alpha) as M grows and as far
as v is the soft value alpha log E exp(r / alpha), which the reward of a mean only approximates. Nothing is
differentiated, and samples share nothing: no lineage dies out. Predicting x0 for a candidate is also the denoiser call
of its next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, NonNegative, Policy, Reward
from workbench.methods.common import particles
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class SVDD(MethodDefaults):
    """Soft value-based decoding (arXiv:2408.08252): at each step the best of a few candidates for the next state."""

    candidates: Count = 20  # M, a step
    alpha: NonNegative = 0.0  # temperature of the choice, in units of the reward; 0 takes the best candidate

    needs = frozenset({"latents", "stochastic", "reward"})
    scales = "candidates"
    yields_predictions = True  # its media on the way are what a chain under way is going to be, not samples
    paper = "arXiv:2408.08252"
    measured = "worse than best_of_n at equal calls"

    def calls(self, steps: int) -> int:
        return self.candidates * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            yield from self._sample_batch(policy, reward, batch)

    def _sample_batch(self, policy: Policy, reward: Reward, batch: Batch) -> Iterator[Event]:
        m, steps, best = self.candidates, policy.steps, None
        prompts = [p for p in batch.prompts for _ in range(m)]
        x, generators = particles.start_particles(policy, batch, m)
        for i in range(steps):
            law = policy.transition(x, i, prompts)
            media = policy.decode(law.x0, prompts)
            v = reward(media=media, prompts=prompts).double().cpu().view(len(batch), m)
            best = particles.best_so_far(best, media, v)
            yield particles.particle_event(i, batch, *best, spread=v.std(1, correction=0))
            if m > 1 and i < steps - 1:
                particles.check_stochastic(law, i)
            x = particles.take_rows(law, self._choose_rows(v, batch, i).repeat_interleave(m)).sample(generators)
        media = policy.decode(x, prompts)
        r = reward(media=media, prompts=prompts).double().cpu().view(len(batch), m)
        row = self._choose_rows(r, batch, steps)
        yield particles.particle_event(steps, batch, media[row], r.flatten()[row], final=True)

    def _choose_rows(self, v: Tensor, batch: Batch, i: int) -> Tensor:
        """[B]: the row of the candidate that each sample goes on with, by values v [B,M]."""
        gap = particles.fill_unscored(v, torch.zeros_like(v))
        gap = gap - gap.amax(1, keepdim=True)  # first, or a small alpha makes infinities of all
        return particles.choose_particle(
            v, particles.mask_unscored(gap / (self.alpha or 1.0), v), "draw" if self.alpha else "best", batch.seeds, i
        )
