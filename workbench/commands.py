"""What each command does, one function each: parsed arguments in, exit code out."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import config as configs
from .assets import CONFIGS
from .strict import nearest
from .types import BadInput

# A table is cut to the terminal's width, but a pipe or a file has none.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)


class Failed(RuntimeError):
    """The input was good and the work failed all the same. One sentence; the command line exits with 1."""


def demo(args) -> int:
    overrides = ["limit=14", "seeds=1"] if args.fast else []
    command = "workbench demo --fast" if args.fast else "workbench demo"
    return _run(configs.read(CONFIGS / "runs" / "demo.yaml", overrides), args, command)


def run(args) -> int:
    folder = Path(args.config)
    if not (folder / "run.json").is_file():
        return _run(
            configs.read(args.config, args.override),
            args,
            shlex.join(["workbench", "run", args.config, *args.override]),
        )
    from . import store
    from .strict import build

    if args.override:
        raise BadInput(f"{folder} goes on with the config that it has; for another one give a YAML file")
    kept = build(configs.RunConfig, store.RunFolder(folder).read().get("config"), str(folder / "run.json"))
    return _run(kept, args, f"workbench run {shlex.quote(args.config)}", folder)


def compare(args) -> int:
    from . import compare as comparing
    from . import scoring
    from .strict import build

    if args.calls is not None and args.calls < 1:
        raise BadInput(f"--calls: {args.calls} leaves nothing to work with; give 1 or more")
    home, blocks = comparing.blocks(args.contestants, args.pipeline, args.calls, timed=args.seconds is not None)
    shared = {key: getattr(args, key) for key in ("prompts", "name", "seed", "seeds", "limit", "batch")}
    shared |= {"reward": scoring.blocks(args.reward), "watch": scoring.blocks(args.watch) or None, "curve": True}
    if args.seconds is not None:
        shared["budget"] = {"seconds": args.seconds}
    config = configs.check(build(configs.RunConfig, shared | {"pipeline": home, "contestants": blocks}, "compare"))
    return _run(config, args, shlex.join(["workbench", *sys.argv[1:]]))


def _run(config: configs.RunConfig, args, command: str, folder: Path | None = None) -> int:
    import transformers

    from . import run as driver
    from . import store

    runs = folder.parent if folder else args.runs
    plan = driver.plan(config, command)
    driver.room(plan, runs)
    transformers.utils.logging.disable_progress_bar()  # our own bars are enough
    if getattr(args, "dry_run", False):
        return _dry_run(driver, plan, runs, args.json)
    fresh = args.new and not folder
    place = (
        store.RunFolder(folder)
        if folder
        else store.RunFolder.open(runs, config.name, dataclasses.asdict(config), fresh)
    )
    try:
        _watch(driver.execute(plan, place), plan)
    except driver.DiskFull as error:
        raise Failed(str(error)) from error
    summary = place.read("summary.json")
    return _show(place.path, summary, args.json)


def _watch(progress, plan) -> None:
    """One bar a contestant, on stderr: elapsed, remaining, and the reward as it rises."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err) as bars:
        loading = bars.add_task("loading", total=None, note="")
        tasks = {name: bars.add_task(name, total=len(plan.rows), note="", start=False) for name in plan.methods}
        for p in progress:
            bars.update(loading, visible=False)
            bars.start_task(tasks[p.contestant])
            done = min(len(plan.rows), (p.batch + (p.event is None or p.event.final)) * plan.config.batch)
            value = p.event.metrics.get("reward") if p.event else None
            note = f"step {p.event.step} · reward {value:.3f}" if value is not None else ""
            bars.update(tasks[p.contestant], completed=done, note=f"[red]failed: {p.failed}" if p.failed else note)


