"""Reward guidance: every step is pulled by the gradient of the reward of the clean sample that it predicts.

To draw from p(x) exp(scale r(x)) the score of x_i needs grad log E[exp(scale r(x0)) | x_i]. Diffusion posterior
sampling (Chung et al., ICLR 2023, arXiv:2209.14687) puts the reward of the mean in place of that mean, and universal
guidance (Bansal et al. 2023, arXiv:2302.07121) does so with any differentiable judge: scale * g,
g = grad_{x_i} r(decode(x0(x_i))). With x_i = a x0 + s eps this moves the prediction while x_i stays,

    x0 <- x0 + delta,    eps <- eps - (a / s) delta,    delta = scale * (s^2 / a) * g;

of flow matching, v <- v - scale * s / (1 - s) * g. It is exact for Gaussian data and a linear reward. By Tweedie's
formula delta = scale * Cov(x0 | x_i) grad_{x0} r: `through: clean` takes the covariance of unit-variance data,
s^2 / (a^2 + s^2) (as PiGDM, Song et al., ICLR 2023), and needs no backward pass through the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, Media, Natural, NonNegative, Policy, Reward, Transition, derive_seed
from workbench.methods.common import guided_step
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.schedule import alpha_sigma


@dataclass(frozen=True)
class Guidance(MethodDefaults):
    """Reward guidance (DPS, universal guidance): each step climbs the reward of the clean sample that it predicts."""

    scale: float = 0.1  # how hard; with normalise none an inverse temperature: the target is p(x) exp(scale * reward)
    normalise: Literal["none", "unit", "residual"] = "unit"  # unit: x0 moves by scale * s / |(a, s)| a value, rms
    # the reward's highest value: residual divides the gradient by sqrt(max_reward - reward), as DPS does
    max_reward: float = 1.0
    through: Literal["denoiser", "clean"] = "denoiser"  # clean: the gradient stops at x0, which is cheaper and coarser
    base: Literal["ode", "sde"] = "ode"  # the deterministic first-order step, or the policy's Gaussian one
    start: NonNegative = 0.0  # guidance begins after this share of the steps
    stop: NonNegative = 1.0  # and ends after this one
    recurrence_steps: Natural = 0  # time travel: how often a guided step is noised back and taken again
    cap: NonNegative = 10.0  # bound on s / a, which diverges in pure noise; has no part in unit

    needs = frozenset({"latents", "stochastic", "reward", "differentiable"})
    yields_predictions = True  # its media on the way are what a chain under way is going to be, not samples
    paper = "arXiv:2302.07121, arXiv:2209.14687"
    measured = "raises its reward, and not the oracle"
    former_names = {"recur": "recurrence_steps", "top": "max_reward"}

    def calls(self, steps: int) -> int:
        return steps + self.recurrence_steps * sum(
            guided_step.in_window(i, steps, self.start, self.stop) for i in range(steps)
        )

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            generators = [torch.Generator().manual_seed(derive_seed(s, "guidance")) for s in batch.seeds]
            x, step = policy.start(policy.noise(batch.seeds), batch.prompts).float(), 0
            for i in range(policy.steps):
                if not guided_step.in_window(i, policy.steps, self.start, self.stop):
                    with torch.no_grad():
                        x = guided_step.base_step(policy, x, i, batch.prompts, self.base).sample(generators)
                    continue
                for turn in range(1 + self.recurrence_steps):
                    x = guided_step.renoise_step(policy, x, i, generators) if turn else x
                    law, media, r, delta = self.guide_step(policy, reward, x, i, batch.prompts)
                    x = law.sample(generators)
                    metrics = {"reward": r.nanmean().item(), "pull": delta.square().mean().sqrt().item()}
                    # What has been predicted so far, not the best of it: early predictions are blurred, not samples.
                    yield Event(step, metrics, media, batch.prompts, batch.seeds, {"reward": r})
                    step += 1
            yield guided_step.final_event(policy, reward, x, batch, step)

    def guide_step(
        self, policy: Policy, reward: Reward, x: Tensor, i: int, prompts: Sequence[str]
    ) -> tuple[Transition, Media, Tensor, Tensor]:
        """The guided step; the clean sample as predicted without guidance, its reward [B], and delta [B,*latent]."""
        deep = self.through == "denoiser"
        with torch.set_grad_enabled(deep):
            x = x.detach().requires_grad_(deep)
            law = guided_step.base_step(policy, x, i, prompts, self.base)
        with torch.enable_grad():
            x0 = law.x0 if deep else law.x0.detach().requires_grad_()
            media = policy.decode(x0, prompts)
            r = reward(media=media, prompts=prompts)  # [B]
            (g,) = torch.autograd.grad(r.sum(), x if deep else x0)
        law, r = replace(law, mean=law.mean.detach(), x0=law.x0.detach()), r.detach()
        delta = guided_step.zero_nonfinite(self.scale * self.scale_gradient(g, r, *alpha_sigma(policy, i)))
        return guided_step.shift_prediction(policy, law, i, delta), media.detach(), r, delta

    def scale_gradient(self, g: Tensor, r: Tensor, a: float, s: float) -> Tensor:
        """delta [B,*latent] for scale 1, from the gradient g and the reward r [B] at the level (a, s)."""
        if self.normalise == "unit":
            return guided_step.unit_rms(g) * (
                s / math.hypot(a, s)
            )  # the last factor: the error of x0 on unit-variance data
        delta = g * (
            s * guided_step.capped_noise_ratio(a, s, self.cap) if self.through == "denoiser" else s**2 / (a**2 + s**2)
        )
        if self.normalise == "none":
            return delta
        if (r >= self.max_reward).any():
            raise BadInput(
                "guidance: normalise: residual divides by sqrt(max_reward - reward), max_reward is "
                f"{self.max_reward:g} and a reward {float(r.nan_to_num().max()):g}; "
                "set max_reward above the reward's highest value"
            )
        return delta / (self.max_reward - r).sqrt().view(-1, *[1] * (g.dim() - 1))
