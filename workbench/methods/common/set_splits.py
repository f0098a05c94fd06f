"""Splitting own samples into good and bad ones, D+ and D- (DRAGON: Bai et al., TMLR 2025, arXiv:2504.15217).

By rewards r of single samples, the best of a prompt's samples is paired with the worst, the second best with the second
worst, and so on. By a reward F of whole sets, the split starts from random halves, and a pair is swapped wherever that
raises

    F(D+) - contrast F(D-),

until no swap does. No score of single samples is equivalent, since what a set lacks depends on its other samples; the
nearest is the leave-one-out credit n (F(all) - F(all but one)), which can be ranked. The paper says that sets are built
for the reward but not how; the greedy search is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SetScore = Callable[[Tensor], float]  # rows of a batch [n] -> F of those samples


@dataclass(frozen=True)
class Demonstrations:
    """P pairs of rows of a batch, with one row of each pair in D+ and the other in D-."""

    up: Tensor  # [P]
    down: Tensor  # [P]
    gain: Tensor  # [P] float64, what the reward would lose if the two were swapped
    swaps: int = 0  # how many were swapped

    def select_pairs(self, share: float) -> Demonstrations:
        """The pairs with the largest gains, at most this share of all and all above 0, in their order."""
        order = self.gain.nan_to_num(-1).argsort(descending=True, stable=True)[: round(share * len(self.gain))]
        rows = order[self.gain[order] > 0].sort().values
        return Demonstrations(self.up[rows], self.down[rows], self.gain[rows], self.swaps)


def rank_pairs(r: Tensor, group: int) -> Demonstrations:
    """Best with worst in each group of `group` neighbours of r [N], second best with second worst, ...; without NaN."""
    pairs = []
    for rows in torch.arange(len(r)).split(group):
        scored = rows[~r[rows].isnan()]
        order = scored[r[scored].argsort(descending=True, stable=True)]
        half = len(order) // 2
        pairs.append(torch.stack([order[:half], order.flip(0)[:half]], 1))
    up, down = torch.cat(pairs).unbind(1)
    return Demonstrations(up, down, r[up] - r[down])


def swap_pairs(
    score: SetScore, pairs: Tensor, generator: torch.Generator, sweeps: int, contrast: float = 0.0, across: bool = False
) -> Demonstrations:
    """Greedy swaps of pairs [P,2] of rows, the first of each in D+ at the start, in at most `sweeps` passes.

    across: pair D+ with D- at random before each pass, so that samples of different prompts can be swapped. F(D+) -
    contrast F(D-) never falls. A pair's gain is the change by its swap when it was last tried; a set that can't be
    scored (NaN) is never preferred. Costs P evaluations of F per pass, twice that with contrast.
    """

    def worth(sides: Tensor) -> float:
        return score(sides[:, 0]) - (contrast * score(sides[:, 1]) if contrast else 0.0)

    sides, gain, swaps = pairs.clone(), torch.zeros(len(pairs), dtype=torch.float64), 0
    current = worth(sides) if len(pairs) else 0.0
    for _ in range(sweeps):
        if across:
            sides[:, 1] = sides[torch.randperm(len(sides), generator=generator), 1]
            current = worth(sides)
        before = swaps
        for p in torch.randperm(len(sides), generator=generator).tolist():
            other = sides.clone()
            other[p] = sides[p].flip(0)
            value = worth(other)
            gain[p] = abs(value - current)
            if value > current:
                sides, current, swaps = other, value, swaps + 1
        if swaps == before:
            break
    return Demonstrations(sides[:, 0], sides[:, 1], gain, swaps)


def random_halves(rows: Tensor, group: int, generator: torch.Generator) -> Tensor:
    """[P,2]: rows [n] paired at random within groups of `group` neighbours; an odd row of a group is left out."""
    pairs = []
    for g in (rows // group).unique():
        mates = rows[rows // group == g]
        mates = mates[torch.randperm(len(mates), generator=generator)]
        pairs.append(mates[: len(mates) // 2 * 2].view(-1, 2))
    return torch.cat(pairs) if pairs else rows.view(0, 2)


def leave_one_out_credit(score: SetScore, rows: Tensor) -> Tensor:
    """[n] float64: n (F(all) - F(all but one)) of each of `rows`; costs n + 1 evaluations."""
    everyone = score(rows)
    without = [score(rows[rows != row]) for row in rows]
    return len(rows) * (everyone - torch.tensor(without, dtype=torch.float64))
