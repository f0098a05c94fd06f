"""Launches of several processes, as `accelerate launch` starts them, but forked from one process that imported
everything: imports are most of what a short training costs. The tests' own process can't be forked, for it has threads.

    python tests/forked.py      reads a JSON line for each launch (see Launcher), answers with exit codes or process ids
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent


def find_port() -> int:
    """A free port below those that the system gives to connections: none of these can take it in the meantime."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) != 0:
                return port


def fork(work: Callable[[], int | None], log: Path, processes: int) -> list[int]:
    """The ids of processes that do this work; what process n says is in LOG.n.log."""
    world = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": find_port()}
    started = []
    gc.freeze()  # or each collection in each process looks through everything that was imported
    for rank in range(processes):
        if pid := os.fork():
            started.append(pid)
            continue
        with log.with_suffix(f".{rank}.log").open("a") as out:
            os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
        if processes > 1:
            world |= {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
            os.environ.update({key: str(value) for key, value in world.items()})
        try:
            code = work() or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    return started


def wait(started: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]


class Launcher:
    """The process that forks the others, as a test sees it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=TESTS.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def launch(self, log: Path, processes: int = 2, **request: Any) -> tuple[list[int], list[str]]:
        """Exit codes of the processes, and what they said. `request`: see `run_launch`."""
        codes = self._ask(request | {"log": str(log), "processes": processes, "wait": True})
        return codes, [log.with_suffix(f".{rank}.log").read_text() for rank in range(processes)]

    def start(self, log: Path, **request: Any) -> int:
        """The id of one process, which is at work when this returns."""
        return self._ask(request | {"log": str(log), "processes": 1, "wait": False})[0]

    def _ask(self, request: dict) -> list[int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def run_launch(request: dict) -> int:
    """In a process of a launch: `function` of a module of the tests with the path `out`; `code`, which finds it under
    that name; or the command line with these `arguments`, whose training raises the expression `error` in process
    number `rank`."""
    from importlib import import_module

    import torch

    from workbench import cli
    from workbench.training import trainer

    if "function" in request:
        module, _, name = request["function"].partition(":")
        return getattr(import_module(module), name)(Path(request["out"]))
    if "code" in request:
        return exec(request["code"], {"out": request["out"]})
    if os.environ.get("RANK", "0") == str(request.get("rank")):

        def fails(self, *_):
            raise eval(request["error"], {"torch": torch})

        trainer.Batches.__iter__ = fails
    return cli.main(request["arguments"])


def main() -> None:
    sys.path.insert(0, str(TESTS.parent))
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline  # noqa: F401
    from torch.utils import tensorboard  # noqa: F401

    from workbench import cli, commands  # noqa: F401
    from workbench.engine import run  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        started = fork(lambda request=request: run_launch(request), Path(request["log"]), request["processes"])
        print(json.dumps(wait(started) if request["wait"] else started), flush=True)


if __name__ == "__main__":
    main()
