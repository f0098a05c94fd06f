"""Servers of others: whatever they send, a score or NaN with one sentence, in time, in bounded memory, without
secrets. All scripts are in benchmarks/door_servers.py, which tries thousands more."""

from __future__ import annotations

import gzip
import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch

from rewards import build, remote
from rewards.remote import TOKEN, Remote
from rewards.vlm.judge_answers import Lines, Rubric, Verdict
from rewards.vlm.judge_client import JudgeError, Reply
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import bounded_http
from workbench.core.io.bounded_http import (
    LONGEST_PAUSE,
    RequestFailed,
    Server,
    ServerReply,
    read_retry_after,
    unpack_body,
)
from workbench.core.paths import ROOT
from workbench.core.redact import redact, remember_secret
from workbench.core.types import Media
from workbench.runs.prompt_expanders import make_expander

sys.path.append(str(ROOT / "benchmarks"))  # last: a file there is called as the package `rewards` is

import door_servers  # noqa: E402
from door_servers import CLIENTS, SECRET, Script, ScriptServer, find_fault, make_scripts, random_scripts  # noqa: E402


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(door_servers, "TIMEOUT", 0.25)


def faults(part: str, scripts: list[Script]) -> list[str]:
    client, good = CLIENTS[part]

    def try_script(script: Script) -> str:
        server = ScriptServer(script.play, good, script.scheme)
        try:
            fault = find_fault(client, server.url, script)
        finally:
            server.close()
        return f"{script.kind}, {script.name}: {fault}" if fault else ""

    with ThreadPoolExecutor(12) as pool:
        return [fault for fault in pool.map(try_script, scripts) if fault]


@pytest.mark.parametrize("part", CLIENTS)
def test_whatever_a_server_does_there_is_a_score_or_a_reason_in_time(part):
    """All that is wrong below JSON for one client, for they share it; a part for the others, and of odd JSON."""
    rng = random.Random(11)
    scripts = make_scripts(part)
    odd_json = [s for s in scripts if s.kind == "json"]
    below = [s for s in scripts if s.kind != "json" and s.name not in ("endless 100 Continue", "one-byte chunks")]
    scripts = (below if part == "remote" else rng.sample(below, 12)) + rng.sample(odd_json, 40)
    assert faults(part, [*scripts, *islice(random_scripts(rng), 10)]) == []


# In seconds and in bytes


def test_the_time_limit_is_of_the_whole_answer_and_the_size_of_the_unpacked_one():
    drip = ScriptServer(door_servers.drip(head=True), b"{}")
    began = time.monotonic()
    with pytest.raises(RequestFailed, match="Timeout: not finished after 0.2 s"):
        Server(drip.url, seconds=0.2, max_bytes=100, use_proxies=False).request("GET", "/")
    assert time.monotonic() - began < 2
    drip.close()
    for text in (b" " * 101, gzip.compress(b" " * 101)):
        packing = ["Content-Encoding: gzip"] if text[:1] != b" " else []
        large = ScriptServer(door_servers.reply(text, "200 OK", *packing), b"")
        with pytest.raises(RequestFailed, match="larger than"):
            Server(large.url, seconds=5, max_bytes=100, use_proxies=False).request("GET", "/")
        large.close()
    assert unpack_body(gzip.compress(b" " * 100), "GZIP", 100) == b" " * 100


def test_retries_end_and_wait_no_longer_than_they_may(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(bounded_http.time, "sleep", pauses.append)
    busy = ScriptServer(door_servers.reply(b"busy", "503 Busy", "Retry-After: 86400"), b"")
    with pytest.raises(RequestFailed, match=r"^no answer in 3 attempts \(HTTP 503: busy\)$"):
        Server(busy.url, seconds=5, max_bytes=100, use_proxies=False).request_with_retries("GET", "/", retries=2)
    busy.close()
    assert pauses == [LONGEST_PAUSE] * 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0", 0), ("9" * 5000, LONGEST_PAUSE), ("-7", 0), ("²", 0), ("", 0), ("1e3", 0), ("nan", 0), ("soon", 0),
     ("Thu, 01 Jan 1970 00:01:50 GMT", 10), ("Thu, 01 Jan 1970 00:00:10 GMT", 0), ("Wed, 99 Xxx 99999 99:99", 0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_anything_else_asks_for_nothing(text, seconds):
    assert read_retry_after(text, now=100.0) == seconds


def test_a_process_that_forked_talks_through_a_loop_of_its_own():
    url = ScriptServer(door_servers.reply(b"hello"), b"").url
    server = Server(url, seconds=5, max_bytes=100, use_proxies=False)
    assert server.request("GET", "/").body == b"hello"
    before = bounded_http.talking_loop()
    bounded_http._forget_loop()  # what the child of a fork does
    assert server.request("GET", "/").body == b"hello" and bounded_http.talking_loop() is not before


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (Lines(("rating",), ("Rating:",), 0, 10), "Rating:" + " " * 250_000),
        (Rubric(("a", "b"), 0, 1), '{"a":' * 50_000),
        (Verdict("1", "2", "tie"), "<answer>" * 30_000),
    ],
)
def test_reading_an_answer_costs_no_more_than_its_length(form, text):
    began = time.monotonic()
    with pytest.raises(JudgeError):
        form.read(Reply(text))
    assert time.monotonic() - began < 2, "hours, where spaces are matched in two ways"


