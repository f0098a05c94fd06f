"""`workbench list`: lists pipelines, rewards, methods and configs, and checks the seam on a pipeline."""

from __future__ import annotations

import argparse

from workbench.commands.arguments import Commands, add_json_flag, add_parser

KINDS = ("pipelines", "rewards", "methods", "configs")


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "list",
        list_command,
        "What there is: pipelines, rewards, methods, configs.",
        "workbench list rewards",
    )
    parser.add_argument("kind", nargs="?", choices=KINDS, help="list this kind only [all]")
    parser.add_argument("--check", metavar="NAME", help="load pipeline NAME and check that methods can work with it")
    add_json_flag(parser)


def list_command(args: argparse.Namespace) -> int:
    from workbench.commands.console import build_table, out, print_json
    from workbench.engine import catalogue

    if args.check:
        return print_seam_check(args.check, args.json)
    kinds = [args.kind] if args.kind else KINDS
    rows_by_kind = {kind: getattr(catalogue, f"list_{kind}")() for kind in kinds}
    if args.json:
        print_json(rows_by_kind[args.kind] if args.kind else rows_by_kind)
        return 0
    for kind, rows in rows_by_kind.items():
        out.print(build_table(rows, title=kind if not args.kind else None))
    return 0


def print_seam_check(name: str, as_json: bool) -> int:
    """Load a pipeline, check the seam on it and print the results; the exit code: 1 if a claim doesn't hold."""
    from rich.markup import escape

    import pipelines
    from pipelines.seam_check import check_pipeline
    from workbench.commands.console import out, print_json

    rows = []
    for claim, holds, detail in check_pipeline(pipelines.load(name)):
        rows.append({"claim": claim, "holds": holds, "seen": detail})
        if not as_json:
            mark = "–" if holds is None else "[green]✓[/]" if holds else "[red]✗[/]"  # –: not applicable
            out.print(f"{mark} {escape(f'{claim}: {detail}')}")
    if as_json:
        print_json(rows)
    return 1 if any(row["holds"] is False for row in rows) else 0
