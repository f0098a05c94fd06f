"""Printing the results of a run: table, findings, cost of training, and the paths of grid.png and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape

from workbench.commands.console import err, out, print_json
from workbench.report import findings, tables


def print_summary(path: Path, summary: Mapping, as_json: bool) -> int:
    """Print the results of a run; returns the exit code: 1 if a contestant failed, else 0."""
    failed = [c for c in summary["contestants"] if "failed" in c]
    if as_json:
        print_json(summary)
    else:
        out.print(tables.console_table(summary))
        warnings = findings.training_sentences(summary)
        for sentence in findings.headline_sentences(summary):
            out.print(sentence, markup=False, style="bold red" if sentence in warnings else None)
        for c in summary["contestants"]:
            if training := c.get("training"):
                out.print(training_sentence(c["name"], training), soft_wrap=True)
        if summary.get("alarm"):
            out.print(f"[bold red]Alarm:[/] {escape(summary['alarm'])}")
        for label, name in (("pictures", "grid.png"), ("report", "report.html"), ("grid", "grid.html")):
            if (path / name).is_file():
                out.print(f"{label:<10}{path / name}", soft_wrap=True, markup=False)
    for c in failed:
        reason = escape(f"{c['failed']} (see {path / ('failure-' + c['name'] + '.txt')})")
        err.print(f"[red]{c['name']} failed:[/] {reason}")
    return 1 if failed else 0


TRAINING_KEYS = ("updates", "samples", "seconds", "peak_mb", "best", "distance", "ended", "alarm")


def training_sentence(name: str, cost: Mapping) -> str:
    """One sentence, in rich's markup, on the training of contestant `name`; cost: its record in summary.json."""
    if lost := [key for key in TRAINING_KEYS if cost.get(key) is None]:
        return f"{name} was trained; its record was edited, for it lacks {escape(', '.join(lost))}"
    sentence = (
        f"{name} was trained for {cost['updates']} rounds on {cost['samples']:,} samples: {cost['seconds'] / 60:.1f} "
        f"minutes, {cost['peak_mb']:,.0f} MB, weights of round {cost['best']}, {cost['distance']:.3g} from the base"
    )
    ended = cost["ended"].removesuffix(f": {cost['alarm']}")  # the alarm stands among the findings
    return sentence + (f"; it ended because {escape(ended)}" if ended else "")
