"""`workbench publish`: a run or a study as a folder of static pages."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_runs_folder
from workbench.core.errors import BadInput

MAX_NOTES = 8  # that are printed


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "publish",
        publish_command,
        "A run or a study as a gallery in one folder: pages with all samples side by side, which open from the disk "
        "or from any static host and ask the network for nothing.",
        "workbench publish runs/20260101-120000-demo --out gallery\n"
        "  workbench publish sharpness --out gallery --blind --zip",
    )
    parser.add_argument("source", metavar="RUN_OR_STUDY", help="a run folder, or the name of a study")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--contestants", default="", metavar="A,B", help="only these, in this order [all]")
    parser.add_argument(
        "--blind",
        action="store_true",
        help="call contestants A, B, … in a random order; no name is in any page, file name or medium. Who is who is "
        "in FOLDER.key.json beside the folder",
    )
    parser.add_argument("--zip", action="store_true", help="also write FOLDER.zip")
    add_runs_folder(parser)
    add_json_flag(parser)


def publish_command(args: argparse.Namespace) -> int:
    import shutil

    from workbench.commands.console import err, out, print_json
    from workbench.engine.progress_bar import delayed_bar
    from workbench.feedback import gallery as galleries
    from workbench.runs.store import dump_json

    names = tuple(name.strip() for name in args.contestants.split(",") if name.strip())
    run = next((p for p in (Path(args.source), args.runs / args.source) if (p / "run.json").is_file()), None)
    if run is None and Path(args.source).is_dir():
        raise BadInput(f"{args.source}: is no run folder; it has no run.json")
    gallery = galleries.collect_run(run, names) if run else galleries.collect_study(args.runs, args.source, names)
    if args.blind:
        galleries.make_blind(gallery)
    with delayed_bar() as bar:
        missing = galleries.publish(gallery, args.out, lambda done, total: bar.update("publish", done, total))
    folder = args.out.absolute()
    if args.blind:
        key = {letter: name for name, letter in gallery.letters.items()}
        folder.with_name(f"{folder.name}.key.json").write_text(dump_json(key) + "\n", encoding="utf-8")
    if args.zip:
        shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    told = {"folder": str(args.out), "rows": len(gallery.rows), "contestants": len(gallery.names), "missing": missing}
    if args.json:
        print_json(told)
    else:
        out.print(f"{args.out / 'index.html'}: {len(gallery.rows):,} rows of {len(gallery.names)} contestants",
                  markup=False, soft_wrap=True)  # fmt: skip
    for note in gallery.notes[:MAX_NOTES]:
        err.print(note, markup=False, soft_wrap=True)
    if len(gallery.notes) > MAX_NOTES:
        err.print(f"and {len(gallery.notes) - MAX_NOTES:,} more", markup=False)
    return 1 if missing else 0
