"""Servers that misbehave: what a judge and a remote reward make of each. A part of benchmarks/doors.py.

A real server on a raw socket of the loopback plays a script for each request: what no HTTP library would send. Both
clients must answer in time and in bounded memory: the right score, or NaN with one sentence that holds no secret.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import logging
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from door_outcomes import Outcome, try_in_process

SECRET = "sesame-0123456789-sesame"
TIMEOUT = 0.5  # seconds for one answer of a server that is slow or never ends
AMPLE = 15.0  # seconds for one answer of any other: none of them waits, but this machine may be busy
RETRIES = 1
PATIENCE = 20.0  # seconds: an answer later than this is a fault, on a busy machine too
MEMORY_MB = 200.0
SCORE = 0.75

Play = Callable[[socket.socket, bytes], None]  # (connection, a body that would be right)
Expectation = Literal["value", "nan", "any"]


@dataclass(frozen=True)
class Script:
    """What a server does with each request."""

    kind: str
    name: str
    play: Play
    expect: Expectation = "nan"
    scheme: str = "http"  # in the address that the client is given

    @property
    def timeout(self) -> float:
        return TIMEOUT if self.kind in ("slow", "endless") else AMPLE


# What is sent below JSON


def http_reply(body: bytes, status: str = "200 OK", headers: Sequence[str] = (), length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def say(text: bytes) -> Play:
    return lambda link, good: link.sendall(text)


def reply(body: bytes | None = None, status: str = "200 OK", *headers: str, length: int | None = None) -> Play:
    """A reply with this body, or with the right one."""
    return lambda link, good: link.sendall(http_reply(good if body is None else body, status, headers, length))


def altered(alter: Callable[[bytes], bytes]) -> Play:
    """What `alter` makes of the right body, sent as it is."""
    return lambda link, good: link.sendall(alter(good))


def drip(head: bool, pause: float = 0.05) -> Play:
    """A byte now and then, each in time: of the headers, or of the body."""

    def play(link: socket.socket, good: bytes) -> None:
        text = http_reply(good)
        start = 0 if head else text.index(b"\r\n\r\n") + 4
        link.sendall(text[:start])
        for byte in text[start:]:
            link.sendall(bytes([byte]))
            time.sleep(pause)

    return play


def endless(head: bytes, part: bytes, pause: float = 0.0) -> Play:
    """The same part for ever, until whoever listens hangs up."""

    def play(link: socket.socket, good: bytes) -> None:
        link.sendall(head)
        while True:
            link.sendall(part)
            time.sleep(pause)

    return play


def reset(after: bytes) -> Play:
    """The connection is torn down, not closed."""

    def play(link: socket.socket, good: bytes) -> None:
        link.sendall(after)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return play


def wait(seconds: float = 4 * TIMEOUT) -> Play:
    return lambda link, good: time.sleep(seconds)


def silent_after(text: bytes) -> Play:
    def play(link: socket.socket, good: bytes) -> None:
        link.sendall(text)
        time.sleep(4 * TIMEOUT)

    return play


def packed(pack: Callable[[bytes], bytes], encoding: str) -> Play:
    return lambda link, good: link.sendall(http_reply(pack(good), headers=[f"Content-Encoding: {encoding}"]))


def chunks(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end


def in_turn(*plays: Play) -> Play:
    """One play a connection; the last one from then on."""
    left = [*plays]
    return lambda link, good: (left.pop(0) if len(left) > 1 else left[0])(link, good)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@functools.cache
def gzip_bomb() -> bytes:
    """63 KB that unpack to 64 MiB."""
    return gzip.compress(bytes(64 << 20), 9)


def transport_scripts() -> list[Script]:
    redirect = [f"Location: http://127.0.0.1:9/{SECRET}"]
    slow = "slow"
    return [
        Script(slow, "nothing at all", wait()),
        Script(slow, "headers, a byte now and then", drip(head=True)),
        Script(slow, "a body, a byte now and then", drip(head=False)),
        Script(slow, "headers, then nothing", silent_after(HEAD)),
        Script(slow, "endless headers", endless(HEAD, b"X-A: b\r\n", 0.01)),
        Script(slow, "endless 100 Continue", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001)),
        Script(slow, "endless 103 Early Hints", endless(b"", b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n", 0.001)),
        Script(slow, "endless small chunks", endless(chunks(end=b""), b"1\r\n \r\n", 0.01)),
        Script("endless", "headers, at full speed", endless(HEAD, b"X-A: b\r\n" * 1000)),
        Script("endless", "one header line", endless(HEAD + b"X-A: ", b"a" * 65536)),
        Script("endless", "a body without a length", endless(HEAD + b"\r\n", b" " * 65536)),
        Script(
            "endless", "a body with a huge length", endless(HEAD + b"Content-Length: 9999999999\r\n\r\n", b" " * 65536)
        ),
        Script("endless", "chunks", endless(chunks(end=b""), b"10000\r\n" + b" " * 65536 + b"\r\n")),
        Script("endless", "one-byte chunks", endless(chunks(end=b""), b"1\r\n \r\n" * 10000)),
        Script("endless", "trailers", endless(chunks(b"{}", end=b"0\r\n"), b"X-A: b\r\n" * 1000)),
        Script("endless", "no line break", endless(b"", b"a" * 65536)),
        Script("endless", "100 Continue, at full speed", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)),
        Script("cut", "closed at once", say(b"")),
        Script("cut", "reset at once", reset(b"")),
        Script("cut", "reset in the headers", reset(HEAD[:20])),
        Script("cut", "reset in the body", reset(HEAD + b"Content-Length: 100\r\n\r\n{")),
        Script("cut", "a length larger than the body", reply(length=10**6)),
        Script("cut", "chunks without an end", say(chunks(b'{"a"', end=b""))),
        Script("cut", "closed in the headers", say(HEAD)),
        Script("cut", "a length smaller than the body", reply(length=5)),
        Script("status", "204 without content", say(b"HTTP/1.1 204 No Content\r\n\r\n")),
        Script("status", "206 part of it", reply(None, "206 Partial Content")),
        Script("status", "304", say(b"HTTP/1.1 304 Not Modified\r\n\r\n")),
        Script("status", "101 other protocol", say(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n")),
        Script("status", "999", reply(b"{}", "999 Odd")),
        Script("status", "600", reply(b"{}", "600 Odd")),
        Script("status", "000", reply(b"{}", "000 Odd")),
        Script("status", "four digits", reply(b"{}", "2000 Odd")),
        Script("status", "none", reply(None, "")),
        Script("status", "a word", reply(None, "fine OK")),
        Script("status", "minus", reply(None, "-200 OK")),
        Script("status", "418 without a body", reply(b"", "418 Teapot")),
        Script("status", "400 and HTML", reply(b"<html>bad</html>", "400 Bad")),
        Script("status", "404 and HTML", reply(b"<!DOCTYPE html><title>no</title>", "404 Gone")),
        Script("status", "502 and HTML", reply(b"<html><h1>Bad Gateway</h1>", "502 Bad Gateway")),
        Script("status", "500 and a traceback", reply(b"Traceback (most recent call last):\n  x\n" * 50, "500 No")),
        Script("status", "503, then right", in_turn(reply(b"busy", "503 Busy"), reply()), "value"),
        Script("status", "429, then right", in_turn(reply(b"", "429 Slow"), reply()), "value"),
        Script("status", "408, then right", in_turn(reply(b"", "408 Late"), reply()), "value"),
        Script("status", "closed, then right", in_turn(say(b""), reply()), "value"),
        *(Script("redirect", f"{code}", reply(b"", f"{code} Moved", *redirect)) for code in (301, 302, 303, 307, 308)),
        Script("redirect", "to itself", reply(b"", "302 Found", "Location: /score")),
        Script("redirect", "without a place", reply(b"", "302 Found")),
        Script("redirect", "to a file", reply(b"", "302 Found", "Location: file:///etc/passwd")),
        Script("redirect", "to control characters", reply(b"", "302 Found", "Location: \x1b[31m" + "a" * 5000)),
        Script("protocol", "HTTP/0.9", altered(lambda good: good)),
        Script("protocol", "HTTP/1.0", altered(lambda good: b"HTTP/1.0 200 OK\r\n\r\n" + good), "value"),
        Script("protocol", "HTTP/2 frames", say(b"\0\0\x12\x04\0\0\0\0\0" + bytes(18))),
        Script("protocol", "HTTP/9.9", altered(lambda good: http_reply(good).replace(b"/1.1", b"/9.9")), "any"),
        Script("protocol", "TLS alert", say(b"\x15\x03\x01\0\x02\x02\x0a")),
        Script("protocol", "plain where TLS is asked for", reply(), scheme="https"),
        Script(slow, "silence where TLS is asked for", wait(), scheme="https"),
        Script("protocol", "SSH", say(b"SSH-2.0-OpenSSH_9.0\r\n")),
        Script("protocol", "zeros", say(bytes(4096))),
        Script("protocol", "line feeds alone", altered(lambda good: http_reply(good).replace(b"\r\n", b"\n")), "any"),
        Script("protocol", "two lengths", reply(None, "200 OK", "Content-Length: 3")),
        Script("protocol", "a negative length", reply(None, length=-1)),
        Script("protocol", "a length in words", say(HEAD + b"Content-Length: ten\r\n\r\n{}")),
        Script("protocol", "a length of 5,000 digits", say(HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}")),
        Script("protocol", "a header without a colon", reply(None, "200 OK", "no colon here")),
        Script("protocol", "a header with NUL", reply(None, "200 OK", "X-A: a\0b")),
        Script("protocol", "a header with an escape", reply(None, "200 OK", "X-A: \x1b[2J"), "any"),
        Script("protocol", "a header of 90 KB", reply(None, "200 OK", "X-A: " + "a" * 90_000), "any"),
        Script("protocol", "10,000 headers", reply(None, "200 OK", *["X-A: b"] * 10_000), "any"),
        Script("protocol", "chunks of a negative size", say(chunks(end=b"-5\r\nabc\r\n0\r\n\r\n"))),
        Script("protocol", "chunks of no number", say(chunks(end=b"zz\r\nabc\r\n0\r\n\r\n"))),
        Script("protocol", "chunks of a huge size", say(chunks(end=b"f" * 19 + b"\r\nabc\r\n"))),
        Script(
            "protocol",
            "length and chunks",
            altered(
                lambda good: (
                    HEAD
                    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + chunks(good).partition(b"\r\n\r\n")[2]
                )
            ),
            "any",
        ),
        Script("protocol", "in chunks", altered(lambda good: chunks(good[:9], good[9:])), "value"),
        Script(
            "protocol",
            "10,000 cookies",
            reply(None, "200 OK", *(f"Set-Cookie: a{n}=b; Path=/" for n in range(99))),
            "value",
        ),
        Script("packed", "gzip that nobody asked for", packed(gzip.compress, "gzip"), "value"),
        Script("packed", "deflate", packed(zlib.compress, "deflate"), "value"),
        Script("packed", "raw deflate", packed(raw_deflate, "deflate")),
        Script("packed", "called gzip and plain", packed(lambda good: good, "gzip")),
        Script("packed", "gzip cut short", packed(lambda good: gzip.compress(good)[:-12], "gzip")),
        Script("packed", "gzip damaged", packed(lambda good: gzip.compress(good)[:12] + b"\xff" * 40, "gzip")),
        Script(
            "packed", "gzip with a wrong checksum", packed(lambda good: gzip.compress(good)[:-8] + bytes(8), "gzip")
        ),
        Script("packed", "a gzip bomb", packed(lambda good: gzip_bomb(), "gzip")),
        Script("packed", "gzip in gzip", packed(lambda good: gzip.compress(gzip.compress(good)), "gzip, gzip")),
        Script("packed", "br", packed(lambda good: b"\x0b\x02\x80" + good, "br")),
        Script("packed", "an unknown encoding", packed(lambda good: good, "x-rot13")),
        Script("packed", "ten encodings", packed(lambda good: good, ", ".join(["gzip"] * 10))),
        Script("text", "HTML", reply(b"<html>hello</html>")),
        Script("text", "empty", reply(b"")),
        Script(
            "text",
            "Latin-1",
            reply('{"scores": "ü"}'.encode("latin-1"), "200 OK", "Content-Type: text/plain; charset=latin-1"),
        ),
        Script(
            "text",
            "a charset that does not exist",
            reply(None, "200 OK", "Content-Type: application/json; charset=klingon"),
            "value",
        ),
        Script(
            "text", "UTF-16 with its mark", altered(lambda good: http_reply(good.decode().encode("utf-16"))), "value"
        ),
        Script("text", "UTF-16 without a mark", altered(lambda good: http_reply(good.decode().encode("utf-16-le")))),
        Script("text", "a byte order mark", altered(lambda good: http_reply(b"\xef\xbb\xbf" + good)), "value"),
        Script("text", "JSON cut short", altered(lambda good: http_reply(good[:-2]))),
        Script("text", "JSON twice", altered(lambda good: http_reply(good + good))),
        Script("text", "deep lists", reply(b"[" * 200_000)),
        Script("text", "deep mappings", reply(b'{"a":' * 100_000)),
        Script("text", "a number of 400 digits", reply(b"1" * 400)),
        Script("text", "a number of 100,000 digits", reply(b"1" * 100_000)),
        Script("text", "terminal escapes", reply(b"\x1b]0;title\x07\x1b[31m" * 40)),
        Script("text", "only spaces, 900 KB", reply(b" " * 900_000)),
        Script(
            "retry-after", "a superscript two", in_turn(reply(b"", "429 Slow", "Retry-After: \xb2"), reply()), "value"
        ),
        Script("retry-after", "negative", in_turn(reply(b"", "429 Slow", "Retry-After: -5"), reply()), "value"),
        Script("retry-after", "words", in_turn(reply(b"", "503 Slow", "Retry-After: soon"), reply()), "value"),
        Script(
            "retry-after",
            "a date of long ago",
            in_turn(reply(b"", "503 Slow", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"), reply()),
            "value",
        ),
        Script(
            "retry-after",
            "a broken date",
            in_turn(reply(b"", "503 Slow", "Retry-After: Wed, 99 Xxx 99999 GMT"), reply()),
            "value",
        ),
        Script("retry-after", "NaN", in_turn(reply(b"", "503 Slow", "Retry-After: nan"), reply()), "value"),
        Script("secret", "in an error", echo_secret("400 Bad")),
        Script("secret", "in an error that may pass", echo_secret("500 No")),
        Script("secret", "in a page", echo_secret("200 OK")),
        Script(
            "secret",
            "in a redirect",
            reply(b"", "302 Found", f"Location: http://me:{SECRET}@127.0.0.1:9/?token={SECRET}"),
        ),
        Script("secret", "in the status line", reply(b"", f"403 {SECRET}")),
        Script("secret", "in a broken status line", say(f"HTTP/1.1 {SECRET}\r\n\r\n".encode())),
    ]


def echo_secret(status: str) -> Play:
    """What debug pages do: the request's own headers stand in the answer."""
    words = f"your headers: Authorization: Bearer {SECRET}; {{'authorization': 'Bearer {SECRET}'}}; {SECRET}".encode()
    return reply(words, status)