def _show(path: Path, summary: Mapping, as_json: bool) -> int:
    from . import findings
    from . import report as reports

    failed = [c for c in summary["contestants"] if "failed" in c]
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        out.print(reports.table(summary))
        for sentence in findings.headline(summary):
            out.print(sentence)
        if summary.get("alarm"):
            out.print(f"[bold red]Alarm:[/] {summary['alarm']}")
        out.print(f"pictures  {path / 'grid.png'}\nreport    {path / 'report.html'}", soft_wrap=True)
    for c in failed:
        err.print(f"[red]{c['name']} failed:[/] {c['failed']} (see {path / ('failure-' + c['name'] + '.txt')})")
    return 1 if failed else 0


def _dry_run(driver, plan, runs: Path, as_json: bool) -> int:
    """Checks, denoiser calls, and time from what earlier runs of the same pipeline took on this machine."""
    from .methods import name_of
    from .store import seconds_per_call

    pace = seconds_per_call(runs, plan.config.pipeline)
    rows = []
    for name, method in plan.methods.items():
        calls = plan.calls(name)
        known = pace.get(name_of(method)) if configs.repos(plan.config)[name] == plan.config.pipeline else None
        rows.append(
            {
                "contestant": name,
                "settings": dataclasses.asdict(method),
                "denoiser_calls": calls,
                "seconds": round(calls * known, 1) if known else None,
            }
        )
    weights = driver.weights_mb(plan)
    if as_json:
        print(json.dumps({"checks": [*plan.checks], "weights_mb": weights, "contestants": rows}))
        return 0
    for check in plan.checks:
        out.print(f"[green]✓[/] {check}")
    out.print(
        f"weights on disk: {weights:.0f} MB (memory is at least that)"
        if weights
        else "weights: on the hub, size not known here"
    )
    table = Table(box=None, header_style="bold")
    for column in ("contestant", "denoiser calls", "time", "settings"):
        table.add_column(column, justify="right" if "calls" in column else "left")
    for r in rows:
        time = f"≈ {r['seconds']:.0f} s" if r["seconds"] else "not yet known: no finished run to go by"
        table.add_row(
            r["contestant"], f"{r['denoiser_calls']:,}", time, ", ".join(f"{k} {v}" for k, v in r["settings"].items())
        )
    out.print(table)
    return 0


def list(args) -> int:  # noqa: A001  (named as the command is)
    from . import catalogue

    if args.check:
        return _check(args.check, args.json)
    kinds = [args.kind] if args.kind else ["pipelines", "rewards", "methods", "configs"]
    found = {kind: getattr(catalogue, kind)() for kind in kinds}
    if args.json:
        print(json.dumps(found[args.kind] if args.kind else found, ensure_ascii=False))
        return 0
    for kind, rows in found.items():
        out.print(_table(rows, title=kind if not args.kind else None))
    return 0


def _check(name: str, as_json: bool) -> int:
    import pipelines
    from pipelines.check import check

    rows = []
    for claim, held, seen in check(pipelines.load(name)):
        rows.append({"claim": claim, "holds": held, "seen": seen})
        if not as_json:
            out.print(f"{'[green]✓[/]' if held else '[red]✗[/]'} {claim}: {seen}")
    if as_json:
        print(json.dumps(rows))
    return 0 if all(row["holds"] for row in rows) else 1


def _table(rows: Sequence[Mapping], title: str | None = None) -> Table:
    table = Table(box=None, header_style="bold", title=title, title_justify="left", pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    return table


def score(args) -> int:
    import transformers

    from . import scoring

    transformers.utils.logging.disable_progress_bar()
    rows = scoring.score(args.files, args.reward, args.prompt)
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, rows[0])
        writer.writeheader(), writer.writerows(rows)
    else:
        out.print(_table(rows))
    return 1 if any(row.get("error") for row in rows) else 0


