"""The forms in which judges answer, and how each is read: strictly, for a guess would be a made-up score."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.vlm.judge_client import JudgeError, Reply

# spaces are matched in one way only: a page of them costs its length, not its square
NUMBER = r"\s*(?:\*+\s*)?(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
TAGGED = r"<answer>((?:(?!<answer>).)*?)</answer>"  # likewise for a page of opening tags
MOST_OBJECTS = 200  # places of an answer at which a JSON object is looked for, the last ones


class Answer(Protocol):
    """The form of an answer."""

    dimensions: tuple[str, ...]
    request: dict[str, Any]  # what the request must say to get this form

    def read(self, reply: Reply) -> tuple[float, ...]: ...  # a number a dimension; raises JudgeError


def answer_text(reply: Reply) -> str:
    """The answer without the thoughts before it; nothing where it was cut while it thought."""
    thoughts, end, answer = reply.content.rpartition("</think>")
    return "" if "<think>" in answer else answer


def complete_answer(reply: Reply, content: str) -> str:
    """What was said, where prose that breaks off may be read as another answer. Raises JudgeError."""
    if reply.finish == "length":
        raise unreadable_answer(reply, content)
    return answer_text(reply)


def unreadable_answer(reply: Reply, content: str) -> JudgeError:
    if reply.finish == "length":
        return JudgeError(f"the answer was cut before it said {content}; raise `max_tokens`")
    return JudgeError(f"the answer does not say {content}: {answer_text(reply).strip()[-160:]!r}")


def check_bounds(value: float, low: float, high: float, name: str) -> float:
    if not (low <= value <= high and abs(value) < 1e30):  # NaN and infinity are JSON to Python, and no score
        raise JudgeError(f"the judge gave {name} {str(value)[:20]}, outside {low:g} to {high:g}")
    return float(value)


@dataclass(frozen=True)
class YesNo:
    """P(yes) / (P(yes) + P(no)) for the first token (VQAScore, arXiv:2404.01291), in [0, 1].

    Spellings are added up (`Yes`, ` yes`). Refused where both together have less than 1% of the probability: then the
    judge said something else, and the ratio is noise.
    """

    dimensions = ("yes",)
    request = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1}

    def read(self, reply: Reply) -> tuple[float, ...]:
        if not reply.first:
            raise JudgeError("the judge sent no log-probabilities; serve it with them, or ask for a rating instead")
        mass = {"yes": 0.0, "no": 0.0}
        for token, logprob in reply.first:
            word = re.sub(r"\W|_", "", token).lower()
            if word in mass:
                mass[word] += math.exp(min(logprob, 0.0))
        total = mass["yes"] + mass["no"]
        if not total >= 0.01:
            likely = ", ".join(repr(token) for token, _ in reply.first[:3])
            raise JudgeError(f"neither yes nor no is likely as the first word; likelier are {likely}")
        return (mass["yes"] / total,)


@dataclass(frozen=True)
class Rubric:
    """A JSON object: a number a dimension under its own key, or the list of them under `key`; times `scale`."""

    dimensions: tuple[str, ...]
    low: float
    high: float
    key: str = ""
    scale: float = 1.0

    request = {"max_tokens": 1024}

    def read(self, reply: Reply) -> tuple[float, ...]:
        keys = (self.key,) if self.key else self.dimensions
        objects = [o for o in _find_objects(answer_text(reply)) if all(k in o for k in keys)]
        if not objects:
            raise unreadable_answer(reply, "a JSON object with " + ", ".join(keys))
        values = objects[-1][self.key] if self.key else [objects[-1][k] for k in keys]
        numeric = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        if not numeric or len(values) != len(self.dimensions):
            raise unreadable_answer(reply, f"{len(self.dimensions)} numbers for {', '.join(self.dimensions)}")
        marks = zip(values, self.dimensions, strict=True)
        return tuple(self.scale * check_bounds(v, self.low, self.high, name) for v, name in marks)


def _find_objects(text: str) -> list[dict]:
    """The JSON objects in a text, whatever stands around them."""
    objects, decoder = [], json.JSONDecoder()
    for match in [*re.finditer(r"\{", text)][-MOST_OBJECTS:]:
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        objects.append(value)
    return objects


@dataclass(frozen=True)
class Lines:
    """A number after each dimension's pattern; the last one counts, for a judge may weigh before it settles."""

    dimensions: tuple[str, ...]
    patterns: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf

    request = {"max_tokens": 1024}

    def read(self, reply: Reply) -> tuple[float, ...]:
        values = []
        for name, pattern in zip(self.dimensions, self.patterns, strict=True):
            matches = re.findall(pattern + NUMBER, complete_answer(reply, name))
            if not matches:
                raise unreadable_answer(reply, name)
            values.append(check_bounds(float(matches[-1]), self.low, self.high, name))
        return tuple(values)


@dataclass(frozen=True)
class Verdict:
    """Which of two is better: 1 the first, 0 the second, 1/2 a tie."""

    first: str  # patterns
    second: str
    tie: str

    dimensions = ("first",)
    request = {"max_tokens": 2048}

    def read(self, reply: Reply) -> tuple[float, ...]:
        text = complete_answer(reply, "which one is better")
        text = (re.findall(TAGGED, text, re.S) or [text])[-1]
        outcomes = ((self.first, 1.0), (self.second, 0.0), (self.tie, 0.5))
        values = [value for pattern, value in outcomes if re.search(pattern, text, re.I)]
        if len(values) != 1:
            raise unreadable_answer(reply, "which one is better")
        return (values[0],)
