"""Commands that ask, judge and serve."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

from rich.markup import escape

from workbench.core.types import BadInput

from .console import Failed, out, table


def list(args) -> int:  # noqa: A001  (named as the command is)
    from workbench.engine import catalogue

    if args.check:
        return _check(args.check, args.json)
    kinds = [args.kind] if args.kind else ["pipelines", "rewards", "methods", "configs"]
    found = {kind: getattr(catalogue, kind)() for kind in kinds}
    if args.json:
        print(json.dumps(found[args.kind] if args.kind else found, ensure_ascii=False))
        return 0
    for kind, rows in found.items():
        out.print(table(rows, title=kind if not args.kind else None))
    return 0


def _check(name: str, as_json: bool) -> int:
    import pipelines
    from pipelines.seam_check import check

    rows = []
    for claim, held, seen in check(pipelines.load(name)):
        rows.append({"claim": claim, "holds": held, "seen": seen})
        if not as_json:
            out.print(f"{'[green]✓[/]' if held else '[red]✗[/]'} {escape(f'{claim}: {seen}')}")
    if as_json:
        print(json.dumps(rows))
    return 0 if all(row["holds"] for row in rows) else 1


def score(args) -> int:
    import transformers

    from workbench.evaluation import scoring

    transformers.utils.logging.disable_progress_bar()
    rows = scoring.score(args.files, args.reward, args.prompt)
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, rows[0])
        writer.writeheader(), writer.writerows(rows)
    else:
        out.print(table(rows))
    return 1 if any(row.get("error") for row in rows) else 0


def learn(args) -> int:
    import transformers
    import yaml

    from workbench.feedback import learn

    transformers.utils.logging.disable_progress_bar()
    try:
        told = learn.learn(args.votes, args.out, args.encoder, args.personal, args.prototypes)
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
    from workbench.evaluation import scoring
    from workbench.runs.registry import judges
    from workbench.tools import reward_server

    rewards = scoring.named(args.reward, judges())
    reward_server.serve(rewards, host=args.host, port=args.port, device=args.device, limit_mb=args.max_mb)
    return 0


def social(args) -> int:
    import transformers

    from workbench.feedback import social

    transformers.utils.logging.disable_progress_bar()
    if args.step == "simulate":
        told = {"log": str(social.simulate(args.out, args.override))}
        rows = [told]
    elif args.step == "curate":
        told = social.curate(args.source, args.out, args.override, args.format)
        rows = [{"split": n} | {k: s[k] for k in ("prompts", "items", "pairs")} for n, s in told["splits"].items()]
    elif args.step == "train":
        rows = told = []
        for epoch in social.train(args.source, args.out, args.override):
            told.append(epoch)
            if not args.json:
                out.print(", ".join(f"{k} {v:.4g}" for k, v in epoch.items() if v is not None))
        rows = [{"reward": str(args.out)}]
    else:
        if bool(args.head) != bool(args.embeddings):
            raise BadInput("--head and --embeddings go together")
        told = social.compare(args.source, args.reward, args.model, args.embeddings, args.head)
        rows = [{"reward": r["reward"], "accuracy": r["accuracy"], "95 % interval": " to ".join(f"{x:.3f}" for x in r["ci95"] or ()),
                 "calibration error": r["ece"], "pairs": r["pairs"]} for r in told]  # fmt: skip
    if args.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        out.print(table(rows))
    return 0


def doctor(args) -> int:
    from workbench.tools import doctor

    rows = doctor.examine(args.runs)
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        marks = {"ok": "[green]✓[/]", "missing": "[yellow]–[/]", "broken": "[red]✗[/]"}
        for row in rows:
            out.print(f"{marks[row['state']]} [bold]{row['what']}[/]  {escape(row['detail'])}", soft_wrap=True)
    return 1 if any(row["state"] == "broken" for row in rows) else 0


def starter(args) -> int:
    from importlib import import_module

    from workbench.core.paths import STARTER

    build = import_module(f"pipelines.starter.{args.modality}.build").build

    if args.out is None and args.fast:
        raise BadInput(
            "--fast makes models that are not worth keeping: give --out DIR, so that the pack stays as it is"
        )
    if shutil.disk_usage(Path.cwd()).free < 2**30:
        raise BadInput("building the pack needs 1 GB free for its checkpoints; use --work on another disk")
    build(args.work, args.out or STARTER / args.modality, seed=args.seed, fast=args.fast)
    return 0
