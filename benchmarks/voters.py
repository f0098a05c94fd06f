"""A storm of voters on the app's HTTP API: is any vote lost or doubled, how long does one take, and what does kill -9
cost?

    python benchmarks/voters.py                    # 50 voters, 2,000 votes
    python benchmarks/voters.py --kill             # the app is killed in the middle of it and started again

Every voter asks for a pair, votes, and asks for the next; what is not answered is asked again under the same key, and
one vote in ten is sent twice at once. A vote counts as acknowledged when its answer has arrived; afterwards the index
is opened, and every acknowledged key must be there, once. Exits with 1 when one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
APP = f"{shlex.quote(sys.executable)} -m workbench.cli app --runs {{runs}} --port {{port}}"
CHOICES = ("left", "right", "tie", "bad")
AGAIN = 0.1  # of the votes are sent twice at once


class Refused(RuntimeError):
    """The app answered, with an error: that is a finding, and nothing to repeat."""


@dataclass
class Storm:
    url: str
    votes: int
    voters: int
    left: int = 0
    sent: dict[str, str] = field(default_factory=dict)  # key -> choice
    acknowledged: dict[str, float] = field(default_factory=dict)  # key -> when
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"battle": [], "vote": []})
    retries: int = 0
    half: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = field(default_factory=lambda: f"storm-{os.urandom(4).hex()}")

    async def call(self, client: httpx.AsyncClient, session: str, name: str, *data) -> dict:
        """One call of the API as its documentation has it: post, then read the answer. Raises httpx.HTTPError."""
        start = time.perf_counter()
        body = {"data": data, "session_hash": session}
        posted = (await client.post(f"{self.url}/gradio_api/call/{name}", json=body)).raise_for_status()
        answer = await client.get(f"{self.url}/gradio_api/call/{name}/{posted.json()['event_id']}")
        _, done, rest = answer.raise_for_status().text.partition("event: complete\ndata: ")
        if not done:
            raise Refused(answer.text) if "event: error" in answer.text else httpx.HTTPError("no answer")
        self.seconds[name].append(time.perf_counter() - start)
        return json.loads(rest.partition("\n")[0])[0]

    async def insist(self, client: httpx.AsyncClient, session: str, name: str, *data) -> dict:
        while True:
            try:
                return await self.call(client, session, name, *data)
            except httpx.HTTPError:
                self.retries += 1
                await asyncio.sleep(0.2 + 0.3 * random.random())

    async def voter(self, number: int) -> None:
        me, again = f"voter{number}", f"voter{number}again"
        async with httpx.AsyncClient(timeout=60) as client:
            while self.left > 0:
                self.left -= 1
                choice, key = random.choice(CHOICES), f"{self.name}-{number}-{self.left}"
                asked = await self.insist(
                    client, me, "battle", key, 0, ""
                )  # by a new person: nobody is asked a pair twice
                self.sent[key] = choice
                sessions = (me, again) if random.random() < AGAIN else (me,)
                vote = (asked["battle"], choice, key, "", 1.5, 2.0)
                answers = await asyncio.gather(*(self.insist(client, s, "vote", *vote) for s in sessions))
                if answers[0] != answers[-1]:
                    raise SystemExit(f"the same key was answered differently: {answers}")
                self.acknowledged[key] = time.perf_counter()
                if len(self.acknowledged) * 2 > self.votes:
                    self.half.set()

    async def run(self) -> float:
        self.left, start = self.votes, time.perf_counter()
        await asyncio.gather(*(self.voter(n) for n in range(self.voters)))
        return time.perf_counter() - start


def kept(runs: Path, name: str) -> dict[str, tuple[str, int]]:
    """key -> (choice, how often) of a storm, from the index itself."""
    db = sqlite3.connect(runs / "workbench.db")
    rows = db.execute(
        "SELECT key, MIN(choice), COUNT(*) FROM votes WHERE key LIKE ? GROUP BY key", (f"{name}%",)
    ).fetchall()
    db.close()
    return {key: (choice, n) for key, choice, n in rows}


def start(command: str, runs: Path, port: int, log) -> subprocess.Popen:
    line = command.format(runs=shlex.quote(str(runs)), port=port)
    app = subprocess.Popen(
        shlex.split(line), cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    )
    for _ in range(600):
        if app.poll() is not None:
            raise SystemExit(f"the app ended with {app.returncode}: {line}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/gradio_api/info", timeout=5).is_success:
                return app
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the app did not answer within two minutes")


async def storm(args, runs: Path, port: int, log) -> tuple[Storm, float, int]:
    """The storm, its seconds, and how many acknowledged votes were missing right after the kill."""
    app, lost = start(args.serve, runs, port, log), 0
    made = Storm(f"http://127.0.0.1:{port}", args.votes, args.voters)
    try:
        task = asyncio.create_task(made.run())
        if args.kill:
            await asyncio.wait([task, asyncio.create_task(made.half.wait())], return_when=asyncio.FIRST_COMPLETED)
            app.kill(), app.wait()
            lost = len(set(made.acknowledged) - set(kept(runs, made.name)))
            print(f"killed with {len(made.acknowledged):,} votes acknowledged; {lost} of them lost")
            app = await asyncio.to_thread(start, args.serve, runs, port, log)
        return made, await task, lost
    finally:
        app.kill(), app.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voters", type=int, default=50)
    parser.add_argument("--votes", type=int, default=2000)
    parser.add_argument(
        "--kill", action="store_true", help="kill -9 the app when half of the votes are in, and start it again"
    )
    parser.add_argument("--runs", type=Path, help="a folder of runs [a small comparison made for this]")
    parser.add_argument("--serve", default=APP, help="what starts the app, with {runs} and {port}")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="voters-") as temp,
        open(Path(temp) / "app.log", "wb") as log,
        socket.socket() as free,
    ):
        runs = args.runs or Path(temp) / "runs"
        if not args.runs:
            made = [
                sys.executable,
                "-m",
                "workbench.cli",
                "run",
                "configs/runs/demo.yaml",
                "limit=24",
                "samples_per_prompt=1",
                "--runs",
                str(runs),
            ]
            subprocess.run(made, cwd=ROOT, check=True, stdout=log, stderr=log)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        done, seconds, lost = asyncio.run(storm(args, runs.resolve(), port, log))
        return told(done, seconds, lost, kept(runs, done.name))


def told(done: Storm, seconds: float, lost: int, found: dict[str, tuple[str, int]]) -> int:
    missing = set(done.acknowledged) - set(found)
    twice = [key for key, (_, n) in found.items() if n > 1]
    wrong = [key for key, (choice, _) in found.items() if choice != done.sent.get(key)]
    print(
        f"{done.voters} voters, {len(done.acknowledged):,} votes acknowledged in {seconds:.1f} s "
        f"({len(done.acknowledged) / seconds:.0f} a second)"
    )
    for name, times in done.seconds.items():
        p50, p95, most = np.percentile(times, [50, 95, 100])
        print(
            f"{name:>8}: {len(times):,} calls, p50 {1000 * p50:,.0f} ms, p95 {1000 * p95:,.0f} ms, "
            f"slowest {1000 * most:,.0f} ms"
        )
    print(
        f"asked again: {done.retries}; in the index: {len(found):,} votes; lost {len(missing)}, doubled {len(twice)}, "
        f"changed {len(wrong)}"
    )
    return int(bool(missing or twice or wrong or lost or len(found) != len(done.sent)))


if __name__ == "__main__":
    sys.exit(main())
