"""A judge is somebody else's server: trouble, what is remembered, and the key."""

from __future__ import annotations

import logging
import re
import time

import pytest
import torch
from judge_server import (
    Drip,
    Drop,
    Hang,
    Status,
    ask,
    completion,
    greys,
    judge,
    level,
    pictures,
    plausible,
    yes,
)

from rewards.vlm import judge_client
from rewards.vlm.judge_named import EditScore
from workbench.core.errors import BadInput

SECRET = "sk-very-secret-0123456789"


# Failures


def flaky(*trouble):
    """The first answers are trouble, the rest are right."""
    return lambda body, n: trouble[n] if n < len(trouble) else yes(0.75)


@pytest.mark.parametrize("trouble", [Status(500), Status(503), Status(429, "", {"Retry-After": "0"}), Hang, Drip, Drop])
def test_what_may_pass_is_tried_again(serve, trouble):
    server = serve(flaky(trouble, trouble))
    reward = judge(server, retries=2, timeout=0.4)
    assert ask(reward, greys(0.5)).item() == pytest.approx(0.75)
    assert len(server.bodies) == 3 == reward.cost.requests
    assert reward.last_failures == {} and reward.cost.failed == 0


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Status(500, "out of memory"), "no answer in 2 attempts.*500.*out of memory"),
        (Hang, "no answer in 2 attempts.*Timeout"),
        (Drip, "no answer in 2 attempts.*Timeout: not finished"),
        (Drop, "no answer in 2 attempts.*RemoteProtocolError"),
    ],
)
def test_trouble_that_lasts_is_nan_with_its_reason(serve, trouble, says):
    reward = judge(serve(lambda body, n: trouble), timeout=0.3)
    assert ask(reward, greys(0.5)).isnan().all()
    assert re.search(says, reward.last_failures[0])
    assert reward.cost.requests == 2 and reward.cost.failed == 1


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Status(400, "too many images"), "refused the question (HTTP 400: too many images)"),
        (Status(302, "", {"Location": "http://127.0.0.1:9/"}), "refused the question (HTTP 302"),
        (Status(200, "<html>hello</html>"), "no chat completion: <html>hello"),
        (Status(200, '{"error": {"message": "bad"}}'), "no chat completion"),
        (Status(200, "[]"), "no chat completion"),
        (Status(200, '{"choices": [{"message": {"content": [1]}}]}'), "no text but list"),
        (Status(200, "x" * 2**21), "larger than 1 MiB"),
        (Status(200, "zzz", {"Content-Encoding": "gzip"}), "can't be unpacked"),
        (completion("Yes"), "no log-probabilities"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(serve, trouble, says):
    server = serve(lambda body, n: trouble)
    reward = judge(server, retries=5)
    assert ask(reward, greys(0.5)).isnan().all()
    assert says in reward.last_failures[0]
    assert len(server.bodies) == 1


def test_retries_wait_longer_each_time_and_as_long_as_the_judge_asks(serve):
    server = serve(flaky(Status(500), Status(500), Status(500)))
    began = time.monotonic()
    ask(judge(server, retries=3, backoff=0.1), greys(0.5))
    took = time.monotonic() - began
    assert took >= 0.5 * (0.1 + 0.2 + 0.4)
    server = serve(flaky(Status(429, "", {"Retry-After": "1"})))
    began = time.monotonic()
    ask(judge(server, backoff=0.0), greys(0.5))
    assert time.monotonic() - began >= 1


def test_the_failing_item_alone_is_nan(serve):
    def answer(body, n):
        x = level(pictures(body)[0])
        return Status(400) if abs(x - 0.6) < 0.01 else yes(x)

    reward = judge(serve(answer))
    scores = ask(reward, greys(0.2, 0.6, 0.8))
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], torch.tensor([0.2, 0.8]))
    assert list(reward.last_failures) == [1]
    ask(reward, greys(0.2))
    assert reward.last_failures == {}, "of the last call only"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_is_nan_and_never_sent(serve, bad):
    server = serve()
    media = greys(0.2, 0.6, 0.8)
    media.data[1, 0, 3, 3] = bad
    reward = judge(server)
    assert ask(reward, media).isnan().tolist() == [False, True, False]
    assert len(server.bodies) == 2
    assert "not finite" in reward.last_failures[1]