# What is sent in JSON


REMOTE_GOOD: dict[str, Any] = {"scores": {"r": [SCORE]}, "reasons": {}}


def remote_bodies() -> Iterator[tuple[str, str, Expectation]]:
    """(name, body, what must come of it) of `POST /score`."""
    for name, value in ODD_VALUES.items():
        yield f"scores: {name}", f'{{"scores": {value}, "reasons": {{}}}}', "nan"
        yield f"scores.r: {name}", f'{{"scores": {{"r": {value}}}, "reasons": {{}}}}', "nan"
        yield f"scores.r[0]: {name}", f'{{"scores": {{"r": [{value}]}}, "reasons": {{}}}}', "nan"
        yield f"reasons: {name}", f'{{"scores": {{"r": [{SCORE}]}}, "reasons": {value}}}', "any"
        yield f"reasons.r: {name}", f'{{"scores": {{"r": [{SCORE}]}}, "reasons": {{"r": {value}}}}}', "any"
        yield f"the whole: {name}", value, "nan"
    yield "two numbers for one sample", '{"scores": {"r": [1, 2]}, "reasons": {}}', "nan"
    yield "no number", '{"scores": {"r": []}, "reasons": {}}', "nan"
    yield "another reward", '{"scores": {"s": [1]}, "reasons": {}}', "nan"
    yield "no reasons", '{"scores": {"r": [1]}}', "nan"
    yield "the key twice", '{"scores": {"r": [1], "r": [2]}, "reasons": {}}', "nan"
    many = {f"r{n}": [1] for n in range(100_000)}
    yield "100,000 rewards more", json.dumps({"scores": many | {"r": [SCORE]}, "reasons": {}}), "value"
    yield "beyond float32", '{"scores": {"r": [1e39]}, "reasons": {}}', "nan"
    yield "a secret as reason", json.dumps({"scores": {"r": [None]}, "reasons": {"r": f"Bearer {SECRET}"}}), "nan"
    yield "a long reason", json.dumps({"scores": {"r": [None]}, "reasons": {"r": "a\n\x1b[2J" * 20_000}}), "nan"


