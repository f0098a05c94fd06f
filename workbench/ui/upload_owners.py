"""Where people log in, a file that one of them uploaded is for that person alone: its path opens it for nobody else."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json

API = "/gradio_api/"
FILE_ROUTES = ("file=", "file/")  # of gradio
MAX_PATHS = 20_000  # remembered at once; files live for a day
REFUSAL = "This file was uploaded by somebody else.\n"


def read_login(scope: Scope) -> str | None:
    """Who sends this request, by the cookie that gradio gave at the login."""
    app, cookies = scope["app"], HTTPConnection(scope).cookies
    token = cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}")
    return app.tokens.get(token)


class UploadOwners:
    """ASGI, inside of gradio's own layers: remembers who uploaded which path, and refuses requests of others for it."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.owners: OrderedDict[str, set[str]] = OrderedDict()  # two people may upload the same file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        route, login = scope["path"].removeprefix(API), read_login(scope)
        if scope["method"] == "POST" and route.rstrip("/") == "upload":
            await self._watch_upload(scope, receive, send, login)
            return
        texts: Iterable[str] = [route] if route.startswith(FILE_ROUTES) else []
        if scope["method"] == "POST" and not Headers(scope=scope).get("content-type", "").startswith("multipart/"):
            body = await read_body(receive)
            receive = replay_body(body, receive)
            try:
                texts = list_texts(parse_json(body, "the request")) if body else []
            except BadInput as problem:  # gradio might read it otherwise than it is read here
                await PlainTextResponse(f"{problem}\n", 400)(scope, receive, send)
                return
        if any(self._is_of_others(text, login) for text in texts):
            await PlainTextResponse(REFUSAL, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_of_others(self, text: str, login: str | None) -> bool:
        """Whether a text names a file that others uploaded: by its path, or by an address of gradio's file routes."""
        paths = [] if "\0" in text else [text, *(text.rpartition(route)[2] for route in FILE_ROUTES)]
        owners = [self.owners[path] for path in map(os.path.realpath, paths) if path in self.owners]
        return any(login not in logins for logins in owners)

    async def _watch_upload(self, scope: Scope, receive: Receive, send: Send, login: str | None) -> None:
        answer = bytearray()

        async def send_and_look(message: Message) -> None:
            if message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    self._remember(bytes(answer), login)  # before the client can ask for it
            await send(message)

        await self.app(scope, receive, send_and_look)

    def _remember(self, answer: bytes, login: str | None) -> None:
        try:
            paths = json.loads(answer)
        except ValueError:  # a refused upload is answered in words
            return
        for path in paths if login and isinstance(paths, list) else ():
            path = os.path.realpath(path)
            self.owners[path] = self.owners.pop(path, set()) | {login}
            if len(self.owners) > MAX_PATHS:
                self.owners.popitem(last=False)


async def read_body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def replay_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then goes on."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def list_texts(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, at whatever depth."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            values.extend(value.values() if isinstance(value, dict) else value)
