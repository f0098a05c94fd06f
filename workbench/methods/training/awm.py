"""AWM: advantage-weighted matching. Xue et al., ICML 2026, arXiv:2509.25050.

Policy gradient with the denoising loss in place of the log-probability, on the forward process:

    log p ~ -l,   l = s/p ((|v - u|^2 + e)^p - e^p),        L = A l + kl |v - v_ref|^2 + anchor |v - v_ema|^2.

power 1 is plain weighting by the noise level s; below 1 (a generalised Huber loss) no sample counts for much because
the model is bad at it. One update a batch, so PPO's ratio is 1 and needs no clip. Pushing a loss UP has no bound: the
anchor, an average of the weights that follows fast, holds back, and is not to be switched off. Two things are simpler
than in the authors' code: levels are the sampler's own, its first one (pure noise) among them, and the average's decay
is the same from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common.advantage_method import AdvantageMethod
from workbench.methods.common.noised_batch import NoisedBatch


@dataclass(frozen=True)
class AWM(AdvantageMethod):
    """Advantage-weighted matching (arXiv:2509.25050): the denoising loss of one's own samples times their advantage."""

    advantage_clip: NonNegative = 1.0  # advantages are clipped here
    power: NonNegative = 0.25  # p of the generalised Huber loss; 1 is the plain square
    kl: NonNegative = 0.001  # weight of |v - v_ref|^2
    anchor: NonNegative = 1.0  # weight of |v - v_ema|^2
    ema_decay: NonNegative = 0.3  # what the average keeps of itself after a batch
    levels_per_sample: Natural = 6
    schedule_fraction: NonNegative = 0.9
    optimizer_steps: Count = field(default=1, init=False)  # so that PPO's ratio is 1

    paper = "arXiv:2509.25050"
    former_names = {
        "times": "levels_per_sample",
        "share": "schedule_fraction",
        "at_once": "prompts_per_pass",
        "bound": "advantage_clip",
        "ema": "ema_decay",
    }

    def weigh(self, advantage: Tensor) -> Tensor:
        return advantage.clamp(-self.advantage_clip, self.advantage_clip)

    def copies(self) -> dict[str, float | None]:
        weights = {"old": self.anchor, "reference": self.kl}
        return {name: self.guidance for name, weight in weights.items() if weight}

    def decay(self, k: int) -> float:
        return self.ema_decay

    def loss(self, batch: NoisedBatch) -> Tensor:
        e, p = 1e-10, self.power
        error = batch.s / p * ((batch.error(batch.live) + e) ** p - e**p)
        return batch.weight * error + self.kl * batch.drift(batch.reference) + self.anchor * batch.drift(batch.old)