ODD_VALUES = {
    "null": "null", "true": "true", "text": '"0.75"', "a list of lists": "[[0.75]]", "a mapping": '{"a": 1}',
    "Infinity": "Infinity", "-Infinity": "-Infinity", "NaN": "NaN", "1e400": "1e400", "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000, "a lone surrogate": '"\\ud800"', "deep": "[" * 5000 + "]" * 5000, "empty text": '""',
    "escapes": '"\\u001b[31m\\n\\u0007"',
}  # fmt: skip


def completion(content: Any = "", **change: Any) -> dict:
    top = [{"token": "Yes", "logprob": -0.2876820724517809}, {"token": "No", "logprob": -1.3862943611198906}]
    logprobs = {"content": [{"top_logprobs": top}]}
    choice = {"message": {"content": content}, "finish_reason": "stop", "logprobs": logprobs}
    return {"choices": [choice | change], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}


def judge_bodies() -> Iterator[tuple[str, str, Expectation]]:
    """(name, body, what must come of it) of `POST /chat/completions` with the question `yes_no`: P(yes) is SCORE."""
    good = json.dumps(completion())
    yes, no = "-0.2876820724517809", "-1.3862943611198906"
    for name, value in ODD_VALUES.items():
        yield f"usage: {name}", good.replace('{"prompt_tokens": 9, "completion_tokens": 1}', value), "any"
        yield f"usage.prompt_tokens: {name}", good.replace('"prompt_tokens": 9', f'"prompt_tokens": {value}'), "any"
        yield f"choices: {name}", f'{{"choices": {value}}}', "nan"
        yield f"choices[0]: {name}", f'{{"choices": [{value}]}}', "nan"
        yield f"message: {name}", good.replace('{"content": ""}', value), "any"
        yield f"content: {name}", good.replace('"content": ""', f'"content": {value}'), "any"
        yield f"logprobs: {name}", f'{{"choices": [{{"message": {{"content": "Yes"}}, "logprobs": {value}}}]}}', "nan"
        yield f"logprob: {name}", good.replace(yes, value).replace(no, value), "any"
        yield f"token: {name}", good.replace('"Yes"', value), "any"
        yield f"the whole: {name}", value, "nan"
    yield "no choices", '{"choices": []}', "nan"
    yield "an error with 200", '{"error": {"message": "out of memory"}}', "nan"
    yield "a secret in the content", json.dumps(completion(f"Bearer {SECRET}", logprobs=None)), "nan"
    yield "usage below zero", good.replace(": 9", ": -9"), "value"


