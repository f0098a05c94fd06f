"""What a question to a judge is, and a preset of them: frozen data. judge_presets.py and edit_presets.py hold the
presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rewards.vlm.judge_answers import Answer, Verdict
from workbench.core.types import Modality, RewardSpec

IMAGE, VIDEO = frozenset({"image"}), frozenset({"video"})
MediumRole = Literal["source", "media", "region", "first", "second"]


@dataclass(frozen=True)
class Question:
    """`{prompt}` stands for the prompt, `{medium}` for image or video."""

    text: str
    answer: Answer
    shows: tuple[MediumRole, ...] = ("media",)
    reply: str = ""  # an assistant's turn after the question, for judges that score a conversation


def _mean_rating(rows: Sequence[Sequence[float]]) -> float:
    values = [v for row in rows for v in row]
    return sum(values) / len(values)


def _combine_viescore(rows: Sequence[Sequence[float]]) -> float:
    """sqrt(min SC * min PQ) (VIEScore, arXiv:2312.14867): the worst criterion of each question decides."""
    return math.prod(min(row) for row in rows) ** (1 / len(rows))


COMBINE: dict[str, Callable[[Sequence[Sequence[float]]], float]] = {"mean": _mean_rating, "viescore": _combine_viescore}


@dataclass(frozen=True)
class Preset:
    """A judge's protocol. `version` rises whenever a wording or a form changes, for scores are then others."""

    name: str
    version: str
    questions: tuple[Question, ...]
    modalities: frozenset[Modality] = IMAGE | VIDEO
    combine: Literal["mean", "viescore"] = "mean"  # the dimensions' mean, or the worst of each question
    typical: tuple[float, float] | None = None
    paper: str = ""
    weights: str = ""
    licence: str = ""
    system: str = ""  # a turn before the question
    label: str = ""  # a text before each picture, with its number from 1 in place of {n}

    @property
    def kind(self) -> Literal["sample", "pairs", "regions"]:
        roles = {s for q in self.questions for s in q.shows}
        return "pairs" if "first" in roles else "regions" if "region" in roles else "sample"

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(d for q in self.questions for d in q.answer.dimensions)

    def spec(self, name: str = "", wording: Sequence[str] = ()) -> RewardSpec:
        """What a reward that asks this says of itself; `wording` may ask without the prompt."""
        needs = (
            {"prompt"} if any("{prompt}" in t for t in wording or [q.text + q.reply for q in self.questions]) else set()
        )
        needs |= {"source"} if any("source" in q.shows for q in self.questions) else set()
        return RewardSpec(
            name or self.name,
            self.version,
            self.modalities,
            differentiable=False,
            scope="group" if self.kind == "pairs" else "sample",
            needs=frozenset(needs),
            typical=self.typical,
            paper=self.paper,
            weights=self.weights,
            licence=self.licence,
            bounds=self.typical,  # marks outside are no answers
        )


# a form of answer that any judge can keep to, and the words that ask for it
WINNER = Verdict(r"Winner:\W*1\b", r"Winner:\W*2\b", r"Winner:\W*tie\b")
SAY_WINNER = 'Say briefly why, then end with one line: "Winner: 1", "Winner: 2" or "Winner: tie".'
