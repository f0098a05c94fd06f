"""`workbench serve-rewards`: rewards over HTTP, for rewards.remote. The protocol is described there.

One process serves several rewards on one device, which costs less than a process each. Clients need the token; nothing
is unpickled, and no body is read before the token was checked.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
import math
import os
import secrets
import socket
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from uvicorn.protocols.http.h11_impl import H11Protocol

from rewards.remote import TOKEN, spec_to_json
from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, MediaInput, input_needs
from workbench.core.io.parsing import parse_json
from workbench.core.redact import redact, remember_secret
from workbench.core.schema import suggest_nearest
from workbench.core.text import one_line
from workbench.core.types import Input, Media, Prompt, Reward

log = logging.getLogger(__name__)
SHAPE = {"image": "[B,3,H,W]", "video": "[B,T,3,H,W]", "audio": "[B,C,L]"}
SENT_INPUTS = tuple(name for name in NAMES if name not in ("source", "reference"))  # those are the references
ENTRIES = {"ask.npy", "data.npy", "references.npy", *(f"{name}.npy" for name in SENT_INPUTS)}
DTYPES = {"|u1", "<f2", "<f4"}
MAX_ASK = 16 << 20  # bytes of the JSON in a request
MAX_NAMES = 256  # rewards that one request may ask for
HEADER_SECONDS = 20.0  # from a connection to the end of its first request's headers
BODY_SECONDS = 120.0  # for the body of a request, however it trickles in


class RequestRefused(Exception):
    """A request can't be answered: one sentence, and an HTTP status."""

    def __init__(self, status: int, sentence: str):
        super().__init__(one_line(redact(sentence)))
        self.status = status


@dataclass(frozen=True)
class ScoreRequest:
    media: Media
    prompts: list[str]
    names: list[str]
    references: Media | None


def create_app(rewards: Mapping[str, Reward], token: str, device: str = "cpu", limit: int = 256 << 20) -> FastAPI:
    """The web application that serves these rewards to clients with the token; a request holds at most `limit`
    bytes."""
    remember_secret(token)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = threading.Lock()  # one device: batches queue

    async def check_token(request: Request) -> None:
        header = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(header, f"Bearer {token}".encode()):
            raise RequestRefused(401, f"the token is missing or wrong; set {TOKEN} to the one that the server printed")

    @app.exception_handler(RequestRefused)
    async def answer_refusal(_: Request, problem: RequestRefused) -> JSONResponse:
        return JSONResponse({"error": str(problem)}, problem.status)

    @app.get("/rewards", dependencies=[Depends(check_token)])
    async def list_rewards() -> dict:
        return {"rewards": {name: spec_to_json(reward.spec) for name, reward in rewards.items()}, "limit": limit}

    @app.post("/score", dependencies=[Depends(check_token)])
    async def score_media(request: Request) -> dict:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(request, limit)
        except TimeoutError:
            raise RequestRefused(
                408, f"the request was not here after {BODY_SECONDS:g} s; send smaller batches"
            ) from None

        def parse_and_score() -> dict:
            score_request = parse_request(body, rewards)
            with one_at_a_time, torch.no_grad():
                return answer_request(score_request, rewards, device)

        return await run_in_threadpool(parse_and_score)

    return app


async def read_body(request: Request, limit: int) -> bytes:
    """The body, checked against `limit` whatever length its header claims. Raises RequestRefused."""
    parts, size = [], 0
    claimed = request.headers.get("content-length", "0")
    async for part in request.stream():
        size += len(part)
        if size > limit or (claimed.isdigit() and int(claimed) > limit):
            raise RequestRefused(413, f"a request holds at most {limit / 2**20:g} MiB; send a smaller batch")
        parts.append(part)
    return b"".join(parts)


def parse_request(body: bytes, rewards: Mapping[str, Reward]) -> ScoreRequest:
    """The request's body, fully checked. Raises RequestRefused."""
    arrays = read_arrays(body)
    try:
        header = parse_json(arrays["ask"].tobytes(), "ask", max_bytes=MAX_ASK)
        modality, rate, prompts, names = header["modality"], float(header["rate"]), header["prompts"], header["rewards"]
        data = arrays["data"]
    except (BadInput, KeyError, TypeError, ValueError, OverflowError) as error:
        keys = "modality, rate, prompts and rewards"
        raise RequestRefused(400, f"the npz must hold `data`, and `ask`, a JSON with {keys} ({error!r})") from None
    if not isinstance(modality, str) or modality not in SHAPE:
        raise RequestRefused(422, f"unknown modality {modality!r:.80}; known: {', '.join(SHAPE)}")
    if not data.ndim:
        raise RequestRefused(422, f"{modality} data are {SHAPE[modality]}, got one number")
    for values in (prompts, names):
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise RequestRefused(422, "prompts and rewards are lists of texts")
    if len(names) > MAX_NAMES:
        raise RequestRefused(422, f"{len(names):,} rewards in one request; at most {MAX_NAMES}")
    if len(prompts) != len(data) or not prompts:
        raise RequestRefused(
            422, f"{len(prompts)} prompts for {len(data)} samples; there must be as many, and at least one"
        )
    if not math.isfinite(rate) or rate < 0 or (modality != "image" and not rate):
        raise RequestRefused(422, f"{modality} with a rate of {rate:g} a second")
    references = arrays.get("references")
    for name in names:
        if name not in rewards:
            raise RequestRefused(404, f"no reward {name!r} is served here; {suggest_nearest(name, rewards)}")
        spec = rewards[name].spec
        if modality not in spec.modalities:
            raise RequestRefused(422, f"{name} judges {' and '.join(sorted(spec.modalities))}, not {modality}")
        if "reference" in spec.needs and references is None:
            raise RequestRefused(422, f"{name} needs references")
        if "source" in spec.needs and (references is None or len(references) != len(data)):
            raise RequestRefused(422, f"{name} needs the source of each sample as references")
        if unmet := [need for need in input_needs(spec) if need != "source" and need not in arrays]:
            raise RequestRefused(422, f"{name} needs the {unmet[0]} of each sample")
    return ScoreRequest(
        to_media(data, modality, rate),
        with_inputs(prompts, {name: arrays[name] for name in SENT_INPUTS if name in arrays}, rate),
        names,
        None if references is None else to_media(references, modality, rate),
    )