REWARD_SPEC = {
    "name": "r", "version": "1", "modalities": ["image"], "differentiable": False, "scope": "sample",
    "needs": ["prompt"], "typical": [0, 1], "paper": "", "weights": "", "licence": "",
}  # fmt: skip


def spec_bodies() -> Iterator[tuple[str, str, Expectation]]:
    """(name, body, what must come of it) of `GET /rewards`."""
    good = json.dumps({"rewards": {"r": REWARD_SPEC}})
    for name, value in ODD_VALUES.items():
        yield f"rewards: {name}", f'{{"rewards": {value}}}', "nan"
        yield f"rewards.r: {name}", f'{{"rewards": {{"r": {value}}}}}', "nan"
        for field, known in REWARD_SPEC.items():
            right = f'"{field}": {json.dumps(known)}'
            yield f"{field}: {name}", good.replace(right, f'"{field}": {value}'), "any"
    yield "a field more", good.replace('"name"', '"colour": 1, "name"'), "nan"
    yield "a field less", good.replace('"version": "1", ', ""), "nan"
    yield "another reward", good.replace('{"r"', '{"s"'), "nan"
    yield "an unknown modality", good.replace('["image"]', '["smell"]'), "nan"


def model_bodies() -> Iterator[tuple[str, str, Expectation]]:
    """(name, body, what must come of it) of `GET /models`."""
    for name, value in ODD_VALUES.items():
        yield f"data: {name}", f'{{"data": {value}}}', "nan"
        yield f"data[0]: {name}", f'{{"data": [{value}]}}', "nan"
        yield f"id: {name}", f'{{"data": [{{"id": {value}}}]}}', "nan"
    yield "100,000 models", json.dumps({"data": [{"id": f"m{n}"} for n in range(50_000)]}), "nan"


