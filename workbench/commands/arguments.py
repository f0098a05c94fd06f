"""Adding commands to the command line, and the arguments that several of them share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP_STYLE = argparse.RawDescriptionHelpFormatter  # keeps the lines of the examples
Handler = Callable[[argparse.Namespace], int]  # parsed arguments in, exit code out
Commands = Any  # what ArgumentParser.add_subparsers returns: argparse has no public name for it


def add_parser(commands: Commands, name: str, handler: Handler, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a command that `handler` runs; returns its parser."""
    parser = commands.add_parser(
        name, help=summary, description=summary, epilog=f"example:\n  {example}", formatter_class=HELP_STYLE
    )
    parser.set_defaults(handler=handler)
    return parser


def add_runs_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs [runs]"
    )


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_new_flag(
    parser: argparse.ArgumentParser, what: str = "start a fresh run even if an unfinished one could go on"
):
    parser.add_argument("--new", action="store_true", help=what)


def add_dry_run_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and print the plan; sample and train nothing"
    )


def add_reward_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="NAME",
        help="a name, YAML as in a run's config: {name: {setting: value}}, or a .yaml file of it; may be given several "
        "times",
    )
