"""Questions to any OpenAI-compatible chat endpoint: bounded, retried, remembered, counted. Knows no reward."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest

LONGEST_PAUSE = 30.0  # seconds between two attempts
LARGEST_REPLY = 2**20  # bytes
_COUNTING = threading.Lock()
_JITTER = random.Random()  # its own: the pauses must not move anyone's seeded state


class JudgeError(Exception):
    """Why a question has no usable answer, in one sentence."""


@dataclass
class Cost:
    """What a reward has asked for so far."""

    requests: int = 0  # sent to the judge, retries included
    prompt_tokens: int = 0  # as the judge counts them
    completion_tokens: int = 0
    cached: int = 0  # questions that needed no request
    failed: int = 0  # questions that got no usable answer

    def add(self, **counts: int) -> None:
        with _COUNTING:
            for name, n in counts.items():
                setattr(self, name, getattr(self, name) + n)


@dataclass(frozen=True)
class Reply:
    """What of a completion is read and remembered."""

    content: str
    first: tuple[tuple[str, float], ...] = ()  # the likeliest first tokens with their log-probabilities
    finish: str = ""  # `length` when the answer was cut


@dataclass(frozen=True)
class Job:
    """One question: the request's body, and what is read of its answer: numbers, or a wording. Raises JudgeError."""

    body: Mapping[str, Any]
    read: Callable[[Reply], tuple[Any, ...]]

    def request_bytes(self) -> bytes:
        """Made when needed and not kept: questions of one batch share their pictures, their texts would not."""
        return json.dumps(self.body, sort_keys=True).encode()


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is and how patiently it is asked."""

    url: str
    key: str  # the NAME of the environment variable with the API key; the key itself is read when it is sent
    concurrency: int
    timeout: float
    retries: int
    backoff: float
    cache: str

    def headers(self) -> dict[str, str]:
        """Raises BadInput, which never repeats what was given: somebody may have given the key itself."""
        if not self.key:
            return {}
        secret = self.secret()
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key) or not re.fullmatch(r"[!-~]+", secret):
            raise BadInput("judge: `key` must be the name of an environment variable that holds the API key; it is not")
        return {"Authorization": f"Bearer {secret}"}

    def secret(self) -> str:
        return os.environ.get(self.key, "").strip() if self.key else ""


class ReplyStore:
    """Replies by the hash of their question, in one SQLite file that threads and processes may share."""

    def __init__(self, folder: str):
        """Raises BadInput when the folder can't hold it."""
        self._lock = threading.Lock()
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                Path(folder) / "judge.sqlite3", timeout=30, isolation_level=None, check_same_thread=False
            )
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            self._db.execute("create table if not exists replies (key text primary key, reply text not null)")
        except (OSError, sqlite3.Error) as error:
            raise BadInput(f"judge: can't keep answers in `cache` {folder}: {error}; name another folder") from None

    def get(self, key: str) -> Reply | None:
        with self._lock:
            row = self._db.execute("select reply from replies where key = ?", (key,)).fetchone()
        if row is None:
            return None
        value = json.loads(row[0])
        return Reply(value["content"], tuple((t, p) for t, p in value["first"]), value["finish"])

    def put(self, key: str, reply: Reply) -> None:
        with self._lock:
            self._db.execute("insert or replace into replies values (?, ?)", (key, json.dumps(asdict(reply))))


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True)  # lives as long as the process


@functools.cache
def open_store(folder: str) -> ReplyStore:
    """The store of a folder, opened once; without a folder, one that lives as long as the process."""
    return ReplyStore(folder or _temporary_folder().name)


