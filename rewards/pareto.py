"""Which samples no other beats on everything: the Pareto front, and two rewards made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .transforms import Raw, Typical, same_prompt


def dominance_matrix(values: Tensor) -> Tensor:
    """bool [B,B]: whether i is at least as good as j in all K rewards and better in one. values: [K,B]. NaN neither
    dominates nor is dominated."""
    ours, theirs = values[:, :, None], values[:, None, :]
    return (ours >= theirs).all(0) & (ours > theirs).any(0)


def pareto_fronts(values: Tensor, same: Tensor | None = None) -> Tensor:
    """int64 [B]: 0 for the samples that none dominates, 1 for those that only these dominate, and so on; -1 for NaN.

    values: [K,B]. same: bool [B,B], which samples compete with each other; all by default.
    """
    beaten_by = (
        dominance_matrix(values).T if same is None else dominance_matrix(values).T & same
    )  # [j,i]: i dominates j
    front = torch.full((values.shape[1],), -1, device=values.device)
    remaining, number = ~values.isnan().any(0), 0
    while remaining.any():
        top = remaining & ~(beaten_by & remaining).any(1)
        front[top] = number
        remaining, number = remaining & ~top, number + 1
    return front


def crowding_distance(values: Tensor) -> Tensor:
    """[B]: crowding distance of NSGA-II (doi:10.1109/4235.996017, section III-B) among the samples of one front: the
    sum over rewards of the gap between a sample's neighbours, in shares of the front's range; inf at either end.

    values: [K,B] without NaN.
    """
    distance = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    for row in values.double():
        order = row.argsort(stable=True)
        span = row[order[-1]] - row[order[0]]
        distance[order[[0, -1]]] = torch.inf
        if len(order) > 2 and span > 0:
            distance[order[1:-1]] += (row[order[2:]] - row[order[:-2]]) / span
    return distance


@dataclass(frozen=True)
class Pareto:
    """NSGA-II's order within each prompt as a number: minus the front, plus up to 1/2 for standing apart on it. For
    selection: no weight decides between rewards, and no scale matters but through the crowding."""

    differentiable: ClassVar[bool] = False
    scope: ClassVar[Literal["sample", "group"]] = "group"
    weighted: ClassVar[bool] = False
    shape: ClassVar[type] = Raw

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        values, same = values.detach(), same_prompt(prompts).to(values.device)
        front = pareto_fronts(values, same)
        score = torch.full(front.shape, torch.nan, dtype=torch.float64, device=values.device)
        for i in range(len(front)):
            if front[i] >= 0 and score[i].isnan():
                rows = same[i] & (front == front[i])
                spacing = crowding_distance(values[:, rows])
                score[rows] = -front[i] + 0.5 * torch.where(spacing.isinf(), 1.0, spacing / (1 + spacing))
        return score.to(values.dtype)


@dataclass(frozen=True)
class Parrot:
    """Parrot's batch-wise selection (arXiv:2401.05675): non-dominated samples of a prompt get the weighted sum of their
    rewards, the others 0. Each reward counts from the lowest of its prompt, so that 0 is never more than a front's
    prize.

    With few samples and many rewards hardly any is dominated: take 64 a prompt, or two or three rewards.
    """

    differentiable: ClassVar[bool] = False
    scope: ClassVar[Literal["sample", "group"]] = "group"
    weighted: ClassVar[bool] = True
    shape: ClassVar[type] = Typical

    def __call__(self, values: Tensor, weights: Tensor, prompts: Sequence[str]) -> Tensor:
        values, same = values.detach(), same_prompt(prompts).to(values.device)
        is_valid = ~values.isnan().any(0)  # [B]
        lowest = values.masked_fill(~is_valid, torch.inf).unsqueeze(1).masked_fill(~same, torch.inf).amin(2)  # [K,B]
        prize = (weights[:, None] * (values - lowest)).sum(0)
        return torch.where(pareto_fronts(values, same) == 0, prize, 0.0).masked_fill(~is_valid, torch.nan)
