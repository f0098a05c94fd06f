"""`workbench learn`: fits a reward to votes."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_runs_folder
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "learn",
        learn_command,
        "A reward from your own votes on pictures, clips or sounds, and whether votes that it did not see show that it "
        "beats chance.",
        "workbench learn --study sharpness --name sharp\n"
        "  workbench score picture.png --reward taste:sharp\n"
        "  workbench learn votes.jsonl --out my-taste",
    )
    parser.add_argument("votes", type=Path, nargs="?", help="file of votes, JSON lines; docs/rewards.md has the format")
    parser.add_argument("--study", default="", metavar="NAME", help="the votes of a study, in place of a file")
    parser.add_argument("--run", default="", metavar="RUN", help="the votes on one run's samples, in place of a file")
    parser.add_argument("--name", default="", metavar="NAME", help="keep it as RUNS/learned/NAME: `taste:NAME`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep it in another folder: {learned: {path: DIR}}")
    parser.add_argument(
        "--encoder",
        default="",
        metavar="MODEL",
        help="encoder through which media are seen [the starter pack's for its media; else CLIP or CLAP]",
    )
    parser.add_argument(
        "--personal", action="store_true", help="fit several people's tastes, each a mixture of shared prototypes"
    )
    parser.add_argument(
        "--prototypes", type=int, default=3, metavar="K", help="number of shared prototypes, with --personal [3]"
    )
    add_runs_folder(parser)
    add_json_flag(parser)


def learn_command(args: argparse.Namespace) -> int:
    import transformers
    import yaml
    from rich.markup import escape

    from workbench.commands.console import Failed, out, print_json

    transformers.utils.logging.disable_progress_bar()
    try:
        result = learn_reward(args)
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
    if "name" in result:
        out.print(f"by name: --reward taste:{result['name']}", soft_wrap=True, markup=False)
    return 0


def learn_reward(args: argparse.Namespace) -> dict:
    """What `workbench.feedback.learn` found in the votes that the arguments name. Raises BadInput."""
    from rewards.people import tastes
    from workbench.feedback import learn, loop_votes

    if sum(map(bool, (args.votes, args.study, args.run))) != 1:
        raise BadInput("name one of: a file of votes, --study NAME, --run RUN")
    if bool(args.name) == bool(args.out):
        raise BadInput("say where to keep it: --name NAME, or --out DIR")
    if args.name and not tastes.NAME.fullmatch(args.name):
        raise BadInput("--name: use up to 80 letters, digits, '.', '_' and '-'")
    if args.votes:
        out = args.out or args.runs / tastes.FOLDER / args.name
        result = learn.learn_from_votes(args.votes, out, args.encoder, args.personal, args.prototypes)
        return result | ({"name": args.name} if args.name else {})
    if args.out:
        raise BadInput("--out: votes of this folder of runs are kept in it; give --name")
    source = loop_votes.VoteSource(args.study, (args.run,) if args.run else ())
    vote_list = source.read(args.runs)
    return learn.learn_named(
        vote_list, args.runs, args.name, args.encoder, str(source), mixture=args.personal, prototypes=args.prototypes
    )
