"""What others make, at every door of the workbench: damaged media, odd configs, servers that misbehave, edited runs.

    python benchmarks/doors.py media --count 3000            # a table: a row for each kind of input
    python benchmarks/doors.py configs servers runs --seed 7

Each part is a module door_PART.py beside this file with `run(count, seed) -> list[Outcome]`, which makes its own inputs
from the seed. Every input has to get an answer: the right value, or one sentence. Ends with 1 where one did not.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # inputs are tried in forked processes, and OpenMP's threads don't survive that
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE))  # last: a file there is called as the package `rewards` is

from door_outcomes import print_table

PARTS = {path.stem.removeprefix("door_") for path in HERE.glob("door_*.py")} - {"outcomes", "bombs"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--count", type=int, default=300, help="inputs of each part [300]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="faults printed below each table [20]")
    options = parser.parse_args()
    faults = 0
    for part in options.parts:
        started = time.monotonic()
        outcomes = importlib.import_module(f"door_{part}").run(options.count, options.seed)
        print(f"{part}: {len(outcomes)} inputs, seed {options.seed}, {time.monotonic() - started:.0f} s\n")
        print_table(outcomes, options.show)
        faults += sum(not o.good for o in outcomes)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
