"""Trainings killed without warning, again and again, until they are done: do they end with the bits of an undisturbed
one?

    python benchmarks/kills.py --kills 20                    # a row for each method of METHODS, seeded random moments
    python benchmarks/kills.py --kills 2 --methods nft --json

Each method trains the starter pack for a few rounds, once undisturbed and once killed with SIGKILL at random moments of
its work, the same command being given again each time. Compared, bit for bit: exported weights, every finished picture,
every logged number but the clock's, the final table. Files half-written are looked for after each kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # commands are forked, and OpenMP's threads don't survive that

import yaml

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "draft": {"lr": 1e-3},
    "grpo": {"group": 2, "window": "fast", "window_size": 2},
    "nft": {"group": 2, "levels_per_sample": 1, "old_decay_slope": 0.1},
    "dpo": {"group": 2, "levels_per_sample": 1, "refresh_every": 2},
    "prdp": {"group": 2, "optimizer_steps": 1},
    "raft": {"group": 2, "levels_per_sample": 1},
}
PIPELINE = {
    "class": "StableDiffusionPipeline",
    "repo": "starter:image/teacher",
    "steps": 4,
    "call": {"guidance_scale": 1.0},
}


def config(home: Path, method: str, updates: int) -> Path:
    (home / "free.yaml").write_text(yaml.safe_dump(PIPELINE))
    train = {
        "rounds": updates,
        "prompts_per_round": 2,
        "eval_prompts": 2,
        "eval_every": 2,
        "save_every": 1,
        "ema": 0.5,
        "lora": {"rank": 2, "alpha": 4},
    }
    train |= {"best": "starter_clip", "warmup": 2, "decay": 0.5, "policy": {"kernel": {"name": "flow-sde"}}}
    told = {"pipeline": str(home / "free.yaml"), "method": {"name": method} | METHODS[method], "reward": "starter_clip"}
    told |= {
        "watch": ["oracle"],
        "prompts": "starter-image-train",
        "test": "starter-image-test",
        "limit": 2,
        "train": train,
    }
    path = home / f"{method}.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def start(path: Path, runs: Path) -> int:
    """The command in a process of its own. Everything is imported by now."""
    if pid := os.fork():
        return pid
    with open(runs.with_suffix(".log"), "a") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    from workbench import cli

    try:
        code = cli.main(["run", str(path), "--runs", str(runs)])
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    os._exit(code)


def progress(runs: Path) -> int:
    """How far a run has come: bytes of its log."""
    return sum(p.stat().st_size for p in runs.glob("*/events.jsonl"))


def disturbed(
    path: Path, runs: Path, kills: int, rng: random.Random, length: float, whole: int
) -> tuple[int, list[str]]:
    """(times killed, files that were found half-written). A moment is a point of the log, and a little later."""
    done, torn = 0, []
    # spread, so that most find it at work
    moments = [(k + rng.uniform(0.0, 0.9)) / kills * whole for k in range(kills)]
    for moment in moments:
        pid = start(path, runs)
        ended, status = 0, 0
        while progress(runs) < moment and not ended:
            time.sleep(0.005)
            ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(rng.uniform(0, length))
        if not ended:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        done += os.WIFSIGNALED(status)
        torn += [str(p) for p in runs.rglob("*.json") if not _whole(p)]
        if not os.WIFSIGNALED(status) or finished(runs):  # the same command would begin another run
            break
    if not finished(runs):
        _, status = os.waitpid(start(path, runs), 0)
        if status:
            sys.exit(f"{path.stem} failed after {done} kills: {runs.with_suffix('.log').read_text()[-2000:]}")
    return done, torn


def finished(runs: Path) -> bool:
    return any(json.loads(p.read_text())["status"] == "done" for p in runs.glob("*/run.json"))


def _whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except ValueError:
        return False


def left(runs: Path) -> dict[str, str]:
    """What a run has left, without the clock: name -> digest."""
    (run,) = [p.parent for p in runs.glob("*/run.json")]
    found = {str(p.relative_to(run)): _digest(p.read_bytes()) for p in run.rglob("*.png") if "grid" not in p.name}
    found |= {str(p.relative_to(run)): _weights(p) for p in (run / "export").glob("*.safetensors")}
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for e in events:
        e.pop("cost", None)
        found[f"{e['contestant']} {e.get('phase', 'sample')} {e.get('step')} {e.get('batch')}"] = _digest(
            json.dumps(e).encode()
        )
    summary = json.loads((run / "summary.json").read_text())
    for c in summary["contestants"]:
        for clock in ("seconds", "peak_mb"):
            c.pop(clock), c.get("training", {}).pop(clock, None)
    return found | {"summary": _digest(json.dumps(summary | {"run": ""}).encode())}


def _weights(path: Path) -> str:
    data = path.read_bytes()  # the header names the run's folder
    return _digest(data[8 + int.from_bytes(data[:8], "little") :])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from diffusers import StableDiffusionPipeline  # noqa: F401

    from workbench import commands  # noqa: F401
    from workbench.engine import run  # noqa: F401

    rows = []
    with tempfile.TemporaryDirectory() as place:
        for method in options.methods.split(","):
            home, rng = Path(place) / method, random.Random(f"{options.seed} {method}")
            home.mkdir()
            path, began = config(home, method, options.updates), time.perf_counter()
            _, status = os.waitpid(start(path, home / "calm"), 0)
            if status:
                sys.exit(f"{method} failed undisturbed: {(home / 'calm.log').read_text()[-2000:]}")
            seconds = time.perf_counter() - began
            whole = progress(home / "calm")
            kills, torn = disturbed(path, home / "runs", options.kills, rng, seconds / options.updates / 4, whole)
            calm, mine = left(home / "calm"), left(home / "runs")
            apart = sorted(k for k in calm.keys() | mine.keys() if calm.get(k) != mine.get(k))
            rows.append({"method": method, "kills": kills, "compared": len(calm), "different": apart, "torn": torn})
            if not options.json:
                print(
                    f"{method:8} killed {kills:2} times, {len(calm)} things compared, {len(apart)} differ, "
                    f"{len(torn)} torn",
                    flush=True,
                )
    if options.json:
        print(json.dumps(rows))
    sys.exit(any(r["different"] or r["torn"] for r in rows))


if __name__ == "__main__":
    main()
