"""`workbench starter build`: trains the models of the embedded starter pack from scratch. `workbench starter examples`:
makes examples of every quality, with their scores, to learn from."""

from __future__ import annotations

import argparse
import shutil
from importlib import import_module
from pathlib import Path

from workbench.commands.arguments import Commands, add_parser
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "starter",
        starter_command,
        "Rebuild the embedded starter pack from nothing, or make scored examples for reward_condition.",
        "workbench starter build --out /tmp/pack --fast",
    )
    parser.add_argument(
        "action",
        choices=("build", "examples"),
        help="examples (of edit): sources, instructions and deliberately imperfect results with scores, into --out",
    )
    parser.add_argument(
        "--modality",
        choices=("image", "music", "video", "edit", "image-to-video"),
        default="image",
        help="which starter pack [image]",
    )
    parser.add_argument("--out", type=Path, help="where the weights go [the pack inside the package]")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("starter-build"),
        help="folder of checkpoints, from which an interrupted build goes on [starter-build]",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fast",
        action="store_true",
        help="a build of a minute that only shows that the recipe runs; its models are useless",
    )


def starter_command(args: argparse.Namespace) -> int:
    from workbench.core.paths import STARTER

    if args.action == "examples":
        return make_examples(args)
    build = import_module(f"pipelines.starter.{args.modality.replace('-', '_')}.build").build
    if args.out is None and args.fast:
        raise BadInput(
            "--fast makes models that are not worth keeping: give --out DIR, so that the pack stays as it is"
        )
    if shutil.disk_usage(Path.cwd()).free < 2**30:
        raise BadInput("building the pack needs 1 GB free for its checkpoints; use --work on another disk")
    build(args.work, args.out or STARTER / args.modality, seed=args.seed, fast=args.fast)
    return 0


def make_examples(args: argparse.Namespace) -> int:
    """Write the examples of a pack. Raises BadInput for a pack that has none, and without a folder."""
    if args.modality != "edit":
        raise BadInput("examples: only the edit pack has some; say --modality edit")
    if args.out is None:
        raise BadInput("examples: say where they go: --out DIR")
    from pipelines.starter.edit.imperfect import EDITS, write_imperfect_edits

    count = write_imperfect_edits(args.out, edits=16 if args.fast else EDITS, seed=args.seed)
    print(f"{count:,} results with their scores in {args.out}")
    return 0
