"""CRD: centred reward distillation. 2026, arXiv:2603.14128.

How much better the live policy denoises a sample than the old one does is an implicit reward,
up to a constant of its prompt,

    R = l_old - l,        l = |v - u|^2 / mean |v - u|  (the divisor without gradient).

Centring over a prompt's samples removes the constant, and R is fitted to the outer reward
R* = clip(A, -a, a) / 2a + 1/2:

    L = (a / beta) ( beta (R - mean R) - (R* - mean R*) )^2 + kl c |v - v_ref|^2,        c = 1e-3 + R* (1 - 1e-3),

so that bad samples are hardly held to the reference. A prompt's samples meet the same noise levels: errors of different
levels have no common constant. The older weights are those that R is measured from; samples are the live ones' own,
where the paper keeps a third copy for that. The gradient through the mean R is zero in sum, so R is centred without
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Count, NonNegative
from workbench.methods.common import losses
from workbench.methods.common.advantage_method import AdvantageMethod
from workbench.methods.common.noised_batch import NoisedBatch


@dataclass(frozen=True)
class CRD(AdvantageMethod):
    """Centred reward distillation (arXiv:2603.14128): fit the policy's implicit reward to the given one,
    prompt by prompt."""

    beta: NonNegative = 1.0  # what a unit of implicit reward is worth
    advantage_clip: NonNegative = 5.0  # advantages are clipped here, and mapped to R*
    kl: NonNegative = 0.1  # weight of |v - v_ref|^2
    reference_guidance: float | None = None  # the paper holds an unguided policy to a guided reference (4.5)
    old_decay_start: NonNegative = 0.25  # the old copy keeps min(start + slope k, max) of itself after batch k
    old_decay_slope: NonNegative = 0.005  # what the old copy keeps more with each batch
    old_decay_max: NonNegative = 0.999  # the most that the old copy keeps
    optimizer_steps: Count = 2
    schedule_fraction: NonNegative = 0.99

    paper = "arXiv:2603.14128"
    former_names = AdvantageMethod.former_names | {
        "bound": "advantage_clip",
        "anchor_guidance": "reference_guidance",
        "slow": "old_decay_start",
        "slower": "old_decay_slope",
        "most": "old_decay_max",
    }

    def copies(self) -> dict[str, float | None]:
        return {"old": self.guidance} | ({"reference": self.reference_guidance} if self.kl else {})

    def decay(self, k: int) -> float:
        return min(self.old_decay_start + self.old_decay_slope * k, self.old_decay_max)

    def loss(self, batch: NoisedBatch) -> Tensor:
        assert batch.old is not None  # `copies` asks for it
        l_old, l = (losses.self_normalised_error(x, batch.x0) for x in (batch.old, batch.live))  # noqa: E741
        r = (l_old - l) / batch.s  # [n], in units of v
        target = losses.optimality_probability(batch.weight, self.advantage_clip)
        miss = self.beta * (r - losses.group_mean(r.detach(), batch.group))
        miss = miss - (target - losses.group_mean(target, batch.group))
        kl = self.kl * (1e-3 + target * (1 - 1e-3))
        return self.advantage_clip / self.beta * miss.square() + kl * batch.drift(batch.reference)