# Scores


def test_one_odd_number_costs_one_row():
    good = json.dumps({"scores": {"r": [0.25, "high", True, 0.5]}, "reasons": {}}).encode()
    server = ScriptServer(door_servers.reply(), good)
    media = Media(torch.zeros(4, 3, 4, 4), "image")
    answer = Remote(("r",), server.url).submit(media=media, prompts=["a"] * 4).result()
    server.close()
    assert answer.scores["r"].isnan().tolist() == [False, True, True, False]
    assert answer.reasons == {"r": "the server gave no number but 'high' for 2 of 4"}


# Secrets

PASSWORD = "hunter2-hunter2"  # which nothing was told to remember


@pytest.mark.parametrize(
    ("name", "settings"),
    [("rewards.remote:Remote", {"names": ["r"]}), ("judge", {"model": "judge"}), ("editscore", {})],
)
@pytest.mark.parametrize(
    "url",
    [f"http://me:{PASSWORD}@127.0.0.1:8000", f"https://{PASSWORD}@127.0.0.1/v1", f"http://127.0.0.1:8000/?key={PASSWORD}",
     f"http://me:{PASSWORD}@[::1", f"http://me:{PASSWORD}@host:99999999/v1", f"me:{PASSWORD}@host"],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_before_anything_is_written(name, settings, url):
    with pytest.raises(BadInput, match="variable|must look like") as error:
        build(name, url=url, **settings)
    assert PASSWORD not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadInput) as error:
        make_expander({"url": url, "model": "m"})
    assert PASSWORD not in str(error.value)


def test_a_token_given_instead_of_its_variable_is_not_repeated():
    with pytest.raises(BadInput, match="NAME of an environment variable") as error:
        Remote(("r",), token_env=PASSWORD)
    assert PASSWORD not in str(error.value)


def test_redact_masks_what_was_remembered_and_what_looks_like_credentials():
    text = (
        f"http://me:pass@host/a, Authorization: Bearer abc, 'authorization': 'Basic bWU6cA==', {SECRET}, bearer a-1.b/c"
    )
    with pytest.raises(RequestFailed):
        Server("http://127.0.0.1:9", seconds=1, max_bytes=1, use_proxies=False).request(
            "GET", "/", headers={"Authorization": f"Bearer {SECRET}"}
        )
    assert redact(text) == (
        "http://***@host/a, Authorization: Bearer ***, 'authorization': 'Basic ***', ***, bearer ***"
    )
    plain = "the bearer of a red flag needs authorization, and basic shapes"
    assert redact(plain) == plain


def test_a_secret_is_masked_before_a_long_answer_is_cut():
    """Wherever the cut falls, half a secret would be shown."""
    remember_secret(SECRET)
    for n in range(150, 320, 7):
        body = (f"{'a' * n}{SECRET}" * 40).encode()
        for sentence in (ServerReply(500, body).describe(), str(RequestFailed(body.decode()))):
            assert not any(SECRET[:k] in sentence or SECRET[-k:] in sentence for k in (6, 8, 12)), sentence


def test_a_run_folder_holds_no_secret_though_the_servers_repeat_it(tmp_path, monkeypatch, capfd, caplog):
    """A judge and a reward server that put the request's own headers into every answer: the table stands, without
    them, and so do report, index and log."""
    echo, spec = door_servers.echo_secret("500 No"), {"rewards": {"r": door_servers.REWARD_SPEC}}
    server = ScriptServer(echo, b"", listing=json.dumps(spec).encode())
    judge = ScriptServer(door_servers.echo_secret("200 OK"), b"", listing=b'{"data": [{"id": "judge"}]}')
    config = {
        "pipeline": "starter-image", "method": {"name": "best_of_n", "n": 2}, "reward": "brightness",
        "watch": {"remote": {"names": ["r"], "url": server.url, "retries": 0},
                  "judge": {"url": judge.url, "model": "judge", "key": TOKEN, "retries": 0}},
        "prompts": ["a red circle"], "samples_per_prompt": 1, "name": "told",
    }  # fmt: skip
    (tmp_path / "told.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "told.yaml"]) == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert "no score from" in said and "HTTP 500" in said
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "workbench.db"} <= {path.name for path in files}
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in said
    assert threading.active_count() < 200
