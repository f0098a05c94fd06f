"""Rewards over HTTP: a real server on loopback scores as the process itself does, and refuses what it should."""

from __future__ import annotations

import io
import json
import logging
import pickle
import socket
import threading
import time
import zipfile

import httpx
import numpy as np
import pytest
import torch
from reward_fixtures import PROMPTS, media_for, scored, serving, small

from rewards import build, remote
from rewards.remote import TOKEN, Remote, pack_request, spec_from_json, spec_to_json
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec
from workbench.tools import reward_server

SECRET = "a-secret-of-these-tests"
IMAGE = frozenset({"image"})


class Broken:
    """Fails on every batch."""

    spec = RewardSpec("broken", "1", IMAGE, differentiable=False)

    def __call__(self, *, media, prompts, references=None):
        raise RuntimeError("out of paper")


class Slow:
    """Mean of the pictures, once the gate is open; counts who waits inside."""

    spec = RewardSpec("slow", "1", IMAGE, differentiable=False)
    gate = threading.Event()
    inside, most = 0, 0

    def __call__(self, *, media, prompts, references=None):
        Slow.inside += 1
        Slow.most = max(Slow.most, Slow.inside)
        assert Slow.gate.wait(30)
        Slow.inside -= 1
        return media.data.flatten(1).mean(1)


@pytest.fixture(scope="module")
def rewards():
    return {"brightness": build("brightness"), "clip": small("clip"), "broken": Broken(), "slow": Slow()}


@pytest.fixture(scope="module")
def url(rewards):
    return serving(reward_server.create_app(rewards, SECRET, limit=2**20))


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)
    monkeypatch.setattr(remote, "PAUSE", 0.01)


def post(url, body, token=SECRET, **headers):
    with httpx.Client(trust_env=False) as client:
        return client.post(f"{url}/score", content=body, headers={"Authorization": f"Bearer {token}", **headers})


def asked(**change):
    ask = {"modality": "image", "rate": 0.0, "prompts": ["a"], "rewards": ["brightness"]} | change
    return pack_request({k: v for k, v in ask.items() if v is not None}, {"data": np.zeros((1, 3, 4, 4), np.float32)})


# What comes back


def test_a_served_reward_scores_exactly_as_the_process_itself_does(url):
    media = media_for(build("brightness").spec, 3)
    both = Remote(("brightness", "clip"), url, weights=(2.0, -1.0))
    both.check()
    expected = 2 * scored(build("brightness"), media) - scored(small("clip"), media)
    assert torch.equal(scored(both, media), expected)
    half = Remote(("clip",), url, wire="float16")
    torch.testing.assert_close(scored(half, media), scored(small("clip"), media), rtol=1e-2, atol=1e-3)


ASK = '{"modality": "image", "rate": 0, "prompts": ["a"], "rewards": ["brightness"]}'


def test_eight_bit_pictures_are_taken_too(url):
    got = post(url, pack_request(json.loads(ASK), {"data": np.full((1, 3, 4, 4), 51, np.uint8)}))
    assert got.status_code == 200 and got.json()["scores"]["brightness"][0] == pytest.approx(0.2)


def test_the_spec_is_what_the_server_says_once_checked(url):
    one, two = Remote(("clip",), url), Remote(("brightness", "clip"), url)
    assert one.spec is Remote.spec
    one.check(), two.check()
    assert one.spec.modalities == IMAGE and one.spec.needs == {"prompt"} and not one.spec.differentiable
    assert one.spec.version == f"clip@{small('clip').spec.version}" and one.spec.weights == url
    assert two.spec.modalities == IMAGE and two.spec.typical is None
    for spec in (small("clip").spec, build("brightness").spec):
        assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_a_reward_that_fails_in_the_server_is_nan_with_its_reason_and_the_others_are_scored(url, caplog):
    media = media_for(Broken.spec, 2)
    answer = Remote(("broken", "brightness"), url).submit(media=media, prompts=PROMPTS[:2]).result()
    assert answer.scores["broken"].isnan().all() and answer.scores["brightness"].isfinite().all()
    assert answer.reasons == {"broken": "RuntimeError: out of paper"}
    with caplog.at_level(logging.WARNING, "rewards.remote"):
        assert scored(Remote(("broken",), url), media).isnan().tolist() == [True, True]
    assert "out of paper" in caplog.text


def test_one_sample_that_is_nan_is_nan_alone(url):
    media = media_for(build("brightness").spec, 3)
    media.data[1, 0, 0, 0] = torch.nan
    assert scored(Remote(("brightness", "clip"), url), media).isnan().tolist() == [False, True, False]


def test_the_server_judges_while_the_caller_goes_on_and_one_batch_at_a_time(url):
    """`submit` returns before anything is answered, and what is changed afterwards isn't judged."""
    Slow.gate.clear()
    Slow.most = 0
    media = Media(torch.full((1, 3, 4, 4), 0.5), "image")
    waiting = [Remote(("slow",), url).submit(media=media, prompts=["a"]) for _ in range(2)]
    media.data.zero_()
    time.sleep(0.3)  # both have arrived by now, or the test shows less than it could
    assert not any(f.done() for f in waiting)
    Slow.gate.set()
    assert [f.result().scores["slow"].item() for f in waiting] == [0.5, 0.5]
    assert Slow.most == 1


