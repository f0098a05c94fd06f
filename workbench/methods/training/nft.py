"""DiffusionNFT: negative-aware fine-tuning on the forward process.
Zheng et al. 2025, arXiv:2509.16117, Eq. 5-9, Algorithm 1.

Samples come from an old policy. Around it the live one defines a good and a bad policy,

    v+ = beta v + (1 - beta) v_old,        v- = (1 + beta) v_old - beta v,

and with the share r in [0,1] of good in a sample, from its advantage, each is regressed on the same noised samples:

    L = (a / beta) ( r |v+ - u|^2 + (1 - r) |v- - u|^2 ) + kl |v - v_ref|^2,        a: the bound on advantages,

where each square is over its own mean absolute error, in x0. The minimum is v_old + E[(2r - 1)(u - v_old)] / beta: a
smaller beta takes longer steps. No log-probability, no noise in the sampler; train and sample without guidance. The old
copy follows ever more slowly: at once it is fast and then collapses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.core.types import NonNegative
from workbench.methods.common import losses
from workbench.methods.common.advantage_method import AdvantageMethod
from workbench.methods.common.noised_batch import NoisedBatch


@dataclass(frozen=True)
class NFT(AdvantageMethod):
    """DiffusionNFT (arXiv:2509.16117): regress towards the good and away from the bad among one's own samples."""

    beta: NonNegative = 1.0  # how far the good policy lies from v_old; below 1, longer steps (0.1 for several rewards)
    advantage_clip: NonNegative = 5.0  # advantages are clipped here, and mapped to r
    kl: NonNegative = 1e-4  # weight of |v - v_ref|^2
    old_decay_slope: NonNegative = 0.001  # the old copy keeps min(slope k, max) of itself after batch k
    old_decay_max: NonNegative = 0.5  # the most that the old copy keeps
    schedule_fraction: NonNegative = 0.99

    paper = "arXiv:2509.16117"
    samples = "old"
    former_names = AdvantageMethod.former_names | {
        "bound": "advantage_clip",
        "slow": "old_decay_slope",
        "most": "old_decay_max",
    }

    def copies(self) -> dict[str, float | None]:
        return {"old": self.guidance} | ({"reference": self.guidance} if self.kl else {})

    def decay(self, k: int) -> float:
        return min(self.old_decay_slope * k, self.old_decay_max)

    def loss(self, batch: NoisedBatch) -> Tensor:
        assert batch.old is not None  # `copies` asks for it
        good = self.beta * batch.live + (1 - self.beta) * batch.old  # x0 is affine in v
        bad = (1 + self.beta) * batch.old - self.beta * batch.live
        r = losses.optimality_probability(batch.weight, self.advantage_clip)  # [n]
        error = losses.self_normalised_error
        pull = r * error(good, batch.x0) + (1 - r) * error(bad, batch.x0)
        return self.advantage_clip / self.beta * pull + self.kl * batch.drift(batch.reference)
