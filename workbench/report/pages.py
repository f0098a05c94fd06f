"""The pages of a run: `report.html` and `grid.png`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import yaml
from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.io import formats, media, video
from workbench.core.paths import write_atomic
from workbench.report import audio_view, charts
from workbench.report.columns import build_table
from workbench.report.estimates import (
    base_contestant,
    contestants_by_pipeline,
    estimates_by_metric,
    finished_contestants,
    is_optimised,
    read_verdict,
    set_metrics,
)
from workbench.report.findings import CONTROL_SENTENCES, headline_sentences, training_sentences
from workbench.report.formatting import MEDIA_NOUNS, decimals_for, format_count, format_number, format_signed
from workbench.report.previews import encode_preview
from workbench.report.sample_inputs import encode_input, fit_input, input_title, list_input_names
from workbench.runs.store import RunFolder

TEMPLATES = Path(__file__).parent
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"num": format_number, "signed": format_signed, "whole": format_count}
MAX_INLINE_ROWS = 14  # of inlined media at most
GRID_ROWS = 8
MAX_INLINE_BYTES = 2_200_000  # of inlined media, before base64 makes them a third longer


def collect_samples(events: Iterable[Mapping]) -> dict[str, dict[tuple[int, int], Mapping]]:
    """contestant -> (position of the prompt, k) -> sample; of a sample logged twice, the last."""
    out: dict[str, dict[tuple[int, int], Mapping]] = {}
    for e in events:
        if e.get("final"):
            for s in e["samples"]:
                out.setdefault(e["contestant"], {})[s["index"], s.get("k", s["seed"])] = s
    return out


def select_samples(samples_of: Mapping[str, Mapping], names: Sequence[str]) -> list[tuple[int, int]]:
    """The samples to show, selected without regard to scores or pictures: each prompt's first sample that every
    contestant has made, taking one prompt of each category in turn, in the order of the prompt list."""
    have = [set(samples_of[n]) for n in names if n in samples_of]
    if not have:
        return []
    first: dict[int, tuple[int, int]] = {}
    for key in sorted(set.intersection(*have)):
        first.setdefault(key[0], key)
    samples = next(samples_of[n] for n in names if n in samples_of)
    queues: dict[str | None, list] = {}
    for key in first.values():
        queues.setdefault(samples[key].get("category"), []).append(key)
    turns = range(max(map(len, queues.values()), default=0))
    return [queue[turn] for turn in turns for queue in queues.values() if turn < len(queue)]


def sample_file(run: Path, sample: Mapping) -> Path | None:
    """The sample's file, if it has one that lies in the run folder and its digest is the logged one; else None."""
    path = (run / (sample["file"] or "")).resolve()
    if not path.is_relative_to(run.resolve()) or not path.is_file():
        return None
    return path if sample.get("sha256") in (None, media.file_digest(path)) else None