# What is refused


@pytest.mark.parametrize("wrong", ["x", "another", SECRET + "x", SECRET.upper()])
def test_whoever_lacks_the_token_learns_nothing(url, wrong):
    with httpx.Client(trust_env=False) as client:
        listed = client.get(f"{url}/rewards", headers={"Authorization": f"Bearer {wrong}"})
        bare = client.get(f"{url}/rewards")
        pages = [client.get(f"{url}/{page}").status_code for page in ("docs", "openapi.json", "redoc")]
    assert {listed.status_code, bare.status_code, post(url, asked(), wrong).status_code} == {401}
    assert pages == [404, 404, 404] and "brightness" not in listed.text


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def npz(
    entry: bytes, name: str = "data.npy", compression: int = zipfile.ZIP_STORED, ask: bytes = ASK.encode()
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("ask.npy", npy(np.frombuffer(ask, np.uint8)))
        archive.writestr(name, entry)
    return out.getvalue()


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=pickled)
    return out.getvalue()


WHOLE = npy(np.zeros((1, 3, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no npz"),
        (pickle.dumps(Trap()), "no npz"),
        (npz(pickle.dumps(Trap())), "magic"),
        (npz(npy(np.array([Trap()], dtype=object), pickled=True)), "holds object"),
        (npz(WHOLE.replace(b"(1, 3, 4, 4)", b"(9, 9, 9, 9)")), "not as long as its shape says"),
        (npz(npy(np.zeros((1, 3, 4, 4))), "data.npy"), "holds float64"),
        (npz(WHOLE, "../data.npy"), "expected"),
        (npz(WHOLE, compression=zipfile.ZIP_DEFLATED), "compressed"),
        (npz(WHOLE)[:-40], "no npz"),
        (pack_request({}, {"data": np.zeros((1, 3, 4, 4), np.float32)}), "`ask`"),
        (asked(prompts=None), "`ask`"),
        (asked(rate="fast"), "`ask`"),
        (asked(rate=10**400), "`ask`"),
        (npz(WHOLE, ask=b"[" * 100_000), "`ask`"),
    ],
)
def test_a_body_that_is_not_what_it_should_be_is_400_and_never_unpickled(url, body, says):
    reply = post(url, body)
    assert reply.status_code == 400 and says in reply.json()["error"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"rewards": ["brightnes"]}, 404, "did you mean 'brightness'"),
        ({"modality": "smell"}, 422, "unknown modality"),
        ({"modality": ["image"]}, 422, "unknown modality ['image']"),
        ({"modality": "audio", "rate": 8000.0}, 422, "brightness judges image and video, not audio"),
        ({"modality": "video", "rate": 8.0}, 422, "video data are [B,T,3,H,W], got [1, 3, 4, 4]"),
        ({"modality": "video"}, 422, "a rate of 0"),
        ({"prompts": ["a", "b"]}, 422, "2 prompts for 1 samples"),
        ({"prompts": [1]}, 422, "lists of texts"),
        ({"prompts": "a"}, 422, "lists of texts"),
    ],
)
def test_a_question_that_has_no_answer_is_a_4xx_with_one_sentence(url, change, status, says):
    reply = post(url, asked(**change))
    assert reply.status_code == status and says in reply.json()["error"]


def test_data_that_are_one_number_are_a_4xx_with_one_sentence(url):
    reply = post(url, npz(npy(np.array(0.5, np.float32))))
    assert reply.status_code == 422 and reply.json()["error"] == "image data are [B,3,H,W], got one number"


def test_a_request_that_is_too_large_is_413_whether_or_not_it_says_so(url):
    def stream():
        for _ in range(5):
            yield b"x" * 2**19

    assert post(url, b"x" * (2**20 + 1)).status_code == 413
    assert post(url, stream()).status_code == 413


def test_a_client_that_drips_its_headers_or_its_body_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(reward_server, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(reward_server, "BODY_SECONDS", 0.3)
    app = reward_server.create_app({"brightness": build("brightness")}, SECRET)
    port = int(serving(app, http=reward_server.HastyProtocol).rpartition(":")[2])
    head = f"POST /score HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 99\r\n".encode()
    for text, answer in ((b"", b""), (head, b""), (head + b"\r\nPK", b"HTTP/1.1 408 ")):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
            link.sendall(text)
            assert link.recv(13) == answer
    assert post(f"http://127.0.0.1:{port}", asked()).status_code == 200, "whoever is quick is served"


def test_a_request_asks_for_no_more_rewards_than_a_person_would(url):
    reply = post(url, asked(rewards=["brightness"] * 300))
    assert reply.status_code == 422 and "300 rewards in one request" in reply.json()["error"]


# What the client makes of trouble


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"names": ()}, "each once"),
        ({"names": ("clip", "clip")}, "each once"),
        ({"names": ("clip",), "weights": (1.0, 2.0)}, "2 weights for 1 names"),
        ({"names": ("clip",), "url": "file:///etc"}, "is no address"),
        ({"names": ("clip",), "timeout": 0}, "at least 0.1"),
    ],
)
def test_settings_that_can_not_be_are_refused_when_built(settings, says):
    with pytest.raises(BadInput, match=says):
        build("rewards.remote:Remote", **settings)


