"""Raters of a study over HTTP, and the server killed in their middle: is any vote lost or doubled, how long does one
take, and does anything name a contestant before its time?

    python benchmarks/study_raters.py                          # 30 raters, 1,500 votes, one kill -9, on the whole app
    python benchmarks/study_raters.py --raters 6 --votes 60 --light   # the pages of studies alone

Every rater logs in, asks for a pair, looks at both media, votes, and goes on; what is not answered is asked again under
the same key, and one vote in ten is sent twice at once. Each answer, its headers, its addresses and the files are
searched for the names of contestants and runs. Afterwards every acknowledged vote must be in the index, once. Exits
with 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
CHOICES = ("left", "right", "tie", "bad")
CONTESTANTS = ("zebra_one", "zebra_two", "zebra_three", "zebra_four")  # words that stand nowhere else
SECRETS = ("zebra", "-okapi")  # and of the run's name
STUDY, PASSWORD = "storm", "a password of raters"
AGAIN = 0.1  # of the votes are sent twice at once


@dataclass
class Storm:
    url: str
    votes: int  # of all raters together
    raters: int
    criteria: tuple[str, ...] = ("overall",)
    sent: dict[str, str] = field(default_factory=dict)  # key -> choice
    acknowledged: dict[str, float] = field(default_factory=dict)  # key -> when
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"next": [], "vote": [], "media": []})
    leaks: list[str] = field(default_factory=list)
    retries: int = 0
    half: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, client: httpx.AsyncClient, name: str, body: dict) -> dict:
        """One call, asked again until it is answered."""
        while True:
            start = time.perf_counter()
            try:
                reply = await client.post(f"{self.url}/vote/{STUDY}/{name}", json=body)
                if reply.status_code < 500 and reply.status_code != 429:  # many who log in at once have to wait
                    break
            except httpx.HTTPError:
                pass
            self.retries += 1
            await asyncio.sleep(0.1 + 0.2 * random.random())
        self.seconds.get(name, []).append(time.perf_counter() - start)
        self.search(f"{name}: {reply.text} {dict(reply.headers)}")
        if reply.status_code != 200:
            raise SystemExit(f"{name} was refused: {reply.status_code} {reply.text}")
        return reply.json()

    async def look(self, client: httpx.AsyncClient, pair: dict) -> None:
        """Fetch both media. After a restart their addresses are others, which the next question tells."""
        for side in ("left", "right"):
            start = time.perf_counter()
            try:
                reply = await client.get(f"{self.url}/vote/media/{pair[side]['url']}")
            except httpx.HTTPError:
                continue
            self.seconds["media"].append(time.perf_counter() - start)
            self.search(f"{reply.url} {dict(reply.headers)} {reply.content.decode('latin-1')}")

    def search(self, text: str) -> None:
        self.leaks += [text[:200] for word in SECRETS if word in text]

    async def rater(self, number: int) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            await self.call(client, "login", {"name": f"rater{number}", "password": PASSWORD})
            while len(self.sent) < self.votes:
                pair = await self.call(client, "next", {"have": []})
                if "end" in pair:
                    return
                await self.look(client, pair)
                choice, key = random.choice(CHOICES), f"storm-{number}-{pair['battle']}"
                self.sent[key] = choice
                ballot = {"battle": pair["battle"], "choices": dict.fromkeys(self.criteria, choice), "key": key,
                          "reason": "", "dwell": [1.5, 2.0]}  # fmt: skip
                times = 2 if random.random() < AGAIN else 1
                await asyncio.gather(*(self.call(client, "vote", ballot) for _ in range(times)))
                self.acknowledged[key] = time.perf_counter()
                if 2 * len(self.acknowledged) >= self.votes:
                    self.half.set()


@dataclass(frozen=True)
class Outcome:
    """What a storm left behind."""

    storm: Storm
    seconds: float
    lost: int  # acknowledged votes that are not in the index, at the kill or at the end
    doubled: int  # raters' votes on one pair beyond the first
    changed: int
    stored: int  # ballots in the index
    overfull: int  # pairs with more votes than the study asks for

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.doubled or self.changed or self.storm.leaks) and self.stored == len(
            self.storm.sent
        )


async def storm(
    runs: Path, url: str, votes: int, raters: int, criteria: Sequence[str], server: Server, per_pair: int
) -> Outcome:
    """Raters at a server that is killed when half of the votes are in."""
    made = Storm(url, votes, raters, tuple(criteria))
    start = time.perf_counter()
    task = asyncio.gather(*(made.rater(n) for n in range(raters)))
    await asyncio.wait([task, asyncio.ensure_future(made.half.wait())], return_when=asyncio.FIRST_COMPLETED)
    acknowledged = set(made.acknowledged)
    server.kill()
    lost = len(acknowledged - set(read_votes(runs)))
    await asyncio.to_thread(server.start)
    await task
    kept = read_votes(runs)
    db = sqlite3.connect(runs / "workbench.db")
    twice = db.execute(
        "SELECT COUNT(*) - COUNT(DISTINCT b.asker || b.pair) FROM votes v JOIN battles b ON b.id = v.battle "
        "WHERE v.axis = ? AND v.undoes IS NULL", (criteria[0],)
    ).fetchone()[0]  # fmt: skip
    pairs = Counter(row[0] for row in db.execute(
        "SELECT b.pair FROM votes v JOIN battles b ON b.id = v.battle JOIN study_pairs p ON p.id = b.pair "
        "WHERE v.axis = ? AND p.is_gold = 0", (criteria[0],)
    ))  # fmt: skip
    db.close()
    wrong = sum(kept[key] != made.sent[key] for key in kept)
    lost += len(set(made.acknowledged) - set(kept))
    seconds = time.perf_counter() - start
    return Outcome(made, seconds, lost, twice, wrong, len(kept), sum(n > per_pair for n in pairs.values()))


def read_votes(runs: Path) -> dict[str, str]:
    """Key -> choice on the first criterion, from the index itself."""
    db = sqlite3.connect(runs / "workbench.db")
    rows = db.execute("SELECT key, choice FROM votes WHERE key NOT LIKE '%.%'").fetchall()
    db.close()
    return dict(rows)


class Server:
    """The app, as a process that can be killed and started again on the same port."""

    def __init__(self, runs: Path, folder: Path, raters: int, light: bool):
        self.runs, self.folder, self.light = runs, folder, light
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "admins").write_text("admin:a password of admins\n")
        (folder / "raters").write_text("".join(f"rater{n}:{PASSWORD}\n" for n in range(raters)))
        self.process: subprocess.Popen | None = None
        self.number = 0  # of the process that serves

    def start(self) -> None:
        if self.process is None or not self.light:
            options = ["--port", str(self.port), "--runs", str(self.runs)]
            options += ["--auth", str(self.folder / "admins"), "--raters", str(self.folder / "raters")]
            program = [__file__, "--serve"] if self.light else ["-m", "workbench.cli", "app"]
            self.process = subprocess.Popen(
                [sys.executable, *program, *options],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self.process.stdout
        self.number = int(self.process.stdout.readline()) if self.light else self.process.pid
        for _ in range(1200):
            if self.process.poll() is not None:
                raise SystemExit(
                    f"the server ended with {self.process.returncode}: {' '.join(map(str, self.process.args))}"
                )
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/vote/{STUDY}", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise SystemExit("the server did not answer within a minute")

    def kill(self) -> None:
        os.kill(self.number, signal.SIGKILL)
        if not self.light and self.process:
            self.process.wait()

    def close(self) -> None:
        if self.process:
            self.kill()
            self.process.kill()
            self.process.wait()


def serve_forever(args: argparse.Namespace) -> None:
    """The pages of studies alone, in a process that is forked anew each time that it is killed: imports are most of
    what a start costs."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    sys.path.insert(0, str(ROOT))
    from workbench.feedback import raters, study_media, study_results  # noqa: F401  # before the fork
    from workbench.ui.context import AppContext
    from workbench.ui.study_pages import StudyPages
    from workbench.ui.users import read_roles

    users = read_roles(args.auth, args.raters_file)
    gc.freeze()
    while True:
        if (child := os.fork()) == 0:
            main = Starlette()
            main.cookie_id, main.tokens = "none", {}  # type: ignore[attr-defined]  # gradio's, of which there is none
            with tempfile.TemporaryDirectory() as temp:
                pages = StudyPages(AppContext(args.runs, Path(temp), None), users, main).build()  # type: ignore[arg-type]
                app = Starlette(routes=[Mount("/vote", pages)])
                uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="error")
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)


