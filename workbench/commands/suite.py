"""`workbench suite`: makes pictures for a public benchmark."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from workbench.commands.arguments import Commands, add_dry_run_flag, add_json_flag, add_parser, add_runs_folder


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "suite",
        suite_command,
        "Pictures for a public benchmark, in the folders that its own scorer reads. "
        "The same command completes what is missing.",
        "workbench suite geneval batch=8 --prompts evaluation_metadata.jsonl --pipeline sd-turbo \\\n"
        "      --method '{reno: {iterations: 20}}' --reward clip --out geneval-reno",
    )
    parser.add_argument(
        "name", help="geneval, t2i-compbench, partiprompts, drawbench, hpdv2 or unigenbench: docs/suites.md"
    )
    parser.add_argument(
        "override", nargs="*", help="key=value of the run, right after the name: batch=8 seed=1 device=cuda"
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="your copy of the benchmark's prompt file"
    )
    parser.add_argument("--pipeline", required=True, help="a name in configs/pipelines, a local folder, or a hub id")
    parser.add_argument(
        "--method", default="sample", help="a method's name, or YAML: {name: {setting: value}} [sample]"
    )
    parser.add_argument("--reward", help="reward that the method optimises: a name, or YAML as in a run's config")
    parser.add_argument(
        "--samples-per-prompt",
        "--seeds",
        dest="seeds",
        type=int,
        metavar="N",
        help="pictures per prompt [as many as the benchmark asks for]",
    )
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="only the first prompts, for a first look [all]"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="an empty folder, or one to complete")
    add_dry_run_flag(parser)
    add_runs_folder(parser)
    add_json_flag(parser)


def suite_command(args: argparse.Namespace) -> int:
    import transformers
    from rich.markup import escape

    from workbench.commands.console import Failed, err, out, print_json
    from workbench.commands.run_progress import ProgressBars, print_plan
    from workbench.core.io.parsing import read_json
    from workbench.engine import run
    from workbench.engine.plan import plan_run
    from workbench.tools import suites

    transformers.utils.logging.disable_progress_bar()
    settings = {key: getattr(args, key) for key in ("pipeline", "method", "reward", "seeds", "limit")}
    job = suites.prepare_job(args.name, args.prompts, args.out, **settings, overrides=args.override)
    flags = {"prompts": args.prompts, **settings, "runs": args.runs, "out": args.out}
    words = [word for flag, value in flags.items() if value not in (None, 0) for word in (f"--{flag}", str(value))]
    plan = plan_run(job.config, shlex.join(["workbench", "suite", args.name, *args.override, *words]))
    if args.dry_run:
        return print_plan(plan, args.runs, args.json)
    try:
        with ProgressBars(plan) as bars:
            for progress in suites.make_pictures(job, plan, args.runs):
                bars.show(progress)
    except run.DiskFull as error:
        raise Failed(str(error)) from error
    manifest = read_json(args.out / suites.MANIFEST)
    if not manifest["complete"]:
        raise Failed(
            f"the method failed, see the failure-*.txt of the newest run in {args.runs}; the same command tries again"
        )
    if args.json:
        print_json(manifest)
        return 0
    out.print(
        escape(f"{manifest['count']} pictures in {args.out}, described in {args.out / suites.MANIFEST}"), soft_wrap=True
    )
    for prompt in manifest["renamed"]:
        err.print(f"[yellow]the scorer reads another prompt than[/] {escape(prompt)}", soft_wrap=True)
    if manifest["score"]:
        out.print(f"score them in a checkout of https://github.com/{manifest['scorer']}:", soft_wrap=True)
    for line in manifest["score"]:
        out.print(f"  {escape(line)}", soft_wrap=True)
    return 0
