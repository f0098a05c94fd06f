"""DAS: diffusion alignment as sampling. Kim, Kim & Park, ICLR 2025, arXiv:2501.05803, Algorithm 1.

Sequential Monte Carlo on p(x_S) exp(lam r(x_S)), lam = 1 / alpha in the paper, with a proposal that follows the
reward's gradient and a target that is tempered in, so that early, blurred x0-predictions count for little:

    pi_i(x_i)         ~ p(x_i) exp(temper_i lam r(decode(x0(x_i)))),         temper_i = min((1 + gamma)^n - 1, 1)
    q(x_{i+1} | x_i)  = N(mean + std^2 temper_{i+1} lam grad_{x_i} r, std^2)
    w_{i+1} / w_i     = p(x_{i+1} | x_i) / q(x_{i+1} | x_i) * exp(lam (temper_{i+1} r_{i+1} - temper_i r_i))

with n the step in a chain of 100, the length for which the paper sets gamma. Particles are resampled where their
effective sample size falls (systematic where the authors take SSP: both give floor or ceil of K w children).
Log-densities are SUMMED over the latent's dimensions. The weights correct the proposal, whatever the push is. Ours is
shortened to `push_limit`: the paper's lambda is for 100 small steps; in eight large ones it pushes by 30 to 50 standard
deviations, out of what the denoiser knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, NonNegative, Policy, Reward, Transition
from workbench.methods.common import particles
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class DAS(MethodDefaults):
    """Diffusion alignment as sampling (arXiv:2501.05803): particles that follow the reward's gradient, tempered, and
    are resampled."""

    particles: Count = 4  # K, a prompt
    lam: NonNegative = 100.0  # 1 / alpha: samples follow p(x) exp(lambda r(x)); 0 does not steer
    push_limit: NonNegative | None = 1.0  # a push is at most so long, in standard deviations of the noise; None: any
    gamma: NonNegative = 0.008  # tempering rate: the reward counts in full after 87 % of the chain
    ess_threshold: NonNegative = 0.5  # resample where the effective sample size is below this share of K; 0 never does
    choose: Literal["best", "draw"] = "best"  # of the finished particles: the highest reward, or one drawn by weight

    needs = frozenset({"latents", "stochastic", "reward", "differentiable"})
    scales = "particles"
    yields_predictions = True  # its media on the way are what a chain under way is going to be, not samples
    paper = "arXiv:2501.05803"
    measured = "no difference from best_of_n shown at equal calls"
    former_names = {"ess": "ess_threshold"}

    def calls(self, steps: int) -> int:
        return self.particles * steps

    def tempering(self, i: int, steps: int) -> float:
        """How much of the reward counts at x_i: 0 at the noise, 1 at the end."""
        return 1.0 if i == steps else min((1 + self.gamma) ** (100 * i / steps) - 1, 1.0)

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            yield from self._sample_batch(policy, reward, batch)

    def _sample_batch(self, policy: Policy, reward: Reward, batch: Batch) -> Iterator[Event]:
        size, steps, best = (len(batch), self.particles), policy.steps, None
        prompts = [p for p in batch.prompts for _ in range(self.particles)]
        x, generators = particles.start_particles(policy, batch, self.particles)
        logw = tempered = last = torch.zeros(size, dtype=torch.float64)  # worth: the tempered reward already in logw
        for i in range(steps):
            law, grad, media, r = self._score_step(policy, reward, x, i, prompts)
            r = r.view(size)
            last, before = particles.fill_unscored(r, last), tempered
            tempered = self.tempering(i, steps) * self.lam * last
            logw = logw + tempered - before
            # no noise follows the last step, so copies made before it would stay copies
            rows, low, ess = particles.resample_groups(
                particles.mask_unscored(logw, r), self.ess_threshold if i < steps - 1 else 0.0, batch.seeds, i
            )
            if low.any():
                particles.check_stochastic(law, i)
                law, grad = particles.take_rows(law, particles.flatten_rows(rows)), grad[particles.flatten_rows(rows)]
            logw = torch.where(low, 0.0, logw)
            tempered, last = (particles.gather_ancestors(values, rows) for values in (tempered, last))
            best = particles.best_so_far(best, media, r)
            yield particles.particle_event(i, batch, *best, ess=ess, spread=r.std(1, correction=0))
            push = self._limit_push(self.tempering(i + 1, steps) * self.lam * law.std * grad)  # [B*K,*latent]
            x = replace(law, mean=law.mean + law.std * push).sample(generators)
            if law.std.any():
                z = ((x - law.mean) / law.std).double()  # log p - log q is that of N(0, I) and N(push, I) at z
                logw = logw + (push.double() * (push.double() / 2 - z)).flatten(1).sum(1).cpu().view(size)
        media = policy.decode(x, prompts)
        r = reward(media=media, prompts=prompts).double().cpu().view(size)
        logw = particles.mask_unscored(logw + self.lam * particles.fill_unscored(r, last) - tempered, r)
        row, spread = particles.choose_particle(r, logw, self.choose, batch.seeds), r.std(1, correction=0)
        yield particles.particle_event(
            steps,
            batch,
            media[row],
            r.flatten()[row],
            final=True,
            ess=particles.effective_sample_size(logw),
            spread=spread,
        )

    def _limit_push(self, push: Tensor) -> Tensor:
        """Pushes [N,*latent] in units of std, each shortened to a norm of at most `push_limit`."""
        norm = push.flatten(1).norm(dim=1).view(-1, *[1] * (push.dim() - 1))
        return push if self.push_limit is None else push * (self.push_limit / norm.clamp(min=1e-30)).clamp(max=1.0)

    @staticmethod
    @torch.enable_grad()
    def _score_step(policy: Policy, reward: Reward, x: Tensor, i: int, prompts: list[str]):
        """The step from x [N,*latent], the gradient of r(decode(x0)) at x, media N, and r [N] float64 on the CPU. A row
        whose gradient is not finite is not pushed."""
        x = x.detach().requires_grad_()
        law = policy.transition(x, i, prompts)
        media = policy.decode(law.x0, prompts)
        r = reward(media=media, prompts=prompts)
        (grad,) = torch.autograd.grad(r.sum(), x)
        finite = grad.flatten(1).isfinite().all(1).view(-1, *[1] * (grad.dim() - 1))
        law = Transition(law.mean.detach(), law.std, law.x0.detach())
        return law, grad.where(finite, 0.0), media.detach(), r.detach().double().cpu()
