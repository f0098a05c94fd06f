"""Who may talk to the app: its own names, its own pages, and whoever knows a password without guessing."""

from __future__ import annotations

import asyncio

import pytest

from workbench.core.errors import BadInput
from workbench.ui import site_guard
from workbench.ui.site_guard import AllowedHosts, LoginThrottle, SiteGuard, address_group, read_host


def refusal(hosts: AllowedHosts, host: str = "127.0.0.1:7860", method: str = "GET", **headers: str) -> str:
    pairs = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in pairs.items()]
    scope = {"type": "http", "method": method, "path": "/gradio_api/upload", "headers": encoded}
    return SiteGuard(None, hosts).find_reason(scope)


HERE = AllowedHosts("127.0.0.1")
NAMED = AllowedHosts("0.0.0.0", ["Lab.Example.org"])


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "localhost."])
def test_an_app_answers_to_its_own_names(host):
    assert refusal(HERE, host) == refusal(NAMED, host) == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example",
     "evil.example/127.0.0.1", "127.0.0.1:7860:1", "", " ", "xn--lcalhost-4ya", "lab.example.org.evil.example",
     "localhost, evil.example", "\x1b[31m", "[::1", "127.0.0.1#"],
)  # fmt: skip
def test_an_app_answers_to_no_foreign_name(host):
    for hosts in (HERE, NAMED):
        reason = refusal(hosts, host)
        assert "--allowed-hosts" in reason and reason.count("\n") == 1 and "\x1b" not in reason


def test_a_name_is_allowed_when_it_is_named_and_an_address_when_all_are_listened_on():
    assert refusal(NAMED, "lab.example.org") == refusal(NAMED, "192.168.1.7:7860") == refusal(NAMED, "[fe80::1]") == ""
    assert refusal(HERE, "lab.example.org") and refusal(HERE, "192.168.1.7:7860")
    assert refusal(AllowedHosts("192.168.1.7"), "192.168.1.7:7860") == ""
    for text in ("", "*", "a b", "http://lab.example.org", "me@lab"):
        with pytest.raises(BadInput, match="--allowed-hosts"):
            AllowedHosts("127.0.0.1", [text])


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://evil.example:7860", "null", "", "http://127.0.0.1:3000", "http://localhost:7860",
     "file://", "http://127.0.0.1:7860.evil.example", "chrome-extension://abc"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_a_page_of_another_origin_sends_is_refused(origin, method):
    assert "another site" in refusal(HERE, method=method, origin=origin)


def test_its_own_pages_are_served_behind_a_named_proxy_too():
    own = {"method": "POST", "origin": "http://127.0.0.1:7860", "sec_fetch_site": "same-origin"}
    assert refusal(HERE, **own) == refusal(HERE) == refusal(HERE, sec_fetch_site="none") == ""
    assert refusal(NAMED, "lab.example.org", "POST", origin="https://lab.example.org") == ""
    assert refusal(NAMED, "127.0.0.1:7860", "POST", origin="https://lab.example.org", sec_fetch_site="cross-site") == ""


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_link_here_and_embed_nothing(site):
    assert refusal(HERE, sec_fetch_site=site, sec_fetch_mode="navigate") == ""
    assert "another site" in refusal(HERE, sec_fetch_site=site, sec_fetch_mode="no-cors")
    assert "another site" in refusal(HERE, method="POST", sec_fetch_site=site, sec_fetch_mode="navigate")


def test_two_host_headers_are_none():
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost"), (b"host", b"evil")]}
    assert SiteGuard(None, HERE).find_reason(scope)
    assert read_host("[::1]:80") == "::1" and read_host("host:port") == "" == read_host("a@b")


# Logins


class Login:
    """One address after the other logs in; a clock that stands unless told."""

    def __init__(self):
        self.now, self.right = 1000.0, False
        self.throttle = LoginThrottle(self.answer, clock=lambda: self.now)

    async def answer(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200 if self.right else 400, "headers": []})

    def post(self, address: str = "10.0.0.1", right: bool = False, path: str = "/login") -> int:
        statuses = []

        async def send(message):
            statuses.append(message.get("status"))

        self.right = right
        scope = {"type": "http", "method": "POST", "path": path, "client": (address, 1), "headers": []}
        asyncio.run(self.throttle(scope, None, send))
        return statuses[0]


def test_after_wrong_logins_an_address_waits_and_longer_each_time():
    login = Login()
    assert [login.post(path=path) for path in ("/login", "/login/") * 3] == [400] * 5 + [429]
    assert login.post(right=True) == 429, "nobody guesses on while it waits"
    assert login.post("10.0.0.2", right=True) == 200, "others do not wait"
    waits = []
    for _ in range(12):
        begun = login.now
        while login.post() == 429:
            login.now += 1
        waits.append(login.now - begun)
    assert waits[:4] == [2, 4, 8, 16] and waits[-1] == site_guard.LONGEST_WAIT
    login.now += site_guard.LONGEST_WAIT
    assert login.post(right=True) == 200
    assert [login.post() for _ in range(6)] == [400] * 5 + [429], "whoever came in begins anew"


def test_addresses_are_forgotten_and_never_too_many_kept(monkeypatch):
    monkeypatch.setattr(site_guard, "MAX_ADDRESSES", 50)
    login = Login()
    for n in range(200):
        login.post(f"10.0.1.{n}")
    assert len(login.throttle.addresses) == 50
    assert [login.post(f"2001:db8::{n:x}") for n in range(6)][-1] == 429, "one customer has all of a /64"
    login.now += site_guard.FORGET + 1
    assert login.post("2001:db8::1") == 400
    assert address_group("not an address" * 20) == ("not an address" * 20)[:64]
