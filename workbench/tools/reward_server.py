"""`workbench serve-rewards`: rewards over HTTP, for rewards.remote. The protocol is described there.

One process batches several rewards on one device, which costs less than a process each. Whoever asks needs the token;
nothing that arrives is unpickled, and nothing is read before the token was right.
"""

from __future__ import annotations

import hmac
import io
import json
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

from rewards.remote import TOKEN, say_spec
from workbench.core.schema import nearest
from workbench.core.types import BadInput, Media, Reward

log = logging.getLogger(__name__)
SHAPE = {"image": "[B,3,H,W]", "video": "[B,T,3,H,W]", "audio": "[B,C,L]"}
PARTS = {"ask.npy", "data.npy", "references.npy"}
DTYPES = {"|u1", "<f2", "<f4"}


class Refused(Exception):
    """What was asked can't be answered. One sentence, and the status that goes with it."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Question:
    media: Media
    prompts: list[str]
    names: list[str]
    references: Media | None


def app(rewards: Mapping[str, Reward], token: str, device: str = "cpu", limit: int = 256 << 20) -> FastAPI:
    """The web application that serves these rewards to who knows the token; a request holds at most `limit` bytes."""
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = threading.Lock()  # one device: batches queue

    async def admitted(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refused(401, f"the token is missing or wrong; set {TOKEN} to the one that the server printed")

    @site.exception_handler(Refused)
    async def refuse(_: Request, problem: Refused) -> JSONResponse:
        return JSONResponse({"error": str(problem)}, problem.status)

    @site.get("/rewards", dependencies=[Depends(admitted)])
    async def served() -> dict:
        return {"rewards": {name: say_spec(reward.spec) for name, reward in rewards.items()}, "limit": limit}

    @site.post("/score", dependencies=[Depends(admitted)])
    async def score(request: Request) -> dict:
        body = await received(request, limit)

        def work() -> dict:
            asked = question(body, rewards)
            with one_at_a_time, torch.no_grad():
                return answer(asked, rewards, device)

        return await run_in_threadpool(work)

    return site


async def received(request: Request, limit: int) -> bytes:
    """The body, whatever length its header claims. Raises Refused."""
    parts, size = [], 0
    claimed = request.headers.get("content-length", "0")
    async for part in request.stream():
        size += len(part)
        if size > limit or (claimed.isdigit() and int(claimed) > limit):
            raise Refused(413, f"a request holds at most {limit / 2**20:g} MiB; send a smaller batch")
        parts.append(part)
    return b"".join(parts)


def question(body: bytes, rewards: Mapping[str, Reward]) -> Question:
    """The request's body, checked in every respect. Raises Refused."""
    arrays = unpack(body)
    try:
        ask = json.loads(arrays["ask"].tobytes())
        modality, rate, prompts, names = ask["modality"], float(ask["rate"]), ask["prompts"], ask["rewards"]
        data = arrays["data"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        told = "modality, rate, prompts and rewards"
        raise Refused(400, f"the npz must hold `data`, and `ask`, a JSON with {told} ({error!r})") from None
    if not isinstance(modality, str) or modality not in SHAPE:
        raise Refused(422, f"unknown modality {modality!r:.80}; known: {', '.join(SHAPE)}")
    if not data.ndim:
        raise Refused(422, f"{modality} data are {SHAPE[modality]}, got one number")
    for values in (prompts, names):
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise Refused(422, "prompts and rewards are lists of texts")
    if len(prompts) != len(data) or not prompts:
        raise Refused(422, f"{len(prompts)} prompts for {len(data)} samples; there must be as many, and at least one")
    if not math.isfinite(rate) or rate < 0 or (modality != "image" and not rate):
        raise Refused(422, f"{modality} with a rate of {rate:g} a second")
    references = arrays.get("references")
    for name in names:
        if name not in rewards:
            raise Refused(404, f"no reward {name!r} is served here; {nearest(name, rewards)}")
        spec = rewards[name].spec
        if modality not in spec.modalities:
            raise Refused(422, f"{name} judges {' and '.join(sorted(spec.modalities))}, not {modality}")
        if "reference" in spec.needs and references is None:
            raise Refused(422, f"{name} needs references")
    return Question(
        _media(data, modality, rate), prompts, names, None if references is None else _media(references, modality, rate)
    )


def unpack(body: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz that holds exactly what its headers say, in memory no larger than it. Raises Refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names) or not set(names) <= PARTS:
                raise ValueError(f"expected {', '.join(sorted(PARTS))}, each at most once")
            for entry in entries:
                _honest(archive, entry, len(body))
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise Refused(400, f"the body is no npz that this server reads: {error}") from None


def _honest(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> None:
    """Numpy makes room for the shape that a header claims before it reads: the claim is checked first."""
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


def _media(data: np.ndarray, modality: str, rate: float) -> Media:
    shape = SHAPE[modality]
    if data.ndim != shape.count(",") + 1 or 0 in data.shape or (modality != "audio" and data.shape[-3] != 3):
        raise Refused(422, f"{modality} data are {shape}, got {list(data.shape)}")
    if data.dtype == np.uint8 and modality == "audio":
        raise Refused(422, "audio is float32 or float16 in [-1,1]")
    values = torch.from_numpy(data).float()
    return Media(values / 255 if data.dtype == np.uint8 else values, modality, rate)


def answer(asked: Question, rewards: Mapping[str, Reward], device: str) -> dict[str, Any]:
    """{"scores", "reasons"}: a reward that fails has nulls and a reason, and the others are scored all the same."""
    media, references = (m and Media(m.data.to(device), m.modality, m.rate) for m in (asked.media, asked.references))
    scores: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in asked.names:
        try:
            values = rewards[name](media=media, prompts=asked.prompts, references=references).float().cpu()
        except Exception as error:  # whatever a judge of anyone's may raise: it is told, and it is in the server's log
            log.exception("%s failed", name)
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            values = torch.full(() if rewards[name].spec.scope == "set" else (len(media),), torch.nan)
        listed = values.tolist()
        scores[name] = _finite(listed) if values.ndim == 0 else [_finite(v) for v in listed]
    return {"scores": scores, "reasons": reasons}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def serve(rewards: Mapping[str, Reward], *, host: str, port: int, device: str = "auto", limit_mb: int = 256) -> None:
    """Loads the rewards and serves them until interrupted. Prints the address, and a token where none was given.

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
        door = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise BadInput(f"can't listen on {host}:{port} ({error}); give another --host or --port") from None
    for reward in rewards.values():
        if hasattr(reward, "load"):
            reward.load(device)
    say(host, door.getsockname()[1], rewards, None if os.environ.get(TOKEN) else token)
    site = app(rewards, token, device, limit_mb << 20)
    uvicorn.Server(uvicorn.Config(site, log_level="warning", limit_concurrency=64)).run(sockets=[door])


def say(host: str, port: int, names: Sequence[str], token: str | None) -> None:
    print(f"serving {', '.join(names)} on http://{host}:{port}", file=sys.stderr)
    if token:
        print(f"whoever asks needs: export {TOKEN}={token}", file=sys.stderr)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print("the token travels in the clear: use a tunnel or a TLS proxy outside a trusted network", file=sys.stderr)
