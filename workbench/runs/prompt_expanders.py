"""Prompt expanders: rewordings of prompts, by fixed rules or by a language model behind an OpenAI-compatible endpoint.

expander: details                                              appends phrases such as "sharp focus"
expander: closed                                               rearranges the prompt's own words
expander: {url: "http://127.0.0.1:8000/v1", model: Qwen/Qwen3-8B}
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

from rewards.vlm.judge_answers import TAGGED
from rewards.vlm.judge_client import (
    Cost,
    Endpoint,
    Job,
    JudgeClient,
    JudgeError,
    Reply,
    check_judge_url,
    shared_client,
)
from workbench.core.errors import BadInput
from workbench.core.redact import redact
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.types import AtLeast, Count, Modality, Natural, NonNegative, derive_seed

DETAILS: dict[Modality, tuple[str, ...]] = {
    "image": (
        "highly detailed",
        "sharp focus",
        "clear composition",
        "well lit",
        "rich colours",
        "professional photograph",
        "intricate textures",
        "high resolution",
    ),
    "video": (
        "smooth motion",
        "steady camera",
        "natural movement",
        "consistent lighting",
        "cinematic shot",
        "sharp frames",
        "detailed scene",
        "high frame rate",
    ),
    "audio": (
        "clear recording",
        "studio quality",
        "rich timbre",
        "balanced mix",
        "steady rhythm",
        "wide stereo image",
        "crisp sound",
        "no background noise",
    ),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "and": "and"}
JOINT = re.compile(rf"(.+?) ({'|'.join(OPPOSITE)}) (.+)")
NOUN = re.compile(r"(an?) (?:(.+) )?(\w+)")  # article, adjectives, noun


@dataclass(frozen=True)
class Details:
    """Appends two phrases about quality to the prompt, another two in each wording."""

    seed: Natural = 0

    def expand(self, prompts: Sequence[str], n: int, modality: Modality) -> list[list[str]]:
        """[B][<= n] wordings; those of a prompt don't depend on the other prompts."""
        words = DETAILS[modality]

        def wordings(prompt: str) -> Iterator[str]:
            pairs = [(a, b) for a in words for b in words if a < b]
            random.Random(derive_seed(self.seed, "details", prompt)).shuffle(pairs)
            return (f"{prompt}, {a}, {b}" for a, b in pairs)

        return [first_distinct(p, wordings(p), n) for p in prompts]


@dataclass(frozen=True)
class Closed:
    """Rewords a prompt with its own words, for models with a small vocabulary: "a above b" becomes "b below a",
    articles are dropped, adjectives or the whole prompt repeated.

    The only new words are "left of", "right of", "above" and "below", each in place of its opposite.
    """

    longest: Natural = 14  # words that the model's text encoder reads

    def expand(self, prompts: Sequence[str], n: int, modality: Modality) -> list[list[str]]:
        """[B][<= n] wordings; fewer for short prompts."""
        return [
            first_distinct(p, (w for w in generate_rewordings(p) if len(w.split()) <= self.longest), n) for p in prompts
        ]


def generate_rewordings(prompt: str) -> Iterator[str]:
    """The rewordings of a prompt: rearranged ones first, then those that only repeat words."""
    joined = JOINT.fullmatch(prompt)
    if joined:
        first, joint, second = joined.groups()
        yield f"{second} {OPPOSITE[joint]} {first}"
    yield re.sub(r"\ban? ", "", prompt)
    parts = [joined[1], joined[3]] if joined else [prompt]
    stressed = [" ".join([f[1], f[2], f[2], f[3]]) if (f := NOUN.fullmatch(p)) and f[2] else p for p in parts]
    yield f" {joined[2]} ".join(stressed) if joined else stressed[0]
    yield f"{prompt} {prompt}"
    if joined:
        yield f"{prompt} {second} {OPPOSITE[joint]} {first}"


def first_distinct(prompt: str, wordings: Iterator[str], n: int) -> list[str]:
    """The first n distinct wordings that are not the prompt itself."""
    fresh = dict.fromkeys(text for w in wordings if (text := " ".join(w.split())) and text != str(prompt))
    return list(islice(fresh, n))


INSTRUCTION = (
    "You write prompts for a model that makes {medium} from text. Say the prompt below again so that the model "
    "follows it better: keep every object, number, colour, place and action that it asks for, add none that change "
    "its meaning, and make explicit what it leaves unsaid about appearance. Answer with the new prompt alone, between "
    "<answer> and </answer>.\n\nPrompt: {prompt}"
)
MEDIUM = {"image": "pictures", "video": "video clips", "audio": "sound"}


