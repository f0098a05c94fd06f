"""Commands that run something, and those that work on what a run has left."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from rich.markup import escape

from workbench.commands.run_progress import dry_run, stopping, watch
from workbench.core.paths import CONFIGS
from workbench.core.schema import nearest
from workbench.core.types import BadInput
from workbench.runs import config as configs

from .console import Failed, err, out


def demo(args) -> int:
    command = f"workbench demo --modality {args.modality}" + " --fast" * args.fast
    overrides = ["limit=14", "seeds=1", "train.updates=4"] if args.fast else []
    name = "demo" if args.modality == "image" else f"demo-{args.modality}"
    return _run(configs.read(CONFIGS / "runs" / f"{name}.yaml", overrides), args, command)


def run(args) -> int:
    folder = Path(args.config)
    if not os.path.isfile(folder / "run.json"):
        return _run(
            configs.read(args.config, args.override),
            args,
            shlex.join(["workbench", "run", args.config, *args.override]),
        )
    from workbench.core.schema import build
    from workbench.runs import store

    if args.override:
        raise BadInput(f"{folder} goes on with the config that it has; for another one give a YAML file")
    kept = build(configs.RunConfig, store.RunFolder(folder).read().get("config"), str(folder / "run.json"))
    return _run(kept, args, f"workbench run {shlex.quote(args.config)}" + " --new" * args.new, folder)


def compare(args) -> int:
    from workbench.core.schema import build
    from workbench.engine import compare
    from workbench.evaluation import scoring

    if args.calls is not None and args.calls < 1:
        raise BadInput(f"--calls: {args.calls} leaves nothing to work with; give 1 or more")
    home, blocks = compare.blocks(args.contestants, args.pipeline, args.calls, timed=args.seconds is not None)
    shared = {key: getattr(args, key) for key in ("prompts", "name", "seed", "seeds", "limit", "batch")}
    shared |= {"reward": scoring.blocks(args.reward), "watch": scoring.blocks(args.watch) or None, "curve": True}
    if args.seconds is not None:
        shared["budget"] = {"seconds": args.seconds}
    config = configs.check(build(configs.RunConfig, shared | {"pipeline": home, "contestants": blocks}, "compare"))
    return _run(config, args, shlex.join(["workbench", *sys.argv[1:]]))


def _run(config: configs.RunConfig, args, command: str, folder: Path | None = None) -> int:
    import transformers

    from pipelines import processes
    from workbench.engine import run
    from workbench.runs import store
    from workbench.training import training_runs

    runs = folder.parent if folder else args.runs
    plan = run.plan(config, command)
    run.room(plan, runs)
    transformers.utils.logging.disable_progress_bar()  # our own bars are enough
    if getattr(args, "dry_run", False):
        return dry_run(run, plan, runs, args.json)
    asked = dataclasses.asdict(config)
    place = training_runs.together(
        lambda: folder if folder and not args.new else store.RunFolder.open(runs, config.name, asked, args.new).path,
        config.device,
    )
    try:
        with stopping() as stop:
            watch(run.execute(plan, store.RunFolder(place), stop), plan, quiet=not processes.leads())
    except Exception as error:
        if processes.count() > 1:
            _leave(error)
        if isinstance(error, run.DiskFull):
            raise Failed(str(error)) from error
        raise
    if not processes.leads():
        return 0
    if stop.is_set():
        err.print("workbench: stopped; the same command goes on from here")
        return 130
    return _show(place, store.RunFolder(place).read("summary.json"), args.json)


def _leave(error: Exception) -> NoReturn:
    """End this process of several, now: a usual exit waits for threads, and for what the process group's and the GPU's destructors
    do, and those may wait for the other processes, which wait for this one."""
    from workbench.training.train import Ended

    if not isinstance(error, (Ended, BadInput, OSError)):
        traceback.print_exception(error)
    print(f"workbench: {error}", file=sys.stderr)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(2 if isinstance(error.__cause__ or error, BadInput) else 1)


def _show(path: Path, summary: Mapping, as_json: bool) -> int:
    from workbench.report import findings, pages

    failed = [c for c in summary["contestants"] if "failed" in c]
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        out.print(pages.table(summary))
        for sentence in findings.headline(summary):
            out.print(sentence, markup=False)
        for c in summary["contestants"]:
            if taught := c.get("training"):
                out.print(_taught(c["name"], taught), soft_wrap=True)
        if summary.get("alarm"):
            out.print(f"[bold red]Alarm:[/] {escape(summary['alarm'])}")
        for what, name in (("pictures", "grid.png"), ("report", "report.html")):
            if (path / name).is_file():
                out.print(f"{what:<10}{path / name}", soft_wrap=True, markup=False)
    for c in failed:
        why = escape(f"{c['failed']} (see {path / ('failure-' + c['name'] + '.txt')})")
        err.print(f"[red]{c['name']} failed:[/] {why}")
    return 1 if failed else 0


def _taught(name: str, cost: Mapping) -> str:
    told = f"{name} was trained for {cost['updates']} rounds on {cost['samples']:,} samples: {cost['seconds'] / 60:.1f} minutes, "
    told += f"{cost['peak_mb']:,.0f} MB, weights of round {cost['best']}, {cost['distance']:.3g} from the base"
    told += f"; it ended because {escape(cost['ended'])}" if cost["ended"] else ""
    return told + (f"; [red]alarm[/]: {escape(cost['alarm'])}" if cost["alarm"] else "")


def suite(args) -> int:
    import transformers

    from workbench.engine import run
    from workbench.tools import suites

    transformers.utils.logging.disable_progress_bar()
    told = {
        "pipeline": args.pipeline,
        "method": args.method,
        "reward": args.reward,
        "seeds": args.seeds,
        "limit": args.limit,
    }
    job = suites.job(args.name, args.prompts, args.out, **told, overrides=args.override)
    flags = {"prompts": args.prompts, **told, "runs": args.runs, "out": args.out}
    said = [word for flag, value in flags.items() if value not in (None, 0) for word in (f"--{flag}", str(value))]
    plan = run.plan(job.config, shlex.join(["workbench", "suite", args.name, *args.override, *said]))
    if args.dry_run:
        return dry_run(run, plan, args.runs, args.json)
    try:
        watch(suites.make(job, plan, args.runs), plan)
    except run.DiskFull as error:
        raise Failed(str(error)) from error
    made = json.loads((args.out / suites.MANIFEST).read_text(encoding="utf-8"))
    if not made["complete"]:
        raise Failed(
            f"the method failed, see the failure-*.txt of the newest run in {args.runs}; the same command tries again"
        )
    if args.json:
        print(json.dumps(made, ensure_ascii=False))
        return 0
    out.print(
        escape(f"{made['count']} pictures in {args.out}, described in {args.out / suites.MANIFEST}"), soft_wrap=True
    )
    for prompt in made["renamed"]:
        err.print(f"[yellow]the scorer reads another prompt than[/] {escape(prompt)}", soft_wrap=True)
    if made["score"]:
        out.print(f"score them in a checkout of https://github.com/{made['scorer']}:", soft_wrap=True)
    for line in made["score"]:
        out.print(f"  {escape(line)}", soft_wrap=True)
    return 0


def export(args) -> int:
    from workbench.engine import export
    from workbench.tools import hub

    if args.push is not None:
        hub.check_repo(args.push)
    elif args.private:
        raise BadInput("--private: says how a new hub repository is made; name one with --push")
    wanted = {"comfy": args.comfy, "merged": args.merged, "reuse": args.push is not None}
    told = export.again(args.run, args.contestant, args.out, **wanted)
    if args.push:
        try:
            hub.push(told.folder, args.push, args.private)
        except hub.Unreached as error:
            raise Failed(str(error)) from error
    if args.json:
        print(json.dumps(told.rows(), ensure_ascii=False))
        return 0
    for line in told.lines():
        out.print(escape(line), soft_wrap=True)
    if args.push:
        out.print(f"pushed to {args.push}", soft_wrap=True, markup=False)
    return 0


def report(args) -> int:
    from workbench.report import pages
    from workbench.runs import store

    folder = store.RunFolder(args.run)
    summary = folder.read("summary.json")
    if not summary:
        known = [p.name for p in args.run.absolute().parent.glob("*") if (p / "summary.json").is_file()]
        raise BadInput(f"{args.run} has no summary.json, so it is no finished run; {nearest(args.run.name, known)}")
    pages.write_report(args.run)
    return _show(args.run, summary, args.json)
