"""DiffusionNFT: negative-aware fine-tuning on the forward process. Zheng et al. 2025, arXiv:2509.16117, Eq. 5-9, Algorithm 1.

Samples come from an old policy. Around it the live one defines a good and a bad policy,

    v+ = beta v + (1 - beta) v_old,        v- = (1 + beta) v_old - beta v,

and with the share r in [0,1] of good in a sample, from its advantage, each is regressed on the same noised samples:

    L = (a / beta) ( r |v+ - u|^2 + (1 - r) |v- - u|^2 ) + kl |v - v_ref|^2,        a: the bound on advantages,

where each square is over its own mean absolute error, in x0. The minimum is v_old + E[(2r - 1)(u - v_old)] / beta: a smaller
beta takes longer steps. No log-probability, no noise in the sampler; train and sample without guidance. The old copy follows
ever more slowly: at once it is fast and then collapses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common import forward_process, losses
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS, Advantage


@dataclass(frozen=True)
class NFT:
    """DiffusionNFT (arXiv:2509.16117): regress towards the good and away from the bad among one's own samples."""

    group: Count = 24  # samples a prompt
    beta: NonNegative = 1.0  # how far the good policy lies from v_old; below 1, longer steps (0.1 for several rewards)
    bound: NonNegative = 5.0  # advantages are clipped here, and mapped to r
    kl: NonNegative = 1e-4  # weight of |v - v_ref|^2
    slow: NonNegative = 0.001  # the old copy keeps min(slow k, most) of itself after batch k
    most: NonNegative = 0.5  # the most that the old copy keeps
    lr: NonNegative = 3e-4  # step size of AdamW
    updates: Count = 1  # per batch
    times: Natural = 0  # noise levels a sample meets in an update; 0: all
    share: NonNegative = 0.99  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"

    needs = NEEDS
    scales = ""
    paper = "arXiv:2509.16117"
    samples, same_eps = "old", False
    calls, __call__ = forward_process.calls, forward_process.train

    def weigh(self, advantage: Tensor) -> Tensor:
        return advantage

    def copies(self) -> dict[str, float | None]:
        return {"old": self.guidance} | ({"reference": self.guidance} if self.kl else {})

    def decay(self, k: int) -> float:
        return min(self.slow * k, self.most)

    def loss(self, seen: Seen) -> Tensor:
        good = self.beta * seen.live + (1 - self.beta) * seen.old  # x0 is affine in v
        bad = (1 + self.beta) * seen.old - self.beta * seen.live
        r = losses.optimality(seen.weight, self.bound)  # [n]
        pull = r * losses.relative(good, seen.x0) + (1 - r) * losses.relative(bad, seen.x0)
        return self.bound / self.beta * pull + self.kl * seen.drift(seen.reference)
