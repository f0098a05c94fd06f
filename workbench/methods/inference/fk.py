"""FK steering: Feynman-Kac particles. Singhal et al., ICML 2025, arXiv:2501.06848, Algorithm 1.

K particles a prompt walk down the denoising chain. At some steps each is judged by the reward of its x0-prediction, and
those of high potential are copied in place of those of low one. As K grows the particles sample

    p(x_S) exp(lam r(x_S)),        p: the law of the policy's own stochastic chain,

whatever the potential, because the last weight divides by all that were spent on the way. Nothing is differentiated.

A step is one transition of the policy's kernel (Ancestral, FlowSDE, CPS). Transitions are Markov and first order: a
copy is a state and nothing else, no solver buffer needs reindexing. Particles are copied before their step is drawn,
each slot from a generator of its own, so copies part ways at once. Where the effective sample size is high, particles
and log-weights stay.

max and add count a reward several times on the way and the last weight takes it back: they search harder, and need more
particles than diff to sample exactly. What steers is lam times the reward's spread over the particles of one prompt,
which the events say. The paper's lam of 10 is for ImageReward, spread near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Count, Event, NonNegative, Policy, Reward
from workbench.methods.common import particles
from workbench.methods.common.method import MethodDefaults

# Logarithm of the product of all potentials so far, over lam, from the rewards [B,K,n] along each particle's own past.
POTENTIALS: dict[str, Callable[[Tensor], Tensor]] = {
    "diff": lambda r: r[..., -1],  # G = exp(lam (r_t - r_{t+1})) telescopes
    "max": lambda r: r.cummax(-1).values.sum(-1),  # G = exp(lam max of the past)
    "add": lambda r: r.cumsum(-1).sum(-1),  # G = exp(lam sum of the past)
    "rt": lambda r: r.sum(-1),  # G = exp(lam r_t)
}


@dataclass(frozen=True)
class FK(MethodDefaults):
    """Feynman-Kac steering (arXiv:2501.06848): particles are resampled by the reward of what they will become."""

    particles: Count = 4  # K, a prompt
    lam: NonNegative = 10.0  # lambda: samples follow p(x) exp(lambda r(x)); 0 does not steer
    # G: exp(lambda x), x the highest reward so far, the last rise (diff), the sum of all (add), or the last (rt)
    potential: Literal["max", "diff", "add", "rt"] = "max"
    start: NonNegative = 0.2  # judge from here, as a fraction of the chain
    end: NonNegative = 0.8  # to here
    every: NonNegative = 0.2  # once in so much of it
    ess_threshold: NonNegative = 0.5  # resample where the effective sample size is below this share of K; 0 never does
    choose: Literal["best", "draw"] = "best"  # of the finished particles: the highest reward, or one drawn by weight

    needs = frozenset({"latents", "stochastic", "reward"})
    scales = "particles"
    yields_predictions = True  # its media on the way are what a chain under way is going to be, not samples
    paper = "arXiv:2501.06848"
    measured = "no difference from best_of_n shown at equal calls"
    former_names = {"ess": "ess_threshold"}

    def __post_init__(self):
        if not (self.start <= self.end <= 1 and self.every > 0):
            raise BadInput(
                f"method: start {self.start}, end {self.end} and every {self.every} are fractions of the chain: "
                "set start <= end <= 1 and every above 0"
            )

    def calls(self, steps: int) -> int:
        return self.particles * steps

    def resampling_steps(self, steps: int) -> set[int]:
        """The steps at which particles are judged, besides the end of the chain. Not the last: no noise follows it."""
        times = int((self.end - self.start) / self.every + 1e-6) + 1
        return {round((self.start + j * self.every) * steps) for j in range(times)} & set(range(steps - 1))

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            yield from self._sample_batch(policy, reward, batch)

    def _sample_batch(self, policy: Policy, reward: Reward, batch: Batch) -> Iterator[Event]:
        size, when, best = (len(batch), self.particles), self.resampling_steps(policy.steps), None
        prompts = [p for p in batch.prompts for _ in range(self.particles)]
        x, generators = particles.start_particles(policy, batch, self.particles)
        rewards = torch.zeros(*size, 0, dtype=torch.float64)  # rewards along each particle's past
        spent_logw = last = torch.zeros(size, dtype=torch.float64)  # log-potential that resampling has already paid out
        for i in range(policy.steps):
            law = policy.transition(x, i, prompts)
            if i in when:
                media = policy.decode(law.x0, prompts)
                r = reward(media=media, prompts=prompts).double().cpu().view(size)
                rewards = torch.cat([rewards, particles.fill_unscored(r, last)[..., None]], -1)
                total = self.lam * POTENTIALS[self.potential](rewards)
                logw = particles.mask_unscored(total - spent_logw, r)
                rows, low, ess = particles.resample_groups(logw, self.ess_threshold, batch.seeds, i)
                if low.any():
                    particles.check_stochastic(law, i)
                    law = particles.take_rows(law, particles.flatten_rows(rows))
                rewards = particles.gather_ancestors(rewards, rows)
                spent_logw = torch.where(low, particles.gather_ancestors(total, rows), spent_logw)
                last, best = rewards[..., -1], particles.best_so_far(best, media, r)
                yield particles.particle_event(i, batch, *best, ess=ess, spread=r.std(1, correction=0))
            x = law.sample(generators)
        media = policy.decode(x, prompts)
        r = reward(media=media, prompts=prompts).double().cpu().view(size)
        # exp(lam r) over all potentials spent
        logw = particles.mask_unscored(self.lam * particles.fill_unscored(r, last) - spent_logw, r)
        row, spread = particles.choose_particle(r, logw, self.choose, batch.seeds), r.std(1, correction=0)
        yield particles.particle_event(
            policy.steps,
            batch,
            media[row],
            r.flatten()[row],
            final=True,
            ess=particles.effective_sample_size(logw),
            spread=spread,
        )
