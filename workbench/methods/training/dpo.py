"""Diffusion-DPO and Flow-DPO. Wallace et al., CVPR 2024, arXiv:2311.12908, Eq. 14; Liu et al. 2025, arXiv:2501.13918,
for flows, with beta constant over noise levels.

Pairs come with the batch (workbench.runs.preference_data), or are made: of a prompt's samples the reward's favourite w
is preferred to the one that it likes least, l. Both meet the same noise at the same levels; with
e = |v - u|^2 - |v_ref - u|^2, how much worse than the reference a sample is denoised,

    L = -log sigmoid( -beta/2 ( e_w - e_l + anchor max(0, e_w) ) ).

The optimum needs only e_w < e_l, and is often reached by denoising both worse. The anchor (DPO-Positive,
arXiv:2402.13228, Eq. 3) lets no margin count that the winner pays for. Errors are means over dimensions: beta belongs
to that convention (100 for SD 3.5 by LoRA, 2000 to 5000 elsewhere).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Natural, NonNegative
from workbench.methods.common import losses
from workbench.methods.common.forward_process import ForwardProcessMethod
from workbench.methods.common.noised_batch import NoisedBatch


@dataclass(frozen=True)
class DPO(ForwardProcessMethod):
    """Direct preference optimisation (arXiv:2311.12908, 2501.13918): winners over losers,
    or the best of one's own samples over the worst."""

    beta: NonNegative = 100.0  # how far from the reference a preference is worth going: higher stays nearer
    anchor: NonNegative = 0.0  # weight of the winner's own loss where it exceeds the reference's
    refresh_every: Natural = 0  # batches after which the live weights become the reference (online DPO: 40); 0: never

    paper = "arXiv:2311.12908"
    learns_from_pairs = same_eps = True
    former_names = ForwardProcessMethod.former_names | {"refresh": "refresh_every"}

    def calls(self, steps: int) -> int:
        return self.group * steps + 2 * (super().calls(steps) // self.group - steps)

    def weigh(self, advantage: Tensor) -> Tensor:
        """1 for the best of each group, -1 for the worst; NaN for the rest."""
        a = advantage.view(-1, self.group)
        sign = torch.full_like(a, torch.nan)
        sign.scatter_(1, a.nan_to_num(-torch.inf).argmax(1, keepdim=True), 1.0)
        sign.scatter_(1, a.nan_to_num(torch.inf).argmin(1, keepdim=True), -1.0)
        return sign.masked_fill(a.isnan(), torch.nan).flatten()

    def copies(self) -> dict[str, float | None]:
        return {"old" if self.refresh_every else "reference": self.guidance}

    def decay(self, k: int) -> float:
        return 0.0 if (k + 1) % self.refresh_every == 0 else 1.0

    def loss(self, batch: NoisedBatch) -> Tensor:
        e = batch.error(batch.live) - batch.error(batch.old if self.refresh_every else batch.reference)  # [n]
        worse = batch.weight * e + self.anchor * (batch.weight > 0) * e.clamp(min=0)
        return losses.preference_loss(-self.beta / 2 * losses.group_sum(worse, batch.group))  # [n], a pair's twice
