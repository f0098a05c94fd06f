"""`workbench report`: draws the report of a finished run again, or prints its table of results."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "report",
        report_command,
        "Draw grid.png and report.html of a run again, or print its table of results for a paper or a program.",
        "workbench report runs/20260101-120000-demo\n"
        "  workbench report runs/20260101-120000-demo --format latex --out results.tex",
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument(
        "--format",
        choices=("html", "latex", "markdown", "csv"),
        default="html",
        help="format of the report; all but html are printed [html]",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page or the table to this file")
    add_json_flag(parser)


def report_command(args: argparse.Namespace) -> int:
    from workbench.commands.run_summary import print_summary
    from workbench.core.paths import write_atomic
    from workbench.core.schema import suggest_nearest
    from workbench.report import pages, tables
    from workbench.runs import store

    if args.format != "html" and args.json:
        raise BadInput(f"--json: prints the summary; leave it out with --format {args.format}")
    if args.out and not args.out.absolute().parent.is_dir():
        raise BadInput(f"--out {args.out}: there is no folder {args.out.parent}")
    summary = store.RunFolder(args.run).read("summary.json")
    if not summary:
        finished = [p.name for p in args.run.absolute().parent.glob("*") if (p / "summary.json").is_file()]
        raise BadInput(
            f"{args.run} has no summary.json, so it is no finished run; {suggest_nearest(args.run.name, finished)}"
        )
    if args.format != "html":
        table = tables.FORMATS[args.format](summary)
        if args.out:
            write_atomic(args.out, table)
        else:
            print(table, end="")
        return 0
    page = pages.write_report(args.run)
    if args.out:
        write_atomic(args.out, page.read_bytes())
    return print_summary(args.run, summary, args.json)