def _inline_media(run: Path, samples_of: Mapping, names: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[dict]:
    """Rows of media as data URIs, as many complete rows as the limits allow, each after what it was made from."""
    rows, bytes_left = [], MAX_INLINE_BYTES
    input_names = list_input_names(sample for name in names for sample in samples_of.get(name, {}).values())
    for key in keys[:MAX_INLINE_ROWS]:
        cells = []
        files = {n: s and sample_file(run, s) for n in names for s in [samples_of.get(n, {}).get(key)]}
        sizes = {name: _frame_size(path) for name, path in files.items()}
        size = next(filter(None, sizes.values()), None)
        first = next(samples_of[n][key] for n in names if key in samples_of.get(n, {}))
        inputs = [_inline_input(run, first, name, size) for name in input_names]
        source = next((i["uri"] for i in inputs if i["name"] == "source" and i["uri"].startswith("data:image/png")), "")
        bytes_left -= sum(3 * len(i["uri"]) // 4 for i in inputs)
        for name in names:
            sample, path = samples_of.get(name, {}).get(key), files[name]
            data, kind = encode_preview(path) if path else (b"", "")
            bytes_left -= len(data)
            sample = sample or {}
            cells.append(
                {
                    "name": name,
                    "uri": data_uri(data, kind) if path else "",
                    "right": read_verdict(sample.get("scores", {})),
                    "scores": sample.get("scores", {}),
                    "reason": sample.get("reason", "missing"),
                    "over": bool(source and path and kind == "image/png" and sizes[name] == size),
                }
            )
        if bytes_left < 0 and rows:
            break
        rows.append(
            {
                "prompt": first["prompt"],
                "category": first.get("category"),
                "seed": first["seed"],
                "cells": cells,
                "inputs": inputs,
                "source": source,
            }
        )
    return rows


def _inline_input(run: Path, sample: Mapping, name: str, size: tuple[int, int, int] | None) -> dict:
    """A cell with an input of a sample."""
    cell = {"name": name, "title": input_title(name), "uri": "", "reason": f"no {input_title(name)}"}
    try:
        content = fit_input(run, sample, name, size)
    except BadInput:
        return cell | {"reason": "missing"}
    return cell | ({"uri": data_uri(*encode_input(content))} if content else {})


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _frame_size(path: Path | None) -> tuple[int, int, int] | None:
    """(T,H,W) of a picture or clip of a run."""
    kind = formats.format_by_suffix(path) if path is not None else None
    if path is None or kind is None or kind.reader == "sound":
        return None
    if kind.reader == "film":
        return video.read_film_header(path)[:3] if video.has_pictures(path) else None
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1), image.height, image.width


def _draw_contact_sheet(
    run: Path, samples_of: Mapping, names: Sequence[str], keys: Sequence[tuple[int, int]], metric: str | None
) -> bytes:
    """grid.png: the first rows of the same selection, clips as nine of their frames and sounds as spectrograms, after
    what they were made from."""
    cells, captions = [], []
    input_names = list_input_names(sample for name in names for sample in samples_of.get(name, {}).values())
    for key in keys[:GRID_ROWS]:
        row = [samples_of.get(n, {}).get(key) for n in names]
        files = [s and sample_file(run, s) for s in row]
        notes = [f"{metric} {format_number(s['scores'].get(metric), 3)}" if s and metric else "" for s in row]
        notes = [s.get("reason", note) if s else note for s, note in zip(row, notes, strict=True)]
        first = next(s for s in row if s)
        size = next(filter(None, map(_frame_size, files)), None)
        given = [_draw_input(run, first, name, size) for name in input_names]
        verdicts = [read_verdict((s or {}).get("scores", {})) for s in row]
        made = [media.Cell(f and audio_view.still_picture(media.read_media(f)), right, note)
                for f, right, note in zip(files, verdicts, notes, strict=True)]  # fmt: skip
        cells.append([*given, *made])
        captions.append(" ".join(first["prompt"].split()) + (f"\n{first['category']}" if first.get("category") else ""))
    return media.draw_contact_sheet(cells, rows=captions, columns=[*map(input_title, input_names), *names])


def _draw_input(run: Path, sample: Mapping, name: str, size: tuple[int, int, int] | None) -> media.Cell:
    """A cell of the contact sheet; a gap for an input that is missing or was changed."""
    try:
        content = fit_input(run, sample, name, size)
    except BadInput:
        return media.Cell(None, note="missing")
    return media.Cell(content and audio_view.still_picture(content))


def write_report(run_dir: Path) -> Path:
    """Write `grid.png` and the self-contained `report.html` into a run's folder; returns the latter's path. Raises
    BadInput as `draw_report` does, and OSError where nothing can be written."""
    return write_pages(Path(run_dir), *draw_report(run_dir))


def write_pages(run_dir: Path, page: str, grid: bytes) -> Path:
    """Write what `draw_report` has drawn into a run's folder; returns the page's path."""
    if grid:
        write_atomic(run_dir / "grid.png", grid)
    write_atomic(run_dir / "report.html", page)
    return run_dir / "report.html"


def draw_report(run_dir: Path) -> tuple[str, bytes]:
    """(report.html, grid.png or nothing) of a run. Nothing is written.

    Reads run.json, summary.json, events.jsonl and media/. Raises BadInput when the folder isn't a run with a summary.
    """
    run_dir = Path(run_dir)
    folder = RunFolder(run_dir)
    run, summary = folder.read(), folder.read("summary.json")
    for name, content in (("run.json", run), ("summary.json", summary)):
        if not content:
            raise BadInput(f"{run_dir}: no {name} here; give the folder of a finished run")
    events = folder.events()
    samples_of, names = collect_samples(events), [c["name"] for c in finished_contestants(summary)]
    keys = select_samples(samples_of, names)
    whole_sets = set_metrics(summary)
    metric = next(
        (
            m
            for m, estimates in estimates_by_metric(summary).items()
            if m not in ("oracle", *whole_sets) and is_optimised(estimates)
        ),
        None,
    )
    grid = _draw_contact_sheet(run_dir, samples_of, names, keys, metric) if keys else b""
    page = _render_page(
        run, summary, charts.progress_charts(events), _inline_media(run_dir, samples_of, names, keys), metric
    )
    return page, grid


def _render_page(run: Mapping, summary: Mapping, lines: Sequence, gallery: Sequence, metric: str | None) -> str:
    warnings = training_sentences(summary)
    first, *other_sentences = (sentence for sentence in headline_sentences(summary) if sentence not in warnings)
    return PAGES.get_template("report.html").render(
        run=run,
        summary=summary,
        style="".join((TEMPLATES / name).read_text(encoding="utf-8") for name in _style_sheets(gallery)),
        first=first,
        rest=other_sentences,
        warnings=warnings,
        control=CONTROL_SENTENCES.get(summary.get("control")),
        numbers=build_table(summary, "numbers"),
        spending=build_table(summary, "costs"),
        places={m: decimals_for(estimates.values()) for m, estimates in estimates_by_metric(summary).items()},
        sets=set_metrics(summary),
        paid=any(map(is_optimised, estimates_by_metric(summary).values())),
        several=bool(contestants_by_pipeline(summary)),
        tone={c["name"]: n % 8 for n, c in enumerate(summary["contestants"])},
        panels=charts.metric_panels(summary),
        differences=charts.difference_panel(summary),
        scaling=charts.scaling_charts(summary),
        categories=charts.category_panels(summary),
        unit=charts.Axis.over((0, 1), (0.0, 1.0), count=2),
        curves=lines,
        gallery=gallery,
        shown=metric,
        base=(base_contestant(summary) or {}).get("name"),
        noun=MEDIA_NOUNS[summary["modality"]],
        config=yaml.safe_dump(run.get("config", {}), sort_keys=False, allow_unicode=True),
    )


def _style_sheets(gallery: Sequence[Mapping]) -> list[str]:
    return ["report.css", *(["report_inputs.css"] if gallery and gallery[0]["inputs"] else [])]
