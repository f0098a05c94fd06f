"""Which reward agrees with people's votes: any reward, asked afterwards about the media that people voted on.

A vote counts 1 where the reward scores the preferred medium higher, 1/2 where it scores both alike, and 0 otherwise.
Votes that prefer neither ("tie", "both bad") say nothing of an order and are left out, and counted. Two baselines stand
beside it: chance, 1/2, and how often two raters who preferred something on the same two media preferred the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.people.votes import HeldOutReport, make_report
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs, prompt_inputs
from workbench.core.io import media
from workbench.core.types import Reward, prompt_key
from workbench.evaluation.score_batches import BatchScorer, Question
from workbench.evaluation.scoring import check_file_rewards
from workbench.feedback import votes
from workbench.feedback.vote_export import RewardAgreement
from workbench.feedback.votes import Side, Vote

DECIDED = ("left", "right")
MARGIN_GROUPS, VOTES_A_GROUP = 4, 10  # groups of votes by the reward's margin, and how many each has at least

ScoresByReward = dict[str, dict[int, float]]  # reward -> artefact -> score


@dataclass(frozen=True)
class MarginGroup:
    """Votes on pairs whose scores differ by `low` to `high`."""

    low: float
    high: float
    share: float  # that the reward agrees with
    votes: int


@dataclass(frozen=True)
class Agreement:
    """One reward beside the votes on one criterion and modality."""

    axis: str
    modality: str
    against_people: RewardAgreement
    unscored: int  # votes on media of which one has no score
    margins: tuple[MarginGroup, ...]  # from the pairs that the reward finds most alike


@dataclass(frozen=True)
class Raters:
    """The raters' agreement with each other on one criterion and modality."""

    axis: str
    modality: str
    votes: int  # that prefer something
    ties: int  # that don't
    report: HeldOutReport | None  # over pairs of raters; None where no two judged the same media


@dataclass(frozen=True)
class AgreementStudy:
    """All that votes say of some rewards."""

    agreements: tuple[Agreement, ...]  # the best first
    raters: tuple[Raters, ...]
    problems: tuple[str, ...]  # media without a score, and why


def read_votes_on(runs: Path, folders: Sequence[str] = (), study: int = 0) -> list[Vote]:
    """The valid votes on all criteria, on media of these runs (all where none is named) and in this study (0: any).
    Raises BadInput where there is none that prefers something."""
    every = [v for v in votes.standing_votes(runs, study=study, axis="") if not folders or v.folder in folders]
    if not any(v.choice in DECIDED for v in every):
        raise BadInput(f"{runs}: nobody has preferred something there yet; vote first, in the app or by a study's link")
    return every


