"""D+ and D-: which of one's own samples stand as good and which as bad. Bai et al., TMLR 2025, arXiv:2504.15217.

Rewards r of single samples rank: of a prompt's samples the best is set against the worst, the second best against the
second worst. A reward F of whole sets needs sets: from random halves on, a pair changes sides wherever that raises

    F(D+) - contrast F(D-),

until none does. No score of single samples does the same, for what a set lacks depends on what else is in it. `credit`
is the nearest: n (F(all) - F(all but one)), which can be ranked. The paper tells that sets are built for the reward,
not how; this is the greedy way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SetScore = Callable[[Tensor], float]  # rows of a batch [n] -> F of those samples


@dataclass(frozen=True)
class Demonstrations:
    """P pairs of rows of a batch, one of each in D+ and the other in D-."""

    up: Tensor  # [P]
    down: Tensor  # [P]
    gain: Tensor  # [P] float64, what the reward would lose if the two changed sides
    swaps: int = 0  # pairs that changed sides

    def select_pairs(self, share: float) -> Demonstrations:
        """The pairs that differ, and of all pairs at most this share: those that differ most. In their order."""
        order = self.gain.nan_to_num(-1).argsort(descending=True, stable=True)[: round(share * len(self.gain))]
        rows = order[self.gain[order] > 0].sort().values
        return Demonstrations(self.up[rows], self.down[rows], self.gain[rows], self.swaps)


def rank_pairs(r: Tensor, group: int) -> Demonstrations:
    """Best against worst within each `group` neighbours of r [N], and so on inwards; NaN takes no part."""
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
    """Greedy swaps of pairs [P,2] of rows, the first of each in D+ to begin with;
    at most `sweeps` times through all of them.

    `across` pairs D+ with D- anew in every sweep: then a sample may take the place of another prompt's. F(D+) -
    contrast F(D-) never falls, and a pair's gain is what its other standing would have lost when it was last tried; a
    set that can't be judged (NaN) is never preferred. Costs P evaluations of F a sweep, twice that with contrast.
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
    """[P,2]: rows [n] of the same `group` neighbours, paired at random; an odd one of a group is left out."""
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
