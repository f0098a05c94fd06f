"""The inputs of a forward-process method's loss, and the choice of noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import derive_seed
from workbench.methods.common import losses


@dataclass(frozen=True)
class NoisedBatch:
    """n noised samples, in whole groups but for those left out, and the x0 predictions from them."""

    x0: Tensor  # [n,*latent]
    s: float  # noise level
    unit: float  # how far x0 moves where the denoiser's output moves by one
    weight: Tensor  # [n] float64, as from the method's `weigh`
    group: Tensor  # [n], index of the prompt
    live: Tensor  # [n,*latent], by the live weights, with gradient
    old: Tensor | None = None  # [n,*latent] each, for the weights in the method's `copies`
    reference: Tensor | None = None

    def error(self, predicted: Tensor | None) -> Tensor:  # [n]: the denoising loss of a prediction
        assert predicted is not None, "a method's `copies` names the weights whose predictions its loss reads"
        return losses.denoising_distance(predicted, self.x0, self.unit)

    def drift(self, other: Tensor | None) -> Tensor | float:  # [n]: between two predictions
        return 0.0 if other is None else losses.denoising_distance(self.live, other, self.unit)

    def preference_accuracy(self) -> float:
        """How many of the n rows belong to pairs whose winner's denoising error fell more than the loser's, against the
        reference: DPO's implicit accuracy (a tie counts half)."""
        margin = losses.group_sum(self.improvement() * self.weight.sign(), self.group)
        return 0.5 * (margin.sign() + 1).sum().item()

    def winner_drift(self) -> int:
        """How many of the rows are winners that are denoised worse than by the reference: a preference loss may fall
        all the same, as long as losers are denoised worse still (likelihood displacement, arXiv:2410.08847)."""
        return int((self.improvement()[self.weight > 0] < 0).sum())

    def improvement(
        self,
    ) -> Tensor:  # [n], without gradient: by how much the denoising error fell, against the reference
        base = self.reference if self.old is None else self.old
        return ((0.0 if base is None else self.error(base)) - self.error(self.live)).detach()


def draw_levels(seeds: Sequence[int], count: int, times: int, u: int) -> dict[int, list[int]]:
    """Level in 0..count-1 -> indices of the prompts noised to it in update u; each prompt has `times` levels, drawn by
    its own seed."""
    prompts_at: dict[int, list[int]] = {}
    for b, seed in enumerate(seeds):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "levels", u)))
        for i in order[:times].tolist():
            prompts_at.setdefault(i, []).append(b)
    return prompts_at
