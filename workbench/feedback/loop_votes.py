"""Which votes a loop learns from, and what a follow-up's votes say of a trained model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.people.votes import make_report
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import prompt_key
from workbench.feedback import studies, votes
from workbench.feedback.votes import Vote
from workbench.runs import store
from workbench.runs.imported_media import PIPELINE as IMPORTED

SCORES = {True: 1.0, False: 0.0}


@dataclass(frozen=True)
class VoteSource:
    """The votes of a study, on its first criterion, or all overall votes on the samples of some runs."""

    study: str = ""
    runs: tuple[str, ...] = ()  # run folders; () with no study: every vote there is

    def __str__(self) -> str:
        if self.study:
            return f"the study {self.study}"
        return ", ".join(self.runs) if self.runs else "all votes"

    def read(self, runs: Path, modality: str = "", rater: str = "") -> list[Vote]:
        """The valid votes, oldest first. Raises BadInput for no such study, no such run, and no vote."""
        vote_list = self._read_all(runs)
        selected = [v for v in vote_list if modality in ("", v.modality) and rater in ("", v.rater)]
        if not selected:
            raise BadInput(f"{self}: there is no vote yet; vote first")
        return selected

    def _read_all(self, runs: Path) -> list[Vote]:
        if self.study:
            study = studies.find_study(runs, self.study)
            return votes.standing_votes(runs, study=study.number, axis=study.criteria[0])
        vote_list = votes.standing_votes(runs)
        if not self.runs:
            return vote_list
        with store.open_index(runs) as db:
            folders = [row["folder"] for row in db.execute("SELECT folder FROM runs")]
        for folder in self.runs:
            if folder not in folders:
                nearest = suggest_nearest(folder, folders)
                raise BadInput(f"there is no run {quote_value(folder)} in {runs}; {nearest}")
        return [v for v in vote_list if v.folder in self.runs]


def shuffle_choices(vote_list: Sequence[Vote], seed: int = 0) -> list[Vote]:
    """The same votes dealt out to other pairs: a control, in which there is nothing to learn."""
    order = np.random.default_rng([seed, 11]).permutation(len(vote_list))
    return [replace(v, choice=vote_list[n].choice) for v, n in zip(vote_list, order, strict=True)]


def find_pipeline(vote_list: Sequence[Vote]) -> str:
    """The label of the pipeline that made all media of these votes. Raises BadInput where there are several."""
    labels = Counter(side.pipeline for v in vote_list for side in (v.left, v.right))
    if len(labels) > 1:
        raise BadInput(f"these votes are on samples of {', '.join(sorted(labels))}; name the one to train: --pipeline")
    if IMPORTED in labels:
        raise BadInput("these votes are on media that were made elsewhere; name the pipeline to train: --pipeline")
    return next(iter(labels))


def measure_win_rate(vote_list: Sequence[Vote], trained: str) -> dict[str, Any]:
    """How often contestant `trained` was preferred, a tie counting half: {"accuracy": its win rate, "low", "high": 95 %
    interval, votes on one prompt counting as one cluster, "votes", "clusters", ...}. "Both bad" says nothing. Raises
    BadInput without a vote that does."""
    decided = [v for v in vote_list if v.choice != "bad"]
    if not decided:
        raise BadInput("no vote says yet which is better")
    won = [0.5 if v.choice == "tie" else SCORES[getattr(v, v.choice).contestant == trained] for v in decided]
    number = {key: n for n, key in enumerate(dict.fromkeys(prompt_key(v.prompt) for v in decided))}
    clusters = torch.tensor([number[prompt_key(v.prompt)] for v in decided])
    return asdict(make_report(torch.tensor(won, dtype=torch.float64), clusters, "prompts"))


def describe_win_rate(result: dict[str, Any]) -> str:
    """In one sentence, whether the training helped."""
    share, low, high = (f"{100 * result[key]:.0f} %" for key in ("accuracy", "low", "high"))
    verdict = (
        "it helped" if result["low"] > 0.5 else "it did harm" if result["high"] < 0.5 else "no difference is shown"
    )
    return (
        f"{verdict}: tuned won {share} [{low}, {high}] of {result['votes']} blind votes on {result['clusters']} "
        "held-out prompts, where chance is 50 %"
    )
