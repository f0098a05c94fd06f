"""A voter whose taste is known: any reward, with noise. For proving that a loop closes, and for a control that must
fail."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from rewards.compose import WeightedReward
from workbench.core.errors import BadInput
from workbench.engine.score_media import Item, score_items
from workbench.feedback import raters, studies, study_battles
from workbench.feedback.study_battles import read_pair, read_pairs
from workbench.feedback.votes import Pair
from workbench.runs import store

NAME = "simulated voter"


def simulate_votes(
    runs: Path, study_name: str, taste: WeightedReward, noise: float = 0.25, seed: int = 0, limit: int = 0
) -> int:
    """Vote in a study by a hidden taste: the higher score wins after Gaussian noise on the difference, whose deviation
    is `noise` times the root mean square of all differences; equal scores are a tie. most: votes at
    most; 0 for all pairs. Returns the number of votes. Raises BadInput where the taste can't score a sample."""
    study = studies.find_study(runs, study_name)
    with store.open_index(runs) as db:
        table = read_pairs(db, runs, study)
    numbers = table.ids[~table.is_gold].tolist()
    pairs = {number: read_pair(runs, number)[0] for number in numbers}
    margins = _score_pairs(runs, pairs, taste)
    spread = float(np.sqrt(np.mean(np.square([*margins.values()]))))
    rater = raters.rater_of_login(runs, study, NAME)
    for count in range(limit or len(numbers)):
        battle, _ = study_battles.ask_battle(runs, study_name, rater.id, rng=np.random.default_rng([seed, count]))
        if isinstance(battle, str):
            return count
        margin = margins.get(battle.pair, 1.0)  # of a gold pair the first is the better one
        if margin:
            margin += noise * spread * np.random.default_rng([seed, battle.pair, 5]).standard_normal()
        better = "tie" if not margin else "left" if (margin > 0) != battle.is_swapped else "right"
        choices = dict.fromkeys(study.criteria, better)
        study_battles.record_ballot(runs, study_name, rater.id, battle.id, choices, f"sim-{battle.id}")
    return limit or len(numbers)


def _score_pairs(runs: Path, pairs: dict[int, Pair], taste: WeightedReward) -> dict[int, float]:
    """Pair -> how much more its first sample is worth."""
    samples = {}
    for pair in pairs.values():
        for side in (pair.left, pair.right):
            samples[side.artefact] = (Item(None, str(runs / side.file)), pair.prompt)
    items, prompts = zip(*samples.values(), strict=True)
    scores = {}
    for number, row in zip(samples, score_items(items, dict(taste.rewards), prompts), strict=True):
        scores[number] = sum(weight * row[name] for name, weight in taste.weights.items())
        if not math.isfinite(scores[number]):
            raise BadInput(f"simulate: {taste!r} can't score {row['file']}; name a taste that judges all samples")
    return {n: scores[pair.left.artefact] - scores[pair.right.artefact] for n, pair in pairs.items()}
