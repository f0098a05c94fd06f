"""RWR: reward-weighted regression. Peters & Schaal, ICML 2007; for diffusion Lee et al. 2023, arXiv:2302.12192; for flows
Liu et al. 2025, arXiv:2501.13918, Eq. 9.

    L = w |v - u|^2 + kl |v - v_ref|^2,        w = min(cap, exp(A / temperature)),

with A the standardised reward. Bad samples are learnt from too, only less. As the temperature falls only the best remain
(see raft). On samples of its own, round after round, it comes to make plainer and plainer ones; the flow paper learns from a set
that the base made once: `samples: reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common import forward_process
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS, Advantage, Learnt


@dataclass(frozen=True)
class RWR:
    """Reward-weighted regression (arXiv:2501.13918, Eq. 9): the denoising loss on one's own samples, by exp(reward)."""

    group: Count = 8  # samples a prompt
    temperature: NonNegative = 1.0  # of the weights, in standard deviations of the reward
    cap: NonNegative = 20.0  # on the weights
    kl: NonNegative = 0.0  # weight of |v - v_ref|^2
    lr: NonNegative = 1e-4  # step size of AdamW
    updates: Count = 1  # per batch
    times: Natural = 0  # noise levels a sample meets in an update; 0: all
    share: NonNegative = 1.0  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"
    samples: Learnt = "train"  # whose are learnt from: its own of each round, or the base's

    needs = NEEDS
    scales = ""
    paper = "arXiv:2501.13918"
    same_eps = False
    calls, __call__ = forward_process.calls, forward_process.train

    def weigh(self, advantage: Tensor) -> Tensor:
        return (advantage / self.temperature).exp().clamp(max=self.cap)

    def copies(self) -> dict[str, float | None]:
        return {"reference": self.guidance} if self.kl else {}

    def decay(self, k: int) -> float:
        return 1.0

    def loss(self, seen: Seen) -> Tensor:
        return seen.weight * seen.error(seen.live) + self.kl * seen.drift(seen.reference)
