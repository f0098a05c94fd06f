"""CRD: centred reward distillation. 2026, arXiv:2603.14128.

How much better the live policy denoises a sample than the old one does is an implicit reward, up to a constant of its prompt,

    R = l_old - l,        l = |v - u|^2 / mean |v - u|  (the divisor without gradient).

Centring over a prompt's samples removes the constant, and R is fitted to the outer reward R* = clip(A, -a, a) / 2a + 1/2:

    L = (a / beta) ( beta (R - mean R) - (R* - mean R*) )^2 + kl c |v - v_ref|^2,        c = 1e-3 + R* (1 - 1e-3),

so that bad samples are hardly held to the reference. A prompt's samples meet the same noise levels: errors of different levels
have no common constant. The older weights are those that R is measured from; samples are the live ones' own, where the paper keeps a
third copy for that. The gradient through the mean R is zero in sum, so R is centred without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common import forward_process, losses
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS, Advantage


@dataclass(frozen=True)
class CRD:
    """Centred reward distillation (arXiv:2603.14128): fit the policy's implicit reward to the given one, prompt by prompt."""

    group: Count = 24  # samples a prompt
    beta: NonNegative = 1.0  # what a unit of implicit reward is worth
    bound: NonNegative = 5.0  # advantages are clipped here, and mapped to R*
    kl: NonNegative = 0.1  # weight of |v - v_ref|^2
    anchor_guidance: float | None = None  # of the reference: the paper holds an unguided policy to a guided one (4.5)
    slow: NonNegative = 0.25  # the old copy keeps min(slow + slower k, most) of itself after batch k
    slower: NonNegative = 0.005  # what the old copy keeps more with each batch
    most: NonNegative = 0.999  # the most that the old copy keeps
    lr: NonNegative = 3e-4  # step size of AdamW
    updates: Count = 2  # per batch
    times: Natural = 0  # noise levels a sample meets in an update; 0: all
    share: NonNegative = 0.99  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"

    needs = NEEDS
    scales = ""
    paper = "arXiv:2603.14128"
    samples, same_eps = "train", False
    calls, __call__ = forward_process.calls, forward_process.train

    def weigh(self, advantage: Tensor) -> Tensor:
        return advantage

    def copies(self) -> dict[str, float | None]:
        return {"old": self.guidance} | ({"reference": self.anchor_guidance} if self.kl else {})

    def decay(self, k: int) -> float:
        return min(self.slow + self.slower * k, self.most)

    def loss(self, seen: Seen) -> Tensor:
        r = (losses.relative(seen.old, seen.x0) - losses.relative(seen.live, seen.x0)) / seen.s  # [n], in units of v
        wanted = losses.optimality(seen.weight, self.bound)
        miss = self.beta * (r - losses.group_mean(r.detach(), seen.group))
        miss = miss - (wanted - losses.group_mean(wanted, seen.group))
        held = self.kl * (1e-3 + wanted * (1 - 1e-3))
        return self.bound / self.beta * miss.square() + held * seen.drift(seen.reference)