def test_a_source_that_is_not_finite_spoils_its_own_edit_only(serve):
    sources = greys(0.1, 0.2)
    sources.data[0, 0, 0, 0] = torch.nan
    assert ask(judge(serve(), EditScore), greys(0.5, 0.6), references=sources).isnan().tolist() == [True, False]


# Cache, cost, concurrency


def test_a_second_call_makes_no_request(serve):
    server = serve()
    reward = judge(server)
    first = ask(reward, greys(0.2, 0.8))
    assert (reward.cost.requests, reward.cost.prompt_tokens, reward.cost.completion_tokens) == (2, 200, 14)
    assert torch.equal(ask(reward, greys(0.2, 0.8)), first)
    assert len(server.bodies) == 2
    assert (reward.cost.requests, reward.cost.cached, reward.cost.prompt_tokens) == (2, 2, 200)


def test_answers_outlive_the_process_in_a_folder_and_only_there(serve, tmp_path):
    server = serve()
    first = ask(judge(server, cache=str(tmp_path / "kept")), greys(0.2))
    for cached in (judge_client.shared_client, judge_client.open_store, judge_client._temporary_folder):
        cached.cache_clear()  # what a new process starts with
    assert torch.equal(ask(judge(server, cache=str(tmp_path / "kept")), greys(0.2)), first)
    assert len(server.bodies) == 1
    ask(judge(server), greys(0.2))
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "other",
    [{"model": "judge-2"}, {"seed": 7}, {"temperature": 0.5}, {"max_tokens": 4}, {"wording": ("{prompt}?",)},
     {"side": 4}],
)  # fmt: skip
def test_another_setting_is_another_question(serve, other):
    server = serve()
    ask(judge(server), greys(0.2))
    ask(judge(server, **other), greys(0.2))
    assert len(server.bodies) == 2


def test_other_media_and_other_prompts_are_other_questions(serve):
    server = serve()
    ask(judge(server), greys(0.2))
    ask(judge(server), greys(0.21))
    ask(judge(server), greys(0.2), ["a dog"])
    assert len(server.bodies) == 3


def test_the_same_question_in_one_batch_is_asked_once(serve):
    server = serve()
    reward = judge(server)
    scores = ask(reward, greys(0.2, 0.2, 0.2))
    assert len(server.bodies) == 1 and reward.cost.cached == 2
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("garbage", [Status(200, "garbage"), completion("hm", {"The": 0.9})])
def test_garbage_is_not_remembered(serve, garbage):
    server = serve(lambda body, n: garbage if n == 0 else yes(0.75))
    reward = judge(server)
    assert ask(reward, greys(0.5)).isnan().all()
    assert ask(reward, greys(0.5)).item() == pytest.approx(0.75)


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_no_more_requests_are_under_way_than_allowed(serve, limit):
    def answer(body, n):
        """Until as many wait as may, nobody gets an answer; then there is time for one too many to come."""
        patience = time.monotonic() + 20
        while server.busiest < limit and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.05)
        return yes(0.5)

    server = serve(answer)
    reward = judge(server, concurrency=limit)
    assert ask(reward, greys(*torch.linspace(0.1, 0.9, 16).tolist())).isfinite().all()
    assert server.busiest == limit, "neither more nor, with twice as many questions, fewer"


# The key


def test_the_key_is_sent_and_stands_nowhere_else(serve, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MY_JUDGE_KEY", SECRET + "\n")
    caplog.set_level(logging.DEBUG)
    server = serve(lambda body, n: Status(401, f"wrong key {SECRET}") if n else plausible(body))
    reward = judge(server, key="MY_JUDGE_KEY", cache=str(tmp_path))
    reward.check()
    ask(reward, greys(0.2))
    ask(reward, greys(0.3))
    assert [h.get("Authorization") for h in server.headers] == [f"Bearer {SECRET}"] * 3
    assert "wrong key ***" in reward.last_failures[0]
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for text in (
        repr(reward),
        caplog.text,
        str(reward.last_failures),
        reward.spec.version,
        kept.decode(errors="ignore"),
    ):
        assert SECRET not in text


def test_no_key_is_sent_unless_one_is_named(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve()
    ask(judge(server), greys(0.2))
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("given", [SECRET, "NO_SUCH_VARIABLE_HERE"])
def test_a_key_given_instead_of_its_name_is_refused_and_not_repeated(serve, given):
    with pytest.raises(BadInput, match="name of an environment variable") as error:
        judge(serve(), key=given).check()
    assert given not in str(error.value)
