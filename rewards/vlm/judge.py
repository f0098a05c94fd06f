"""Vision-language judges as rewards, over any OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, a hosted one).

    reward: {editscore: {url: "http://127.0.0.1:8000/v1"}}                     a published judge
    reward: {judge: {preset: yes_no, model: Qwen/Qwen3-VL-8B-Instruct}}        a question to any judge

The published judges are in judge_named.py, what is asked in judge_presets.py, how answers are read in
judge_answers.py, the requests in judge_client.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import permutations
from statistics import fmean, pstdev
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from rewards.encoders.preprocess import media_pixels, resize_images
from rewards.vlm import judge_client
from rewards.vlm.judge_client import Cost, Endpoint, Job, JudgeError
from rewards.vlm.judge_presets import COMBINE, PRESETS, Preset
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
    """A vision-language model's opinion of a picture or clip, by one of the questions in judge_presets.py.

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
        if references is None:
            raise BadInput(f"{self.spec.name} compares with what was edited: give the sources as `references`")
        if len(references) != len(media):
            raise ValueError(f"{self.spec.name} needs a source a sample: {len(references)} for {len(media)} samples")
        media_pixels(replace(self.spec, needs=frozenset()), references, [])
        return references

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
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in pictures]
        messages = [
            {"role": "user", "content": [*parts, {"type": "text", "text": _fill_template(text, prompt, medium)}]}
        ]
        if question.reply:
            messages.append({"role": "assistant", "content": _fill_template(question.reply, prompt, medium)})
        request = dict(question.answer.request)
        longest = request.pop("max_tokens")
        body = {"model": self._model, "messages": messages, "temperature": self.temperature, "seed": self.seed + k}
        return Job(body | request | {self.limit: self.max_tokens or longest}, question.answer.read)

    def _ask_jobs(self, jobs: Mapping[Hashable, Job]) -> dict[Hashable, tuple[float, ...] | JudgeError]:
        return dict(zip(jobs, self._client.ask(list(jobs.values()), self.cost), strict=True))


@dataclass(frozen=True)
class JudgePairs(Judge):
    """A judge's win rates among the samples of one prompt (Pref-GRPO), every pair asked in both orders.

    Samples of one prompt in one call (and, for edits, of one source) meet each other: K of them make K(K-1) questions.
    A win is 1, a tie 1/2; a pair counts by the mean of its two orders, so a judge that likes the first place gives 1/2
    to all. Where one order has no usable answer the pair is left out, for its bias would not cancel; a sample without
    a pair left, or alone with its prompt, is NaN. `last_dimensions["first_place"]` is how often the first place won in
    a sample's pairs: 1/2 for a judge without a bias.
    """

    preset: str = "pairs"

    spec = PRESETS["pairs"].spec("judge_pairs")
    kind = "pairs"

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        scene, passes = self._encode_batch(media, prompts, references), range(self.passes)
        groups: dict[Hashable, list[int]] = {}
        for b in scene.good:
            groups.setdefault((scene.prompts[b], *scene.sources.get(b, [])), []).append(b)
        ordered = [pair for members in groups.values() for pair in permutations(members, 2)]
        pictures, source, texts = scene.pictures, scene.sources, scene.prompts
        jobs = {
            (i, j, k): self._make_job(0, k, texts[i], media.modality, source.get(i, []), pictures[i], pictures[j])
            for i, j in ordered
            for k in passes
        }
        answers = self._ask_jobs(jobs)
        first: dict[tuple[int, int], float] = {}  # how far i beat j when i was shown first
        for i, j in ordered:
            replies = [answers[i, j, k] for k in passes]
            if read := [a[0] for a in replies if not isinstance(a, JudgeError)]:
                first[i, j] = fmean(read)
            else:
                self.last_failures.setdefault(i, str(replies[0]))
                self.last_failures.setdefault(j, str(replies[0]))
        scores, parts = self._empty_scores(len(media), ["first_place"])
        for members in groups.values():
            for b in members:
                met = [o for o in members if o != b and (b, o) in first and (o, b) in first]
                if met:
                    scores[b] = fmean((first[b, o] + 1 - first[o, b]) / 2 for o in met)
                    parts["first_place"][b] = fmean((first[b, o] + first[o, b]) / 2 for o in met)
                    self.last_failures.pop(b, None)
                else:
                    self.last_failures.setdefault(
                        b, "nothing to compare with: the only judged sample of its prompt here"
                    )
        self.last_dimensions.update(parts)
        return scores.to(media.data.device)