def test_check_says_what_is_wrong_with_the_server(url, monkeypatch):
    with pytest.raises(BadInput, match="serves brightness, clip, broken, slow, not clop"):
        Remote(("clop",), url).check()
    with pytest.raises(BadInput, match="workbench serve-rewards"):
        Remote(("clip",), "http://127.0.0.1:9").check()
    monkeypatch.setenv(TOKEN, "another-token")
    with pytest.raises(BadInput, match=f"set {TOKEN}"):
        Remote(("clip",), url).check()
    monkeypatch.delenv(TOKEN)
    with pytest.raises(BadInput, match=f"set {TOKEN}"):
        Remote(("clip",), url).check()


def test_a_question_that_the_server_refuses_is_bad_input(url):
    with pytest.raises(BadInput, match="not video"):
        Remote(("clip",), url)(media=Media(torch.zeros(1, 2, 3, 4, 4), "video", 8.0), prompts=["a"])


def replies(*answers: bytes) -> tuple[str, list]:
    """A server that gives these answers, one a connection, then none."""
    door, seen = socket.create_server(("127.0.0.1", 0)), []
    url = f"http://127.0.0.1:{door.getsockname()[1]}"

    def run():
        for answer in answers:
            link, _ = door.accept()
            with link:
                link.settimeout(1)
                text = link.recv(1 << 16)
                length = int(text.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                while len(text.partition(b"\r\n\r\n")[2]) < length:
                    text += link.recv(1 << 16)
                seen.append(text)
                link.sendall(answer)
        door.close()

    threading.Thread(target=run, daemon=True).start()
    return url, seen


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(body)) + body


GOOD = reply(b'{"scores": {"brightness": [0.25]}, "reasons": {}}')
BUSY = reply(b'{"error": "busy"}', "503 Busy")


@pytest.mark.parametrize(
    ("answers", "score", "reason"),
    [
        ([BUSY, GOOD], 0.25, None),
        ([b"", GOOD], 0.25, None),
        ([BUSY] * 3, None, "busy"),
        ([], None, "Connect"),
        ([reply(b"<html>")], None, "can't be read"),
        ([reply(b'{"scores": {"brightness": [1, 2]}, "reasons": {}}')], None, "no number"),
        ([reply(b'{"scores": {"brightness": ["high"]}, "reasons": {}}')], None, "no number"),
        ([reply(b'{"scores": {}, "reasons": {}}')], None, "no number"),
    ],
)
def test_trouble_is_retried_and_what_stays_is_nan_with_a_reason(answers, score, reason):
    url, seen = replies(*answers)
    answer = Remote(("brightness",), url).submit(media=Media(torch.zeros(1, 3, 4, 4), "image"), prompts=["a"]).result()
    assert answer.scores["brightness"].shape == (1,)
    if score is not None:
        assert answer.scores["brightness"].item() == score and not answer.reasons
    else:
        assert answer.scores["brightness"].isnan().all() and reason in answer.reasons["brightness"]
    assert len(seen) == len(answers) and all(SECRET.encode() in text for text in seen)


def test_a_server_that_is_too_slow_is_given_up(url):
    Slow.gate.clear()
    hasty = Remote(("slow",), url, timeout=0.2, retries=0)
    answer = hasty.submit(media=Media(torch.zeros(1, 3, 4, 4), "image"), prompts=["a"]).result()
    Slow.gate.set()
    assert answer.scores["slow"].isnan().all() and "Timeout" in answer.reasons["slow"]


# Starting it


def test_a_taken_port_and_an_impossible_device_are_one_sentence_before_anything_loads():
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(BadInput, match="--port"):
        reward_server.serve_rewards({"broken": Broken()}, host="127.0.0.1", port=door.getsockname()[1], device="cpu")
    with pytest.raises(BadInput, match="--device toaster"):
        reward_server.serve_rewards({"broken": Broken()}, host="127.0.0.1", port=0, device="toaster")


def test_a_token_is_made_and_told_when_none_was_given(monkeypatch, capsys):
    monkeypatch.delenv(TOKEN)
    ran = []
    monkeypatch.setattr(reward_server.uvicorn.Server, "run", lambda self, sockets: ran.append(sockets[0].close()))
    reward_server.serve_rewards({"broken": Broken()}, host="127.0.0.1", port=0, device="cpu")
    told = capsys.readouterr().err
    assert ran and "serving broken on http://127.0.0.1:" in told and len(told.partition(f"{TOKEN}=")[2].strip()) == 32
    monkeypatch.setenv(TOKEN, SECRET)
    reward_server.serve_rewards({"broken": Broken()}, host="127.0.0.1", port=0, device="cpu")
    assert SECRET not in capsys.readouterr().err, "a secret that was given is not printed"
