"""ReNO: reward-based noise optimisation. Eyring et al., NeurIPS 2024, arXiv:2406.04312, Eq. 5-7 and Algorithm 1.

The generator stays frozen; its noise z climbs the reward by gradient ascent,

    min_z  -r(G(z, c), c) + lambda * ( |z|^2 / 2 - (d - 1) log |z| ),

where the second term is the negative log-density of the norm of a d-dimensional Gaussian: it keeps z where the
generator has seen noise. Made for one-step generators; with several steps the gradient goes through the whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Event, Natural, NonNegative, Policy, Reward
from workbench.methods.common.best_sample import BestSample, where_rows
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class ReNO(MethodDefaults):
    """Reward-based noise optimisation (arXiv:2406.04312): gradient ascent on the initial noise, the model frozen."""

    iterations: Natural = 49  # gradient steps; the untouched noise is a candidate too (the paper's n_iters is this + 1)
    lr: NonNegative = 5.0  # step size of Nesterov SGD
    momentum: NonNegative = 0.9  # share of the last step that the next one goes on with
    max_grad_norm: NonNegative = 0.1  # bound on each sample's gradient norm
    regularise: NonNegative = 0.01  # lambda: weight of the norm's negative log-density

    needs = frozenset({"latents", "reward", "differentiable"})
    scales = "iterations"
    scales_in_turns = True
    paper = "arXiv:2406.04312"
    measured = "worse than best_of_n at equal calls on a one-step model, no difference shown on eight steps"
    former_names = {"clip": "max_grad_norm"}

    def calls(self, steps: int) -> int:
        return (self.iterations + 1) * steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            # The master noise is float32 whatever the model computes in:
            # steps of 1e-1 on a norm of 1e2 underflow in fp16.
            z = policy.noise(batch.seeds).requires_grad_()  # [B,*latent]
            best = BestSample(batch)
            optimizer = torch.optim.SGD([z], lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
            for step in range(self.iterations + 1):
                last = step == self.iterations
                # The seeds are the same at each iteration: the scheduler's own noise, and so the objective,
                # stays fixed.
                with torch.set_grad_enabled(not last):
                    media = policy.sample(
                        batch.prompts, seeds=batch.seeds, noise=z, grad=0 if last else policy.steps
                    ).media
                    r = reward(media=media, prompts=batch.prompts)  # [B]
                best.take(media, r.detach(), z.detach())  # by reward alone: the regulariser has no say in what is kept
                norm = z.detach().flatten(1).norm(dim=1).mean().item()
                yield best.event(step, final=last, reward_now=r.detach().nanmean().item(), norm=norm)
                if last:
                    break
                ascend_noise(optimizer, z, r - self.regularise * norm_nll(z), self.max_grad_norm)


def norm_nll(z: Tensor) -> Tensor:
    """[B]: negative log-density of |z| under the chi distribution with d degrees of freedom, up to a constant; the
    minimum lies at |z| = sqrt(d - 1). Eq. 6."""
    norm, d = z.flatten(1).norm(dim=1), z[0].numel()
    return 0.5 * norm.square() - (d - 1) * norm.log()


def ascend_noise(optimizer: torch.optim.Optimizer, z: Tensor, gain: Tensor, clip: float = math.inf) -> None:
    """One step of z [B,...] up its `gain` [B], each row's gradient clipped by its own norm. A row whose gain or
    gradient is not finite stands still: momentum does not move it either."""
    (grad,) = torch.autograd.grad(-gain.sum(), z)
    moves, before = gain.detach().isfinite() & grad.flatten(1).isfinite().all(1), z.detach().clone()
    z.grad = where_rows(moves, clip_per_sample(grad, clip), torch.zeros_like(grad))
    optimizer.step()
    with torch.no_grad():
        z.copy_(where_rows(moves, z, before))


def clip_per_sample(grad: Tensor, bound: float) -> Tensor:
    """Scale each row of grad [B,*latent] to a norm of at most `bound`, so that batching changes nothing;
    0 for a row that is not finite."""
    norm = grad.flatten(1).norm(dim=1).view(-1, *[1] * (grad.dim() - 1))  # [B,1,...]
    clipped = grad * (bound / (norm + 1e-6)).clamp(max=1.0)
    return torch.where(norm.isfinite(), clipped, torch.zeros_like(grad))
