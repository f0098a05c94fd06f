"""A run or a study as a gallery that anybody can look at: one folder of pages and media, which opens from the disk or
from any static host, and asks the network for nothing."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.feedback.gallery_media import copy_medium
from workbench.feedback.studies import find_study
from workbench.feedback.study_results import read_results
from workbench.report import pages
from workbench.report.estimates import estimates_by_metric
from workbench.report.formatting import decimals_for, format_interval, format_number, is_finite
from workbench.report.sample_inputs import encode_input, fit_input, input_title, list_input_names
from workbench.runs.store import RunFolder

ROWS_PER_PAGE = 100
SUFFIXES = {"audio/wav": ".wav", "image/apng": ".png", "image/png": ".png"}  # of what samples were made from
KINDS = {"audio/wav": "audio", "image/apng": "image", "image/png": "image"}
MAX_COLUMNS = 26  # letters of a blind gallery


@dataclass
class GalleryRow:
    """The samples of one prompt and noise."""

    run: RunFolder
    prompt: str
    category: str
    samples: dict[str, Mapping]  # contestant -> its sample in the log


@dataclass
class Gallery:
    """What is published."""

    title: str
    subtitle: str
    names: list[str]  # contestants, in the order of their columns
    rows: list[GalleryRow]
    tables: list[dict]  # {"title", "head", "rows"}: texts
    letters: dict[str, str] = field(default_factory=dict)  # contestant -> what a blind gallery calls it
    notes: list[str] = field(default_factory=list)  # sentences for whoever publishes

    def label(self, name: str) -> str:
        return self.letters.get(name, name)


def collect_run(run: Path, contestants: Sequence[str] = ()) -> Gallery:
    """A run's samples and means. Raises BadInput for what is no finished run, and for a contestant that it lacks."""
    folder = RunFolder(run)
    record, summary = folder.read(), folder.read("summary.json")
    if not summary:
        raise BadInput(f"{run}: no summary.json here; give the folder of a finished run, or the name of a study")
    gallery = Gallery(record.get("name") or run.name, str(summary["run"]), [], [], [])
    _add_rows(gallery, folder, contestants)
    gallery.names = choose_names(gallery.names, contestants)
    gallery.tables.append(_tabulate_means(summary, gallery.names))
    return gallery


def collect_study(runs: Path, name: str, contestants: Sequence[str] = ()) -> Gallery:
    """The samples of a study's runs and its ratings. Raises BadInput."""
    study, results = find_study(runs, name), read_results(runs, name)
    count = sum(r.votes for r in results.raters)
    gallery = Gallery(study.name, f"{count:,} votes of {sum(r.votes > 0 for r in results.raters)} people", [], [], [])
    for folder in study.runs:
        _add_rows(gallery, RunFolder(runs / folder), contestants or study.contestants)
    gallery.names = choose_names(gallery.names, contestants or study.contestants)
    for standing in results.standings:
        rows = [[r.name, f"{r.rating:.0f} [{r.low:.0f}, {r.high:.0f}]", str(r.votes)] for r in standing.board.rows]
        gallery.tables.append({"title": f"{standing.axis}, {standing.modality}: ratings with 95 % intervals",
                               "head": ["contestant", "rating", "votes"], "rows": rows})  # fmt: skip
    return gallery


def choose_names(names: Sequence[str], contestants: Sequence[str]) -> list[str]:
    """The chosen contestants, in the order in which they were chosen, or all. Raises BadInput for an unknown one."""
    for name in contestants:
        if name not in names:
            raise BadInput(f"--contestants: there is no {name!r}; {suggest_nearest(name, names)}")
    return [*dict.fromkeys(contestants or names)]


def _add_rows(gallery: Gallery, folder: RunFolder, contestants: Sequence[str]) -> None:
    logged = pages.collect_samples(folder.events())
    names = [name for name in folder.read().get("config", {}).get("contestants") or logged if name in logged]
    gallery.names += [name for name in names if name not in gallery.names]
    shown = [name for name in names if not contestants or name in contestants]
    for key in sorted({key for name in shown for key in logged[name]}):
        samples = {name: logged[name][key] for name in shown if key in logged[name]}
        first = next(iter(samples.values()))
        gallery.rows.append(GalleryRow(folder, str(first["prompt"]), first.get("category") or "", samples))