def make_run(folder: Path, prompts: int) -> Path:
    """A run of pictures of noise, imported; its folder."""
    import numpy as np
    from PIL import Image

    rng, names = np.random.default_rng(0), []
    for contestant in CONTESTANTS:
        home = folder / "made" / contestant
        home.mkdir(parents=True)
        names.append(str(home))
        for n in range(prompts):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(home / f"picture {n} of noise-0.png")
    command = ["import", *names, "--runs", str(folder / "runs"), "--name", "okapi"]
    subprocess.run([sys.executable, "-m", "workbench.cli", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next((folder / "runs").glob("*-okapi"))


def describe(outcome: Outcome) -> list[str]:
    made = outcome.storm
    lines = [
        f"{made.raters} raters, {len(made.acknowledged):,} votes acknowledged in {outcome.seconds:.1f} s, the server "
        f"killed and started once ({len(made.acknowledged) / outcome.seconds:.0f} votes a second)"
    ]
    for name, times in made.seconds.items():
        ordered = sorted(times) or [float("nan")]
        p50, p95 = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
        lines.append(f"{name:>6}: {len(times):,} calls, p50 {p50:,.0f} ms, p95 {p95:,.0f} ms")
    lines.append(
        f"asked again {made.retries} times; in the index {outcome.stored:,} votes; lost {outcome.lost}, doubled "
        f"{outcome.doubled}, changed {outcome.changed}; pairs with too many votes {outcome.overfull}; answers and "
        f"files that name a contestant or a run: {len(made.leaks)}"
    )
    return lines + made.leaks[:3]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raters", default="30", help="how many [30]")
    parser.add_argument("--votes", type=int, default=1500)
    parser.add_argument("--light", action="store_true", help="serve the pages of studies alone, without the app")
    parser.add_argument("--json", action="store_true")
    for name in ("--serve", "--port", "--runs", "--auth"):  # of the process that --light starts
        kind = {"--serve": {"action": "store_true"}, "--port": {"type": int}}.get(name, {"type": Path})
        parser.add_argument(name, help=argparse.SUPPRESS, **kind)
    args = parser.parse_args()
    if args.serve:
        args.raters_file = Path(args.raters)
        serve_forever(args)
    raters = int(args.raters)
    sys.path.insert(0, str(ROOT))
    from workbench.feedback import studies

    with tempfile.TemporaryDirectory(prefix="raters-") as temp:
        folder, per_pair = Path(temp), 3
        run = make_run(folder, max(8, -(-args.votes // (6 * per_pair)) + 2))
        settings = {"name": STUDY, "runs": (run.name,), "votes_per_pair": per_pair, "target": -(-args.votes // raters)}
        studies.create_study(run.parent, settings, gold=4)
        server = Server(run.parent, folder, raters, args.light)
        try:
            server.start()
            url = f"http://127.0.0.1:{server.port}"
            outcome = asyncio.run(storm(run.parent, url, args.votes, raters, ("overall",), server, per_pair))
        finally:
            server.close()
    print(json.dumps({"lines": describe(outcome)}) if args.json else "\n".join(describe(outcome)))
    return 0 if outcome.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
