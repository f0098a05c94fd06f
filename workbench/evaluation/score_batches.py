"""Scores of media of any shapes, in any order: those that are alike are scored in one call, and one that a reward can't
judge costs its own score alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from workbench.core.inputs import stack_sources
from workbench.core.io.clips import StoredClip
from workbench.core.io.media import MediaFile
from workbench.core.text import one_line
from workbench.core.types import EmbeddingReward, Media, Reward

ROWS, VALUES = 16, 1 << 26  # media of equal shape that a reward scores at once, and their values
WINDOW = 16 * ROWS  # media that wait for others of their shape


@dataclass
class Question:
    """A medium whose scores are asked for, and what came of it."""

    path: Path
    media: Media  # one row; of a clip that was scored at once, nothing is held
    prompt: str  # with its inputs
    scores: dict[str, float] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)  # of set rewards, [1,D]
    problems: dict[str, str] = field(default_factory=dict)  # reward -> why there is no score


class BatchScorer:
    """Gathers media until there are enough, and scores those of one shape together. set_rewards: those that are asked
    for features only."""

    def __init__(self, rewards: Mapping[str, Reward], set_rewards: Mapping[str, EmbeddingReward]):
        self.rewards, self.set_rewards = rewards, set_rewards
        self.waiting: list[Question] = []
        self.values = 0

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= WINDOW or self.values >= VALUES

    def add(self, path: Path, item: MediaFile, prompt: str) -> Question:
        """The question for a file; `score_waiting` answers it."""
        if isinstance(item.content, StoredClip):  # its frames become numbers as they are needed
            question = Question(path, Media(torch.empty(0), "video", item.content.rate), prompt)
            self._score_clip(question, item)
            return question
        question = Question(path, item.media, prompt)
        self.waiting.append(question)
        self.values += question.media.data.numel()
        return question

    @torch.no_grad()
    def score_waiting(self) -> None:
        """Answer all questions that wait."""
        for group in _group_alike(self.waiting):
            for name, reward in self.rewards.items():
                if group[0].media.modality in reward.spec.modalities:
                    self._score_alike(name, reward, group)
        self.waiting, self.values = [], 0

    def _score_alike(self, name: str, reward: Reward, group: list[Question]) -> None:
        try:
            media = Media.cat([question.media for question in group])
            if name in self.set_rewards:
                for question, row in zip(group, self.set_rewards[name].features(media).split(1), strict=True):
                    question.features[name] = row
                return
            prompts = [question.prompt for question in group]
            values = reward(media=media, prompts=prompts, references=stack_sources(reward, media, prompts))
            answers = list(zip(group, values.float().tolist(), strict=True))
        except Exception as error:  # whatever a reward makes of an odd file: it costs this score, and the row says so
            if len(group) == 1:
                group[0].problems[name] = _describe_error(name, group[0].path, error)
            else:
                for question in group:
                    self._score_alike(name, reward, [question])
            return
        failures = dict(getattr(reward, "last_failures", {}))  # VLM judges say why
        for n, (question, value) in enumerate(answers):
            self._keep_score(question, name, value, failures.get(n))

    @torch.no_grad()
    def _score_clip(self, question: Question, item: MediaFile) -> None:
        for name, reward in self.rewards.items():
            if "video" not in reward.spec.modalities:
                continue
            try:
                if name in self.set_rewards:
                    question.features[name] = self.set_rewards[name].features(item.media)
                    continue
                value = score_row(reward, item, question.prompt)
            except Exception as error:  # as in _score_alike
                question.problems[name] = _describe_error(name, question.path, error)
                continue
            self._keep_score(question, name, value, getattr(reward, "last_failures", {}).get(0))

    def _keep_score(self, question: Question, name: str, value: float, why: str | None) -> None:
        if math.isfinite(value):
            question.scores[name] = value
        else:
            question.problems[name] = f"{name} found no score for {question.path}: {why or f'it gave {value}'}"


def _describe_error(name: str, path: Path, error: Exception) -> str:
    return f"{name} can't judge {path}: {one_line(error, 200) or type(error).__name__}"


def _group_alike(questions: Iterable[Question]) -> list[list[Question]]:
    """Groups of one shape, in the order of their first, and as large as one call takes."""
    groups: list[list[Question]] = []
    last: dict[tuple, list[Question]] = {}
    for question in questions:
        key = shape_key(question.media)
        if key not in last or len(last[key]) >= rows_at_once(question.media):
            groups.append([])
            last[key] = groups[-1]
        last[key].append(question)
    return groups


def shape_key(media: Media) -> tuple:
    """Media with equal keys can be rows of one batch."""
    return media.modality, media.rate, media.data.shape[1:]


def rows_at_once(media: Media) -> int:
    """How many media of this shape are scored in one call."""
    return max(min(ROWS, VALUES // max(media.data.numel(), 1)), 1)


def score_row(reward: Reward, item: MediaFile, prompt: str) -> float:
    """The score of one file, made from the inputs of the prompt. A reward with `score_clip(clip, prompts)` takes a clip
    in 8 bits, and makes numbers only of the frames that it looks at."""
    if isinstance(item.content, StoredClip) and hasattr(reward, "score_clip"):
        return float(reward.score_clip(item.content, [prompt])[0])
    sources = stack_sources(reward, item.media, [prompt])
    return float(reward(media=item.media, prompts=[prompt], references=sources)[0])
