"""Vision-language judges as rewards, over any OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, a hosted one).

    reward: {editscore: {url: "http://127.0.0.1:8000/v1"}}                     a published judge
    reward: {judge: {preset: yes_no, model: Qwen/Qwen3-VL-8B-Instruct}}        a question to any judge

Judges that compare two are in judge_pairs.py, those of a picture's parts in judge_regions.py, the published ones in
judge_named.py, what is asked in judge_presets.py, how answers are read in judge_answers.py, the requests in
judge_client.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import fmean, pstdev
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from rewards.edits.sources import check_sources
from rewards.encoders.preprocess import media_pixels, resize_images
from rewards.vlm import judge_client
from rewards.vlm.judge_client import Cost, Endpoint, Job, JudgeError
from rewards.vlm.judge_presets import PRESETS
from rewards.vlm.judge_questions import COMBINE, Preset
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.types import AtLeast, Count, Media, Natural, NonNegative, RewardSpec

DataURIs = list[str]  # one medium as data URIs: a picture, or a clip's frames
# the settings that no score depends on, only how it is got; the others belong to its version
TRANSPORT = {"url", "key", "limit", "concurrency", "timeout", "retries", "backoff", "cache", "wording"}


@dataclass(frozen=True)
class JudgedBatch:
    """A checked batch, encoded. What can't be judged has its reason in `last_failures` and is not in `good`."""

    media: Tensor  # uint8 [B,3,H,W] or [B,T,3,H,W]
    pictures: dict[int, DataURIs]
    sources: dict[int, DataURIs]
    prompts: Sequence[str]

    @property
    def good(self) -> list[int]:
        return list(self.pictures)


