"""Diffusion-DPO and Flow-DPO. Wallace et al., CVPR 2024, arXiv:2311.12908, Eq. 14; Liu et al. 2025, arXiv:2501.13918, for flows,
with beta constant over noise levels.

Pairs come with the batch (workbench.runs.preference_data), or are made: of a prompt's samples the reward's favourite w is preferred to the one
that it likes least, l. Both meet the same noise at the same levels; with e = |v - u|^2 - |v_ref - u|^2, how much worse than the reference a sample is denoised,

    L = -log sigmoid( -beta/2 ( e_w - e_l + anchor max(0, e_w) ) ).

The optimum needs only e_w < e_l, and is often reached by denoising both worse. The anchor (DPO-Positive, arXiv:2402.13228,
Eq. 3) lets no margin count that the winner pays for. Errors are means over dimensions: beta belongs to that convention (100 for
SD 3.5 by LoRA, 2000 to 5000 elsewhere).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Count, Natural, NonNegative
from workbench.methods.common import forward_process, losses
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (arXiv:2311.12908, 2501.13918): winners over losers, or the best of one's own samples over
    the worst."""

    group: Count = 24  # samples a prompt, of which the best and the worst are a pair
    beta: NonNegative = 100.0  # how far from the reference a preference is worth going: higher stays nearer
    anchor: NonNegative = 0.0  # weight of the winner's own loss where it exceeds the reference's
    refresh: Natural = 0  # batches after which the live weights become the reference (online DPO: 40); 0: never
    lr: NonNegative = 3e-4  # step size of AdamW
    updates: Count = 1  # per batch
    times: Natural = 0  # noise levels a pair meets in an update; 0: all
    share: NonNegative = 1.0  # of the schedule that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts whose pairs go through the denoiser together; 0: all

    needs = NEEDS
    scales = ""
    paper = "arXiv:2311.12908"
    pairs = True  # may learn from pairs of media that exist already
    samples, same_eps, advantage = "train", True, "centre"
    __call__ = forward_process.train

    def calls(self, steps: int) -> int:
        return self.group * steps + 2 * (forward_process.calls(self, steps) // self.group - steps)

    def weigh(self, advantage: Tensor) -> Tensor:
        """1 for the best of each group, -1 for the worst; NaN for the rest."""
        a = advantage.view(-1, self.group)
        sign = torch.full_like(a, torch.nan)
        sign.scatter_(1, a.nan_to_num(-torch.inf).argmax(1, keepdim=True), 1.0)
        sign.scatter_(1, a.nan_to_num(torch.inf).argmin(1, keepdim=True), -1.0)
        return sign.masked_fill(a.isnan(), torch.nan).flatten()

    def copies(self) -> dict[str, float | None]:
        return {"old" if self.refresh else "reference": self.guidance}

    def decay(self, k: int) -> float:
        return 0.0 if (k + 1) % self.refresh == 0 else 1.0

    def loss(self, seen: Seen) -> Tensor:
        e = seen.error(seen.live) - seen.error(seen.old if self.refresh else seen.reference)  # [n]
        worse = seen.weight * e + self.anchor * (seen.weight > 0) * e.clamp(min=0)
        return losses.preference(-self.beta / 2 * losses.group_sum(worse, seen.group))  # [n], a pair's twice
