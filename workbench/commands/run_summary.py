"""Printing the results of a run: table, findings, cost of training, and the paths of grid.png and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape

from workbench.commands.console import err, out
from workbench.report import findings, tables


def print_summary(path: Path, summary: Mapping, as_json: bool) -> int:
    """Print the results of a run; returns the exit code: 1 if a contestant failed, else 0."""
    failed = [c for c in summary["contestants"] if "failed" in c]
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        out.print(tables.console_table(summary))
        for sentence in findings.headline_sentences(summary):
            out.print(sentence, markup=False)
        for c in summary["contestants"]:
            if training := c.get("training"):
                out.print(training_sentence(c["name"], training), soft_wrap=True)
        if summary.get("alarm"):
            out.print(f"[bold red]Alarm:[/] {escape(summary['alarm'])}")
        for label, name in (("pictures", "grid.png"), ("report", "report.html")):
            if (path / name).is_file():
                out.print(f"{label:<10}{path / name}", soft_wrap=True, markup=False)
    for c in failed:
        reason = escape(f"{c['failed']} (see {path / ('failure-' + c['name'] + '.txt')})")
        err.print(f"[red]{c['name']} failed:[/] {reason}")
    return 1 if failed else 0


def training_sentence(name: str, cost: Mapping) -> str:
    """One sentence, in rich's markup, on the training of contestant `name`; cost: its record in summary.json."""
    sentence = (
        f"{name} was trained for {cost['updates']} rounds on {cost['samples']:,} samples: {cost['seconds'] / 60:.1f} "
        f"minutes, {cost['peak_mb']:,.0f} MB, weights of round {cost['best']}, {cost['distance']:.3g} from the base"
    )
    sentence += f"; it ended because {escape(cost['ended'])}" if cost["ended"] else ""
    return sentence + (f"; [red]alarm[/]: {escape(cost['alarm'])}" if cost["alarm"] else "")
