"""Reward gradients: the reward is differentiated through the decoder and the last steps of sampling, into the weights.

    min_theta  -r(x_S(theta), c),        the gradient cut before the last K steps.

DRaFT-K       Clark et al., ICLR 2024, arXiv:2309.17400, Algorithm 1; K = 1 is fast and often as good as more
DRaFT-LV      the finished sample is noised to the last level `renoise_repeats` times and finished again: K = 1
AlignProp     Prabhudesai et al. 2023, arXiv:2310.03739, section 4: K drawn for each batch: early steps learn too

The cheapest way up where the reward has a gradient, and the quickest into its blind spots: judge by another, and stop
early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Count, Event, NonNegative, Reward, TrainablePolicy, derive_seed
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.reward_gradient import NEEDS, GradientMethod, ascend_reward, update_event
from workbench.methods.common.rollout import count_batches
from workbench.methods.common.schedule import ode_step_from


@dataclass(frozen=True)
class DRaFT(GradientMethod):
    """Direct reward fine-tuning (arXiv:2309.17400): climb the reward's gradient through the last steps of sampling."""

    grad_steps: Count = 1  # K, the last steps, which keep their gradient
    grad_steps_std: NonNegative = 0.0  # standard deviation of K, drawn for each batch
    renoise_fraction: NonNegative = 0.0  # of the chain: a sample is noised back by it; 0: the chain's own end is taught
    renoise_repeats: Count = 1  # times it is noised, with fresh noise
    lr: NonNegative = 4e-4

    paper = "arXiv:2309.17400"
    former_names = {
        "last": "grad_steps",
        "jitter": "grad_steps_std",
        "back": "renoise_fraction",
        "repeats": "renoise_repeats",
    }

    def __post_init__(self):
        if self.renoise_fraction > 1 or (self.renoise_repeats > 1 and not self.renoise_fraction):
            raise BadInput(
                f"method: renoise_fraction {self.renoise_fraction} is a share of the chain; set it in (0, 1], "
                "or 0 and renoise_repeats to 1"
            )

    def calls(self, steps: int) -> int:
        return steps + (self.renoise_repeats * self.renoised_steps(steps) if self.renoise_fraction else 0)

    def renoised_steps(self, steps: int) -> int:
        return max(1, round(self.renoise_fraction * steps))

    def draw_depth(self, batch: Batch, steps: int) -> int:
        """K of this batch, 1 to S."""
        g = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "depth"))
        return min(max(round(self.grad_steps + self.grad_steps_std * torch.randn((), generator=g).item()), 1), steps)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        clean_latents = self.clean_latents(policy)
        for k, batch in count_batches(batches):
            depth = self.draw_depth(batch, policy.steps)
            if not self.renoise_fraction:
                media = policy.sample(batch.prompts, seeds=batch.seeds, grad=depth).media
                yield update_event(policy, k, batch, media, ascend_reward(policy, reward, media, batch))
                continue
            x0 = clean_latents(batch)
            for n in range(self.renoise_repeats):
                media = policy.decode(self.renoise_and_finish(policy, x0, batch, depth, n), batch.prompts)
                r = ascend_reward(policy, reward, media, batch, share=1 / self.renoise_repeats)
            yield update_event(policy, k, batch, media, r)

    def clean_latents(self, policy: TrainablePolicy) -> Callable[[Batch], Tensor]:
        """A function that gives the clean latents [B,*latent] of a batch which are noised back: samples of its own."""
        return lambda batch: policy.sample(batch.prompts, seeds=batch.seeds, grad=0).x[:, -1]

    def renoise_and_finish(self, policy: TrainablePolicy, x0: Tensor, batch: Batch, depth: int, n: int) -> Tensor:
        """[B,*latent]: the clean latents x0 of a batch, noised back and denoised again without new noise."""
        first, x0 = policy.steps - self.renoised_steps(policy.steps), x0.detach().float()
        x = policy.noised(x0, first, seeded_normal(batch.seeds, x0.shape[1:], "again", n).to(x0))
        for i in range(first, policy.steps):
            with torch.set_grad_enabled(i >= policy.steps - depth):
                x = ode_step_from(policy, x, i, batch.prompts)
        return x


@dataclass(frozen=True)
class DRaFTLV(DRaFT):
    """DRaFT-LV (arXiv:2309.17400, Algorithm 2): the last step is taught on several noisings of one sample."""

    renoise_fraction: NonNegative = 1e-9  # of the chain: a sample is noised back by it; so small a one is one step
    renoise_repeats: Count = 2
    needs = NEEDS | {"stochastic"}  # noise levels


@dataclass(frozen=True)
class AlignProp(DRaFT):
    """AlignProp (arXiv:2310.03739): the depth of the gradient is drawn anew for each batch; for chains of 50 steps."""

    grad_steps: Count = 8
    grad_steps_std: NonNegative = 5.0
    lr: NonNegative = 1e-3
    paper = "arXiv:2310.03739"
