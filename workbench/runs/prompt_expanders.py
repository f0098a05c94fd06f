"""Who says prompts in other words: rules that need nothing, and a language model behind any OpenAI-compatible endpoint.

expander: details                                              what pictures, clips and sounds are praised with
expander: closed                                               the prompt's own words in another order
expander: {url: "http://127.0.0.1:8000/v1", model: Qwen/Qwen3-8B}
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

from rewards.vlm.judge_client import Cost, Endpoint, Job, JudgeClient, JudgeError, Reply, shared_client
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.types import AtLeast, BadInput, Count, Modality, Natural, NonNegative, derive_seed

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
    """Two words of praise after the prompt, others in each wording. The prompt itself stays as it is."""

    seed: Natural = 0

    def expand(self, prompts: Sequence[str], n: int, modality: Modality) -> list[list[str]]:
        """[B][<= n]; the same for a prompt whatever the others are."""
        words = DETAILS[modality]

        def wordings(prompt: str) -> Iterator[str]:
            pairs = [(a, b) for a in words for b in words if a < b]
            random.Random(derive_seed(self.seed, "details", prompt)).shuffle(pairs)
            return (f"{prompt}, {a}, {b}" for a, b in pairs)

        return [first_distinct(p, wordings(p), n) for p in prompts]


@dataclass(frozen=True)
class Closed:
    """The same said with words that the prompt has, for models that know a few words only: "a above b" as "b below a",
    a joint the other way round, without articles, with an adjective or the whole said twice.

    Only "left of", "right of", "above" and "below" may come in without being in the prompt, each for its opposite.
    """

    longest: Natural = 14  # words that the model's text encoder reads

    def expand(self, prompts: Sequence[str], n: int, modality: Modality) -> list[list[str]]:
        """[B][<= n]; fewer for short prompts, which can't be said in many ways."""
        return [
            first_distinct(p, (w for w in generate_rewordings(p) if len(w.split()) <= self.longest), n) for p in prompts
        ]


def generate_rewordings(prompt: str) -> Iterator[str]:
    """What keeps the meaning first, what only stresses it last."""
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
    """The first n that are neither the prompt nor said before."""
    fresh = dict.fromkeys(text for w in wordings if (text := " ".join(w.split())) and text != prompt)
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
    """A language model's wordings, by any OpenAI-compatible chat endpoint; sampling as PromptEnhancer
    (arXiv:2509.04545).

    After a call, `last_failures` says of each question without a usable answer why, (prompt, k) -> sentence.
    """

    url: str  # the endpoint, such as http://127.0.0.1:8000/v1
    model: str  # its name there
    key: str = ""  # the NAME of the environment variable that holds the API key, where one is needed
    instruction: str = INSTRUCTION  # what is asked; {prompt} and {medium} are filled in
    temperature: NonNegative = 0.7
    top_p: NonNegative = 0.9
    max_tokens: Count = 256  # of an answer
    seed: Natural = 42  # wording k is asked for with seed + k
    concurrency: Count = 16  # requests at a time
    timeout: Annotated[float, AtLeast(0.01)] = 60.0  # seconds for one answer
    retries: Natural = 4  # after 429, 5xx, timeouts and lost connections
    backoff: NonNegative = 0.5  # seconds before the first retry
    cache: str = ""  # the folder where answers are kept; without it they last as long as the process

    cost: Cost = field(default_factory=Cost, init=False, compare=False, repr=False)
    last_failures: dict[tuple[str, int], str] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
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
        """[B][<= n]: fewer where answers failed or were alike. Raises BadInput when there was no answer at all."""
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
    """What stands between the answer's marks, or else all but the thoughts. Raises Failed for none, or one cut
    short."""
    marked = re.findall(r"<answer>(.*?)</answer>", reply.content, re.S)
    if not marked and (reply.finish == "length" or "<answer>" in reply.content):
        raise JudgeError("the wording was cut short; raise `max_tokens`")
    text = marked[-1] if marked else re.sub(r"<think>.*?(</think>|$)", "", reply.content, flags=re.S)
    text = " ".join(text.split()).strip("\"'“”")
    if not text:
        raise JudgeError("the answer holds no wording")
    return (text,)


RULES: dict[str, Callable[[], Any]] = {"details": Details, "closed": Closed}


def make_expander(value: str | Mapping | Any):
    """What `expander:` in a config stands for: a name of RULES, or the settings of Chat. Others are returned as they
    are.

    Raises BadInput for an unknown name or setting.
    """
    if isinstance(value, Mapping):
        return build_dataclass(Chat, value, "expander")
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        raise BadInput(f"expander: an endpoint needs its model too: {{url: {value}, model: …}}")
    if value not in RULES:
        raise BadInput(
            f"expander: {value!r} is not known; {suggest_nearest(value, RULES)}; or give {{url: …, model: …}}"
        )
    return RULES[value]()
