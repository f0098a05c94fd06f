"""Whether the votes have a best at all: where A beats B, B beats C and C beats A, no ranking is true, and Bradley-Terry
shows them as equals. Pure functions of arrays.

Votes are transitive in the weak sense when contestants can be ordered so that none beats one above it in more than half
of all votes (Iverson and Falmagne 1985, Statistical issues in measurement). In any cycle at least one contestant wins
only by chance then. So a cycle is as likely by chance as its weakest win; that of the strongest cycle is multiplied by
the number of pairs, for so many wins could have been the weakest one (an intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.special import betainc

from workbench.evaluation.statistics import FEW_PROMPTS

ALARM = 0.05


@dataclass(frozen=True)
class Transitivity:
    """The strongest cycle among the votes, and how likely votes without one show as much."""

    p: float  # 1.0 where there is no cycle
    cycle: tuple[str, ...] = ()  # each beat the next, and the last one the first

    @property
    def is_violated(self) -> bool:
        return self.p < ALARM

    def __str__(self) -> str:
        if not self.cycle:
            return "no cycle: a ranking fits these votes"
        words = " beats ".join((*self.cycle, self.cycle[0]))
        if self.is_violated:
            return f"no ranking is true of these votes: {words} (p = {self.p:.2g}); read the wins by pair"
        return f"a cycle that chance explains (p = {self.p:.2g}): {words}"


def check_transitivity(
    lefts: Sequence[str], rights: Sequence[str], choices: Sequence[str], prompts: Sequence[str]
) -> Transitivity:
    """The test on N votes: labels of the left and right contestants, choices (ratings.SCORE_OF_CHOICE), prompts. Ties
    and "both bad" say nothing on who beats whom. Votes on one prompt count as one, by majority, where there are at
    least FEW_PROMPTS prompts: they are not independent."""
    names = sorted({*lefts, *rights})
    number = {name: n for n, name in enumerate(names)}
    margins: dict[tuple, int] = {}
    by_prompt = len(set(prompts)) >= FEW_PROMPTS
    for n, (left_name, right_name, choice, prompt) in enumerate(zip(lefts, rights, choices, prompts, strict=True)):
        i, j, lead = number[left_name], number[right_name], {"left": 1, "right": -1}.get(choice, 0)
        key = (min(i, j), max(i, j), prompt if by_prompt else n)
        margins[key] = margins.get(key, 0) + (lead if i < j else -lead)
    won = np.zeros((len(names), len(names)), int)
    for (i, j, _), margin in margins.items():
        won[i, j] += margin > 0
        won[j, i] += margin < 0
    return find_strongest_cycle(won, names)


def find_strongest_cycle(won: np.ndarray, names: Sequence[str]) -> Transitivity:
    """The test on decided comparisons: int [n,n], how often row beat column."""
    met = won + won.T
    # of at least as many wins, were both equally good: the tail of a binomial distribution
    chance = np.where(won > 0, betainc(np.maximum(won, 1), met - won + 1, 0.5), 1.0)
    cycle: tuple[str, ...] = ()
    beats, best = won > won.T, 1.0
    for i, j, k in permutations(range(len(names)), 3):
        if i < min(j, k) and beats[i, j] and beats[j, k] and beats[k, i]:
            weakest = max(chance[i, j], chance[j, k], chance[k, i])
            if not cycle or weakest < best:
                cycle, best = (names[i], names[j], names[k]), weakest
    pairs = int((met > 0).sum() // 2)
    return Transitivity(min(1.0, float(best) * pairs), cycle) if cycle else Transitivity(1.0)
