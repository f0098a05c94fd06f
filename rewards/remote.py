"""Rewards that another process serves: `workbench serve-rewards`, on this machine or one that a tunnel leads to.

Over HTTP with a bearer token. GET /rewards answers {"rewards": {name: spec}}. POST /score takes one uncompressed npz:
`ask`, the bytes of a JSON {"modality", "rate", "prompts", "rewards"}, `data` and perhaps `references` in Media's shapes
(float32, float16, or uint8 for pictures in 0..255): examples, or a source for each sample. What else the rewards need
of each prompt's inputs goes by its name (`mask`, `first`, …), pictures and clips in the samples' size. It answers
{"scores": {name: [number or null]}, "reasons": {name: sentence}}. No pickle, either way.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, input_needs, stack_inputs
from workbench.core.io.bounded_http import RequestFailed, Server, ServerReply, check_server_url
from workbench.core.redact import redact
from workbench.core.text import one_line
from workbench.core.types import AtLeast, Media, Modality, Natural, RewardSpec

log = logging.getLogger(__name__)
TOKEN = "WORKBENCH_TOKEN"  # the environment variable that holds the secret, on both sides
PAUSE = 0.5  # seconds before the first retry; doubled for each further one
LARGEST_REPLY = 16 << 20  # bytes
LONGEST_REASON = 300  # letters


@dataclass(frozen=True)
class RemoteScores:
    """What a server said of one batch."""

    scores: dict[str, Tensor]  # reward name -> float32 [B] (scope set: []) on the media's device
    reasons: dict[str, str]  # reward name -> why its scores are NaN


@dataclass(frozen=True)
class Remote:
    """The weighted sum of rewards that a `workbench serve-rewards` computes in one request; no gradient.

    What fails in transit, or in the server, is NaN and a warning with the reason. `submit` asks in the background, so
    that the judges work while the next batch is made.
    """

    names: tuple[str, ...]  # of the server's rewards
    url: str = "http://127.0.0.1:8765"
    weights: tuple[float, ...] = ()  # one a name; 1 each unless given
    timeout: Annotated[float, AtLeast(0.1)] = 120.0  # seconds for one batch, to the last byte of its answer
    retries: Natural = 2  # after a failure that may pass
    token_env: str = TOKEN  # the environment variable that holds the server's token
    wire: Literal["float32", "float16"] = "float32"  # float16 halves what travels and changes the last digits

    spec = RewardSpec("remote", "1", frozenset({"image", "video", "audio"}), differentiable=False)

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names):
            raise BadInput(f"remote: `names` lists rewards of the server, each once; got {list(self.names)}")
        if self.weights and len(self.weights) != len(self.names):
            raise BadInput(f"remote: {len(self.weights)} weights for {len(self.names)} names; give one a name")
        way_out = f"the server's token belongs into the environment variable {TOKEN}, or the one that `token_env` names"
        check_server_url(self.url, "remote: `url`", type(self).url, way_out)
        if not re.fullmatch(r"[A-Za-z_]\w*", self.token_env):
            raise BadInput("remote: `token_env` must be the NAME of an environment variable that holds the token")

    def check(self) -> None:
        """Asks the server what it serves; from then on `spec` is true. Raises BadInput."""
        try:
            reply = self._server.request("GET", "/rewards", headers=self._read_token())
        except RequestFailed as failure:
            raise BadInput(
                f"remote: {self.url} doesn't answer ({failure}); start it: workbench serve-rewards --reward NAME"
            ) from None
        if reply.status != 200:
            raise BadInput(f"remote: {self.url} says: {reply.describe()}")
        try:
            rewards = reply.read_json(LARGEST_REPLY)["rewards"]
            specs = {one_line(name, 80): spec_from_json(fields) for name, fields in rewards.items()}
        except (BadInput, ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"remote: what answers at {self.url} is no reward server") from None
        if absent := [name for name in self.names if name not in specs]:
            raise BadInput(one_line(f"remote: {self.url} serves {', '.join(specs) or 'nothing'}, not {absent[0]}", 500))
        object.__setattr__(self, "spec", self._joint_spec([specs[name] for name in self.names]))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        answer = self.submit(media=media, prompts=prompts, references=references).result()
        for name, reason in answer.reasons.items():
            log.warning("%s: no score from %s: %s", self.url, name, reason)
        weights = self.weights or (1.0,) * len(self.names)
        return sum(weight * answer.scores[name] for weight, name in zip(weights, self.names, strict=True))

    def submit(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Future[RemoteScores]:
        """Asks for all `names` in the background. The media are copied first: they may change as soon as this returns.

        The future raises BadInput for a question that the server refuses.
        """
        kind = getattr(torch, self.wire)
        arrays = {"data": media.data.detach().to("cpu", kind, copy=True).numpy()}
        if references is not None:
            arrays["references"] = references.data.detach().to("cpu", kind, copy=True).numpy()
        for name in input_needs(self.spec):
            if name != "source":  # which is among the references
                size = None if media.modality == "audio" else media.data.shape[-3:]
                arrays[name] = stack_inputs(prompts, name, size, media.rate).data.to("cpu", kind, copy=True).numpy()
        ask = {"modality": media.modality, "rate": media.rate, "prompts": [*prompts], "rewards": self.names}
        return _thread_pool().submit(self._post_batch, ask, arrays, media.data.device)

    def _post_batch(self, ask: Mapping[str, Any], arrays: Mapping[str, Any], device: torch.device) -> RemoteScores:
        n = len(arrays["data"])
        try:
            reply = self._server.request_with_retries(
                "POST",
                "/score",
                headers=self._read_token(),
                body=pack_request(ask, arrays),
                retries=self.retries,
                pause=PAUSE,
            )
        except RequestFailed as failure:
            return self._read_answer({}, {}, n, device, str(failure))
        if 400 <= reply.status < 500 and is_refusal(reply):
            raise BadInput(f"remote: {self.url} says: {reply.describe()}")
        if reply.status != 200:
            return self._read_answer({}, {}, n, device, reply.describe())
        try:
            answer = reply.read_json(LARGEST_REPLY)
            scores, reasons = answer["scores"], answer["reasons"]
            if not isinstance(scores, dict) or not isinstance(reasons, dict):
                raise TypeError("`scores` and `reasons` are mappings")
        except BadInput as problem:
            return self._read_answer({}, {}, n, device, f"the answer can't be read: {problem}")
        except (KeyError, TypeError):
            return self._read_answer({}, {}, n, device, "the answer can't be read: it lacks `scores` or `reasons`")
        return self._read_answer(scores, reasons, n, device)

    def _read_answer(
        self, values: Mapping[str, Any], said: Mapping[str, Any], n: int, device: torch.device, why: str = ""
    ) -> RemoteScores:
        """The sound scores among `values`, NaN for the others, and a reason for every reward that has such."""
        shape = () if self.spec.scope == "set" else (n,)
        scores, reasons = {}, {}
        for name in self.names:
            numbers, problem = read_numbers(values.get(name), shape)
            scores[name] = numbers.to(device)
            if reason := said.get(name) or why or problem:
                reasons[name] = one_line(redact(str(reason)), LONGEST_REASON)
        return RemoteScores(scores, reasons)

    @property
    def _server(self) -> Server:
        return _shared_server(self.url, self.timeout)

    def _read_token(self) -> dict[str, str]:
        """The header that carries the token. Raises BadInput."""
        token = os.environ.get(self.token_env, "")
        if not re.fullmatch(r"[!-~]+", token):
            raise BadInput(f"remote: set {self.token_env} to the token that the server at {self.url} printed")
        return {"Authorization": f"Bearer {token}"}

    def _joint_spec(self, specs: Sequence[RewardSpec]) -> RewardSpec:
        modalities = frozenset.intersection(*(s.modalities for s in specs))
        if not modalities or len({s.scope for s in specs}) > 1:
            raise BadInput(
                f"remote: {', '.join(self.names)} don't judge the same media in the same way; ask them apart"
            )
        needs = frozenset().union(*(s.needs for s in specs))
        if {"reference", "source"} <= needs:
            raise BadInput(
                f"remote: of {', '.join(self.names)} one compares with examples and one with sources; ask them apart"
            )
        return RewardSpec(
            type(self).spec.name,
            "+".join(f"{name}@{s.version}" for name, s in zip(self.names, specs, strict=True)),
            modalities,
            differentiable=False,
            scope=specs[0].scope,
            needs=needs,
            typical=specs[0].typical if len(specs) == 1 and not self.weights else None,
            bounds=specs[0].bounds if len(specs) == 1 and not self.weights else None,
            weights=self.url,
            licence=", ".join(dict.fromkeys(s.licence for s in specs if s.licence)),
        )


def pack_request(ask: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    import numpy as np

    out = io.BytesIO()
    np.savez(out, ask=np.frombuffer(json.dumps(ask).encode(), np.uint8), **arrays)
    return out.getvalue()


def spec_to_json(spec: RewardSpec) -> dict[str, Any]:
    """A spec as JSON can hold it."""
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in vars(spec).items()}


def spec_from_json(fields: Mapping[str, Any]) -> RewardSpec:
    """The spec that a server's JSON describes, every field checked. Raises ValueError, TypeError, KeyError or
    AttributeError."""
    as_sets = {key: frozenset(fields[key]) for key in ("modalities", "needs")}
    as_pairs = {key: tuple(map(float, fields[key])) for key in ("typical", "bounds") if fields.get(key) is not None}
    spec = RewardSpec(**{**fields, **as_sets, **as_pairs})
    texts = (spec.name, spec.version, spec.paper, spec.weights, spec.licence)
    sound = (
        all(isinstance(text, str) and text == one_line(text, 1000) for text in texts)
        and spec.modalities
        and spec.modalities <= set(get_args(Modality))
        and spec.scope in ("sample", "group", "set")
        and spec.needs <= {"prompt", *NAMES}
        and all(pair is None or len(pair) == 2 for pair in (spec.typical, spec.bounds))
    )
    if not sound:
        raise ValueError("not the spec of a reward")
    return spec


def is_refusal(reply: ServerReply) -> bool:
    """Whether a reward server refused the question, with its sentence; anything else of that status is no answer."""
    try:
        answer = reply.read_json(LARGEST_REPLY)
    except BadInput:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("error"), str)


def read_numbers(values: Any, shape: tuple[int, ...]) -> tuple[Tensor, str]:
    """(float32 of that shape, what is wrong with it or ""): NaN where there is no number that float32 can hold,
    everywhere where there are too few or too many."""
    numbers = values if isinstance(values, list) else [values]
    n = shape[0] if shape else 1
    if values is None or len(numbers) != n:
        problem = "no number" if values is None else f"{len(numbers)} value(s) for {n} sample(s), so no number is used"
        return torch.full(shape, torch.nan), f"the server gave {problem}"
    scores = torch.tensor([_finite_or_nan(value) for value in numbers], dtype=torch.float32).view(shape)
    scores = scores.where(scores.isfinite(), torch.nan)
    no_numbers = [v for v, s in zip(numbers, scores.flatten().tolist(), strict=True) if v is not None and s != s]
    if no_numbers:
        return scores, f"the server gave no number but {one_line(repr(no_numbers[0]), 40)} for {len(no_numbers)} of {n}"
    return scores, "the server gave no number" if scores.isnan().all() else ""


def _finite_or_nan(value: Any) -> float:
    if type(value) not in (int, float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


@functools.cache
def _shared_server(url: str, seconds: float) -> Server:
    """One pool of connections to a server. No proxies: the token goes to `url` and nowhere else."""
    return Server(url.rstrip("/"), seconds=seconds, max_bytes=LARGEST_REPLY, use_proxies=False)


@functools.cache
def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="remote-reward")