@dataclass(frozen=True)
class JudgeRegions(Judge):
    """A judge's view of the whole picture and of its parts (after SRUM): (1 - share) * global + share * mean local.

    The parts are the tiles of a grid, each shown beside the whole; `last_dimensions` holds `global`, `local` and the
    spatial reward `map`, [B,grid,grid]. A tile without a readable answer is NaN there and takes no part in the mean.
    """

    preset: str = "regions"
    grid: Annotated[int, AtLeast(2)] = 2  # tiles across and down
    share: Annotated[float, AtLeast(0.0)] = 0.5  # weight of the parts, up to 1

    spec = PRESETS["regions"].spec("judge_regions")
    kind = "regions"

    def __post_init__(self):
        super().__post_init__()
        if self.share > 1:
            raise BadInput(f"{self.spec.name}: `share` is at most 1, got {self.share:g}")

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        scene, n, passes = self._encode_batch(media, prompts, references), self.grid, range(self.passes)
        if min(media.data.shape[-2:]) < n:
            raise BadInput(f"{self.spec.name}: a grid of {n} needs pictures of at least {n} pixels a side")
        jobs = {}
        for b in scene.good:
            picture, prompt = scene.pictures[b], scene.prompts[b]
            for k in passes:
                jobs[b, k, -1] = self._make_job(0, k, prompt, media.modality, [], picture)
                for tile, crop in enumerate(_cut_tiles(scene.media[b], n)):
                    jobs[b, k, tile] = self._make_job(1, k, prompt, media.modality, [], picture, [self._png_uri(crop)])
        answers = self._ask_jobs(jobs)
        scores, parts = self._empty_scores(len(media), ["global", "local"])
        parts["map"] = torch.full((len(media), n * n), torch.nan)
        for b in scene.good:
            replies = {t: [answers[b, k, t] for k in passes] for t in range(-1, n * n)}
            means = {
                t: fmean(r) for t, a in replies.items() if (r := [v[0] for v in a if not isinstance(v, JudgeError)])
            }
            picture, local = means.pop(-1, torch.nan), list(means.values())
            for tile, value in means.items():
                parts["map"][b, tile] = value
            parts["global"][b], parts["local"][b] = picture, fmean(local) if local else torch.nan
            scores[b] = (1 - self.share) * parts["global"][b] + self.share * parts["local"][b]
            if scores[b].isnan():
                self.last_failures[b] = str(next(v for a in replies.values() for v in a if isinstance(v, JudgeError)))
        parts["map"] = parts["map"].view(-1, n, n)
        self.last_dimensions.update(parts)
        return scores.to(media.data.device)


def _cut_tiles(picture: Tensor, n: int) -> list[Tensor]:
    """[3,H,W] -> n*n crops that cover it, row by row."""
    return [tile for row in picture.tensor_split(n, -2) for tile in row.tensor_split(n, -1)]


def _to_uint8(x: Tensor) -> Tensor:
    return (x.detach().clamp(0, 1) * 255).round().byte().cpu()


def _fill_template(text: str, prompt: str, medium: str) -> str:
    """The prompt goes in last: whatever it holds stays as it is."""
    return text.replace("{medium}", medium).replace("{Medium}", medium.capitalize()).replace("{prompt}", prompt)