def learn(args) -> int:
    import transformers
    import yaml

    from . import voting

    transformers.utils.logging.disable_progress_bar()
    try:
        told = voting.learn(args.votes, args.out, args.encoder, args.personal, args.prototypes)
    except RuntimeError as error:  # the fit did not converge
        raise Failed(str(error)) from error
    if args.json:
        print(json.dumps(told, ensure_ascii=False))
        return 0
    for sentence in told["told"]:
        out.print(escape(sentence), soft_wrap=True)
    out.print(
        f"reward: {yaml.safe_dump(told['reward'], default_flow_style=True).strip()}", soft_wrap=True, markup=False
    )
    return 0


def serve_rewards(args) -> int:
    from . import scoring, serve
    from .judges import judges

    rewards = scoring.named(args.reward, judges())
    serve.serve(rewards, host=args.host, port=args.port, device=args.device, limit_mb=args.max_mb)
    return 0


def social(args) -> int:
    import transformers

    from . import social as work

    transformers.utils.logging.disable_progress_bar()
    if args.step == "simulate":
        told = {"log": str(work.simulate(args.out, args.override))}
        rows = [told]
    elif args.step == "curate":
        told = work.curate(args.source, args.out, args.override, args.format)
        rows = [{"split": n} | {k: s[k] for k in ("prompts", "items", "pairs")} for n, s in told["splits"].items()]
    elif args.step == "train":
        rows = told = []
        for epoch in work.train(args.source, args.out, args.override):
            told.append(epoch)
            if not args.json:
                out.print(", ".join(f"{k} {v:.4g}" for k, v in epoch.items() if v is not None))
        rows = [{"reward": str(args.out)}]
    else:
        if bool(args.head) != bool(args.embeddings):
            raise BadInput("--head and --embeddings go together")
        told = work.compare(args.source, args.reward, args.model, args.embeddings, args.head)
        rows = [{"reward": r["reward"], "accuracy": r["accuracy"], "95 % interval": " to ".join(f"{x:.3f}" for x in r["ci95"] or ()),
                 "calibration error": r["ece"], "pairs": r["pairs"]} for r in told]  # fmt: skip
    if args.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        out.print(_table(rows))
    return 0


def suite(args) -> int:
    import transformers

    from . import run as driver
    from . import suite as suites

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
    plan = driver.plan(job.config, shlex.join(["workbench", "suite", args.name, *args.override, *said]))
    if args.dry_run:
        return _dry_run(driver, plan, args.runs, args.json)
    try:
        _watch(suites.make(job, plan, args.runs), plan)
    except driver.DiskFull as error:
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


def report(args) -> int:
    from . import report as reports
    from . import store

    folder = store.RunFolder(args.run)
    summary = folder.read("summary.json")
    if not summary:
        known = [p.name for p in args.run.absolute().parent.glob("*") if (p / "summary.json").is_file()]
        raise BadInput(f"{args.run} has no summary.json, so it is no finished run; {nearest(args.run.name, known)}")
    reports.write_report(args.run)
    return _show(args.run, summary, args.json)


def doctor(args) -> int:
    from . import doctor as checks

    rows = checks.examine(args.runs)
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        marks = {"ok": "[green]✓[/]", "missing": "[yellow]–[/]", "broken": "[red]✗[/]"}
        for row in rows:
            out.print(f"{marks[row['state']]} [bold]{row['what']}[/]  {escape(row['detail'])}", soft_wrap=True)
    return 1 if any(row["state"] == "broken" for row in rows) else 0


def app(args) -> int:
    import app as page

    if not 0 < args.port < 65536:
        raise BadInput(f"--port: {args.port} is no port; give one from 1 to 65535")
    page.serve(args.runs, args.port)
    return 0


def starter(args) -> int:
    from pipelines.starter.build import build

    from .assets import STARTER

    if args.out is None and args.fast:
        raise BadInput(
            "--fast makes models that are not worth keeping: give --out DIR, so that the pack stays as it is"
        )
    if shutil.disk_usage(Path.cwd()).free < 2**30:
        raise BadInput("building the pack needs 1 GB free for its checkpoints; use --work on another disk")
    build(args.work, args.out or STARTER / "image", seed=args.seed, fast=args.fast)
    return 0
