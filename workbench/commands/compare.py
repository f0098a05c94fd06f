"""`workbench compare`: contestants on the same prompts, seeds and budget."""

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
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "compare",
        run_config,
        "Contestants on the same prompts, seeds and budget, under every judge. The base is always among them, "
        "and best-of-n where the budget holds two samples.",
        "workbench compare reno fk@starter-image-teacher --pipeline starter-image --calls 32 --seeds 3 \\\n"
        "      --reward starter_clip --watch oracle --prompts starter-image-test",
    )
    parser.set_defaults(read_request=read_compare_request)
    parser.add_argument(
        "contestants",
        nargs="+",
        metavar="CONTESTANT",
        help="a pipeline, a method, '{method: {setting: value}}', either of them @PIPELINE, or a run folder",
    )
    parser.add_argument(
        "--pipeline", help="pipeline of the base, and of methods that name none [the first pipeline named]"
    )
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="a .txt or .jsonl file, or a name in configs/prompts"
    )
    parser.add_argument(
        "--reward", action="append", required=True, metavar="NAME", help="reward to optimise; written as in `score`"
    )
    parser.add_argument(
        "--watch",
        action="append",
        default=[],
        metavar="NAME",
        help="held-out reward: measured, never optimised; written as in `score`",
    )
    parser.add_argument(
        "--calls", type=int, metavar="N", help="budget: denoiser calls per sample; a guided call counts once"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="budget: seconds per sample; a method that is cut delivers its best so far, with all its particles",
    )
    for flags, default, meaning in (
        (("--samples-per-prompt", "--seeds"), 1, "samples of each prompt, each from noise of its own"),
        (("--limit",), 0, "only the first N prompts; 0: all"),
        (("--batch",), 16, "samples made at once"),
        (("--seed",), 0, "from which all random numbers follow"),
    ):
        parser.add_argument(*flags, type=int, default=default, metavar="N", help=f"{meaning} [{default}]")
    parser.add_argument("--name", default="compare", help="name of the run folder [compare]")
    add_dry_run_flag(parser)
    add_new_flag(parser, "start afresh even if an unfinished comparison could go on")
    add_runs_folder(parser)
    add_json_flag(parser)


def read_compare_request(args: argparse.Namespace) -> RunRequest:
    """The run of the contestants that the arguments name. Raises BadInput."""
    from workbench.core.schema import build_dataclass
    from workbench.engine import compare
    from workbench.evaluation import scoring
    from workbench.runs import config

    if args.calls is not None and args.calls < 1:
        raise BadInput(f"--calls: {args.calls} leaves nothing to work with; give 1 or more")
    pipeline, blocks = compare.contestant_blocks(
        args.contestants, args.pipeline, args.calls, timed=args.seconds is not None
    )
    if args.samples_per_prompt < 1:
        raise BadInput(f"--samples-per-prompt: must be at least 1, got {args.samples_per_prompt}")
    values = {key: getattr(args, key) for key in ("prompts", "name", "seed", "limit", "batch")}
    values |= {"samples_per_prompt": args.samples_per_prompt, "curve": True}
    values |= {"reward": scoring.parse_reward_blocks(args.reward)}
    values |= {"watch": scoring.parse_reward_blocks(args.watch) or None}
    if args.seconds is not None:
        values["budget"] = {"seconds": args.seconds}
    values |= {"pipeline": pipeline, "contestants": blocks}
    return RunRequest(
        config.check_config(build_dataclass(config.RunConfig, values, "compare")),
        shlex.join(["workbench", *sys.argv[1:]]),
    )