BODIES = {"remote": remote_bodies, "judge": judge_bodies, "remote check": spec_bodies, "judge check": model_bodies}


def make_scripts(part: str) -> list[Script]:
    """All that a client is tried on. A check is made once, so what is right the second time need not pass it;
    and a judge need not list its models (404)."""
    scripts = transport_scripts()
    scripts += [Script("json", name, reply(text.encode()), expect) for name, text, expect in BODIES[part]()]
    if part.endswith("check"):
        scripts = [replace(s, expect="any") if s.expect == "value" or s.name.startswith("404") else s for s in scripts]
    return scripts


def random_scripts(rng: random.Random) -> Iterator[Script]:
    """Right replies with a few bytes changed, cut or put twice, for ever."""
    for n in range(1 << 30):
        seed = rng.randrange(1 << 32)

        def play(link: socket.socket, good: bytes, seed: int = seed) -> None:
            own, text = random.Random(seed), bytearray(http_reply(good))
            for _ in range(own.randint(1, 4)):
                at, size = own.randrange(len(text)), own.choice((1, 1, 2, 8))
                change = own.randrange(4)
                if change == 0:
                    text[at : at + size] = own.randbytes(size)
                elif change == 1:
                    del text[at : at + size]
                elif change == 2:
                    text[at:at] = text[at : at + size]
                else:
                    del text[at:]
                    break
                if not text:
                    break
            link.sendall(bytes(text))

        yield Script("damaged", f"{n} ({seed})", play, "any")