def _tabulate_means(summary: Mapping, names: Sequence[str]) -> dict:
    metrics = estimates_by_metric(summary)
    rows = []
    for name in names:
        cells = []
        for estimates in metrics.values():
            places, one = decimals_for(estimates.values()), estimates.get(name)
            cells.append(format_number(one["mean"], places) + format_interval(one, places=places) if one else "–")
        rows.append([name, *cells])
    return {"title": "Means with 95 % intervals over prompts", "head": ["contestant", *metrics], "rows": rows}


def make_blind(gallery: Gallery) -> None:
    """Call contestants by letters in a random order. Raises BadInput for too many."""
    if len(gallery.names) > MAX_COLUMNS:
        raise BadInput(f"--blind: {len(gallery.names)} contestants, and there are {MAX_COLUMNS} letters; choose some")
    names = list(gallery.names)
    secrets.SystemRandom().shuffle(names)
    gallery.names = names
    gallery.letters = {name: chr(ord("A") + n) for n, name in enumerate(names)}
    words = " ".join([*(row.prompt for row in gallery.rows), *(cell for t in gallery.tables for cell in t["head"])])
    gallery.notes += [
        f"warning: a prompt or a reward names the contestant {name!r}, and readers see it"
        for name in names
        if name.casefold() in words.casefold()
    ]
    gallery.title = gallery.subtitle = ""
    for table in gallery.tables:
        table["rows"] = sorted([gallery.letters.get(row[0], "?"), *row[1:]] for row in table["rows"])


def publish(gallery: Gallery, out: Path, report_progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write the gallery into the folder `out`, which must not exist or be empty; returns how many samples could not be
    shown. Raises BadInput."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out}: there is something already; name a new folder")
    if not out.absolute().parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}")
    if not gallery.rows:
        raise BadInput("there is no sample to publish")
    draft = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "media").mkdir(parents=True)
    try:
        missing = _write_pages(gallery, draft, report_progress)
        if out.is_dir():
            out.rmdir()
        draft.rename(out.absolute())
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return missing


def _write_pages(gallery: Gallery, draft: Path, report_progress: Callable[[int, int], None]) -> int:
    count = -(-len(gallery.rows) // ROWS_PER_PAGE)
    files = ["index.html", *(f"page-{n + 1}.html" for n in range(1, count))]
    missing = 0
    for n, file in enumerate(files):
        shown = []
        for number in range(n * ROWS_PER_PAGE, min((n + 1) * ROWS_PER_PAGE, len(gallery.rows))):
            shown.append(_copy_row(gallery, number, draft / "media"))
            missing += sum("problem" in cell for cell in shown[-1]["cells"])
            report_progress(number + 1, len(gallery.rows))
        page = pages.PAGES.get_template("gallery.html").render(
            gallery=gallery, rows=shown, page=n, files=files, first=n * ROWS_PER_PAGE, total=len(gallery.rows),
            columns=[gallery.label(name) for name in gallery.names],
        )  # fmt: skip
        (draft / file).write_text(page, encoding="utf-8")
    return missing


def _copy_row(gallery: Gallery, number: int, folder: Path) -> dict[str, Any]:
    """A row of a page, its media copied."""
    row = gallery.rows[number]
    cells = []
    for k, name in enumerate(gallery.names):
        sample = row.samples.get(name)
        cell: dict[str, Any] = {"name": gallery.label(name), "scores": []}
        path = sample and pages.sample_file(row.run.path, sample)
        try:
            if not path:
                raise BadInput((sample or {}).get("reason") or "missing")
            cell |= copy_medium(path, folder / f"{number:05d}-{k}", bool(gallery.letters))
            scores = sample.get("scores", {}) if sample else {}
            cell["scores"] = [(key, format_number(value, 3)) for key, value in scores.items() if is_finite(value)]
        except BadInput as error:
            cell["problem"] = "can’t be shown" if path or gallery.letters else str(error)
            gallery.notes.append(f"row {number + 1}, {name}: {error}")
        cells.append(cell)
    return {"number": number + 1, "prompt": row.prompt, "category": row.category, "cells": cells,
            "inputs": _copy_inputs(row, number, folder)}  # fmt: skip


def _copy_inputs(row: GalleryRow, number: int, folder: Path) -> list[dict]:
    """What the samples were made from."""
    first = next(iter(row.samples.values()))
    cells = []
    for name in list_input_names([first]):
        try:
            content = fit_input(row.run.path, first, name, None)
        except BadInput:
            content = None
        if content is not None:
            data, kind = encode_input(content)
            file = folder / f"{number:05d}-{name}{SUFFIXES[kind]}"
            file.write_bytes(data)
            cells.append({"title": input_title(name), "kind": KINDS[kind], "file": file.name, "tiny": False})
    return cells
