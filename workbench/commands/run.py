"""`workbench run`: runs a config, or resumes a run folder."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from workbench.commands.arguments import (
    Commands,
    add_dry_run_flag,
    add_json_flag,
    add_new_flag,
    add_parser,
    add_runs_folder,
)
from workbench.commands.run_config import RunRequest, run_config
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "run",
        run_config,
        "Run a config: train, make, judge, store, report. "
        "An unfinished run of the same config goes on where it stopped, a training also with more train.rounds.",
        "workbench run configs/runs/demo.yaml samples_per_prompt=4 contestants.reno.iterations=50",
    )
    parser.set_defaults(read_request=read_run_request)
    parser.add_argument("config", help="a YAML file, a name in configs/runs, or a run folder to go on with")
    parser.add_argument("override", nargs="*", help="key=value, dotted: method.lr=2")
    add_dry_run_flag(parser)
    add_new_flag(parser)
    add_runs_folder(parser)
    add_json_flag(parser)


def read_run_request(args: argparse.Namespace) -> RunRequest:
    """The run of the config, or of the run folder, that the arguments name. Raises BadInput."""
    from workbench.core.schema import build_dataclass
    from workbench.runs import config, store

    folder = Path(args.config)
    if not os.path.isfile(folder / "run.json"):
        command = shlex.join(["workbench", "run", args.config, *args.override])
        return RunRequest(config.read_run_config(args.config, args.override), command)
    values = store.RunFolder(folder).read().get("config")
    for override in args.override:
        if override.partition("=")[0] not in ("train.rounds", "train.updates") or not isinstance(values, dict):
            raise BadInput(
                f"{folder} goes on with the config that it has, but for train.rounds; for another one give a YAML file"
            )
        config.apply_override(values, override)
    stored = build_dataclass(config.RunConfig, values, str(folder / "run.json"))
    command = shlex.join(["workbench", "run", args.config, *args.override]) + " --new" * args.new
    return RunRequest(stored, command, folder)
