"""Questions to any OpenAI-compatible chat endpoint: bounded, retried, remembered, counted. Knows no reward."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.io.bounded_http import RequestFailed, Server, ServerReply, check_server_url
from workbench.core.redact import redact
from workbench.core.schema import suggest_nearest
from workbench.core.text import one_line

LARGEST_REPLY = 2**20  # bytes
LONGEST_ANSWER = 2**18  # letters
MOST_TOKENS = 10**9  # of one answer, as the judge counts
_COUNTING = threading.Lock()
_OPENING = threading.Lock()  # a second temporary folder would be removed under whoever got it


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
        secret = os.environ.get(self.key, "").strip()
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key) or not re.fullmatch(r"[!-~]+", secret):
            raise BadInput("judge: `key` must be the name of an environment variable that holds the API key; it is not")
        return {"Authorization": f"Bearer {secret}"}


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
    with _OPENING:
        return ReplyStore(folder or _temporary_folder().name)


class JudgeClient:
    """Asks one endpoint, at most `concurrency` questions at a time however many callers there are."""

    def __init__(self, endpoint: Endpoint):
        """Raises BadInput for an address or a cache that can't be used."""
        self.endpoint = endpoint
        self.url = check_judge_url(endpoint.url, "judge")
        self._store = open_store(endpoint.cache)
        self._server = Server(self.url, seconds=endpoint.timeout, max_bytes=LARGEST_REPLY, use_proxies=True)
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="judge")

    def check(self, model: str) -> None:
        """Raises BadInput unless the endpoint answers and, where it lists its models, has this one."""
        try:
            reply = self._server.request(
                "GET", "/models", headers=self.endpoint.headers(), seconds=min(10.0, self.endpoint.timeout)
            )
        except RequestFailed as failure:
            raise BadInput(
                f"judge: nothing answers at {self.url} ({failure}); start a server there or set `url`"
            ) from None
        if reply.status in (401, 403):
            raise BadInput(f"judge: {self.url} refuses the key (HTTP {reply.status}); name its variable in `key`")
        if reply.status in (404, 405):  # a judge need not list its models
            return
        try:
            models = [m["id"] for m in reply.read_json(LARGEST_REPLY)["data"]] if reply.status == 200 else None
        except (BadInput, KeyError, TypeError):
            models = None
        if models is None or not all(isinstance(name, str) for name in models):
            raise BadInput(
                f"judge: {self.url}/models answers HTTP {reply.status} without a list of models; "
                "is `url` the /v1 of an OpenAI-compatible server?"
            )
        if model not in models:
            raise BadInput(one_line(f"judge: {self.url} has no model {model!r}; {suggest_nearest(model, models)}", 500))

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
            return JudgeError(one_line(redact(str(why))))
        self._store.put(key, reply)  # only what could be read: garbage is asked again the next time
        return numbers

    def _post_with_retries(self, body: bytes, headers: dict[str, str], cost: Cost) -> Reply:
        endpoint = self.endpoint
        try:
            reply = self._server.request_with_retries(
                "POST",
                "/chat/completions",
                headers={"Content-Type": "application/json", **headers},
                body=body,
                retries=endpoint.retries,
                pause=endpoint.backoff,
                on_attempt=functools.partial(cost.add, requests=1),
            )
        except RequestFailed as failure:
            raise JudgeError(str(failure)) from None
        if reply.status != 200:
            raise JudgeError(f"the judge refused the question ({reply.describe()})")
        return _parse_reply(reply, cost)


def check_judge_url(url: str, name: str) -> str:
    """The address without a slash at its end; `name` is the setting's owner. Raises BadInput."""
    way_out = "put it into an environment variable and name that in `key`"
    return check_server_url(url, f"{name}: `url`", "http://127.0.0.1:8000/v1", way_out)


def _parse_reply(reply: ServerReply, cost: Cost) -> Reply:
    try:
        body = reply.read_json(LARGEST_REPLY)
        _count_tokens(body.get("usage"), cost)
        choice = body["choices"][0]
        content = choice["message"].get("content") or ""
        tokens = (choice.get("logprobs") or {}).get("content") or [{}]
        first = tuple((str(t["token"]), float(t["logprob"])) for t in tokens[0].get("top_logprobs") or ())
    except BadInput as problem:
        raise JudgeError(f"the judge's reply is no chat completion: {_excerpt(reply)} ({problem})") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
        raise JudgeError(f"the judge's reply is no chat completion: {_excerpt(reply)}") from None
    if not isinstance(content, str):
        raise JudgeError(f"the judge's answer is no text but {type(content).__name__}")
    if len(content) > LONGEST_ANSWER:
        raise JudgeError(f"the judge's answer has {len(content):,} letters; at most {LONGEST_ANSWER:,} are read")
    return Reply(redact(content), first, str(choice.get("finish_reason") or "")[:40])


def _excerpt(reply: ServerReply) -> str:
    return one_line(redact(reply.body.decode(errors="replace")), 200)


def _count_tokens(usage: Any, cost: Cost) -> None:
    """Add what the judge says that it counted; what is no count adds nothing, for no score depends on it."""
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if type(count) is int and 0 <= count <= MOST_TOKENS:
            cost.add(**{name: count})


@functools.cache
def shared_client(endpoint: Endpoint) -> JudgeClient:
    """The client of an endpoint, made once, so that its limit holds for every reward that shares it."""
    return JudgeClient(endpoint)
