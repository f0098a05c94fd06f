"""`workbench learn`: fits a reward to votes."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "learn",
        learn_command,
        "A reward from your own votes, and whether votes that it did not see show that it beats chance.",
        "workbench learn votes.jsonl --out my-taste",
    )
    parser.add_argument("votes", type=Path, help="file of votes, JSON lines; docs/rewards.md describes the format")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--encoder",
        default="starter:image/clip",
        metavar="MODEL",
        help="image encoder whose features the reward is fitted on [starter:image/clip]",
    )
    parser.add_argument(
        "--personal", action="store_true", help="fit several people's tastes, each a mixture of shared prototypes"
    )
    parser.add_argument(
        "--prototypes", type=int, default=3, metavar="K", help="number of shared prototypes, with --personal [3]"
    )
    add_json_flag(parser)


def learn_command(args: argparse.Namespace) -> int:
    import transformers
    import yaml
    from rich.markup import escape

    from workbench.commands.console import Failed, out, print_json
    from workbench.feedback import learn

    transformers.utils.logging.disable_progress_bar()
    try:
        result = learn.learn_from_votes(args.votes, args.out, args.encoder, args.personal, args.prototypes)
    except RuntimeError as error:  # the fit did not converge
        raise Failed(str(error)) from error
    if args.json:
        print_json(result)
        return 0
    for sentence in result["told"]:
        out.print(escape(sentence), soft_wrap=True)
    out.print(
        f"reward: {yaml.safe_dump(result['reward'], default_flow_style=True).strip()}", soft_wrap=True, markup=False
    )
    return 0
