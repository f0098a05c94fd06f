"""Reward gradients: the reward is differentiated through the decoder and the last steps of sampling, into the weights.

    min_theta  -r(x_S(theta), c),        the gradient cut before the last K steps.

DRaFT-K       Clark et al., ICLR 2024, arXiv:2309.17400, Algorithm 1; K = 1 is fast and often as good as more
DRaFT-LV      the finished sample is noised to the last level `repeats` times and finished again: K = 1, less variance
AlignProp     Prabhudesai et al. 2023, arXiv:2310.03739, section 4: K drawn for each batch, so that early steps are taught too
InstructVideo Yuan et al., CVPR 2024, arXiv:2312.12490: noised back by a share of the chain, run again, K = 1

The cheapest way up where the reward has a gradient, and the quickest into its blind spots: judge by another, and stop early.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import (
    BadInput,
    Batch,
    Count,
    Event,
    Media,
    NonNegative,
    Reward,
    TrainablePolicy,
    Trajectory,
    derive,
)
from workbench.methods.common.best_sample import gaussian
from workbench.methods.common.schedule import glide

NEEDS = frozenset({"trainable", "latents", "reward", "differentiable"})


@dataclass(frozen=True)
class DRaFT:
    """Direct reward fine-tuning (arXiv:2309.17400): gradient ascent on the reward through the last steps of sampling."""

    last: Count = 1  # K, the steps that keep their gradient
    jitter: NonNegative = 0.0  # standard deviation of K, drawn for each batch
    back: NonNegative = 0.0  # share of the chain that a sample is noised back by; 0: the chain's own end is taught
    repeats: Count = 1  # times it is noised, with fresh noise
    lr: NonNegative = 4e-4  # step size of AdamW

    needs, scales, paper = NEEDS, "", "arXiv:2309.17400"

    def __post_init__(self):
        if self.back > 1 or (self.repeats > 1 and not self.back):
            raise BadInput(f"method: back {self.back} is a share of the chain; set it in (0, 1], or 0 and repeats to 1")

    def calls(self, steps: int) -> int:
        return steps + (self.repeats * self.again(steps) if self.back else 0)

    def again(self, steps: int) -> int:
        return max(1, round(self.back * steps))

    def depth(self, batch: Batch, steps: int) -> int:
        """K of this batch, 1 to S."""
        g = torch.Generator().manual_seed(derive(batch.seeds[0], "depth"))
        return min(max(round(self.last + self.jitter * torch.randn((), generator=g).item()), 1), steps)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            depth = self.depth(batch, policy.steps)
            path = policy.sample(batch.prompts, seeds=batch.seeds, grad=0 if self.back else depth)
            if not self.back:
                yield taught(policy, k, batch, path.media, climb(policy, reward, path.media, batch))
                continue
            for n in range(self.repeats):
                media = policy.decode(self.finish(policy, path, depth, n), batch.prompts)
                r = climb(policy, reward, media, batch, share=1 / self.repeats)
            yield taught(policy, k, batch, media, r)

    def finish(self, policy: TrainablePolicy, path: Trajectory, depth: int, n: int) -> Tensor:
        """[B,*latent]: the clean ends of `path`, noised back and denoised again without new noise."""
        first, x0 = policy.steps - self.again(policy.steps), path.x[:, -1].detach().float()
        x = policy.noised(x0, first, gaussian(path.seeds, x0.shape[1:], "again", n).to(x0))
        for i in range(first, policy.steps):
            with torch.set_grad_enabled(i >= policy.steps - depth):
                x = glide(policy, x, i, path.prompts)
        return x


@dataclass(frozen=True)
class DRaFTLV(DRaFT):
    """DRaFT-LV (arXiv:2309.17400, Algorithm 2): the last step is taught on several noisings of one sample."""

    back: NonNegative = 1e-9  # share of the chain that a sample is noised back by: so small a one is one step
    repeats: Count = 2
    needs = NEEDS | {"stochastic"}  # noise levels


@dataclass(frozen=True)
class AlignProp(DRaFT):
    """AlignProp (arXiv:2310.03739): the depth of the gradient is drawn anew for each batch; for chains of 50 steps."""

    last: Count = 8
    jitter: NonNegative = 5.0
    lr: NonNegative = 1e-3
    paper = "arXiv:2310.03739"


@dataclass(frozen=True)
class InstructVideo(DRaFT):
    """InstructVideo (arXiv:2312.12490): samples are noised by a part of the chain and run again, the last step taught."""

    back: NonNegative = 0.6
    lr: NonNegative = 1e-5
    needs = NEEDS | {"stochastic"}
    paper = "arXiv:2312.12490"


def climb(policy, reward: Reward, media: Media, batch: Batch, enough: float = torch.inf, share: float = 1.0) -> Tensor:
    """[B], detached: the rewards of media, whose mean, up to `enough`, has been sent backward. NaN takes no part."""
    r = reward(media=media, prompts=batch.prompts)
    there = r.detach().isfinite()
    if (rows := there & (r.detach() < enough)).any():
        policy.backward(-r[rows].sum() * share / there.sum())
    return r.detach().where(there, torch.nan)


def taught(policy, k: int, batch: Batch, media: Media, r: Tensor, **metrics: float) -> Event:
    shown = {"reward": r.nanmean().item(), "grad_norm": policy.update(), **metrics}
    return Event(k, shown, media.detach(), batch.prompts, batch.seeds, {"reward": r})
