"""The command line: `workbench COMMAND --help` teaches each command with an example.

Exit codes: 0 done, 1 failed, 2 bad input (one sentence). Each command is a file of workbench/commands.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from workbench.commands import COMMANDS
from workbench.commands.arguments import HELP_STYLE
from workbench.core.errors import BadInput


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    args = parse_arguments(argv)
    from workbench.commands.console import Failed

    try:
        return args.handler(args)
    except BadInput as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("workbench: stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
