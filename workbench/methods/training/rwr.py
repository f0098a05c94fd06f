"""RWR: reward-weighted regression. Peters & Schaal, ICML 2007; for diffusion Lee et al. 2023, arXiv:2302.12192; for
flows Liu et al. 2025, arXiv:2501.13918, Eq. 9.

    L = w |v - u|^2 + kl |v - v_ref|^2,        w = min(max_weight, exp(A / temperature)),

with A the standardised reward. Bad samples are learnt from too, only less. As the temperature falls only the best
remain (see raft). On samples of its own, round after round, it comes to make plainer and plainer ones; the flow paper
learns from a set that the base made once: `samples: reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import Count, NonNegative
from workbench.methods.common.advantage_method import AdvantageMethod
from workbench.methods.common.noised_batch import NoisedBatch
from workbench.methods.common.rollout import SampledBy


@dataclass(frozen=True)
class RWR(AdvantageMethod):
    """Reward-weighted regression (arXiv:2501.13918, Eq. 9): the denoising loss on one's own samples, by exp(reward)."""

    group: Count = 8
    temperature: NonNegative = 1.0  # of the weights, in standard deviations of the reward
    max_weight: NonNegative = 20.0  # the weights are capped here
    kl: NonNegative = 0.0  # weight of |v - v_ref|^2
    lr: NonNegative = 1e-4
    samples: SampledBy = "train"  # whose are learnt from: its own of each round, or the base's

    paper = "arXiv:2501.13918"
    former_names = AdvantageMethod.former_names | {"cap": "max_weight"}

    def weigh(self, advantage: Tensor) -> Tensor:
        return (advantage / self.temperature).exp().clamp(max=self.max_weight)

    def copies(self) -> dict[str, float | None]:
        return {"reference": self.guidance} if self.kl else {}

    def loss(self, batch: NoisedBatch) -> Tensor:
        return batch.weight * batch.error(batch.live) + self.kl * batch.drift(batch.reference)
