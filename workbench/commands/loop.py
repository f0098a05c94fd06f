"""`workbench loop`: from votes to a better model, and back to votes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.commands.arguments import Commands, add_json_flag, add_parser
from workbench.core.errors import BadInput

if TYPE_CHECKING:
    from workbench.runs.plan import Plan
    from workbench.runs.store import RunFolder


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "loop",
        loop_command,
        "Train on people's votes, and ask them again, blind, whether it helped.",
        "workbench loop --study sharpness --method dpo\n"
        "  workbench loop --pipeline starter-image-base --prompts starter-image-train --simulate starter_clip",
    )
    parser.add_argument("override", nargs="*", help="settings of the training, as in: train.rounds=50")
    parser.add_argument("--study", default="", metavar="NAME", help="learn from the votes of a study")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="or from the votes on these runs' samples")
    parser.add_argument("--pipeline", default="", metavar="NAME", help="to train [the one that made what was voted on]")
    parser.add_argument("--prompts", default="", metavar="LIST", help="no votes yet: two samples of each are voted on")
    parser.add_argument(
        "--method",
        choices=("dpo", "kto", "reward"),
        default="dpo",
        help="dpo and kto learn from pairs; reward trains by the taste that was learnt from the votes [dpo]",
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of a simulated voter [1]")
    parser.add_argument("--test", default="", metavar="LIST", help="held-out prompts [the starter pack's]")
    parser.add_argument("--watch", action="append", default=[], metavar="NAME", help="a held-out judge; several times")
    parser.add_argument("--votes", type=int, default=200, metavar="N", help="on pairs that the loop makes [200]")
    parser.add_argument("--pairs", type=int, default=80, metavar="N", help="of the follow-up, base and tuned [80]")
    parser.add_argument("--simulate", default="", metavar="TASTE", help="a reward votes, or a block of them in YAML")
    parser.add_argument(
        "--noise", type=float, default=0.25, metavar="X", help="of its votes, over the differences [0.25]"
    )
    parser.add_argument("--shuffle", action="store_true", help="control: votes are dealt out to other pairs")
    parser.add_argument("--encoder", default="", metavar="MODEL", help="through which the taste is learnt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="", help="of the loop, its taste, runs and studies [of what it learns from]")
    parser.add_argument("--folder", type=Path, default=Path("runs"), metavar="DIR", help="of runs and studies [runs]")
    add_json_flag(parser)


def loop_command(args: argparse.Namespace) -> int:
    import transformers

    from workbench.commands.console import err, out, print_json
    from workbench.core.schema import build_dataclass
    from workbench.feedback import loop
    from workbench.runs.store import RunFolder

    transformers.utils.logging.disable_progress_bar()
    keys = ("name", "study", "pipeline", "prompts", "method", "rounds", "test", "votes", "pairs", "simulate", "noise",
            "shuffle", "encoder", "seed")  # fmt: skip
    values = {key: getattr(args, key) for key in keys}
    values |= {"watch": tuple(args.watch), "overrides": tuple(args.override)}
    values["runs"] = tuple(find_folder(run, args.folder) for run in args.runs)
    settings = loop.with_name(build_dataclass(loop.LoopSettings, values, "loop"))
    for sentence in loop.run_loop(args.folder, settings, execute_with_bars):
        (err if args.json else out).print(sentence, markup=False, soft_wrap=True)
    if args.json:
        print_json(RunFolder(args.folder / loop.FOLDER / settings.name).read(loop.FILE))
    return 0


def find_folder(run: str, runs: Path) -> str:
    """The name of a run folder, which may be given by its path. Raises BadInput for one that lies elsewhere."""
    path = Path(run)
    if len(path.parts) > 1 and path.resolve().parent != runs.resolve():
        raise BadInput(f"--runs {run}: lies in another folder than {runs}; name its folder with --folder")
    return path.resolve().name if len(path.parts) > 1 else run


def execute_with_bars(plan: Plan, folder: RunFolder) -> None:
    """Work on a run, with bars on stderr."""
    from workbench.commands.console import err
    from workbench.commands.run_progress import ProgressBars, stop_on_signal
    from workbench.engine import run, threads

    if note := threads.choose_threads(threads.works_on_starters(plan), folder.read().get("threads")):
        err.print(f"workbench: {note}")
    with stop_on_signal() as stop, ProgressBars(plan) as bars:
        for progress in run.execute_run(plan, folder, stop):
            bars.show(progress)
