"""The command line: `workbench COMMAND --help` teaches each command with an example.

Exit codes: 0 done, 1 failed, 2 bad input (one sentence). Heavy imports happen inside the commands: --help is instant.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

RAW = argparse.RawDescriptionHelpFormatter


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="workbench",
        formatter_class=RAW,
        description="Any diffusers pipeline, any reward, any alignment method, verified by judges that were not optimised.",
        epilog="start here:\n  workbench demo\n  workbench list methods\n  workbench run configs/runs/demo.yaml --dry-run",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}", formatter_class=RAW
        )

    def runs(p):
        p.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs [runs]")

    def as_json(p):
        p.add_argument("--json", action="store_true", help="print JSON instead of a table")

    demo = command(
        "demo",
        "Align a starter model by best-of-n, by its noise and by a short fine-tuning, and let an oracle judge. No GPU, no network, minutes.",
        "workbench demo --fast\n  workbench demo --modality music",
    )
    demo.add_argument("--modality", choices=["image", "music", "video"], default="image", help="what is made [image]")
    demo.add_argument("--fast", action="store_true", help="few prompts, one seed, little training: a first look")
    demo.add_argument("--new", action="store_true", help="start a fresh run even if an unfinished one could go on")
    runs(demo), as_json(demo)

    run = command(
        "run",
        "Run a config: train, make, judge, store, report. An unfinished run of the same config goes on where it stopped.",
        "workbench run configs/runs/demo.yaml seeds=4 contestants.reno.iterations=50",
    )
    run.add_argument("config", help="a YAML file, a name in configs/runs, or a run folder to go on with")
    run.add_argument("override", nargs="*", help="key=value, dotted: method.lr=2")
    run.add_argument("--dry-run", action="store_true", help="check everything, print the plan, make nothing")
    run.add_argument("--new", action="store_true", help="start a fresh run even if an unfinished one could go on")
    runs(run), as_json(run)

    compare = command(
        "compare",
        "Contestants on the same prompts, seeds and budget, under every judge. The base is always among them, and best-of-n where the budget holds two samples.",
        "workbench compare reno fk@starter-image-teacher --pipeline starter-image --calls 32 --seeds 3 \\\n"
        "      --reward starter_clip --watch oracle --prompts starter-image-test",
    )
    compare.add_argument(
        "contestants",
        nargs="+",
        metavar="CONTESTANT",
        help="a pipeline, a method, '{method: {setting: value}}', either of them @PIPELINE, or a run folder",
    )
    compare.add_argument("--pipeline", help="of the base and of methods that name none [the first pipeline named]")
    compare.add_argument(
        "--prompts", required=True, metavar="FILE", help="a .txt or .jsonl file, or a name in configs/prompts"
    )
    compare.add_argument("--reward", action="append", required=True, metavar="NAME", help="optimised; as in `score`")
    compare.add_argument("--watch", action="append", default=[], metavar="NAME", help="held out; as in `score`")
    compare.add_argument("--calls", type=int, metavar="N", help="denoiser calls a sample, a guided call counted once")
    compare.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="seconds a sample; what is cut delivers its best so far, and particles stay as many as they are",
    )
    for name, default in {"seeds": 1, "limit": 0, "batch": 16, "seed": 0}.items():
        compare.add_argument(f"--{name}", type=int, default=default, help=f"as in a config [{default}]")
    compare.add_argument("--name", default="compare", help="of the run folder [compare]")
    compare.add_argument("--dry-run", action="store_true", help="check everything, print the plan, make nothing")
    compare.add_argument("--new", action="store_true", help="start afresh even if an unfinished comparison could go on")
    runs(compare), as_json(compare)

    lists = command("list", "What there is: pipelines, rewards, methods, configs.", "workbench list rewards")
    lists.add_argument("kind", nargs="?", choices=("pipelines", "rewards", "methods", "configs"), help="one kind [all]")
    lists.add_argument("--check", metavar="NAME", help="load pipeline NAME and verify the seam on it")
    as_json(lists)

    score = command(
        "score",
        "Score media files or folders. A prompt that the workbench wrote into a PNG is read from it.",
        'workbench score picture.png --reward starter_clip --reward brightness --prompt "a red circle"',
    )
    score.add_argument("files", nargs="+", type=Path, help="media files or folders of them")
    score.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="NAME",
        help="a name, or YAML: {name: {setting: value}}; may be given several times",
    )
    score.add_argument("--prompt", help="the prompt of all files")
    score.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    as_json(score)

    learn = command(
        "learn",
        "A reward from your own votes, and whether votes that it did not see show that it beats chance.",
        "workbench learn votes.jsonl --out my-taste",
    )
    learn.add_argument("votes", type=Path, help="JSON lines; docs/rewards.md says of what")
    learn.add_argument("--out", type=Path, required=True, metavar="DIR")
    learn.add_argument(
        "--encoder",
        default="starter:image/clip",
        metavar="MODEL",
        help="through which pictures are seen [starter:image/clip]",
    )
    learn.add_argument("--personal", action="store_true", help="several people's tastes, as mixtures of shared ones")
    learn.add_argument("--prototypes", type=int, default=3, metavar="K", help="shared tastes, with --personal [3]")
    as_json(learn)

    served = command(
        "serve-rewards",
        "Serve rewards over HTTP to runs elsewhere, for the reward `remote`.",
        "workbench serve-rewards --reward clip --reward '{pickscore: {dtype: bfloat16}}'",
    )
    served.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="NAME",
        help="a name, or YAML: {name: {setting: value}}; may be given several times",
    )
    served.add_argument("--host", default="127.0.0.1", help="[127.0.0.1: this machine only]")
    served.add_argument("--port", type=int, default=8765)
    served.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    served.add_argument("--max-mb", type=int, default=256, help="largest request [256]")

    suite = command(
        "suite",
        "Pictures for a public benchmark, in the folders that its own scorer reads. The same command completes what is missing.",
        "workbench suite geneval batch=8 --prompts evaluation_metadata.jsonl --pipeline sd-turbo \\\n"
        "      --method '{reno: {iterations: 20}}' --reward clip --out geneval-reno",
    )
    suite.add_argument(
        "name", help="geneval, t2i-compbench, partiprompts, drawbench, hpdv2 or unigenbench: docs/suites.md"
    )
    suite.add_argument(
        "override", nargs="*", help="key=value of the run, right after the name: batch=8 seed=1 device=cuda"
    )
    suite.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="your copy of its prompt file")
    suite.add_argument("--pipeline", required=True, help="a name in configs/pipelines, a local folder, or a hub id")
    suite.add_argument("--method", default="sample", help="a name, or YAML: {name: {setting: value}} [sample]")
    suite.add_argument("--reward", help="what the method optimises: a name, or YAML as a run has it")
    suite.add_argument("--seeds", type=int, metavar="N", help="pictures a prompt [as many as the benchmark asks for]")
    suite.add_argument(
        "--limit", type=int, default=0, metavar="N", help="only the first prompts, for a first look [all]"
    )
    suite.add_argument("--out", type=Path, required=True, metavar="DIR", help="an empty folder, or one to complete")
    suite.add_argument("--dry-run", action="store_true", help="check everything, print the plan, make nothing")
    runs(suite), as_json(suite)

    export = command(
        "export",
        "Write the trained weights of a run again: as a LoRA for diffusers, for ComfyUI, merged, or to a hub.",
        "workbench export runs/20260101-120000-nft --out my-lora --merged",
    )
    export.add_argument("run", type=Path, help="the folder of a run that trained")
    export.add_argument("--contestant", metavar="NAME", help="which one, where several were trained")
    export.add_argument("--out", type=Path, metavar="DIR", help="a folder that is not there yet [RUN/export-NAME]")
    export.add_argument("--comfy", action="store_true", help="with a file for ComfyUI, where it knows the model")
    export.add_argument("--merged", action="store_true", help="with the whole denoiser, the LoRA in its weights")
    export.add_argument("--push", metavar="REPO", help="upload it to this hub repository; again, if it did not arrive")
    export.add_argument("--private", action="store_true", help="with --push: the repository is private")
    as_json(export)

    report = command(
        "report", "Draw grid.png and report.html of a run again.", "workbench report runs/20260101-120000-demo"
    )
    report.add_argument("run", type=Path, help="a run folder")
    as_json(report)

    doctor = command("doctor", "What works on this machine, and what does not and why.", "workbench doctor")
    runs(doctor), as_json(doctor)

    app = command("app", "Compare, vote, train and score in the browser; on this machine only, unless people log in.",
                  "workbench app --port 7860\n  workbench app --host 0.0.0.0 --auth users.txt")  # fmt: skip
    app.add_argument("--port", type=int, default=7860)
    app.add_argument("--host", default="127.0.0.1", help="[127.0.0.1: this machine only]; others need --auth")
    app.add_argument("--auth", type=Path, metavar="FILE", help="who may enter: a line name:password each")
    app.add_argument("--share", action="store_true", help="through a public address of gradio's; needs --auth")
    runs(app)

    social = command(
        "social",
        "A reward from what a community took up: a log becomes pairs, pairs a reward, and the reward is held against others.",
        "workbench social curate log.csv window=7 --out pairs\n  workbench social train pairs --out taste\n"
        "  workbench social eval pairs --model taste --reward clip",
    )
    steps = social.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, summary in {
        "simulate": "a simulated community's log and pictures, its true taste known",
        "curate": "an interaction log becomes train, val and test pairs with a data card",
        "train": "pairs (a file, or the folder that curate wrote) become a reward",
    }.items():
        step = steps.add_parser(name, help=summary, description=summary)
        if name != "simulate":
            step.add_argument("source", type=Path, help="the log" if name == "curate" else "the pairs")
        step.add_argument("override", nargs="*", help="key=value; docs/social.md lists them")
        step.add_argument("--out", type=Path, required=True, metavar="DIR")
        if name == "curate":
            step.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
        as_json(step)
    step = steps.add_parser("eval", help="how often rewards prefer what the community preferred")
    step.add_argument("source", type=Path, help="pairs, or the folder that curate wrote (its test pairs)")
    step.add_argument("--reward", action="append", default=[], metavar="NAME", help="may be given several times")
    step.add_argument(
        "--model", action="append", default=[], type=Path, metavar="DIR", help="a folder that train wrote"
    )
    step.add_argument("--head", default="", metavar="FILE", help="a head that train wrote, with --embeddings")
    step.add_argument("--embeddings", default="", metavar="FILE")
    as_json(step)

    starter = command(
        "starter", "Rebuild the embedded starter pack from nothing.", "workbench starter build --out /tmp/pack --fast"
    )
    starter.add_argument("action", choices=("build",))
    starter.add_argument(
        "--modality", choices=("image", "music", "video"), default="image", help="which part of it [image]"
    )
    starter.add_argument("--out", type=Path, help="where the weights go [the pack inside the package]")
    starter.add_argument(
        "--work", type=Path, default=Path("starter-build"), help="checkpoints; an interrupted build goes on"
    )
    starter.add_argument("--seed", type=int, default=0)
    starter.add_argument(
        "--fast", action="store_true", help="a smoke build of a minute: the recipe runs, the models are bad"
    )
    return top


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, overrides standing anywhere: argparse fills a list of them once, and leaves over those after a flag."""
    top = parser()
    args, left = top.parse_known_args(argv)
    late = [word for word in left if "=" in word and not word.startswith("-") and hasattr(args, "override")]
    if odd := [word for word in left if word not in late]:
        top.error(f"unrecognized arguments: {' '.join(odd)}")
    if late:
        args.override = [*args.override, *late]
    return args


def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    from workbench.core.types import BadInput

    from . import commands

    try:
        return getattr(commands, args.command.replace("-", "_"))(args) or 0
    except BadInput as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2
    except commands.Failed as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("workbench: stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
