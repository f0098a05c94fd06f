"""A run folder as a Python object: its table, samples, media and report, and the export of its weights."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import BadInput
from workbench.core.io import media as media_files
from workbench.core.schema import suggest_nearest
from workbench.core.types import Media
from workbench.engine import export
from workbench.engine.user_objects import UserObjects
from workbench.report import notebook_view
from workbench.report.columns import build_table
from workbench.runs.run_inputs import restore_prompt
from workbench.runs.store import RunFolder


@dataclass(frozen=True)
class Run:
    """The results of a run in its folder. It prints as one line; a notebook shows its table and pictures."""

    path: Path
    objects: UserObjects = field(default_factory=UserObjects, repr=False, compare=False)  # named by its config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: means, intervals, differences from the base, costs, alarm. Raises BadInput for an unfinished
        run."""
        summary = RunFolder(self.path).read("summary.json")
        if not summary:
            raise BadInput(f"{self.path}: this run has not come to its end; go on with: workbench run {self.path}")
        return summary

    @property
    def status(self) -> str:
        """done, failed, stopped or running."""
        return RunFolder(self.path).read().get("status", "")

    @property
    def contestants(self) -> list[str]:
        """Their names, in the order of the config. Raises BadInput for an unfinished run."""
        return [c["name"] for c in self.summary["contestants"]]

    @property
    def report(self) -> Path:
        """The self-contained page, to be opened in a browser."""
        return self.path / "report.html"

    def table(self) -> list[dict[str, Any]]:
        """One dict per contestant, for pandas: means, the ends of their 95 % intervals (`_low`, `_high`), costs."""
        return table_rows(self.summary)

    def samples(self, contestant: str | None = None) -> list[dict[str, Any]]:
        """One dict per sample, for pandas: contestant, prompt (with what it came with, read from the run folder), k
        (which of the prompt's samples), seed, file, scores. A sample that is no medium has the file None and a
        `reason`."""
        if contestant is not None:
            self._check_name(contestant)
        return [
            {
                "contestant": event["contestant"],
                "prompt": restore_prompt(self.path, sample),
                "k": sample["k"],
                "seed": sample["seed"],
                "file": str(self.path / sample["file"]) if sample["file"] else None,
                **sample["scores"],
                **({"reason": sample["reason"]} if sample.get("reason") else {}),
            }
            for event in RunFolder(self.path).events()
            if event.get("final") and contestant in (None, event["contestant"])
            for sample in event["samples"]
        ]

    def media(self, contestant: str) -> Media:
        """All samples of a contestant, N rows in the order of `samples`; NaN for one without a file. Raises BadInput
        for an unknown name."""
        self._check_name(contestant)
        rows = [media_files.read_media(s["file"]) if s["file"] else None for s in self.samples(contestant)]
        example = next(filter(None, rows), None)
        if example is None:
            raise BadInput(f"{self.path}: {contestant} made nothing")
        blank = replace(example, data=torch.full_like(example.data, torch.nan))
        return Media.cat([row or blank for row in rows])

    def export(
        self,
        folder: str | Path | None = None,
        contestant: str | None = None,
        *,
        comfy: bool = False,
        merged: bool = False,
    ) -> export.ExportResult:
        """Export the best weights of a training as a LoRA that diffusers loads; `comfy` adds a file for ComfyUI,
        `merged` the whole denoiser. Raises BadInput for a run that trained nothing, or a folder that exists."""
        target = None if folder is None else Path(folder)
        return export.export_again(self.path, contestant, target, comfy=comfy, merged=merged, objects=self.objects)

    def _check_name(self, contestant: str) -> None:
        if contestant not in self.contestants:
            raise BadInput(
                f"{self.path}: no contestant {contestant!r}; {suggest_nearest(contestant, self.contestants)}"
            )

    def __repr__(self) -> str:
        summary = RunFolder(self.path).read("summary.json")
        names = ", ".join(c["name"] for c in summary.get("contestants", ())) or "nothing yet"
        return f"<run {self.path}: {names}; {self.status}>"

    def _repr_html_(self) -> str:
        if not RunFolder(self.path).read("summary.json"):
            return notebook_view.paragraph_html(repr(self))
        grid = self.path / "grid.png"
        return results_html(self.summary, grid.read_bytes() if grid.is_file() else b"", repr(self))


class Comparison(list):
    """The rows of a comparison, one dict per contestant: `pandas.DataFrame(comparison)` is its table. A notebook shows
    the table, and samples of the same prompts side by side."""

    def __init__(self, summary: Mapping[str, Any], grid: bytes = b"", run: Run | None = None):
        super().__init__(table_rows(summary))
        self.summary, self.grid, self.run = summary, grid, run  # grid: PNG bytes; run: None without a folder

    def _repr_html_(self) -> str:
        return results_html(self.summary, self.grid)

    def _repr_png_(self) -> bytes | None:
        return self.grid or None


def read_run_folder(path: str | Path, objects: UserObjects | None = None) -> Run:
    """The run in a folder. Raises BadInput, naming the nearest, where there is no run."""
    path = Path(path)
    if not RunFolder(path).read():
        neighbours = [p.parent.name for p in path.absolute().parent.glob("*/run.json")]
        raise BadInput(f"{path} is no run folder: it has no run.json; {suggest_nearest(path.name, neighbours)}")
    return Run(path, objects or UserObjects())


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict per contestant, unrounded; None for a value that is missing; `failed` has the reason of a failure."""
    table = build_table(summary, "csv")
    rows = []
    for row in table.rows:
        values = {
            "contestant": row.name,
            "method": row.contestant.get("method"),
            "pipeline": row.contestant.get("pipeline"),
        }
        for column, cell in zip(table.columns, row.cells, strict=False):
            values[column.key] = cell.value if cell else None
            if cell and cell.interval:
                values[f"{column.key}_low"], values[f"{column.key}_high"] = cell.interval
        rows.append(values | ({"failed": row.failed} if row.failed else {}))
    return rows


def results_html(summary: Mapping[str, Any], grid: bytes, heading: str = "") -> str:
    """HTML with the table, the alarm and the pictures of a finished run."""
    parts = [notebook_view.paragraph_html(heading)] if heading else []
    parts.append(notebook_view.table_html(shown_rows(summary)))
    if summary.get("alarm"):
        parts.append(notebook_view.paragraph_html(f"Alarm: {summary['alarm']}"))
    if grid:
        parts.append(
            f'<img src="data:image/png;base64,{base64.b64encode(grid).decode()}" style="max-width:100%" alt="">'
        )
    return f"<div>{''.join(parts)}</div>"


def shown_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table as the app shows it: each mean with its interval in one cell."""
    table = build_table(summary, "app")
    rows = []
    for row in table.rows:
        cells = zip(table.columns, row.cells, strict=False)
        texts = {c.heading_in("app"): f"{c.format_value(cell)} {c.format_interval(cell)}".strip() for c, cell in cells}
        rows.append({"contestant": row.name} | (texts if not row.failed else {"failed": row.failed}))
    return rows
