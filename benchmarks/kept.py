"""Runs that benchmarks keep in a folder: a finished one is read, one that was broken off goes on."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.runs import config, store


def finished(runs: Path, asked: config.RunConfig) -> store.RunFolder | None:
    wanted = dataclasses.asdict(asked)
    return next(
        (
            f
            for f in store.list_run_folders(runs)
            if f.read().get("config") == wanted and f.read().get("status") == "done"
        ),
        None,
    )


def kept(runs: Path, asked: config.RunConfig) -> store.RunFolder:
    """The folder of that run, which is made, continued, or finished already; its `took.json` says how many seconds of
    processor and of the clock it took. Raises BadInput, and RuntimeError where a contestant failed."""
    if found := finished(runs, asked):
        return found
    plan = plan_run(asked, f"benchmarks, {asked.name}")
    folder = store.RunFolder.open(runs, asked.name, dataclasses.asdict(asked))
    before, cpu, wall = folder.read("took.json"), time.process_time(), time.monotonic()
    try:
        for p in run.execute_run(plan, folder):
            if p.failed:
                raise RuntimeError(f"{asked.name}, {p.contestant}: {p.failed}")
            if p.phase in ("watch", "message"):
                print(f"  {asked.name} {p.batch}/{p.batches}: {p.note}", file=sys.stderr, flush=True)
    finally:
        spent = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
        folder.write("took.json", {unit: before.get(unit, 0.0) + seconds for unit, seconds in spent.items()})
    return folder


def asked_for(parser: argparse.ArgumentParser, place: str, seeds: Sequence[int] = (0, 1, 2)) -> argparse.Namespace:
    """What was asked on the command line, where every benchmark of kept runs understands --seeds, --runs, --tables and
    --threads."""
    parser.add_argument("--seeds", default=",".join(map(str, seeds)))
    parser.add_argument("--runs", type=Path, default=Path(place))
    parser.add_argument("--tables", action="store_true", help="train nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.seeds = [int(s) for s in options.seeds.split(",")]
    return options


def known(parser: argparse.ArgumentParser, names: Sequence[str], all_names: Sequence[str]) -> Sequence[str]:
    """`names`, or all where none is given; an unknown one ends the program with a sentence."""
    if unknown := sorted(set(names) - set(all_names)):
        parser.error(f"nothing is named {unknown[0]!r}; there are: {', '.join(all_names)}")
    return names or all_names


def all_kept(script: str, runs: Path, threads: int, cells: Sequence[tuple[config.RunConfig, Sequence[str]]]) -> bool:
    """Each run that isn't finished, made by `script` in a process of its own (its memory, its imports) from the
    arguments beside it; an only one is made here. Whether that was so: then this is such a process, and there is
    nothing to tell."""
    if len(cells) == 1:
        kept(runs, cells[0][0])
        return True
    for asked, arguments in cells:
        if not finished(runs, asked):
            shared = ["--threads", str(threads), "--runs", str(runs)]
            subprocess.run([sys.executable, script, *arguments, *shared], check=True)
    return False