# The server and the clients


class ScriptServer:
    """Plays one script for each request, on a port of the loopback of its own."""

    def __init__(self, play: Play, good: bytes, scheme: str = "http", listing: bytes = b""):
        """`listing`: a right answer to every GET, for clients that ask what there is before they ask for a score."""
        self.play, self.good, self.listing = play, good, listing
        self._door = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"{scheme}://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                link, _ = self._door.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:  # who hung up is the client, as it should
            link.settimeout(4 * PATIENCE)
            request = read_request(link)
            if self.listing and request.startswith(b"GET"):
                link.sendall(http_reply(self.listing))
            elif b"\r\n\r\n" in request:
                self.play(link, self.good)


def read_request(link: socket.socket) -> bytes:
    """All of a request. Sent back before it was read, a reply would reset the connection."""
    text = link.recv(1 << 16)
    length = int(text.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while text and len(text.partition(b"\r\n\r\n")[2]) < length:
        text += link.recv(1 << 16)
    return text


def score_remotely(url: str, timeout: float) -> tuple[float, str]:
    """(score, reason) of one picture by `rewards.remote` at this address."""
    import torch

    from rewards.remote import Remote
    from workbench.core.types import Media

    media = Media(torch.zeros(1, 3, 4, 4), "image")
    answer = Remote(("r",), url, timeout=timeout, retries=RETRIES).submit(media=media, prompts=["a"]).result()
    return answer.scores["r"].item(), answer.reasons.get("r", "")


def score_by_judge(url: str, timeout: float) -> tuple[float, str]:
    """(score, reason) of one picture by a judge at this address."""
    import torch

    from rewards.vlm.judge import Judge
    from workbench.core.types import Media

    judge = Judge(url=url, model="judge", key="WORKBENCH_TOKEN", timeout=timeout, retries=RETRIES, backoff=0.01)
    score = judge(media=Media(torch.zeros(1, 3, 4, 4), "image"), prompts=["a"]).item()
    return score, judge.last_failures.get(0, "")


def check_remote(url: str, timeout: float) -> tuple[float, str]:
    """(SCORE, "") where the server at this address passes the check before a run."""
    from rewards.remote import Remote

    remote = Remote(("r",), url, timeout=timeout)
    remote.check()
    assert remote.spec.modalities and remote.spec.version.startswith("r@")
    return SCORE, ""


def check_judge(url: str, timeout: float) -> tuple[float, str]:
    """(SCORE, "") where the judge at this address passes the check before a run."""
    from rewards.vlm.judge import Judge

    Judge(url=url, model="judge", key="WORKBENCH_TOKEN", timeout=timeout).check()
    return SCORE, ""


CLIENTS = {
    "remote": (score_remotely, json.dumps(REMOTE_GOOD).encode()),
    "judge": (score_by_judge, json.dumps(completion()).encode()),
    "remote check": (check_remote, json.dumps({"rewards": {"r": REWARD_SPEC}}).encode()),
    "judge check": (check_judge, json.dumps({"data": [{"id": "judge"}]}).encode()),
}


def find_fault(client: Callable[[str, float], tuple[float, str]], url: str, script: Script) -> str:
    """What is wrong with the client's answer to a server that plays this script; "" where nothing is."""
    from door_outcomes import check_sentence

    from workbench.core.errors import BadInput

    started = time.monotonic()
    try:
        score, reason = client(url, script.timeout)
    except BadInput as error:  # a refusal in the protocol's own words
        score, reason = float("nan"), str(error)
    seconds = time.monotonic() - started
    if seconds > PATIENCE:
        return f"took {seconds:.1f} s"
    if SECRET in reason:
        return f"the reason holds the secret: {reason}"
    if score != score and check_sentence(reason) != "sentence":
        return f"NaN for the reason {reason!r}"
    if score == score and not 0 <= score <= 1:
        return f"the score {score}"
    if script.expect == "value" and not abs(score - SCORE) < 1e-6:
        return f"{score} ({reason}), not {SCORE}"
    if script.expect == "nan" and score == score:
        return f"the score {score}, where there is none"
    return ""


def run(count: int, seed: int) -> list[Outcome]:
    """At least all scripts, for each client, and as many damaged replies as `count` asks for beyond them."""
    import rewards.remote
    import rewards.vlm.judge  # noqa: F401  before the processes fork

    os.environ["WORKBENCH_TOKEN"] = SECRET
    logging.disable(logging.WARNING)
    rewards.remote.PAUSE = 0.01
    outcomes = []
    for part, (client, good) in CLIENTS.items():
        fixed = make_scripts(part)
        damaged = random_scripts(random.Random(seed))
        scripts = [*fixed, *islice(damaged, max(0, count // len(CLIENTS) - len(fixed)))]
        for script in scripts:
            server = ScriptServer(script.play, good, script.scheme)
            check = functools.partial(find_fault, client, server.url, script)
            outcome = try_in_process(f"{part}: {script.kind}", script.name, check, limit_s=2 * PATIENCE)
            if outcome.good and outcome.peak_mb > MEMORY_MB:
                note = f"took {outcome.peak_mb:.0f} MB"
                outcome = Outcome(outcome.kind, outcome.name, "wrong", note, outcome.seconds, outcome.peak_mb)
            outcomes.append(outcome)
            server.close()
    return outcomes