class JudgeClient:
    """Asks one endpoint, at most `concurrency` questions at a time however many callers there are."""

    def __init__(self, endpoint: Endpoint):
        """Raises BadInput for an address or a cache that can't be used."""
        try:
            parts = httpx.URL(endpoint.url)
        except httpx.InvalidURL:
            parts = httpx.URL("")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise BadInput("judge: `url` must look like http://127.0.0.1:8000/v1")
        if parts.userinfo:
            raise BadInput("judge: `url` holds a password; put it into an environment variable and name that in `key`")
        self.endpoint = endpoint
        self.url = endpoint.url.rstrip("/")
        self._store = open_store(endpoint.cache)
        self._http = httpx.Client(
            timeout=endpoint.timeout, limits=httpx.Limits(max_connections=endpoint.concurrency), follow_redirects=False
        )
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="judge")

    def check(self, model: str) -> None:
        """Raises BadInput unless the endpoint answers and, where it lists its models, has this one."""
        headers = self.endpoint.headers()
        try:
            response = self._http.get(f"{self.url}/models", headers=headers, timeout=min(10.0, self.endpoint.timeout))
        except httpx.TransportError as error:
            reason = self._clean_message(f"{type(error).__name__}: {error}")
            raise BadInput(
                f"judge: nothing answers at {self.url} ({reason}); start a server there or set `url`"
            ) from None
        if response.status_code in (401, 403):
            raise BadInput(
                f"judge: {self.url} refuses the key (HTTP {response.status_code}); name its variable in `key`"
            )
        if response.status_code in (404, 405):  # a judge need not list its models
            return
        try:
            models = [m["id"] for m in response.json()["data"]] if response.status_code == 200 else None
        except (ValueError, KeyError, TypeError):
            models = None
        if models is None:
            raise BadInput(
                f"judge: {self.url}/models answers HTTP {response.status_code} without a list of models; "
                "is `url` the /v1 of an OpenAI-compatible server?"
            )
        if model not in models:
            raise BadInput(f"judge: {self.url} has no model {model!r}; {suggest_nearest(model, models)}")

    def ask(self, jobs: Sequence[Job], cost: Cost) -> list[tuple[Any, ...] | JudgeError]:
        """Each question's numbers, or why there are none, in order. The same question is asked once."""
        headers = self.endpoint.headers()
        keys = [hashlib.sha256(self.url.encode() + b"\n" + job.request_bytes()).hexdigest() for job in jobs]
        futures = {}
        for key, job in zip(keys, jobs, strict=True):
            if key not in futures:
                futures[key] = self._pool.submit(self._answer_job, key, job, headers, cost)
        cost.add(cached=len(jobs) - len(futures))
        try:
            return [futures[key].result() for key in keys]
        finally:
            for future in futures.values():
                future.cancel()  # what an interruption left in the queue

    def _answer_job(self, key: str, job: Job, headers: dict[str, str], cost: Cost) -> tuple[Any, ...] | JudgeError:
        try:
            if (stored := self._store.get(key)) is not None:
                cost.add(cached=1)
                return job.read(stored)
            reply = self._post_with_retries(job.request_bytes(), headers, cost)
            numbers = job.read(reply)
        except JudgeError as why:
            cost.add(failed=1)
            return JudgeError(self._clean_message(str(why)))
        self._store.put(key, reply)  # only what could be read: garbage is asked again the next time
        return numbers

    def _post_with_retries(self, body: bytes, headers: dict[str, str], cost: Cost) -> Reply:
        """Tries again after 429, 5xx, timeouts and lost connections, and after nothing else."""
        attempts, asked_to_wait = self.endpoint.retries + 1, 0.0
        for attempt in range(attempts):
            if attempt:
                pause = min(LONGEST_PAUSE, self.endpoint.backoff * 2 ** (attempt - 1)) * _JITTER.uniform(0.5, 1)
                time.sleep(max(pause, asked_to_wait))
            cost.add(requests=1)
            try:
                status, answer, asked_to_wait = self._send_once(body, headers)
            except httpx.TransportError as error:
                why, asked_to_wait = f"{type(error).__name__}: {error}", 0.0
                continue
            except httpx.DecodingError as error:
                raise JudgeError(f"the judge's reply can't be unpacked: {error}") from None
            if status == 200:
                return _parse_reply(answer, cost)
            why = f"HTTP {status}: {answer[:2000].decode(errors='replace')}"
            if status != 429 and status < 500:
                raise JudgeError(f"the judge refused the question ({why})")
        raise JudgeError(f"no answer in {attempts} attempt{'s'[: attempts - 1]} ({why})")

    def _send_once(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, float]:
        """Status, body and the seconds that Retry-After asks for. The timeout is for the whole answer."""
        end = time.monotonic() + self.endpoint.timeout
        headers = {"Content-Type": "application/json", **headers}
        with self._http.stream("POST", f"{self.url}/chat/completions", content=body, headers=headers) as response:
            answer = bytearray()
            for chunk in response.iter_bytes():
                answer += chunk
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"not finished after {self.endpoint.timeout:g} s")
                if len(answer) > LARGEST_REPLY:
                    raise JudgeError(f"the judge's reply is larger than {LARGEST_REPLY >> 20} MiB")
            wait = response.headers.get("retry-after", "")
            return response.status_code, bytes(answer), min(LONGEST_PAUSE, float(wait) if wait.isdigit() else 0.0)

    def _clean_message(self, text: str) -> str:
        """One short line without the key, which some servers repeat."""
        secret = self.endpoint.secret()
        text = text.replace(secret, "***") if secret else text
        return " ".join(text.split())[:300]


def _parse_reply(answer: bytes, cost: Cost) -> Reply:
    try:
        body = json.loads(answer)
        usage = body.get("usage") or {}
        cost.add(**{n: int(usage.get(n) or 0) for n in ("prompt_tokens", "completion_tokens")})
        choice = body["choices"][0]
        content = choice["message"].get("content") or ""
        tokens = (choice.get("logprobs") or {}).get("content") or [{}]
        first = tuple((str(t["token"]), float(t["logprob"])) for t in tokens[0].get("top_logprobs") or ())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise JudgeError(f"the judge's reply is no chat completion: {answer[:2000].decode(errors='replace')}") from None
    if not isinstance(content, str):
        raise JudgeError(f"the judge's answer is no text but {type(content).__name__}")
    return Reply(content, first, str(choice.get("finish_reason") or ""))


@functools.cache
def shared_client(endpoint: Endpoint) -> JudgeClient:
    """The client of an endpoint, made once, so that its limit holds for every reward that shares it."""
    return JudgeClient(endpoint)
