"""What a study says: ratings on each criterion and modality, how far raters agree, and who votes with care."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rewards.people.votes import clopper_pearson
from workbench.feedback import ratings, votes
from workbench.feedback.agreement import Agreement, measure_alpha
from workbench.feedback.studies import Study, find_study
from workbench.feedback.study_battles import read_pairs
from workbench.feedback.transitivity import Transitivity, check_transitivity
from workbench.feedback.votes import Vote
from workbench.runs import store

VALUES = {"left": 0.0, "tie": 1.0, "right": 2.0, "bad": 3.0}  # of a vote, seen from the pair's `one`
HURRIED = 0.4  # of the median time of all raters, below which somebody's is remarkable


@dataclass(frozen=True, eq=False)
class Standing:
    """The contestants of one modality on one criterion."""

    axis: str
    modality: str
    board: ratings.Leaderboard
    transitivity: Transitivity
    votes: int


@dataclass(frozen=True)
class RaterQuality:
    """One rater's care."""

    id: str
    name: str
    votes: int  # of the study, without gold pairs
    gold: int  # gold pairs voted on
    gold_right: int  # of these, where the better one was preferred
    seconds: float  # median that a vote took; NaN where nothing is known
    note: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the share of gold pairs."""
        return clopper_pearson(self.gold_right / self.gold, self.gold) if self.gold else (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class StudyResults:
    """All that a study's owner is shown."""

    study: Study
    votes: tuple[Vote, ...]  # valid ones on all criteria, of the raters that count
    standings: tuple[Standing, ...]
    agreement: dict[str, tuple[Agreement, Agreement]]  # criterion -> (nominal, ordinal)
    raters: tuple[RaterQuality, ...]
    left_out: tuple[str, ...]  # names of raters below the demanded share of gold pairs
    pairs: int
    finished_pairs: int  # with as many votes as the study asks for

    @property
    def reasons(self) -> list[Vote]:
        """The votes with a reason, on the first criterion, under which a ballot's reason is kept once."""
        return [v for v in self.votes if v.reason and v.axis == self.study.criteria[0]]


def read_results(runs: Path, name: str, min_gold: float = 0.0) -> StudyResults:
    """The results of a study. min_gold: raters who preferred the better one in less than this share of their gold pairs
    don't count. Raises BadInput for no such study."""
    study = find_study(runs, name)
    every = votes.standing_votes(runs, study=study.number, axis="")
    raters = _measure_raters(runs, study, [v for v in every if v.axis == study.criteria[0]])
    careless = {r.id: r.name for r in raters if r.gold and r.gold_right / r.gold < min_gold}
    counted = tuple(v for v in every if v.rater not in careless)
    first = [v for v in counted if v.axis == study.criteria[0]]
    with store.read_index(runs) as db:
        pairs = int((~read_pairs(db, runs, study).is_gold).sum())
    pair_counts = Counter(frozenset((v.left.artefact, v.right.artefact)) for v in first)
    return StudyResults(
        study,
        counted,
        tuple(rank_votes(counted, study.criteria)),
        {axis: measure_agreement([v for v in counted if v.axis == axis]) for axis in study.criteria},
        raters,
        tuple(sorted(careless.values())),
        pairs,
        sum(count >= study.votes_per_pair for count in pair_counts.values()),
    )


def rank_votes(every: Sequence[Vote], axes: Sequence[str] = (votes.OVERALL,)) -> list[Standing]:
    """A ranking for each criterion and modality that has votes: pictures, clips and sounds never meet in one."""
    standings = []
    for axis in axes:
        for modality in votes.MODALITIES:
            chosen = [v for v in every if v.axis == axis and v.modality == modality]
            if chosen:
                columns = ([v.left.label for v in chosen], [v.right.label for v in chosen], [v.choice for v in chosen],
                           [v.prompt for v in chosen])  # fmt: skip
                board, test = ratings.build_leaderboard(*columns), check_transitivity(*columns)
                standings.append(Standing(axis, modality, board, test, len(chosen)))
    return standings


def measure_agreement(chosen: Sequence[Vote]) -> tuple[Agreement, Agreement]:
    """Krippendorff's alpha of votes on one criterion, (nominal, ordinal): a unit is a pair of samples; "both bad" is a
    value of its own in the nominal one and no value in the ordinal one."""
    raters = {who: n for n, who in enumerate(dict.fromkeys(v.rater for v in chosen))}
    units: dict[tuple[int, int], int] = {}
    cells = []
    for v in chosen:
        key = (min(v.left.artefact, v.right.artefact), max(v.left.artefact, v.right.artefact))
        value = VALUES[v.choice]
        value = 2 - value if v.left.artefact > v.right.artefact and value <= 2 else value
        cells.append((raters[v.rater], units.setdefault(key, len(units)), value))
    values = np.full((len(raters), len(units)), np.nan)
    for rater, unit, value in cells:
        values[rater, unit] = value
    return measure_alpha(values, "nominal"), measure_alpha(np.where(values == 3, np.nan, values), "ordinal")


