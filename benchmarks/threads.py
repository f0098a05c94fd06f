"""What more than one thread brings a starter pipeline, on cores of its own and beside a process that takes one.

    python benchmarks/threads.py                    # ratios to one thread, of one run; about a minute a table
    python benchmarks/threads.py --rounds 9 --env GOMP_SPINCOUNT=0 OMP_WAIT_POLICY=passive

Each setting works in a process of its own, since OpenMP reads the environment once. The processes take turns, so that
whatever else the machine does reaches all of them; compare within a table, not between tables.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUSY = "while True: pass"


def work() -> None:
    """One reply, in seconds a task, to each line of stdin: what the demo does most, on one batch."""
    import torch

    sys.path.insert(0, str(ROOT))
    import workbench as w
    from rewards import build
    from workbench.engine import threads

    many = torch.get_num_threads()
    policy, reward = w.load("starter-image"), build("starter_clip")
    prompts = ["a red circle", "a small blue square", "a green triangle above a red star", "two yellow circles"] * 4
    seeds = range(len(prompts))
    noise = policy.noise(seeds)

    def sample() -> torch.Tensor:
        with torch.no_grad():
            media = policy.sample(prompts, seeds=seeds, noise=noise).media
            return reward(media=media, prompts=prompts)

    def differentiate() -> torch.Tensor:
        start = noise.clone().requires_grad_(True)
        media = policy.sample(prompts, seeds=seeds, noise=start, grad=policy.steps).media
        reward(media=media, prompts=prompts).sum().backward()
        return start.grad

    x, kernel = torch.randn(16, 64, 32, 32), torch.randn(64, 64, 3, 3)

    def convolve() -> torch.Tensor:
        with torch.no_grad():
            for _ in range(10):
                y = torch.nn.functional.conv2d(x, kernel, padding=1)
        return y

    tasks = {"sample": sample, "differentiate": differentiate, "convolve": convolve}
    for task in tasks.values():
        task(), task()
    print(many, flush=True)
    for _ in sys.stdin:
        torch.set_num_threads(many)
        threads.choose_threads(True)  # as a run does when it begins; nothing where the environment says a number
        seconds = {}
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name] = time.perf_counter() - started
        print(*(f"{name}={value:.6f}" for name, value in seconds.items()), flush=True)


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that never rests, on the last core."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def start_worker(environment: dict[str, str]) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    env |= {"HF_HUB_OFFLINE": "1"} | environment
    command = [sys.executable, __file__, "--work"]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(workers: dict[str, subprocess.Popen[str]], rounds: int) -> dict[str, dict[str, float]]:
    """Setting -> task -> median seconds."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            assert worker.stdin and worker.stdout
            worker.stdin.write("go\n")
            worker.stdin.flush()
            for part in worker.stdout.readline().split():
                task, _, value = part.partition("=")
                seconds[name].setdefault(task, []).append(float(value))
    return {name: {t: statistics.median(v) for t, v in tasks.items()} for name, tasks in seconds.items()}


def print_table(title: str, medians: dict[str, dict[str, float]]) -> None:
    base = next(iter(medians.values()))
    print(f"\n{title}: milliseconds, and times the one thread's\n\n| setting | {' | '.join(base)} |")
    print("|---|" + "---|" * len(base))
    for name, tasks in medians.items():
        cells = [f"{1000 * tasks[t]:.1f} ({tasks[t] / base[t]:.2f})" for t in base]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="compared with one")
    parser.add_argument("--env", nargs="*", default=(), metavar="NAME=VALUE", help="each is a setting of its own")
    options = parser.parse_args()
    if options.work:
        return work()
    many = {"OMP_NUM_THREADS": str(options.threads)}
    settings = {"one thread": {"OMP_NUM_THREADS": "1"}, f"{options.threads} threads": many, "as a run chooses": {}}
    settings |= {text: many | dict(part.split("=", 1) for part in text.split(",")) for text in options.env}
    workers = {name: start_worker(environment) for name, environment in settings.items()}
    try:
        for worker in workers.values():
            assert worker.stdout
            worker.stdout.readline()  # the models are loaded
        print_table("cores of its own", measure(workers, options.rounds))
        with busy_core():
            print_table("one core taken by another process", measure(workers, options.rounds))
    finally:
        for worker in workers.values():
            worker.kill()


if __name__ == "__main__":
    main()
