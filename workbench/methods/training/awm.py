"""AWM: advantage-weighted matching. Xue et al., ICML 2026, arXiv:2509.25050.

Policy gradient with the denoising loss in place of the log-probability, on the forward process:

    log p ~ -l,   l = s/p ((|v - u|^2 + e)^p - e^p),        L = A l + kl |v - v_ref|^2 + anchor |v - v_ema|^2.

power 1 is plain weighting by the noise level s; below 1 (a generalised Huber loss) no sample counts for much because the model
is bad at it. One update a batch, so PPO's ratio is 1 and needs no clip. Pushing a loss UP has no bound: the anchor, an
average of the weights that follows fast, holds back, and is not to be switched off. Two things are simpler than in the authors'
code: levels are the sampler's own, its first one (pure noise) among them, and the average's decay is the same from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common import forward_process
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS, Advantage


@dataclass(frozen=True)
class AWM:
    """Advantage-weighted matching (arXiv:2509.25050): the denoising loss of one's own samples, times their advantage."""

    group: Count = 24  # samples a prompt
    bound: NonNegative = 1.0  # advantages are clipped here
    power: NonNegative = 0.25  # p of the generalised Huber loss; 1 is the plain square
    kl: NonNegative = 0.001  # weight of |v - v_ref|^2
    anchor: NonNegative = 1.0  # weight of |v - v_ema|^2
    ema: NonNegative = 0.3  # what the average keeps of itself after a batch
    lr: NonNegative = 3e-4  # step size of AdamW
    times: Natural = 6  # noise levels a sample meets in an update; 0: all
    share: NonNegative = 0.9  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"

    needs = NEEDS
    scales = ""
    paper = "arXiv:2509.25050"
    samples, same_eps, updates = "train", False, 1
    calls, __call__ = forward_process.calls, forward_process.train

    def weigh(self, advantage: Tensor) -> Tensor:
        return advantage.clamp(-self.bound, self.bound)

    def copies(self) -> dict[str, float | None]:
        wanted = {"old": self.anchor, "reference": self.kl}
        return {name: self.guidance for name, weight in wanted.items() if weight}

    def decay(self, k: int) -> float:
        return self.ema

    def loss(self, seen: Seen) -> Tensor:
        e, p = 1e-10, self.power
        error = seen.s / p * ((seen.error(seen.live) + e) ** p - e**p)
        return seen.weight * error + self.kl * seen.drift(seen.reference) + self.anchor * seen.drift(seen.old)
