"""Requests to servers that others run. Whatever a server does, a request ends in time, and in memory: with a reply of
bounded size, or with one sentence that says why there is none.

One thread of this process does all the talking, for asyncio alone can bound a request as a whole: a server that sends a
byte now and then satisfies every time limit of a single read. Whoever asks waits, in a thread of their own. Redirects
are not followed and cookies not kept, so a secret goes to the address that was given and nowhere else.
"""

from __future__ import annotations

import asyncio
import functools
import http.cookiejar
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.core.redact import redact, remember_secret
from workbench.core.text import one_line

if TYPE_CHECKING:
    import ssl

    import httpx

LONGEST_PAUSE = 30.0  # seconds between two attempts
LONGEST_URL = 2000  # letters
PASSING_STATUS = frozenset({408, 425, 429})  # and 5xx: worth another attempt
_jitter = random.Random()  # its own: the pauses must not move anyone's seeded state


class RequestFailed(Exception):
    """Why there is no reply, in one sentence without secrets."""

    def __init__(self, sentence: str, may_pass: bool = False):
        super().__init__(one_line(redact(sentence)))
        self.may_pass = may_pass  # another attempt may fare better


@dataclass(frozen=True)
class ServerReply:
    """A whole reply, its body unpacked."""

    status: int
    body: bytes
    location: str = ""
    retry_after: float = 0.0  # seconds, at most LONGEST_PAUSE

    @property
    def trouble_may_pass(self) -> bool:
        return self.status in PASSING_STATUS or self.status >= 500

    def read_json(self, max_bytes: int) -> Any:
        """Raises BadInput for what is no sound JSON."""
        return parse_json(self.body, "the reply", max_bytes=max_bytes)

    def describe(self) -> str:
        """`HTTP 503: out of memory`: the status, and what the body says of it. One line without secrets."""
        words = f"HTTP {self.status}"
        if 300 <= self.status < 400:
            target = f" to {self.location}" if self.location else ""
            return one_line(redact(f"{words}, a redirect{target}, which is not followed"))
        said = read_error_text(self.body)
        return one_line(redact(f"{words}: {said}" if said else words))


def read_error_text(body: bytes) -> str:
    """What an error's body says: `error`, `error.message`, `detail` or `message` of a JSON, the last line of a
    traceback, or else the text itself."""
    try:
        said = parse_json(body, "", max_bytes=1 << 20)
        for key in ("error", "detail", "message") * 2:  # twice: {"error": {"message": ...}}
            if isinstance(said, dict) and key in said:
                said = said[key]
        if isinstance(said, str):
            return said
    except BadInput:
        pass
    text = body.decode(errors="replace").strip()
    if text.startswith("Traceback"):
        return text.rpartition("\n")[2]
    return "an HTML page" if text[:1] == "<" else text


def check_server_url(url: str, setting: str, example: str, way_out: str) -> str:
    """The address without a slash at its end. `setting` names it in messages, such as "judge: `url`".

    Raises BadInput, without repeating a password, for what is no address of a server, and for one that holds a
    password: `way_out` says where secrets belong.
    """
    import httpx

    try:
        parts = httpx.URL(url) if url.isprintable() and len(url) <= LONGEST_URL else httpx.URL("")
        host, userinfo = parts.host, parts.userinfo  # an IDNA name is decoded here
    except (httpx.InvalidURL, UnicodeError, ValueError):
        parts, host, userinfo = httpx.URL(""), "", b""
    if userinfo or "@" in (url.partition("//")[2] or url).partition("/")[0]:
        raise BadInput(f"{setting} holds a password; {way_out}")
    if parts.scheme not in ("http", "https") or not host or " " in url:
        raise BadInput(f"{setting} must look like {example}; {one_line(redact(url), 80)!r} is no address of a server")
    if parts.query or parts.fragment:
        raise BadInput(f"{setting} must end before its ? or #, as {example} does; if it held a secret, {way_out}")
    return url.rstrip("/")


