"""`workbench social`: a reward learnt from a community's interactions, in steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser
from workbench.core.errors import BadInput

STEPS = {
    "simulate": "a simulated community's log and pictures, its true taste known",
    "curate": "an interaction log becomes train, val and test pairs with a data card",
    "train": "pairs (a file, or the folder that curate wrote) become a reward",
}


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "social",
        social_command,
        "A reward from what a community took up: a log becomes pairs, pairs a reward, "
        "and the reward is held against others.",
        "workbench social curate log.csv window=7 --out pairs\n  workbench social train pairs --out taste\n"
        "  workbench social eval pairs --model taste --reward clip",
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, summary in STEPS.items():
        step = steps.add_parser(name, help=summary, description=summary)
        if name != "simulate":
            step.add_argument("source", type=Path, help="the log" if name == "curate" else "the pairs")
        step.add_argument("override", nargs="*", help="key=value; docs/social.md lists them")
        step.add_argument("--out", type=Path, required=True, metavar="DIR")
        if name == "curate":
            step.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
        add_json_flag(step)
    step = steps.add_parser("eval", help="how often rewards prefer what the community preferred")
    step.add_argument("source", type=Path, help="pairs, or the folder that curate wrote (its test pairs)")
    step.add_argument(
        "--reward", action="append", default=[], metavar="NAME", help="reward to evaluate; may be given several times"
    )
    step.add_argument(
        "--model", action="append", default=[], type=Path, metavar="DIR", help="a folder that train wrote"
    )
    step.add_argument("--head", default="", metavar="FILE", help="a head that train wrote, with --embeddings")
    step.add_argument("--embeddings", default="", metavar="FILE")
    add_json_flag(step)


def social_command(args: argparse.Namespace) -> int:
    import transformers

    from workbench.commands.console import build_table, out, print_json
    from workbench.feedback import social

    transformers.utils.logging.disable_progress_bar()
    if args.step == "simulate":
        result = {"log": str(social.simulate_community(args.out, args.override))}
        rows = [result]
    elif args.step == "curate":
        result = social.curate_log(args.source, args.out, args.override, args.format)
        rows = [{"split": n} | {k: s[k] for k in ("prompts", "items", "pairs")} for n, s in result["splits"].items()]
    elif args.step == "train":
        result = []
        for epoch in social.train_reward(args.source, args.out, args.override):
            result.append(epoch)
            if not args.json:
                out.print(", ".join(f"{k} {v:.4g}" for k, v in epoch.items() if v is not None))
        rows = [{"reward": str(args.out)}]
    else:
        if bool(args.head) != bool(args.embeddings):
            raise BadInput("--head and --embeddings go together")
        result = social.compare_rewards(args.source, args.reward, args.model, args.embeddings, args.head)
        rows = [
            {
                "reward": r["reward"],
                "accuracy": r["accuracy"],
                "95 % interval": " to ".join(f"{x:.3f}" for x in r["ci95"] or ()),
                "calibration error": r["ece"],
                "pairs": r["pairs"],
            }
            for r in result
        ]
    if args.json:
        print_json(result)
    else:
        out.print(build_table(rows))
    return 0
