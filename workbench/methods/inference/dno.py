"""DNO: direct noise optimisation. Tang et al., arXiv:2405.18881, sections 2-4.

Gradient ascent on a sampler's noise, kept Gaussian by concentration inequalities: of n vectors of k numbers, mean and
covariance are close to 0 and I, and the chance of a larger deviation is at most
    p1 = 2 exp(-n M1^2 / 2k),  M1 = |mean|;   p2 = 2 exp(-n max(sqrt(1 + M2) - 1 - sqrt(k / n), 0)^2 / 2),  M2 = |cov - I|_2,
both for the noise as it lies and for random orders of its numbers. A bound on the norm alone sees none of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Count, Event, Media, Natural, NonNegative, Policy, Reward, derive
from workbench.methods.common.best_sample import Best, gaussian
from workbench.methods.inference.ditto import climb


@dataclass(frozen=True)
class DNO:
    """Direct noise optimisation (arXiv:2405.18881): Adam on the noise, held where Gaussian noise is plausible."""

    iterations: Natural = 49  # gradient steps; the untouched noise is a candidate too
    lr: NonNegative = 0.01  # step size of Adam
    clip: NonNegative = 1.0  # bound on each sample's gradient norm
    regularise: NonNegative = 1.0  # gamma: weight of the noise's implausibility
    subvector: Count = 4  # k: numbers in a vector whose mean and covariance are watched
    permutations: Natural = 10  # random orders of the numbers, drawn anew in each iteration; its authors take 100
    noises: Literal["first", "all"] = "first"  # all: also what each step of the ancestral (eta = 1) chain adds
    needs = frozenset({"latents", "reward", "differentiable"})
    scales, lasts = "iterations", True
    paper = "arXiv:2405.18881"

    def calls(self, steps: int) -> int:
        return (self.iterations + 1) * steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            drawn = policy.noise(batch.seeds)  # [B,*draw]
            if self.subvector > drawn[0].numel():
                raise BadInput(f"subvector: this pipeline's noise has {drawn[0].numel()} numbers in all; 4 is usual")
            make = partial(self.made, policy, batch, drawn.shape)
            judge = partial(reward, prompts=batch.prompts)
            z = torch.cat([drawn.flatten(1), self.later(policy, batch, drawn)], 1).requires_grad_()  # [B,m]
            optimizer, best = torch.optim.Adam([z], lr=self.lr), Best(batch)
            for step in range(self.iterations + 1):
                last = step == self.iterations
                with torch.set_grad_enabled(not last):
                    media = make(z.detach() if last else z)
                    r = judge(media=media if "differentiable" in self.needs else media.detach())  # [B]
                best.take(media, r, z.view_as(drawn) if self.noises == "first" else None)
                strange = implausibility(z, self.subvector, self.permutations, derive(step, "permutations"))
                yield best.event(step, last, reward_now=r.nanmean().item(), implausibility=strange.mean().item())
                if not last:
                    gain = self.gain(make, judge, z, media, r, [derive(s, "direction", step) for s in batch.seeds])
                    climb(optimizer, z, gain - self.regularise * strange, self.clip)

    def later(self, policy: Policy, batch: Batch, drawn: Tensor) -> Tensor:
        """[B,(S-1)*latent]: what the ancestral chain adds at all steps but the last, if that is searched; else [B,0]."""
        shape = policy.start(drawn).shape[1:].numel() * (policy.steps - 1) if self.noises == "all" else 0
        return gaussian(batch.seeds, [shape], "chain").to(drawn)

    def made(self, policy: Policy, batch: Batch, shape: torch.Size, z: Tensor) -> Media:
        d = shape[1:].numel()
        if self.noises == "first":
            grad = policy.steps if torch.is_grad_enabled() else 0
            return policy.sample(batch.prompts, seeds=batch.seeds, noise=z[:, :d].view(shape), grad=grad).media
        x = policy.start(z[:, :d].view(shape))  # [B,*latent]
        for i, eps in enumerate(z[:, d:].view(len(x), policy.steps - 1, *x.shape[1:]).unbind(1)):
            law = policy.transition(x, i, batch.prompts)
            x = law.mean + law.std * eps
        return policy.decode(policy.transition(x, policy.steps - 1, batch.prompts).mean, batch.prompts)

    def gain(self, make: Callable, judge: Callable, z: Tensor, media: Media, r: Tensor, seeds: Sequence[int]) -> Tensor:
        return r  # [B]: what the noise climbs


@dataclass(frozen=True)
class BlackBoxDNO(DNO):
    """Direct noise optimisation (arXiv:2405.18881) for rewards without a gradient: it is estimated in media space."""

    directions: Count = 8  # perturbed samples of which a gradient is estimated
    spread: NonNegative = 0.01  # mu: standard deviation of the perturbations of the noise
    needs = frozenset({"latents", "reward"})

    def calls(self, steps: int) -> int:
        return (1 + self.iterations * (1 + self.directions)) * steps

    def gain(self, make: Callable, judge: Callable, z: Tensor, media: Media, r: Tensor, seeds: Sequence[int]) -> Tensor:
        """[B]: <g, media>, where g ~ sum_j (r_j - r)(media_j - media): only the sampler is differentiated."""
        rise, here = torch.zeros_like(media.data), media.data.detach()
        with torch.no_grad():
            for j in range(self.directions):
                near = make(z.detach() + self.spread * gaussian(seeds, z.shape[1:], j).to(z))
                better = (judge(media=near) - r).nan_to_num(0.0, 0.0, 0.0)  # what can't be judged has no say
                rise += better.view(-1, *[1] * (rise.dim() - 1)) * (near.data - here)
        along = torch.nn.functional.normalize(rise.flatten(1))
        return (along * media.data.flatten(1)).sum(1) + 0 * r  # NaN where the sample itself can't be judged


def implausibility(z: Tensor, k: int, permutations: int = 0, seed: int = 0) -> Tensor:
    """[B]: -log min(p1, 1) - log min(p2, 1) of z [B,m] as it lies, plus the mean of the same over random orders of its
    numbers, the same orders for every row. 0 for noise that nothing speaks against. The last m mod k numbers are left out."""
    n, shuffle = z.shape[1] // k, torch.Generator().manual_seed(seed)

    def of(z: Tensor) -> Tensor:
        parts = z[:, : n * k].view(len(z), n, k)
        mean = parts.mean(1).square().sum(1)  # M1^2
        deviation = torch.linalg.matrix_norm(parts.mT @ parts / n - torch.eye(k).to(z), ord=2)  # M2
        excess = ((1 + deviation).sqrt() - 1 - math.sqrt(k / n)).clamp(min=0)
        return (n * mean / (2 * k) - math.log(2)).clamp(min=0) + (n * excess.square() / 2 - math.log(2)).clamp(min=0)

    orders = [torch.randperm(z.shape[1], generator=shuffle) for _ in range(permutations)]
    return of(z) + sum(of(z[:, order]) for order in orders) / max(permutations, 1)
