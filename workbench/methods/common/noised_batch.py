"""What the loss of a forward-process method sees, and at which noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import derive_seed
from workbench.methods.common import losses


@dataclass(frozen=True)
class NoisedBatch:
    """n noised samples, whole groups as far as they take part, and the clean latents that are predicted from them."""

    x0: Tensor  # [n,*latent]
    s: float  # noise level
    unit: float  # of x0's errors: where the denoiser's output moves by one
    weight: Tensor  # [n] float64, the method's own
    group: Tensor  # [n], which prompt
    live: Tensor  # [n,*latent], with gradient
    old: Tensor | None = None  # [n,*latent] each, if the method asks for it
    reference: Tensor | None = None

    def error(self, predicted: Tensor | None) -> Tensor:  # [n]: the denoising loss of a prediction that was asked for
        assert predicted is not None, "a method's `copies` names the weights whose predictions its loss reads"
        return losses.denoising_distance(predicted, self.x0, self.unit)

    def drift(self, other: Tensor | None) -> Tensor | float:  # [n]: of two predictions
        return 0.0 if other is None else losses.denoising_distance(self.live, other, self.unit)

    def preference_accuracy(self) -> float:
        """How many of the n rows are of pairs whose winner is denoised the better, against the reference: DPO's
        implicit accuracy (a tie counts half)."""
        base = self.reference if self.old is None else self.old
        better = (0.0 if base is None else self.error(base)) - self.error(self.live)
        margin = losses.group_sum((better * self.weight.sign()).detach(), self.group)
        return 0.5 * (margin.sign() + 1).sum().item()


def draw_levels(seeds: Sequence[int], count: int, times: int, u: int) -> dict[int, list[int]]:
    """Level, of `count`, -> the prompts that meet it in update u; each meets `times`, drawn by its own seed."""
    prompts_at: dict[int, list[int]] = {}
    for b, seed in enumerate(seeds):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "levels", u)))
        for i in order[:times].tolist():
            prompts_at.setdefault(i, []).append(b)
    return prompts_at
