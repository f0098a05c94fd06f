"""`workbench import`: folders of media that were made elsewhere become a run."""

from __future__ import annotations

import argparse
import shlex
import sys

from workbench.commands.arguments import (
    Commands,
    add_dry_run_flag,
    add_json_flag,
    add_new_flag,
    add_parser,
    add_runs_folder,
)
from workbench.commands.run_config import RunRequest, run_config


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "import",
        run_config,
        "Pictures, clips or sounds that were made elsewhere become a run: with a report, for votes, and as pairs to "
        "learn from. Files of several folders are paired by their prompts or their names. Each file stays as it is.",
        "workbench import results/modelA results/modelB --reward clip\n"
        "  workbench import ours=results/v2 runs/20260101-120000-demo --pair prompt",
    )
    parser.set_defaults(read_request=read_import_request)
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a folder of media, NAME=FOLDER, or a run, of which all enter"
    )
    parser.add_argument(
        "--prompts",
        default="",
        metavar="FILE",
        help="prompts by file_name, by index, or in the order of the files [metadata.jsonl, NAME.txt, what the "
        "programs that made them wrote into the files, names such as PROMPT-3.mp4]",
    )
    parser.add_argument(
        "--pair",
        choices=("prompt", "name", "order"),
        default="",
        help="which files belong together [by prompt or by name, where that is clear]",
    )
    parser.add_argument(
        "--reward", action="append", default=[], metavar="NAME", help="what to score them by; written as in `score`"
    )
    parser.add_argument(
        "--copy", action="store_true", help="copy the files into the run [hard links, which take no room]"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N prompts; 0: all [0]")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="files scored at once [16]")
    parser.add_argument("--name", default="import", help="name of the run folder [import]")
    add_dry_run_flag(parser)
    add_new_flag(parser, "start afresh even if an unfinished import could go on")
    add_runs_folder(parser)
    add_json_flag(parser)


def read_import_request(args: argparse.Namespace) -> RunRequest:
    """The run of these folders. Raises BadInput."""
    from workbench.core.schema import build_dataclass
    from workbench.engine import import_media
    from workbench.evaluation import scoring
    from workbench.runs import config

    values = {key: getattr(args, key) for key in ("prompts", "pair", "limit", "batch", "name")}
    values |= {"contestants": import_media.contestants_of(args.folders), "copy_media": args.copy}
    values |= {"watch": scoring.parse_reward_blocks(args.reward) or None}
    return RunRequest(
        config.check_config(build_dataclass(config.RunConfig, values, "import")),
        shlex.join(["workbench", *sys.argv[1:]]),
    )
