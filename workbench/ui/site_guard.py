"""Who may talk to the app: requests that name this app as their host, from its own pages, and from people who don't
guess passwords."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.core.errors import BadInput
from workbench.core.text import one_line

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # addresses to listen on that stand for all of this machine
OPTION = "--allowed-hosts"

HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::[0-9]{1,5})?")
LOGINS = re.compile(r"/login/?|/vote/[^/]+/login")  # where passwords are tried: of the app, and of its studies
FREE_TRIES = 5  # wrong passwords of one address before it has to wait
FIRST_WAIT = 2.0  # seconds after that; doubled with each further one
LONGEST_WAIT = 300.0
FORGET = 3600.0  # seconds after which an address begins anew
MAX_ADDRESSES = 4096  # remembered at once


def read_host(text: str) -> str:
    """The name in a Host header or an origin's place, in small letters, without port and brackets; "" for none."""
    match = HOST.fullmatch(text.strip().lower())
    return (match[1] or match[2].rstrip(".")) if match else ""


class AllowedHosts:
    """The names by which an app may be called: a page of another name, which leads here, could read it like its own
    (DNS rebinding)."""

    def __init__(self, listening: str, named: Iterable[str] = ()):
        """`listening`: the address that the app listens on; `named`: what its user allows besides. Raises BadInput."""
        self.named = set()
        for text in named:
            if not (host := read_host(text)) or "*" in host:
                raise BadInput(f"{OPTION}: {one_line(text, 80)!r} is no host; give a name such as lab.example.org")
            self.named.add(host)
        self.own = {*LOOPBACK, listening.strip("[]").lower()}
        # an address in numbers can't be made to lead elsewhere, and which ones this machine has is not known here
        self.any_address = listening in EVERYWHERE
        if self.any_address:
            self.own |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def include(self, host: str) -> bool:
        return host in self.own or host in self.named or (self.any_address and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class SiteGuard:
    """ASGI, the outermost layer: refuses foreign hosts, and what a browser sends for a page of another site."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := self.find_reason(scope)):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse(reason, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def find_reason(self, scope: Scope) -> str:
        """Why the request is refused, in one sentence; "" for one that may go on."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = read_host(hosts[0]) if len(hosts) == 1 else ""
        if not self.hosts.include(host):
            name = one_line(host, 80)
            return f"This app does not answer to the host {name!r}; whoever runs it can allow one with {OPTION} HOST.\n"
        foreign = "A page of another site asked for this, so it is refused.\n"
        if (origin := headers.get("origin")) is not None and not self._is_own_origin(origin, hosts[0]):
            return foreign
        crosses = headers.get("sec-fetch-site") in ("cross-site", "same-site")  # same-site: another port, for one
        follows_link = scope.get("method") in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return foreign if crosses and origin is None and not follows_link else ""

    def _is_own_origin(self, origin: str, host_header: str) -> bool:
        scheme, _, place = origin.strip().lower().partition("://")
        if scheme not in ("http", "https"):
            return False
        # a proxy may call the app by another name than its users do: one that was named is theirs
        return place == host_header.strip().lower() or read_host(place) in self.hosts.named


def guard_site(hosts: AllowedHosts) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan that puts a SiteGuard around all layers of an app before its first request. Its own list of
    middleware would put it inside gradio's, which answers preflights of other sites."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        assert app.middleware_stack is not None, "built by the call that this lifespan belongs to"
        app.middleware_stack = SiteGuard(app.middleware_stack, hosts)
        yield

    return lifespan


@dataclass
class WrongLogins:
    """Of one address."""

    count: int = 0
    wait_until: float = 0.0
    last: float = 0.0


class LoginThrottle:
    """ASGI: after FREE_TRIES wrong logins an address has to wait, each time twice as long."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic):
        self.app, self.clock = app, clock
        self.addresses: OrderedDict[str, WrongLogins] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not LOGINS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        address = address_group((scope.get("client") or ("", 0))[0])
        tries = self._remember(address)
        if (seconds := tries.wait_until - self.clock()) > 0:
            sentence = f"Too many wrong logins; try again in {seconds:.0f} seconds.\n"
            await PlainTextResponse(sentence, 429, {"Retry-After": f"{seconds + 1:.0f}"})(scope, receive, send)
            return
        self._count_try(tries)  # before it is answered: many at once are many

        async def send_and_look(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.addresses.pop(address, None)
            await send(message)

        await self.app(scope, receive, send_and_look)

    def _remember(self, address: str) -> WrongLogins:
        now = self.clock()
        tries = self.addresses.pop(address, WrongLogins())
        if now - tries.last > FORGET:
            tries = WrongLogins()
        self.addresses[address] = tries
        if len(self.addresses) > MAX_ADDRESSES:
            self.addresses.popitem(last=False)
        return tries

    def _count_try(self, tries: WrongLogins) -> None:
        tries.count, tries.last = tries.count + 1, self.clock()
        if tries.count >= FREE_TRIES:
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries.count - FREE_TRIES, 30))
            tries.wait_until = tries.last + wait


def address_group(address: str) -> str:
    """The address; of IPv6 the network of 64 bits, all of which one customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