@dataclass(frozen=True)
class Chat:
    """Rewords prompts by a language model behind an OpenAI-compatible chat endpoint; sampled as in PromptEnhancer
    (arXiv:2509.04545).

    After a call, `last_failures` has the reason for each question without a usable answer: (prompt, k) -> sentence.
    """

    url: str  # the endpoint, such as http://127.0.0.1:8000/v1
    model: str  # the model's name at the endpoint
    key: str = ""  # the NAME of the environment variable that holds the API key, where one is needed
    instruction: str = INSTRUCTION  # the request; {prompt} and {medium} are filled in
    temperature: NonNegative = 0.7
    top_p: NonNegative = 0.9
    max_tokens: Count = 256  # of an answer
    seed: Natural = 42  # wording k is sampled with seed + k
    concurrency: Count = 16  # requests at a time
    timeout: Annotated[float, AtLeast(0.01)] = 60.0  # seconds for one answer
    retries: Natural = 4  # after 429, 5xx, timeouts and lost connections
    backoff: NonNegative = 0.5  # seconds before the first retry
    cache: str = ""  # a folder for answers; without it they are cached in memory

    cost: Cost = field(default_factory=Cost, init=False, compare=False, repr=False)
    last_failures: dict[tuple[str, int], str] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        check_judge_url(self.url, "expander")
        if "{prompt}" not in self.instruction:
            raise BadInput("expander: `instruction` must say {prompt} where the prompt goes")

    @property
    def _client(self) -> JudgeClient:
        names = ("url", "key", "concurrency", "timeout", "retries", "backoff", "cache")
        return shared_client(Endpoint(**{n: getattr(self, n) for n in names}))

    def check(self) -> None:
        """Raises BadInput when the endpoint can't be reached, refuses the key or does not serve the model."""
        self._client.check(self.model)

    def expand(self, prompts: Sequence[str], n: int, modality: Modality) -> list[list[str]]:
        """[B][<= n] wordings: fewer where answers failed or were equal. Raises BadInput when there was none at all."""
        questions = [(p, k) for p in prompts for k in range(n)]
        answers = self._client.ask([self._make_job(p, k, modality) for p, k in questions], self.cost)
        self.last_failures.clear()
        wordings: dict[str, list[str]] = {p: [] for p in prompts}
        for (p, k), answer in zip(questions, answers, strict=True):
            if isinstance(answer, JudgeError):
                self.last_failures[p, k] = str(answer)
            else:
                wordings[p].append(answer[0])
        if questions and len(self.last_failures) == len(set(questions)):
            raise BadInput(f"expander: no answer of {self.url} can be used: {next(iter(self.last_failures.values()))}")
        return [first_distinct(p, iter(wordings[p]), n) for p in prompts]

    def _make_job(self, prompt: str, k: int, modality: Modality) -> Job:
        text = self.instruction.replace("{medium}", MEDIUM[modality]).replace("{prompt}", prompt)
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "seed": self.seed + k}
        body |= {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return Job(body, parse_wording)


def parse_wording(reply: Reply) -> tuple[str, ...]:
    """The text in the last <answer> tags, or else all but the <think> block. Raises JudgeError for an answer that is
    empty or cut short."""
    marked = re.findall(TAGGED, reply.content, re.S)
    if not marked and (reply.finish == "length" or "<answer>" in reply.content):
        raise JudgeError("the wording was cut short; raise `max_tokens`")
    text = marked[-1] if marked else re.sub(r"<think>.*?(</think>|$)", "", reply.content, flags=re.S)
    text = " ".join(text.split()).strip("\"'“”")
    if not text:
        raise JudgeError("the answer holds no wording")
    return (text,)


RULES: dict[str, Callable[[], Any]] = {"details": Details, "closed": Closed}


def make_expander(value: str | Mapping | Any):
    """The expander that a config's `expander` names: one of RULES, or Chat with these settings. Any other object is
    returned as it is.

    Raises BadInput for an unknown name or setting.
    """
    if isinstance(value, Mapping):
        return build_dataclass(Chat, value, "expander")
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        raise BadInput(f"expander: an endpoint needs its model too: {{url: {redact(value)}, model: …}}")
    if value not in RULES:
        raise BadInput(
            f"expander: {value!r} is not known; {suggest_nearest(value, RULES)}; or give {{url: …, model: …}}"
        )
    return RULES[value]()