def measure_rewards(
    runs: Path,
    some: Sequence[Vote],
    rewards: Mapping[str, Reward],
    report_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AgreementStudy:
    """The agreement of rewards with these votes, for each criterion and modality. Raises BadInput for a reward that
    can't score single media, and where none can score any of these."""
    check_file_rewards(rewards)
    for name, reward in rewards.items():
        if reward.spec.scope != "sample":
            raise BadInput(f"--reward {name}: judges whole sets, and votes are on pairs of single media")
    scores, problems = score_voted_media(runs, some, rewards, report_progress)
    groups: dict[tuple[str, str], list[Vote]] = {}
    for vote in some:
        groups.setdefault((vote.axis, vote.modality), []).append(vote)
    agreements = [
        agreement
        for (axis, modality), part in groups.items()
        for name, reward in rewards.items()
        if modality in reward.spec.modalities
        if (agreement := measure_reward(name, reward.spec.version, scores[name], part, axis, modality))
    ]
    if not agreements:
        kinds = ", ".join(sorted({v.modality for v in some}))
        raise BadInput(problems[0] if problems else f"none of these rewards judges {kinds}, on which people voted")
    agreements.sort(key=lambda a: (a.axis, a.modality, -a.against_people.report.accuracy))
    raters = tuple(compare_raters(part, axis, modality) for (axis, modality), part in groups.items())
    return AgreementStudy(tuple(agreements), raters, tuple(problems))


def score_voted_media(
    runs: Path, some: Sequence[Vote], rewards: Mapping[str, Reward], report_progress: Callable[[int, int], None]
) -> tuple[ScoresByReward, list[str]]:
    """(the scores of all media that somebody preferred or not, sentences on those without), each medium once, those of
    one shape together."""
    sides = {side.artefact: (side, v.prompt) for v in some if v.choice in DECIDED for side in (v.left, v.right)}
    scorer, questions, problems = BatchScorer(rewards, {}), [], []
    for n, (side, prompt) in enumerate(sides.values()):
        try:
            questions.append((side.artefact, _ask(scorer, runs, side, prompt, rewards)))
        except BadInput as error:
            problems.append(str(error))
        if scorer.is_full:
            scorer.score_waiting()
        report_progress(n + 1, len(sides))
    scorer.score_waiting()
    problems += [problem for _, question in questions for problem in question.problems.values()]
    scores: ScoresByReward = {name: {} for name in rewards}
    for artefact, question in questions:
        for name, value in question.scores.items():
            scores[name][artefact] = value
    return scores, problems


def _ask(scorer: BatchScorer, runs: Path, side: Side, prompt: str, rewards: Mapping[str, Reward]) -> Question:
    """Raises BadInput for a medium that is gone or has changed, and for an input that no reward can do without."""
    path = runs / side.file
    if not path.is_file() or media.file_digest(path) != side.sha256:
        raise BadInput(f"{path}: is gone or has changed since people voted on it")
    item = media.inspect_media(path)
    if not item.is_finite():
        raise BadInput(f"{path}: holds values that are not finite, so nothing can judge it")
    for name, reward in rewards.items():
        if absent := [need for need in input_needs(reward.spec) if need not in prompt_inputs(prompt)]:
            raise BadInput(f"reward {name} needs the {absent[0]} of {path}, and its prompt came with none")
    return scorer.add(path, item, prompt)


def measure_reward(
    name: str, version: str, scores: Mapping[int, float], some: Sequence[Vote], axis: str, modality: str
) -> Agreement | None:
    """One reward by its scores of artefacts; None where it has scored both media of no vote that prefers something.
    some: votes on one criterion and modality."""
    decided = [v for v in some if v.choice in DECIDED]
    scored = [v for v in decided if v.left.artefact in scores and v.right.artefact in scores]
    if not scored:
        return None
    gap = np.array([scores[v.left.artefact] - scores[v.right.artefact] for v in scored])
    is_left = np.array([v.choice == "left" for v in scored])
    agrees = np.where(gap == 0, 0.5, (gap > 0) == is_left)
    return Agreement(
        axis,
        modality,
        RewardAgreement(name, version, _report(agrees, scored)),
        len(decided) - len(scored),
        group_by_margin(np.abs(gap), agrees),
    )


def group_by_margin(margin: np.ndarray, agrees: np.ndarray) -> tuple[MarginGroup, ...]:
    """Equally many votes in each group; fewer groups where votes are few. margin, agrees: [N]."""
    count = min(MARGIN_GROUPS, max(1, len(margin) // VOTES_A_GROUP))
    parts = np.array_split(np.argsort(margin, kind="stable"), count)
    return tuple(
        MarginGroup(float(margin[p].min()), float(margin[p].max()), float(agrees[p].mean()), len(p)) for p in parts
    )


def compare_raters(some: Sequence[Vote], axis: str, modality: str) -> Raters:
    """How often two raters who preferred something on the same two media preferred the same one."""
    by_pair: dict[frozenset[int], list[tuple[str, int, Vote]]] = {}
    for v in some:
        if v.choice in DECIDED:
            preferred = (v.left if v.choice == "left" else v.right).artefact
            by_pair.setdefault(frozenset((v.left.artefact, v.right.artefact)), []).append((v.rater, preferred, v))
    agrees, on = [], []
    for answers in by_pair.values():
        for (one, first, vote), (other, second, _) in combinations(answers, 2):
            if one != other:
                agrees.append(float(first == second))
                on.append(vote)
    ties = sum(v.choice not in DECIDED for v in some)
    return Raters(axis, modality, len(some) - ties, ties, _report(np.array(agrees), on) if on else None)


def _report(agrees: np.ndarray, on: Sequence[Vote]) -> HeldOutReport:
    """Votes on one prompt are a cluster."""
    number: dict[Any, int] = {}
    cluster = torch.tensor([number.setdefault(prompt_key(v.prompt), len(number)) for v in on])
    return make_report(torch.tensor(agrees, dtype=torch.float64), cluster, "prompts")
