"""`workbench report`: draws the report of a finished run again, or prints its table of results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.commands.arguments import Commands, add_json_flag, add_parser
from workbench.core.errors import BadInput

if TYPE_CHECKING:
    from workbench.runs.store import RunFolder


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "report",
        report_command,
        "Draw grid.png and report.html of a run again, or print its table of results for a paper or a program.",
        "workbench report runs/20260101-120000-demo\n"
        "  workbench report runs/20260101-120000-demo --format latex --contestants base,reno --out results.tex\n"
        "  workbench report runs/20260101-120000-demo --figures pdf --out figures",
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument(
        "--format",
        choices=("html", "latex", "markdown", "csv"),
        default="html",
        help="format of the report; all but html are printed [html]",
    )
    parser.add_argument("--contestants", default="", metavar="A,B", help="rows of the table or figures [all]")
    parser.add_argument(
        "--figures",
        choices=("svg", "pdf"),
        help="write the charts of the report into the folder --out, one file each: means, differences, scores by "
        "budget, progress",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the page or the table to this file, figures into this folder"
    )
    parser.add_argument(
        "--verify", action="store_true", help="first compare every stored file with the digest in the run's log"
    )
    add_json_flag(parser)


def report_command(args: argparse.Namespace) -> int:
    from workbench.commands.console import err
    from workbench.commands.run_summary import print_summary
    from workbench.core.schema import suggest_nearest
    from workbench.report import grid_page, pages, tables
    from workbench.runs import store

    if args.format != "html" and args.json:
        raise BadInput(f"--json: prints the summary; leave it out with --format {args.format}")
    names = tuple(name.strip() for name in args.contestants.split(",") if name.strip())
    if names and args.format == "html" and not args.figures:
        raise BadInput("--contestants: chooses rows of a table or of figures; give --format latex or --figures pdf")
    if args.figures and not args.out:
        raise BadInput("--figures: name a folder with --out")
    if args.figures and args.format != "html":
        raise BadInput(f"--figures: leave out --format {args.format}, which prints a table")
    if args.out and not args.out.absolute().parent.is_dir():
        raise BadInput(f"--out {args.out}: there is no folder {args.out.parent}")
    summary = store.RunFolder(args.run).read("summary.json")
    if not summary:
        finished = [p.name for p in args.run.absolute().parent.glob("*") if (p / "summary.json").is_file()]
        raise BadInput(
            f"{args.run} has no summary.json, so it is no finished run; {suggest_nearest(args.run.name, finished)}"
        )
    if args.verify:
        verify_media(store.RunFolder(args.run))
    if args.format != "html":
        table = tables.FORMATS[args.format](summary, names)
        if not args.out:
            print(table, end="")
            return 0
        write_out(args.out, table)
        return 0
    if args.figures:
        return write_figures(args, summary, names)
    page, grid = pages.draw_report(args.run)
    if args.out:
        write_out(args.out, page)
    try:
        pages.write_pages(args.run, page, grid)
        grid_page.write_grid_page(args.run)
    except OSError as error:
        if not args.out:
            raise BadInput(f"{args.run}: can't be written ({error.strerror}); name a file with --out") from None
        err.print(f"{args.run}: can't be written, so the page is in {args.out} alone", markup=False, soft_wrap=True)
    return print_summary(args.run, summary, args.json)


def write_figures(args: argparse.Namespace, summary: Mapping, names: Sequence[str]) -> int:
    """Write the charts of a run as files. Raises BadInput."""
    from workbench.commands.console import out
    from workbench.report import figures
    from workbench.runs.store import RunFolder

    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f"--out {args.out}: figures go into a folder, and this is a file")
    drawings = figures.draw_figures(summary, RunFolder(args.run).events(), names)
    encoded = {name: figures.ENCODERS[args.figures](drawing) for name, drawing in drawings.items()}
    args.out.mkdir(exist_ok=True)
    for name, data in encoded.items():
        write_out(args.out / f"{name}.{args.figures}", data)
        out.print(str(args.out / f"{name}.{args.figures}"), markup=False, soft_wrap=True)
    return 0


def write_out(path: Path, text: str | bytes) -> None:
    """Write the file that --out names. Raises BadInput where it can't be written."""
    from workbench.core.paths import write_atomic

    try:
        write_atomic(path, text)
    except OSError as error:
        raise BadInput(f"--out {path}: can't be written ({error.strerror}); name another file") from None


def verify_media(folder: RunFolder) -> None:
    """Print that every stored file of a run is as its log says. Raises Failed, naming the first that is not."""
    from workbench.commands.console import Failed, err
    from workbench.runs import stored_media

    damage = stored_media.find_damage(folder)
    if damage:
        (contestant, batch), clause = next(iter(damage.items()))
        more = f"; {len(damage) - 1} more batches are damaged" if len(damage) > 1 else ""
        raise Failed(
            f"{clause} (batch {batch} of {contestant}){more}; make them again with: workbench run {folder.path}"
        )
    err.print(f"{stored_media.count_media(folder)} stored files are as logged", markup=False)
