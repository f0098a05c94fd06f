"""What `demo`, `run` and `compare` share: a config is planned and executed, and its results are printed.

They differ in `args.read_request`, which makes a RunRequest of the arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workbench.core.errors import BadInput

if TYPE_CHECKING:
    from workbench.runs.config import RunConfig


@dataclass(frozen=True)
class RunRequest:
    """A run that the command line asks for."""

    config: RunConfig
    command: str  # the command line that repeats it
    folder: Path | None = None  # an existing run to go on with
    announce_cost: bool = False  # say what it will cost before it begins


def run_config(args: argparse.Namespace) -> int:
    """Execute the run that the arguments ask for and print its results; returns the exit code. Of several processes the
    first writes and prints, and the others only train."""
    import transformers

    from pipelines import processes
    from workbench.commands.console import Failed, err
    from workbench.commands.run_progress import ProgressBars, print_plan, stop_on_signal
    from workbench.commands.run_summary import print_summary
    from workbench.engine import extension, run, threads
    from workbench.engine.cost_estimates import estimate_cost
    from workbench.engine.plan import check_disk, plan_run
    from workbench.runs import store
    from workbench.training import training_runs

    request = args.read_request(args)
    config, runs = request.config, request.folder.parent if request.folder else args.runs
    plan = plan_run(config, request.command)
    check_disk(plan, runs)
    transformers.utils.logging.disable_progress_bar()  # only ours are shown
    if args.dry_run:
        return print_plan(plan, runs, args.json)
    if request.announce_cost:
        err.print(f"workbench: {estimate_cost(plan, runs).describe()}", markup=False, soft_wrap=True)

    def open_folder() -> Path:
        return extension.open_run(plan, runs, args.new, request.folder)

    path = training_runs.open_on_leader(open_folder, config.device)
    if processes.count_processes() == 1:
        recorded = store.RunFolder(path).read().get("threads")
        if note := threads.choose_threads(threads.works_on_starters(plan), recorded):
            err.print(f"workbench: {note}")
    try:
        with stop_on_signal() as stop, ProgressBars(plan, quiet=not processes.is_main_process()) as bars:
            for progress in run.execute_run(plan, store.RunFolder(path), stop):
                bars.show(progress)
    except Exception as error:
        if processes.count_processes() > 1:
            exit_at_once(error)
        if isinstance(error, run.DiskFull):
            raise Failed(str(error)) from error
        raise
    if not processes.is_main_process():
        return 0
    if stop.is_set():
        err.print("workbench: stopped; the same command goes on from here")
        return 130
    return print_summary(path, store.RunFolder(path).read("summary.json"), args.json)


def exit_at_once(error: Exception) -> NoReturn:
    """Print the error and end this process without clean-up: a normal exit waits for threads and destructors, which may
    wait for other processes, which wait for this one."""
    from workbench.training.contestant_training import ProcessEnded

    if not isinstance(error, (ProcessEnded, BadInput, OSError)):
        traceback.print_exception(error)
    print(f"workbench: {error}", file=sys.stderr)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(2 if isinstance(error.__cause__ or error, BadInput) else 1)