def with_inputs(prompts: list[str], arrays: Mapping[str, np.ndarray], rate: float) -> list[str]:
    """The prompts with a row of each array as an input. Raises RequestRefused."""
    inputs: list[dict[str, Input]] = [{} for _ in prompts]
    for name, array in arrays.items():
        modality = next((m for m, shape in SHAPE.items() if shape.count(",") + 1 == array.ndim), "")
        if not modality or len(array) != len(prompts):
            raise RequestRefused(422, f"{name} is a picture, clip or sound for each sample, got {list(array.shape)}")
        rows = to_media(array, modality, 0.0 if modality == "image" else rate)
        try:
            for n, values in enumerate(inputs):
                values[name] = MediaInput.of(rows[n])
        except ValueError as error:
            raise RequestRefused(422, f"{name}: {error}") from None
    return [Prompt(text, values) if values else text for text, values in zip(prompts, inputs, strict=True)]


def read_arrays(body: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz, no larger in memory than the body itself. Raises RequestRefused."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names) or not set(names) <= ENTRIES:
                raise ValueError(f"expected {', '.join(sorted(ENTRIES))}, each at most once")
            for entry in entries:
                check_entry(archive, entry, len(body))
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise RequestRefused(400, f"the body is no npz that this server reads: {error}") from None


def check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> None:
    """Numpy allocates the shape that a header claims before it reads, so the claim is checked first. Raises
    ValueError."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
        raise ValueError(f"{entry.filename} is compressed; use numpy.savez")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{entry.filename} has an npy header of another version than 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.str not in DTYPES:
            raise ValueError(f"{entry.filename} holds {dtype}; send float32, float16 or uint8")
        if file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise ValueError(f"{entry.filename} is not as long as its shape says")


def to_media(data: np.ndarray, modality: str, rate: float) -> Media:
    shape = SHAPE[modality]
    if data.ndim != shape.count(",") + 1 or 0 in data.shape or (modality != "audio" and data.shape[-3] != 3):
        raise RequestRefused(422, f"{modality} data are {shape}, got {list(data.shape)}")
    if data.dtype == np.uint8 and modality == "audio":
        raise RequestRefused(422, "audio is float32 or float16 in [-1,1]")
    values = torch.from_numpy(data).float()
    return Media(values / 255 if data.dtype == np.uint8 else values, modality, rate)


def answer_request(request: ScoreRequest, rewards: Mapping[str, Reward], device: str) -> dict[str, Any]:
    """{"scores", "reasons"}: a reward that fails has nulls and a reason, and the others are scored all the same."""
    media, references = (
        m and Media(m.data.to(device), m.modality, m.rate) for m in (request.media, request.references)
    )
    scores: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in request.names:
        try:
            values = rewards[name](media=media, prompts=request.prompts, references=references).float().cpu()
        except Exception as error:  # any error of a reward is reported to the client and logged here
            log.exception("%s failed", name)
            reasons[name] = one_line(redact(f"{type(error).__name__}: {error}").splitlines()[0])
            values = torch.full(() if rewards[name].spec.scope == "set" else (len(media),), torch.nan)
        numbers = values.tolist()
        scores[name] = finite_or_none(numbers) if values.ndim == 0 else [finite_or_none(v) for v in numbers]
    return {"scores": scores, "reasons": reasons}


class HastyProtocol(H11Protocol):
    """Closes a connection whose first request has no whole headers after HEADER_SECONDS: uvicorn waits for ever, and
    whoever opens connections and says nothing would keep everybody out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():  # a cycle begins with whole headers
            self.transport.close()


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def serve_rewards(
    rewards: Mapping[str, Reward], *, host: str, port: int, device: str = "auto", limit_mb: int = 256
) -> None:
    """Load the rewards and serve them until interrupted. Prints the address, and a token where none was given.

    Raises BadInput for a port that is taken or a token that no header can hold.
    """
    token = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput(f"{TOKEN} must be printable ASCII without spaces")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {device}: torch can't use it here ({str(error).splitlines()[0]})") from None
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise BadInput(f"can't listen on {host}:{port} ({error}); give another --host or --port") from None
    for reward in rewards.values():
        if hasattr(reward, "load"):
            reward.load(device)
    announce_server(host, listener.getsockname()[1], rewards, None if os.environ.get(TOKEN) else token)
    application = create_app(rewards, token, device, limit_mb << 20)
    settings = uvicorn.Config(application, http=HastyProtocol, log_level="warning", limit_concurrency=64)
    uvicorn.Server(settings).run(sockets=[listener])


def announce_server(host: str, port: int, names: Sequence[str], token: str | None) -> None:
    print(f"serving {', '.join(names)} on http://{host}:{port}", file=sys.stderr)
    if token:
        print(f"whoever asks needs: export {TOKEN}={token}", file=sys.stderr)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print("the token travels in the clear: use a tunnel or a TLS proxy outside a trusted network", file=sys.stderr)
