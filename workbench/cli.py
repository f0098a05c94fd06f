"""The command line: `workbench COMMAND --help` teaches each command with an example.

Exit codes: 0 done, 1 failed, 2 bad input (one sentence), 130 interrupted, 141 nobody reads the output any more. Each
command is a file of workbench/commands.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn, TextIO

from workbench.commands import COMMANDS
from workbench.commands.arguments import HELP_STYLE
from workbench.core.errors import BadInput, is_disk_full, is_read_only
from workbench.core.redact import redact
from workbench.core.text import one_line


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, whatever the arguments hold."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="workbench",
        formatter_class=HELP_STYLE,
        description="Any diffusers pipeline, any reward, any alignment method, verified by judges that were not "
        "optimised.",
        epilog="start here:\n  workbench demo\n  workbench list methods\n  workbench run configs/runs/demo.yaml "
        "--dry-run",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"workbench.commands.{name}").add_command(commands)
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, overrides standing anywhere: argparse fills a list of them once, and leaves over those after a
    flag."""
    parser = build_parser()
    args, leftover = parser.parse_known_args(argv)
    late_overrides = [w for w in leftover if "=" in w and not w.startswith("-") and hasattr(args, "override")]
    if unknown := [word for word in leftover if word not in late_overrides]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if late_overrides:
        args.override = [*args.override, *late_overrides]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  it stays open
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII only must not end hours of work
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run_command(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # also while modules are imported, which takes seconds
        print("workbench: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not (streams := [stream for stream in (sys.stdout, sys.stderr) if is_abandoned(stream)]):
            raise
        for stream in streams:  # drop what it still holds, so that Python can end in peace
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141  # as of a program that SIGPIPE ended


def run_command(argv: Sequence[str] | None) -> int:
    """Parse the arguments and do what they ask for; returns the exit code."""
    args = parse_arguments(argv)
    from workbench.commands.console import Failed

    try:
        return args.handler(args)
    except BadInput as error:
        print(f"workbench: {one_line(redact(str(error)))}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"workbench: {one_line(redact(str(error)))}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_disk_full(error) and not is_read_only(error):
            raise
        path = getattr(error, "filename", None)
        where, why = f"can't work on {path}" if path else "can't go on", getattr(error, "strerror", None) or error
        print(f"workbench: {one_line(where, 150)}: {one_line(why, 150)}", file=sys.stderr)
        return 1 if is_disk_full(error) else 2


def is_abandoned(stream: TextIO) -> bool:
    """Whether nobody reads the stream any more, as in `workbench list | head -1`."""
    try:
        watch = select.poll()
        watch.register(stream, 0)  # for errors, which are always reported
        return bool(watch.poll(0))
    except (AttributeError, OSError, ValueError):  # a system without poll; a stream without a file
        return False


if __name__ == "__main__":
    sys.exit(main())
