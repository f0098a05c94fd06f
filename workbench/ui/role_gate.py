"""What each role may ask for, decided in one place and before anything else looks at a request. Where people log in,
only admins reach the app; raters and strangers reach the pages of studies, and the page on which one logs in."""

from __future__ import annotations

import re

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.ui.upload_owners import read_login
from workbench.ui.users import ADMIN, RATER, Users

STUDIES = "/vote"  # below which studies have their pages
COOKIE = "workbench-rater"  # and its number: of one study
FOR_ALL = re.compile(rf"{STUDIES}(/.*)?|/log(in|out)/?")
LOGIN_PAGE = re.compile(  # and what gradio asks itself for as it starts
    r"/|/(assets|static|svelte)/[\w./@-]+|/(theme\.css|favicon\.ico|manifest\.json|login_check/?)"
    r"|/gradio_api/startup-events/?"
)
REFUSAL = "This is for those who run the app. Raters find their studies under /vote/.\n"
STRANGER = "Log in first.\n"


class RoleGate:
    """ASGI: lets admins through, and everybody else to what is theirs: all that isn't named here is refused."""

    def __init__(self, app: ASGIApp, users: Users):
        self.app, self.users = app, users

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        role = self.users.role_of(read_login(scope))
        if role == ADMIN or FOR_ALL.fullmatch(path):
            await self.app(scope, receive, forget_rater(scope, send) if path.startswith("/log") else send)
        elif role == RATER and path == "/" and scope["type"] == "http":
            await RedirectResponse(f"{STUDIES.lstrip('/')}/", 303)(scope, receive, send)
        elif role != RATER and LOGIN_PAGE.fullmatch(path) and scope.get("method") in ("GET", "HEAD"):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            is_known = role == RATER or is_rater(scope)
            await PlainTextResponse(*((REFUSAL, 403) if is_known else (STRANGER, 401)))(scope, receive, send)


def is_rater(scope: Scope) -> bool:
    """Whether a request comes from a page on which somebody votes without a login."""
    return any(name.startswith(COOKIE) for name in HTTPConnection(scope).cookies)


def forget_rater(scope: Scope, send: Send) -> Send:
    """A `send` that takes the rater's cookies away: whoever logs in or out is another person from then on."""
    names = [name for name in HTTPConnection(scope).cookies if name.startswith(COOKIE)]

    async def send_and_forget(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            for name in names:
                forgotten = f"{name}=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax".encode()
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", forgotten)]
        await send(message)

    return send_and_forget
