"""How many of the project's frames lie between the command line and a training method's loss.

    python benchmarks/frames.py [CONFIG] [key=value …]     [train-nft]

The first call of the loss prints the stack, outermost first, and ends the run. Generators count: each is a frame to
step through.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from workbench import cli
from workbench.methods import METHODS

SMALL = ("train.eval_prompts=2", "train.prompts_per_round=2", "method.group=2", "batch=4")


class LossReached(BaseException):
    """Ends the run; no `except Exception` on the way takes it for a failure."""


def project_frames() -> list[traceback.FrameSummary]:
    """The caller's stack without the frames of libraries, of this file and of `python -m`."""
    stack = traceback.extract_stack()
    inside = [f for f in stack if ROOT in Path(f.filename).parents and ".venv" not in Path(f.filename).parts]
    return [f for f in inside if f.filename != __file__]


def main(config: str = "train-nft", *overrides: str) -> None:
    frames: list[traceback.FrameSummary] = []

    def patched_loss(loss):
        def record_stack(*args, **kwargs):
            frames.extend(project_frames())
            frames.append(
                traceback.FrameSummary(loss.__code__.co_filename, loss.__code__.co_firstlineno, loss.__name__)
            )
            raise LossReached

        return record_stack

    for method in METHODS.values():
        if hasattr(method, "loss"):
            method.loss = patched_loss(method.loss)
    with tempfile.TemporaryDirectory() as runs, contextlib.suppress(LossReached):
        cli.main(["run", config, *SMALL, *overrides, "--runs", runs])
    for depth, frame in enumerate(frames, 1):
        print(f"{depth:3}  {Path(frame.filename).relative_to(ROOT)}:{frame.lineno}  {frame.name}")
    print(f"{len(frames)} frames in {len({f.filename for f in frames})} files")


if __name__ == "__main__":
    main(*sys.argv[1:])