def _measure_raters(runs: Path, study: Study, first: Sequence[Vote]) -> tuple[RaterQuality, ...]:
    """All raters of a study, who voted most first. first: valid votes on the first criterion."""
    with store.read_index(runs) as db:
        names = dict(db.execute("SELECT rater, name FROM study_raters WHERE study = ?", (study.number,)).fetchall())
        golden = db.execute(
            "SELECT v.rater, v.choice = CASE b.is_swapped WHEN 1 THEN 'right' ELSE 'left' END AS is_right FROM votes v "
            "JOIN battles b ON b.id = v.battle JOIN study_pairs p ON p.id = b.pair WHERE p.study = ? AND p.is_gold = 1 "
            "AND v.axis = ? AND v.undoes IS NULL AND NOT EXISTS (SELECT 1 FROM votes u WHERE u.undoes = v.id)",
            (study.number, study.criteria[0]),
        ).fetchall()
    gold, right_counts = Counter(r["rater"] for r in golden), Counter(r["rater"] for r in golden if r["is_right"])
    times: dict[str, list[float]] = {}
    for v in first:
        times.setdefault(v.rater, []).append(max(v.dwell))
    usual = median([s for seconds in times.values() for s in seconds] or [0.0])
    quality = []
    for who in dict.fromkeys((*names, *times, *gold)):
        seconds = median(times[who]) if who in times else np.nan
        note = "much quicker than the others" if len(times) > 2 and seconds < HURRIED * usual else ""
        if gold[who] and clopper_pearson(right_counts[who] / gold[who], gold[who])[1] < 0.75:
            note = "misses what is known" + (f", {note}" if note else "")
        quality.append(
            RaterQuality(
                who, names.get(who, who[:8]), len(times.get(who, ())), gold[who], right_counts[who], seconds, note
            )
        )
    return tuple(sorted(quality, key=lambda r: (-r.votes, r.name)))


def measure_progress(runs: Path, study: Study, rater: str) -> tuple[int, int]:
    """(how many votes a rater has given, how many they are asked for)."""
    with store.read_index(runs) as db:
        table = read_pairs(db, runs, study)
        (vote_count,) = db.execute(
            "SELECT COUNT(*) FROM votes v JOIN battles b ON b.id = v.battle JOIN study_pairs p ON p.id = b.pair "
            "WHERE p.study = ? AND b.asker = ? AND v.axis = ? AND v.undoes IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM votes u WHERE u.undoes = v.id)",
            (study.number, rater, study.criteria[0]),
        ).fetchone()
    golden = int(table.is_gold.sum())
    return vote_count, study.target or len(table.ids) - golden + min(golden, len(table.ids) // 2)


def summarise_rater(runs: Path, study: Study, rater: str) -> list[dict]:
    """[{"contestant", "won", "lost", "other"}] of one rater's votes on the first criterion, most won first: what a
    study that reveals at the end tells its raters."""
    counts: dict[str, Counter] = {}
    for v in votes.standing_votes(runs, rater=rater, study=study.number, axis=study.criteria[0]):
        for side, other in (("left", "right"), ("right", "left")):
            kind = "won" if v.choice == side else "lost" if v.choice == other else "other"
            counts.setdefault(getattr(v, side).label, Counter())[kind] += 1
    rows = [{"contestant": who, **{k: count[k] for k in ("won", "lost", "other")}} for who, count in counts.items()]
    return sorted(rows, key=lambda row: (-row["won"], row["contestant"]))


def describe_results(results: StudyResults) -> dict[str, Any]:
    """The results of a study as plain values, in the order in which they are read."""
    study, voters = results.study, [r for r in results.raters if r.votes]
    state = f"closed {study.closed[:16]}" if study.closed else "takes votes"
    count = sum(r.votes for r in results.raters)
    progress = [
        f"{study.name}: {state}; {count:,} votes of {len(voters)} raters; {results.finished_pairs:,} of "
        f"{results.pairs:,} pairs have their {study.votes_per_pair} votes"
    ]
    if results.left_out:
        progress.append(f"left out for their gold pairs: {', '.join(results.left_out)}")
    standings = [
        {
            "criterion": s.axis,
            "modality": s.modality,
            "rows": [
                {"contestant": r.name, "rating": round(r.rating), "low": round(r.low), "high": round(r.high),
                 "rank": f"{r.first}" if r.first == r.last else f"{r.first}-{r.last}", "votes": r.votes,
                 "won": None if r.share != r.share else round(r.share, 3)}
                for r in s.board.rows
            ],
            "p_cycle": s.transitivity.p,
            "notes": [str(s.transitivity), str(s.board.bias)],
        }
        for s in results.standings
    ]  # fmt: skip
    return {
        "study": study.name,
        "progress": progress,
        "standings": standings,
        "agreement": [
            {"criterion": axis, "nominal": str(nominal), "ordinal": str(ordinal)}
            for axis, (nominal, ordinal) in results.agreement.items()
        ],
        "raters": [
            {"rater": r.name, "votes": r.votes, "gold": f"{r.gold_right} of {r.gold}" if r.gold else "",
             "seconds a vote": None if r.seconds != r.seconds else round(r.seconds, 1), "note": r.note}
            for r in results.raters
        ],
    }  # fmt: skip
