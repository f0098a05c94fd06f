"""`grid.html`: the cells of a grid as tables that one can look around in, in one file.

A page for each prompt, and one of the means; a table for each value of z. Pictures and clips are embedded as small
copies until the page is full; from there on it shows the files of the run's folder, beside which it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic
from workbench.report import pages
from workbench.report.estimates import estimates_by_metric, is_optimised, set_metrics
from workbench.report.formatting import MEDIA_NOUNS, decimals_for, is_finite
from workbench.report.previews import encode_preview
from workbench.report.sample_inputs import encode_input, fit_input, input_title, list_input_names
from workbench.runs import grids
from workbench.runs.store import RunFolder

FILE = "grid.html"
MAX_BYTES = 24_000_000  # of embedded media, before base64 makes them a third longer


def write_grid_page(run_dir: Path) -> Path | None:
    """Write `grid.html` into the folder of a run whose contestants are the cells of a grid; None for another run.
    Raises BadInput for a run without a summary."""
    folder = RunFolder(Path(run_dir))
    run, summary = folder.read(), folder.read("summary.json")
    if not (run.get("config") or {}).get("grid"):
        return None
    if not summary:
        raise BadInput(f"{run_dir}: no summary.json here; give the folder of a finished run")
    write_atomic(folder.path / FILE, draw_grid_page(folder, run, summary))
    return folder.path / FILE


def draw_grid_page(folder: RunFolder, run: Mapping, summary: Mapping) -> str:
    """The page as HTML."""
    content = collect_cells(folder, run, summary)
    scripts = {name: (pages.TEMPLATES / name).read_text(encoding="utf-8") for name in ("grid.css", "grid.js")}
    return pages.PAGES.get_template("grid.html").render(
        name=folder.path.name,
        run=run,
        style=scripts["grid.css"],
        script=scripts["grid.js"],
        content=json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        axes=content["axes"],
        noun=MEDIA_NOUNS[summary["modality"]],
    )


def collect_cells(folder: RunFolder, run: Mapping, summary: Mapping) -> dict[str, Any]:
    """What the page draws, as JSON: axes with labels, rewards with their ranges, prompts, and each cell's means and
    samples; cells stand as z, y, x."""
    config = run["config"]
    sides = {axis.side: axis for axis in grids.read_axes(config["grid"])}
    seed_side = next((side for side, axis in sides.items() if axis.setting == "seed"), None)
    shape = [len(sides[side].values) if side in sides else 1 for side in ("z", "y", "x")]
    names = iter(config["contestants"])
    by_place: dict[tuple[int, ...], str] = {}  # without the seed's own
    samples_of = pages.collect_samples(folder.events())
    media = _MediaStore(folder.path)
    estimates = estimates_by_metric(summary)
    failures = {c["name"]: c["failed"] for c in summary["contestants"] if "failed" in c}
    positions = sorted({key[0] for samples in samples_of.values() for key in samples})
    cells: list[list[list[dict]]] = []
    for z in range(shape[0]):
        cells.append([])
        for y in range(shape[1]):
            cells[-1].append([])
            for x in range(shape[2]):
                coordinates = {"z": z, "y": y, "x": x}
                k = coordinates.pop(seed_side) if seed_side else None
                name = by_place.setdefault(tuple(coordinates.values()), "") or next(names)
                by_place[tuple(coordinates.values())] = name
                cells[-1][-1].append(
                    {
                        "name": name,
                        "failed": failures.get(name, ""),
                        "means": _cell_means(name, k, estimates, samples_of.get(name, {})),
                        "samples": [_cell_samples(samples_of.get(name, {}), at, k) for at in positions],
                    }
                )
    media.embed(cells, len(positions))
    return {
        "axes": {
            side: {"title": a.title, "labels": [*a.labels], "seed": side == seed_side} for side, a in sides.items()
        },
        "rewards": _describe_rewards(summary, estimates, samples_of),
        "prompts": _describe_prompts(folder.path, samples_of, positions),
        "cells": cells,
        "left_out": media.left_out,
        "modality": summary["modality"],
    }


def _cell_means(name: str, k: int | None, estimates: Mapping, samples: Mapping) -> dict[str, list]:
    """Reward -> [mean, low, high] of a cell; of one noise alone, the mean over its samples, without an interval."""
    if k is None:
        rows = {metric: by_name[name] for metric, by_name in estimates.items() if name in by_name}
        return {metric: [row["mean"], *(row["ci95"] or (None, None))] for metric, row in rows.items()}
    scores: dict[str, list[float]] = {}
    for key, sample in samples.items():
        if key[1] == k:
            for metric, value in sample["scores"].items():
                if is_finite(value):
                    scores.setdefault(metric, []).append(value)
    return {metric: [sum(values) / len(values), None, None] for metric, values in scores.items()}


def _cell_samples(samples: Mapping, position: int, k: int | None) -> list[dict]:
    """The samples of one prompt in a cell, by the number of their noise."""
    chosen = sorted(key for key in samples if key[0] == position and k in (None, key[1]))
    return [
        {
            "k": key[1],
            "seed": samples[key]["seed"],
            "scores": {metric: value for metric, value in samples[key]["scores"].items() if is_finite(value)},
            "file": samples[key]["file"] or "",
            "sha256": samples[key].get("sha256"),
            "reason": samples[key].get("reason") or "",
        }
        for key in chosen
    ]


def _describe_rewards(summary: Mapping, estimates: Mapping, samples_of: Mapping) -> list[dict]:
    """Each reward with the range of its scores over all samples, which colours are relative to; those of whole sets
    have means alone."""
    sets, rows = set_metrics(summary), []
    for metric, by_name in estimates.items():
        scores = [s["scores"].get(metric) for samples in samples_of.values() for s in samples.values()]
        values = [value for value in scores if is_finite(value)] or [row["mean"] for row in by_name.values()]
        means = [row["mean"] for row in by_name.values()]
        rows.append(
            {
                "name": metric,
                "optimised": is_optimised(by_name),
                "set": metric in sets,
                "low": min(values),
                "high": max(values),
                "mean_low": min(means),
                "mean_high": max(means),
                "digits": decimals_for(by_name.values()),
            }
        )
    return rows


def _describe_prompts(run: Path, samples_of: Mapping, positions: Sequence[int]) -> list[dict]:
    """Each prompt with what its samples were made from."""
    input_names = list_input_names(sample for samples in samples_of.values() for sample in samples.values())
    rows = []
    for position in positions:
        sample = next(s for samples in samples_of.values() for key, s in samples.items() if key[0] == position)
        rows.append(
            {
                "text": sample["prompt"],
                "category": sample.get("category") or "",
                "inputs": [_describe_input(run, sample, name) for name in input_names],
            }
        )
    return rows


def _describe_input(run: Path, sample: Mapping, name: str) -> dict:
    try:
        content = fit_input(run, sample, name, None)
    except BadInput:
        content = None
    data, kind = encode_input(content) if content else (b"", "")
    return {"title": input_title(name), "kind": kind, "uri": pages.data_uri(data, kind) if data else ""}


class _MediaStore:
    """Embeds the media of cells, prompt by prompt, until the page is full."""

    def __init__(self, run: Path):
        self.run, self.bytes_left, self.left_out = run, MAX_BYTES, 0

    def embed(self, cells: Sequence[Sequence[Sequence[dict]]], prompts: int) -> None:
        """Give each sample its `uri` and `kind`; `left_out` counts the prompts whose media are not embedded."""
        for at in range(prompts):
            samples = [s for table in cells for row in table for cell in row for s in cell["samples"][at]]
            encoded = [] if self.left_out else [self._encode(sample) for sample in samples]
            self.bytes_left -= sum(len(data) for data, _ in encoded)
            self.left_out += bool(self.left_out or (self.bytes_left < 0 and at))
            for sample, (data, kind) in zip(samples, encoded, strict=False):
                sample |= {"kind": kind} | ({"uri": pages.data_uri(data, kind)} if data and not self.left_out else {})
            for sample in samples:
                del sample["sha256"]

    def _encode(self, sample: dict) -> tuple[bytes, str]:
        path = pages.sample_file(self.run, sample)
        if path is None:
            sample["file"], sample["reason"] = "", sample["reason"] or "missing"
            return b"", ""
        return encode_preview(path)
