"""DNO: direct noise optimisation. Tang et al., arXiv:2405.18881, sections 2-4.

Gradient ascent on a sampler's noise, kept Gaussian by concentration inequalities: of n vectors of k numbers, mean and
covariance are close to 0 and I, and the chance of a larger deviation is at most
    p1 = 2 exp(-n M1^2 / 2k),  M1 = |mean|;  p2 = 2 exp(-n max(sqrt(1+M2) - 1 - sqrt(k/n), 0)^2 / 2),  M2 = |cov - I|_2,
both for the noise as it lies and for random orders of its numbers. A bound on the norm alone sees none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Count, Event, Media, Natural, NonNegative, Policy, Reward, derive_seed
from workbench.methods.common.best_sample import BestSample, seeded_normal
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.noise_plausibility import noise_implausibility
from workbench.methods.inference.reno import ascend_noise


@dataclass(frozen=True)
class DNO(MethodDefaults):
    """Direct noise optimisation (arXiv:2405.18881): Adam on the noise, held where Gaussian noise is plausible."""

    iterations: Natural = 49  # gradient steps; the untouched noise is a candidate too
    lr: NonNegative = 0.1  # step size of Adam; the authors' 0.01 is for hundreds of iterations
    max_grad_norm: NonNegative = 1.0  # bound on each sample's gradient norm
    regularise: NonNegative = 1.0  # gamma: weight of the noise's implausibility
    subvector: Count = 4  # k: numbers in a vector whose mean and covariance are watched
    permutations: Natural = 10  # random orders of the numbers, drawn anew in each iteration; its authors take 100
    noises: Literal["first", "all"] = "first"  # all: also what each step of the ancestral (eta = 1) chain adds
    needs = frozenset({"latents", "reward", "differentiable"})
    scales, scales_in_turns = "iterations", True
    paper = "arXiv:2405.18881"
    measured = "no difference from best_of_n shown at equal calls"
    former_names = {"clip": "max_grad_norm"}

    def calls(self, steps: int) -> int:
        return (self.iterations + 1) * steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            noise = policy.noise(batch.seeds)  # [B,*draw]
            if self.subvector > noise[0].numel():
                raise BadInput(f"subvector: this pipeline's noise has {noise[0].numel()} numbers in all; 4 is usual")
            make = partial(self.decode_noise, policy, batch, noise.shape)
            score = partial(reward, prompts=batch.prompts)
            z = torch.cat([noise.flatten(1), self.chain_noise(policy, batch, noise)], 1).requires_grad_()  # [B,m]
            optimizer, best = torch.optim.Adam([z], lr=self.lr), BestSample(batch)
            for step in range(self.iterations + 1):
                last = step == self.iterations
                with torch.set_grad_enabled(not last):
                    media = make(z.detach() if last else z)
                    r = score(media=media if "differentiable" in self.needs else media.detach())  # [B]
                best.take(media, r, z.view_as(noise) if self.noises == "first" else None)
                implausibility = noise_implausibility(
                    z, self.subvector, self.permutations, derive_seed(step, "permutations")
                )
                yield best.event(step, last, reward_now=r.nanmean().item(), implausibility=implausibility.mean().item())
                if not last:
                    gain = self.climb_target(
                        make, score, z, media, r, [derive_seed(s, "direction", step) for s in batch.seeds]
                    )
                    ascend_noise(optimizer, z, gain - self.regularise * implausibility, self.max_grad_norm)

    def chain_noise(self, policy: Policy, batch: Batch, noise: Tensor) -> Tensor:
        """[B,(S-1)*latent]: what the ancestral chain adds at all steps but the last if that is searched, else [B,0]."""
        shape = policy.start(noise, batch.prompts).shape[1:].numel() * (policy.steps - 1) if self.noises == "all" else 0
        return seeded_normal(batch.seeds, [shape], "chain").to(noise)

    def decode_noise(self, policy: Policy, batch: Batch, shape: torch.Size, z: Tensor) -> Media:
        d = shape[1:].numel()
        if self.noises == "first":
            grad = policy.steps if torch.is_grad_enabled() else 0
            return policy.sample(batch.prompts, seeds=batch.seeds, noise=z[:, :d].view(shape), grad=grad).media
        x = policy.start(z[:, :d].view(shape), batch.prompts)  # [B,*latent]
        for i, eps in enumerate(z[:, d:].view(len(x), policy.steps - 1, *x.shape[1:]).unbind(1)):
            law = policy.transition(x, i, batch.prompts)
            x = law.mean + law.std * eps
        return policy.decode(policy.transition(x, policy.steps - 1, batch.prompts).mean, batch.prompts)

    def climb_target(
        self, make: Callable, score: Callable, z: Tensor, media: Media, r: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        return r  # [B]: what the noise climbs


@dataclass(frozen=True)
class BlackBoxDNO(DNO):
    """Direct noise optimisation (arXiv:2405.18881) for rewards without a gradient: it is estimated in media space."""

    directions: Count = 8  # perturbed samples of which a gradient is estimated
    perturbation_std: NonNegative = 0.01  # mu: standard deviation of the perturbations of the noise
    needs = frozenset({"latents", "reward"})
    measured = "worse than best_of_n at equal calls"
    former_names = DNO.former_names | {"spread": "perturbation_std"}

    def calls(self, steps: int) -> int:
        return (1 + self.iterations * (1 + self.directions)) * steps

    def climb_target(
        self, make: Callable, score: Callable, z: Tensor, media: Media, r: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """[B]: <g, media>, where g ~ sum_j (r_j - r)(media_j - media): only the sampler is differentiated."""
        rise, base = torch.zeros_like(media.data), media.data.detach()
        with torch.no_grad():
            for j in range(self.directions):
                perturbed = make(z.detach() + self.perturbation_std * seeded_normal(seeds, z.shape[1:], j).to(z))
                better = (score(media=perturbed) - r).nan_to_num(0.0, 0.0, 0.0)  # what can't be judged has no say
                rise += better.view(-1, *[1] * (rise.dim() - 1)) * (perturbed.data - base)
        along = torch.nn.functional.normalize(rise.flatten(1))
        return (along * media.data.flatten(1)).sum(1) + 0 * r  # NaN where the sample itself can't be judged
