"""`workbench runs`: lists runs, compares several, names and tags them, and moves them to the bin and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_runs_folder
from workbench.core.errors import BadInput

if TYPE_CHECKING:
    from workbench.runs.store import RunFolder

ACTIONS = ("list", "compare", "note", "tag", "bin", "restore", "remove")


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "runs",
        runs_command,
        "What was run: list and search it, compare several runs, give them titles, notes and tags, and move them to "
        "the bin (RUNS/.bin) and back.",
        "workbench runs list nft\n"
        "  workbench runs note 20260101-120000-demo --title 'twice the steps' --note 'the greens are better'\n"
        "  workbench runs tag 20260101-120000-demo paper good\n"
        "  workbench runs compare 20260101-120000-demo 20260102-120000-demo\n"
        "  workbench runs bin 20260101-120000-demo",
    )
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="run folders; words to search for; after a run its tags"
    )
    parser.add_argument("--title", help="with note: what the run is called in lists")
    parser.add_argument("--note", help="with note: anything worth knowing about it")
    parser.add_argument("--remove", action="store_true", help="with tag: take these tags away")
    parser.add_argument("--binned", action="store_true", help="with list: what is in the bin")
    add_runs_folder(parser)
    add_json_flag(parser)


def runs_command(args: argparse.Namespace) -> int:
    if args.action != "list" and not args.names:
        raise BadInput(f"runs {args.action}: name a run; see: workbench runs list")
    handlers = {
        "list": list_runs,
        "compare": compare_runs,
        "note": note_runs,
        "tag": tag_runs,
        "bin": bin_runs,
        "restore": restore_runs,
        "remove": remove_runs,
    }
    return handlers[args.action](args)


def find_run(runs: Path, name: str) -> RunFolder:
    """A run by its folder's name, or its path. Raises BadInput, naming the nearest."""
    from workbench.core.schema import suggest_nearest
    from workbench.runs import store

    folders = {folder.path.name: folder for folder in store.list_run_folders(runs)}
    path = Path(name)
    if name not in folders and (path / "run.json").is_file():
        return store.RunFolder(path)
    if name not in folders:
        raise BadInput(f"{runs} has no run {name!r}; {suggest_nearest(name, folders)}")
    return folders[name]


def list_runs(args: argparse.Namespace) -> int:
    from workbench.commands.console import build_table, out, print_json
    from workbench.runs import run_bin, run_search, store

    folders = run_bin.list_binned(args.runs) if args.binned else store.list_run_folders(args.runs)
    rows = [run_search.describe_run_row(folder) for folder in folders]
    rows = [row for row in rows if run_search.matches_words(row, args.names)]
    if args.json:
        print_json(rows)
        return 0
    if not rows:
        out.print("no run" + (f" of {' '.join(args.names)}" if args.names else " yet"), markup=False)
        return 0
    out.print(build_table([{**row, "tags": " ".join(row["tags"])} for row in rows]))
    return 0


def compare_runs(args: argparse.Namespace) -> int:
    from workbench.commands.console import build_table, out, print_json
    from workbench.report import across_runs

    comparison = across_runs.compare_runs([find_run(args.runs, name) for name in args.names])
    if args.json:
        print_json(comparison)
        return 0
    head = (*across_runs.HEAD, *comparison["metrics"], *across_runs.TAIL)
    rows = [dict(zip(head, row, strict=True)) for row in across_runs.format_estimates(comparison)]
    out.print(build_table(rows))
    out.print(across_runs.NOTE, markup=False)
    return 0


def note_runs(args: argparse.Namespace) -> int:
    from workbench.runs import run_notes

    if args.title is None and args.note is None:
        raise BadInput("runs note: give --title or --note; an empty text takes it away")
    for name in args.names:
        print_notes(args, name, run_notes.write_notes(find_run(args.runs, name), title=args.title, note=args.note))
    return 0


def tag_runs(args: argparse.Namespace) -> int:
    from workbench.runs import run_notes

    name, *tags = args.names
    folder = find_run(args.runs, name)
    if not tags:
        raise BadInput("runs tag: give a run and its tags, as: workbench runs tag RUN paper good")
    before = run_notes.read_notes(folder).tags
    after = [tag for tag in before if tag not in tags] if args.remove else [*before, *tags]
    print_notes(args, name, run_notes.write_notes(folder, tags=after))
    return 0


def print_notes(args: argparse.Namespace, name: str, notes: Any) -> None:
    """Print what is now said about a run."""
    from dataclasses import asdict

    from workbench.commands.console import out, print_json

    if args.json:
        print_json({"run": name, **asdict(notes)})
        return
    title = f" “{notes.title}”" if notes.title else ""
    out.print(f"{name}{title}" + "".join(f" #{tag}" for tag in notes.tags), markup=False, soft_wrap=True)


def bin_runs(args: argparse.Namespace) -> int:
    from workbench.commands.console import out
    from workbench.runs import run_bin

    for folder in [find_run(args.runs, name) for name in args.names]:
        runs, name = folder.path.absolute().parent, folder.path.name
        votes = run_bin.describe_votes(run_bin.count_votes(runs, name))
        run_bin.move_to_bin(folder)
        out.print(f"{name} is in the bin{f'; {votes}' if votes else ''}", markup=False, soft_wrap=True)
    return 0


def restore_runs(args: argparse.Namespace) -> int:
    from workbench.commands.console import out
    from workbench.runs import run_bin

    for name in args.names:
        out.print(f"{run_bin.restore_run(args.runs, name).path} is back", markup=False, soft_wrap=True)
    return 0


def remove_runs(args: argparse.Namespace) -> int:
    from workbench.commands.console import out
    from workbench.runs import run_bin

    for folder in [run_bin.find_binned(args.runs, name) for name in args.names]:  # all are there before one goes
        run_bin.remove_binned(args.runs, folder.path.name)
        out.print(f"{folder.path.name} is removed for good", markup=False, soft_wrap=True)
    return 0