@dataclass(frozen=True)
class Judge:
    """A vision-language model's opinion of a picture or clip, by one of the questions in judge_presets.py, or of an
    edit, by one of those in edit_presets.py.

    With `passes` above 1 the mean over that many sampled answers (EditScore's Avg@k); passes without a readable answer
    take no part. After a call, `last_dimensions` holds every criterion, name -> [B] (and `spread`, the standard
    deviation over the passes), `last_failures` says of each NaN why, sample -> sentence, and `cost` has counted on.
    """

    preset: str = "yes_no"  # what is asked, and the form of the answer
    url: str = "http://127.0.0.1:8000/v1"  # the endpoint
    model: str = ""  # its name there; the preset's published weights unless given
    key: str = ""  # the NAME of the environment variable that holds the API key, where one is needed
    wording: tuple[str, ...] = ()  # the preset's questions in other words, as many; {prompt} and {medium} are filled in
    passes: Count = 1  # answers to each question, with seeds seed, seed+1, ...
    temperature: NonNegative = 0.0
    top_p: Annotated[float, AtLeast(0.01)] = 1.0  # sample from the likeliest tokens of this mass; 1: not sent
    top_k: Natural = 0  # sample from so many likeliest tokens, which vLLM and SGLang know; 0: not sent
    seed: Natural = 42
    frames: Count = 8  # of a clip, at most, evenly spread
    fps: NonNegative = 0.0  # of a clip, at most, by its true rate; 0: `frames` whatever it lasts
    side: Natural = 0  # longest side of what is sent, in pixels; 0: as it is
    max_tokens: Natural = 0  # of an answer; 0: the preset's own
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # what this endpoint calls that limit
    concurrency: Count = 16  # requests at a time
    timeout: Annotated[float, AtLeast(0.01)] = 60.0  # seconds for one answer
    retries: Natural = 4  # after 429, 5xx, timeouts and lost connections
    backoff: NonNegative = 0.5  # seconds before the first retry; doubled each time, jittered
    cache: str = ""  # the folder where answers are kept; without it they last as long as the process

    cost: Cost = field(default_factory=Cost, init=False, compare=False, repr=False)
    last_failures: dict[int, str] = field(default_factory=dict, init=False, compare=False, repr=False)
    last_dimensions: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    spec = PRESETS["yes_no"].spec("judge")
    kind = "sample"

    def __post_init__(self):
        name = self.spec.name
        judge_client.check_judge_url(self.url, name)
        fitting = {n for n, p in PRESETS.items() if p.kind == self.kind}
        if self.preset not in fitting:
            raise BadInput(f"{name}: no preset {self.preset!r} here; {suggest_nearest(self.preset, fitting)}")
        questions = PRESETS[self.preset].questions
        if self.wording and len(self.wording) != len(questions):
            raise BadInput(
                f"{name}: {self.preset} asks {len(questions)} question(s), `wording` has {len(self.wording)}"
            )
        if self.top_p > 1:
            raise BadInput(f"{name}: `top_p` is at most 1, got {self.top_p:g}")
        if self.passes > 1 and not self.temperature:
            raise BadInput(
                f"{name}: {self.passes} passes at temperature 0 would be the same answer; raise `temperature`"
            )
        object.__setattr__(self, "spec", self._build_spec())

    def _build_spec(self) -> RewardSpec:
        cls, preset = type(self), self._preset
        names = [f.name for f in fields(self) if f.init and f.name not in TRANSPORT]
        changed = [f"{n}={getattr(self, n)}" for n in names if getattr(self, n) != getattr(cls, n)]
        if self.wording:  # long: told apart by its hash
            changed.append("wording=" + hashlib.sha256("\n".join(self.wording).encode()).hexdigest()[:8])
        spec = preset.spec(cls.spec.name, self.wording)
        if self.model not in ("", preset.weights):
            spec = replace(spec, weights=self.model, licence="")
        return replace(spec, version=" ".join([preset.version, *changed]))

    @property
    def _preset(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def _model(self) -> str:
        if not (model := self.model or self._preset.weights):
            raise BadInput(f"{self.spec.name}: name the `model` that {self.url} serves")
        return model

    @property
    def _client(self) -> judge_client.JudgeClient:
        names = ("url", "key", "concurrency", "timeout", "retries", "backoff", "cache")
        return judge_client.shared_client(Endpoint(**{n: getattr(self, n) for n in names}))

    def check(self) -> None:
        """Raises BadInput when the judge can't be reached, refuses the key or does not serve the model."""
        self._client.check(self._model)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B], NaN where the judge gave no usable answer. Raises BadInput for media or settings that can't be asked."""
        scene, questions = self._encode_batch(media, prompts, references), range(len(self._preset.questions))
        answers = self._ask_jobs(
            {
                (b, k, q): self._make_job(
                    q, k, scene.prompts[b], media.modality, scene.sources.get(b, []), scene.pictures[b]
                )
                for b in scene.good
                for k in range(self.passes)
                for q in questions
            }
        )
        names = [*self._preset.dimensions, *(["spread"] if self.passes > 1 else [])]
        scores, parts = self._empty_scores(len(media), names)
        for b in scene.good:
            passes = [[answers[b, k, q] for q in questions] for k in range(self.passes)]
            read = [rows for rows in passes if not any(isinstance(row, JudgeError) for row in rows)]
            if not read:
                self.last_failures[b] = str(next(a for rows in passes for a in rows if isinstance(a, JudgeError)))
                continue
            totals = [COMBINE[self._preset.combine](rows) for rows in read]
            scores[b] = fmean(totals)
            columns = zip(*([v for row in rows for v in row] for rows in read), strict=True)
            values = [*map(fmean, columns), pstdev(totals)]
            for name, value in zip(names, values, strict=False):  # without passes there is no spread
                parts[name][b] = value
        self.last_dimensions.update(parts)
        return scores.to(media.data.device)

    def _empty_scores(self, n: int, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        self.last_dimensions.clear()
        return torch.full((n,), torch.nan), {name: torch.full((n,), torch.nan) for name in names}

    def _encode_batch(self, media: Media, prompts: Sequence[str], references: Media | None) -> JudgedBatch:
        self.last_failures.clear()
        x = media_pixels(self.spec, media, prompts).detach()
        if media.modality == "video" and self.fps and not media.rate:
            raise BadInput(f"{self.spec.name}: `fps` needs the clip's true frame rate, and these clips state none")
        prompts = prompts if "prompt" in self.spec.needs else [""] * len(media)
        sources, bad = None, ~x.isfinite().flatten(1).all(1)
        if "source" in self.spec.needs:
            sources = self._check_sources(media, references)
            bad |= ~sources.data.detach().isfinite().flatten(1).all(1).to(bad.device)
        for b in bad.nonzero().flatten().tolist():
            self.last_failures[b] = "the sample or its source holds values that are not finite"
        good = [b for b in range(len(media)) if b not in self.last_failures]
        media = replace(media, data=_to_uint8(x))
        return JudgedBatch(
            media.data,
            {b: self._encode_medium(media.data[b], media) for b in good},
            {b: self._encode_medium(_to_uint8(sources.data[b]), sources) for b in good} if sources else {},
            prompts,
        )

    def _check_sources(self, media: Media, references: Media | None) -> Media:
        sources = check_sources(self.spec, media, references)
        media_pixels(replace(self.spec, needs=frozenset()), sources, [])
        return sources

    def _encode_medium(self, medium: Tensor, media: Media) -> DataURIs:
        """uint8 [3,H,W] or [T,3,H,W] -> data URIs."""
        if media.modality == "image":
            return [self._png_uri(medium)]
        n = len(medium)
        count = min(n, self.frames, max(1, round(n / media.rate * self.fps)) if self.fps else self.frames)
        return [self._png_uri(medium[int((i + 0.5) * n / count)]) for i in range(count)]

    def _png_uri(self, picture: Tensor) -> str:
        """uint8 [3,H,W] -> a PNG as a data URI, its longest side at most `side`."""
        from PIL import Image

        h, w = picture.shape[-2:]
        if self.side and max(h, w) > self.side:
            size = (max(1, round(h * self.side / max(h, w))), max(1, round(w * self.side / max(h, w))))
            picture = _to_uint8(resize_images(picture[None].float() / 255, size))[0]
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def _make_job(self, q: int, k: int, prompt: str, medium: str, source: DataURIs, *media: DataURIs) -> Job:
        """Question q of the preset, pass k, about media in the order in which the question shows them."""
        question = self._preset.questions[q]
        pictures = [*(source if "source" in question.shows else []), *(uri for part in media for uri in part)]
        text = self.wording[q] if self.wording else question.text
        parts: list[dict[str, Any]] = []
        for n, uri in enumerate(pictures, 1):
            if label := self._preset.label:
                parts.append({"type": "text", "text": label.format(n=n)})
            parts.append({"type": "image_url", "image_url": {"url": uri}})
        parts.append({"type": "text", "text": _fill_template(text, prompt, medium)})
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if self._preset.system:
            messages.insert(0, {"role": "system", "content": self._preset.system})
        if question.reply:
            messages.append({"role": "assistant", "content": _fill_template(question.reply, prompt, medium)})
        request = dict(question.answer.request)
        longest = request.pop("max_tokens")
        body = {"model": self._model, "messages": messages, "temperature": self.temperature, "seed": self.seed + k}
        body |= {"top_p": self.top_p} if self.top_p < 1 else {}
        body |= {"top_k": self.top_k} if self.top_k else {}
        return Job(body | request | {self.limit: self.max_tokens or longest}, question.answer.read)

    def _ask_jobs(self, jobs: Mapping[Hashable, Job]) -> dict[Hashable, tuple[float, ...] | JudgeError]:
        return dict(zip(jobs, self._client.ask(list(jobs.values()), self.cost), strict=True))


def _to_uint8(x: Tensor) -> Tensor:
    return (x.detach().clamp(0, 1) * 255).round().byte().cpu()


def _fill_template(text: str, prompt: str, medium: str) -> str:
    """The prompt goes in last: whatever it holds stays as it is."""
    return text.replace("{medium}", medium).replace("{Medium}", medium.capitalize()).replace("{prompt}", prompt)
