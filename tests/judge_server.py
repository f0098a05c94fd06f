"""A real HTTP server on the loopback that speaks the chat protocol and misbehaves when told to."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from PIL import Image

from rewards.vlm.judge import Judge
from workbench.core.types import Media, Reward


@dataclass(frozen=True)
class Status:
    """An answer that is no completion."""

    code: int
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Hang:
    """No answer before the server closes, or a short sleep ends."""


class Drop:
    """The connection is closed in the middle of the answer."""


class Drip:
    """One byte at a time, each in time, the whole too late."""


def completion(text: str = "", first: dict[str, float] | None = None, finish: str = "stop") -> dict:
    """`first`: probabilities of the likeliest first tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if first is not None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in first.items()]
        choice["logprobs"] = {"content": [{"token": top[0]["token"], "logprob": 0.0, "top_logprobs": top}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}


def pictures(body: dict) -> list[str]:
    """The data URIs of a request, in order."""
    return [p["image_url"]["url"] for p in user_turn(body) if p["type"] == "image_url"]


def question(body: dict) -> str:
    """The text after the pictures."""
    return user_turn(body)[-1]["text"]


def user_turn(body: dict) -> list[dict]:
    return next(m["content"] for m in body["messages"] if m["role"] == "user")


def plausible(body: dict) -> dict:
    """An answer in every form at once, decided by what is shown last, so that any preset can read its own."""
    shown = pictures(body)

    def taste(uris: list[str]) -> float:
        return int.from_bytes(hashlib.sha256("".join(uris).encode()).digest()[:4], "big") / 2**32

    u = taste(shown[-1:])
    mark = 1 + 4 * u
    lines = [f"{n} Score (1-5): {mark}" for n in ("Alignment", "Coherence", "Physics", "Style")]
    keys = ("rating", "alignment", "realism", "aesthetics", "VQ", "MQ", "TA", "global", "local")
    better = 1 if taste(shown[-2:-1]) > taste(shown[-1:]) else 2
    text = [f"{mark}", *lines, f"Rating: {mark}", json.dumps(dict.fromkeys(keys, mark) | {"score": [mark, mark]})]
    text += [f"Winner: {better}" + f"<answer>Winner: {better}, Edited image {better} is better</answer>"]
    return completion("\n".join(text), {"Yes": 0.05 + 0.8 * u, "No": 0.9 - 0.8 * u})


class JudgeServer:
    """`answer(body, n)` decides what request number n gets; what came in stands in `bodies` and `headers`."""

    def __init__(self, answer: Callable = lambda body, n: plausible(body), models: object = ("judge",)):
        self.answer, self.models = answer, models
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                owner.headers.append(dict(self.headers))
                listed = owner.models
                if not isinstance(listed, Status):
                    listed = Status(200, json.dumps({"data": [{"id": m} for m in listed]}))
                self.send(listed)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.bodies.append(body)
                    owner.headers.append(dict(self.headers))
                    n = len(owner.bodies) - 1
                    owner.busy += 1
                    owner.busiest = max(owner.busiest, owner.busy)
                try:
                    answer = owner.answer(body, n)
                finally:
                    with owner.lock:  # before it is sent: whoever has it may ask again at once
                        owner.busy -= 1
                self.give(answer)

            def give(self, answer):
                if answer is Hang:
                    owner.closing.wait(1.5)
                elif answer is Drop:
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                elif answer is Drip:
                    text = json.dumps(plausible(owner.bodies[0])).encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    for byte in text[:40]:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(0.05)
                else:
                    self.send(answer if isinstance(answer, Status) else Status(200, json.dumps(answer)))

            def send(self, status: Status):
                data = status.text.encode()
                self.send_response(status.code)
                for name, value in status.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request, client_address):
                pass  # the client that hung up is what the test is about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def greys(*levels: float, size: int = 8) -> Media:
    """One flat picture a level."""
    return Media(torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, size, size).clone(), "image")


def clips(*levels: float, frames: int = 6, rate: float = 8.0) -> Media:
    """Clips that brighten from 0 to their level."""
    ramp = torch.linspace(0, 1, frames).view(1, -1, 1, 1, 1)
    return Media((torch.tensor(levels).view(-1, 1, 1, 1, 1) * ramp).expand(-1, -1, 3, 8, 8).clone(), "video", rate)


def pixels(uri: str) -> torch.Tensor:
    """[3,H,W] in 0..255 of a picture that arrived."""
    import numpy as np

    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(data))))).permute(2, 0, 1)


def level(uri: str) -> float:
    return pixels(uri).double().mean().item() / 255


def yes(p: float) -> dict:
    return completion("Yes", {"Yes": p, "No": 1 - p})


def judge(server: JudgeServer, cls: type = Judge, **settings):
    """Quick to give up, unless told otherwise."""
    return cls(**({"url": server.url, "model": "judge", "backoff": 0.01, "retries": 1} | settings))


def ask(reward: Reward, media: Media, prompts=None, references: Media | None = None) -> torch.Tensor:
    return reward(media=media, prompts=prompts or ["a cat"] * len(media), references=references)