class Server:
    """A server at one address, and how long and how large a reply of it may be. Knows no protocol above HTTP."""

    def __init__(self, url: str, *, seconds: float, max_bytes: int, use_proxies: bool):
        """`seconds` bound one request from the first look at its host's name to the last byte; `max_bytes` its reply,
        packed and unpacked. `use_proxies`: go through the proxies that the environment names."""
        self.url, self.seconds, self.max_bytes, self.use_proxies = url, seconds, max_bytes, use_proxies
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        seconds: float | None = None,
    ) -> ServerReply:
        """One attempt. Raises RequestFailed."""
        remember_secret((headers or {}).get("Authorization", "").rpartition(" ")[2])
        send = self._send_in_time(method, self.url + path, dict(headers or {}), body, seconds or self.seconds)
        future = asyncio.run_coroutine_threadsafe(send, talking_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interruption of whoever waits here
            raise

    def request_with_retries(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        retries: int = 0,
        pause: float = 0.5,
        on_attempt: Callable[[], None] = lambda: None,
    ) -> ServerReply:
        """The first reply that another attempt would not better; tries again after 408, 425, 429, 5xx, timeouts and
        lost connections.

        Takes at most (retries + 1) * (seconds + LONGEST_PAUSE). `pause`: seconds before the first retry, doubled each
        time, jittered; longer where Retry-After asks for it. Raises RequestFailed.
        """
        asked_to_wait = 0.0
        for attempt in range(retries + 1):
            if attempt:
                own_pause = min(LONGEST_PAUSE, pause * 2.0 ** min(attempt - 1, 60)) * _jitter.uniform(0.5, 1)
                time.sleep(max(own_pause, asked_to_wait))
            on_attempt()
            try:
                reply = self.request(method, path, headers=headers, body=body)
            except RequestFailed as failure:
                if not failure.may_pass:
                    raise
                reason, asked_to_wait = str(failure), 0.0
                continue
            if not reply.trouble_may_pass:
                return reply
            reason, asked_to_wait = reply.describe(), reply.retry_after
        raise RequestFailed(f"no answer in {retries + 1} attempt{'s'[:retries]} ({reason})")

    async def _send_in_time(
        self, method: str, url: str, headers: dict[str, str], body: bytes, seconds: float
    ) -> ServerReply:
        import httpx

        try:
            async with asyncio.timeout(seconds):
                return await self._send(method, url, headers, body)
        except TimeoutError:
            raise RequestFailed(f"Timeout: not finished after {seconds:g} s", may_pass=True) from None
        except (httpx.HTTPError, OSError) as error:
            name, words = type(error).__name__, str(error)
            raise RequestFailed(f"{name}: {words}" if words else name, may_pass=True) from None
        except (httpx.InvalidURL, httpx.StreamError, ValueError) as error:  # such as a header that can't be decoded
            raise RequestFailed(f"{type(error).__name__}: {error}") from None

    async def _send(self, method: str, url: str, headers: dict[str, str], body: bytes) -> ServerReply:
        packed = bytearray()
        async with self._current_client().stream(method, url, headers=headers, content=body) as response:
            async for part in response.aiter_raw():
                packed += part
                if len(packed) > self.max_bytes:
                    raise RequestFailed(f"the reply is larger than {self.max_bytes / 2**20:g} MiB")
        get = response.headers.get
        return ServerReply(
            response.status_code,
            unpack_body(bytes(packed), get("content-encoding", ""), self.max_bytes),
            get("location", ""),
            read_retry_after(get("retry-after", "")),
        )

    def _current_client(self) -> httpx.AsyncClient:
        """The pool of connections that belongs to the loop at work: a forked process has another one."""
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            refuse_all = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
            self._client, self._loop = (
                httpx.AsyncClient(
                    verify=_tls_settings(),
                    timeout=None,  # `_send_in_time` bounds the whole
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
                    headers={"Accept-Encoding": "identity"},
                    cookies=http.cookiejar.CookieJar(refuse_all),
                    follow_redirects=False,
                    trust_env=self.use_proxies,
                ),
                loop,
            )
        return self._client


def unpack_body(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body without its Content-Encoding; gzip and deflate are undone though nobody asked for them. Raises
    RequestFailed for another encoding, for what is broken or cut, and for what is larger than `max_bytes`."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RequestFailed(f"the reply can't be unpacked: nobody asked for the encoding {one_line(encoding, 40)!r}")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either header
    try:
        unpacked = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestFailed(f"the reply can't be unpacked: {error}") from None
    if len(unpacked) > max_bytes:
        raise RequestFailed(f"the reply is larger than {max_bytes / 2**20:g} MiB when it is unpacked")
    if not unpacker.eof:
        raise RequestFailed("the reply can't be unpacked: it is cut short")
    return unpacked


def read_retry_after(text: str, now: float | None = None) -> float:
    """Seconds that a Retry-After header asks for, between 0 and LONGEST_PAUSE; 0 for what is neither seconds nor a
    date."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(LONGEST_PAUSE, float(text))
    try:
        seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return 0.0
    return min(LONGEST_PAUSE, max(0.0, seconds))


_starting = threading.Lock()
_running_loop: asyncio.AbstractEventLoop | None = None


def talking_loop() -> asyncio.AbstractEventLoop:
    """The loop of the one thread that talks, started when it is first needed."""
    global _running_loop
    with _starting:
        if _running_loop is None:
            _running_loop = asyncio.new_event_loop()
            threading.Thread(target=_running_loop.run_forever, name="http", daemon=True).start()
        return _running_loop


def _forget_loop() -> None:
    global _running_loop, _starting
    _running_loop, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # threads don't survive a fork, and locks may be held in it
    os.register_at_fork(after_in_child=_forget_loop)


@functools.cache
def _tls_settings() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()
