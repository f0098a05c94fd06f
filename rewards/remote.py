"""Rewards that another process serves: `workbench serve-rewards`, on this machine or one that a tunnel leads to.

Over HTTP with a bearer token. GET /rewards answers {"rewards": {name: spec}}. POST /score takes one uncompressed npz:
`ask`, the bytes of a JSON {"modality", "rate", "prompts", "rewards"}, `data` and perhaps `references` in Media's shapes
(float32, float16, or uint8 for pictures in 0..255). It answers {"scores": {name: [number or null]}, "reasons":
{name: sentence}}. No pickle, either way.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import AtLeast, Media, Natural, RewardSpec

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)
TOKEN = "WORKBENCH_TOKEN"  # the environment variable that holds the secret, on both sides
PAUSE = 0.5  # seconds before the first retry; doubled for each further one


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
    timeout: Annotated[float, AtLeast(0.1)] = 120.0  # seconds that one batch may take
    retries: Natural = 2  # after a failure that may pass
    token_env: str = TOKEN  # the environment variable that holds the server's token
    wire: Literal["float32", "float16"] = "float32"  # float16 halves what travels and changes the last digits

    spec = RewardSpec("remote", "1", frozenset({"image", "video", "audio"}), differentiable=False)

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names):
            raise BadInput(f"remote: `names` lists rewards of the server, each once; got {list(self.names)}")
        if self.weights and len(self.weights) != len(self.names):
            raise BadInput(f"remote: {len(self.weights)} weights for {len(self.names)} names; give one a name")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"remote: {self.url!r} is no address; give one such as {type(self).url}")

    def check(self) -> None:
        """Asks the server what it serves; from then on `spec` is true. Raises BadInput."""
        import httpx

        try:
            reply = self._authorised_client().get("/rewards")
        except httpx.HTTPError as error:
            message = (
                f"{self.url} doesn't answer ({_describe_error(error)}); start it: workbench serve-rewards --reward NAME"
            )
            raise BadInput(f"remote: {message}") from None
        if reply.status_code != 200:
            raise BadInput(f"remote: {self.url} says: {_error_text(reply)}")
        try:
            specs = {name: spec_from_json(fields) for name, fields in reply.json()["rewards"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"remote: what answers at {self.url} is no reward server") from None
        if absent := [name for name in self.names if name not in specs]:
            raise BadInput(f"remote: {self.url} serves {', '.join(specs)}, not {absent[0]}")
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
        ask = {"modality": media.modality, "rate": media.rate, "prompts": [*prompts], "rewards": self.names}
        return _thread_pool().submit(self._post_batch, ask, arrays, media.data.device)

    def _post_batch(self, ask: Mapping[str, Any], arrays: Mapping[str, Any], device: torch.device) -> RemoteScores:
        import httpx

        body, reason = pack_request(ask, arrays), ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                reply = self._authorised_client().post("/score", content=body)
            except httpx.HTTPError as error:
                reason = _describe_error(error)
                continue
            if 400 <= reply.status_code < 500:
                raise BadInput(f"remote: {self.url} says: {_error_text(reply)}")
            if reply.status_code == 200:
                return self._read_answer(reply, len(arrays["data"]), device)
            reason = _error_text(reply)
        return self._read_answer(None, len(arrays["data"]), device, reason)

    def _read_answer(self, reply: httpx.Response | None, n: int, device: torch.device, why: str = "") -> RemoteScores:
        """NaN with a reason for every reward that has no sound score in the reply."""
        shape = () if self.spec.scope == "set" else (n,)
        try:
            answer = reply.json() if reply else {"scores": {}, "reasons": {}}
            values, reasons = answer["scores"], {str(k): str(v) for k, v in answer["reasons"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            values, reasons, why = {}, {}, "the answer can't be read"
        scores = {}
        for name in self.names:
            scores[name] = _read_numbers(values.get(name), shape).to(device)
            if scores[name].isnan().all() and name not in reasons:
                reasons[name] = why or "the server gave no number"
        return RemoteScores(scores, {name: reasons[name] for name in self.names if name in reasons})

    def _authorised_client(self) -> httpx.Client:
        token = os.environ.get(self.token_env, "")
        if not token.isascii() or not token:
            raise BadInput(f"remote: set {self.token_env} to the token that the server at {self.url} printed")
        return _cached_client(self.url, self.timeout, token)

    def _joint_spec(self, specs: Sequence[RewardSpec]) -> RewardSpec:
        modalities = frozenset.intersection(*(s.modalities for s in specs))
        if not modalities or len({s.scope for s in specs}) > 1:
            raise BadInput(
                f"remote: {', '.join(self.names)} don't judge the same media in the same way; ask them apart"
            )
        return RewardSpec(
            type(self).spec.name,
            "+".join(f"{name}@{s.version}" for name, s in zip(self.names, specs, strict=True)),
            modalities,
            differentiable=False,
            scope=specs[0].scope,
            needs=frozenset().union(*(s.needs for s in specs)),
            typical=specs[0].typical if len(specs) == 1 and not self.weights else None,
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
    as_sets = {k: frozenset(fields[k]) for k in ("modalities", "needs")}
    return RewardSpec(**{**fields, **as_sets, "typical": fields["typical"] and tuple(fields["typical"])})


def _read_numbers(values: Any, shape: tuple[int, ...]) -> Tensor:
    """float32 of that shape; NaN where the answer holds none, everywhere when it has another shape."""
    numbers = values if isinstance(values, list) else [values]
    if any(not isinstance(v, (int, float, type(None))) for v in numbers):
        return torch.full(shape, torch.nan)
    scores = torch.tensor([torch.nan if v is None else v for v in numbers], dtype=torch.float32)
    return scores.view(shape) if scores.numel() == (shape or (1,))[0] else torch.full(shape, torch.nan)


def _error_text(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}"


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@functools.cache
def _cached_client(url: str, timeout: float, token: str) -> httpx.Client:
    """One pool of connections to a server. No proxies, no netrc: the token goes to `url` and nowhere else."""
    import httpx

    return httpx.Client(base_url=url, timeout=timeout, trust_env=False, headers={"Authorization": f"Bearer {token}"})


@functools.cache
def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="remote-reward")
