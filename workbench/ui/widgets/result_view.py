"""A stored comparison: its table, its samples side by side, and the files to slide between. All that users or files say
is shown as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from rewards.audio.loudness import QUIETEST, integrated_loudness
from workbench.core.io import media
from workbench.report import audio_view, estimates, findings, formatting, pages, tables
from workbench.report.columns import build_table
from workbench.report.sample_inputs import list_input_names
from workbench.runs.sample_modality import guess_modality
from workbench.runs.store import RunFolder
from workbench.ui.live_comparison import mean_reward
from workbench.ui.playable import serve_playable
from workbench.ui.served_files import file_url, serve_copy
from workbench.ui.studio_comparison import plain_weights
from workbench.ui.widgets import curves, given_inputs, samples
from workbench.ui.widgets.given_inputs import TINY
from workbench.ui.widgets.html import data_uri, template_environment

ROWS = 24  # of a result
COPIES = {"LaTeX": "latex", "Markdown": "markdown", "CSV": "csv"}  # in which its table can be copied


def short_pipeline_name(repo: str) -> str:
    """A pipeline in a word: a training of this machine by its run, never by its path."""
    path = Path(repo)
    if not path.is_absolute():
        return repo
    return path.parent.name if path.name == "export" else f"{path.parent.parent.name}/{path.name}"


_templates = template_environment(number=formatting.format_number, pipeline=short_pipeline_name)
_macros = _templates.get_template("result.html").module


@dataclass(frozen=True)
class ComparisonResult:
    """A stored comparison, ready to be shown."""

    run: str
    kind: str
    names: list[str]
    rows: list[dict]  # {prompt, category, seed, k, cells, given: what its samples were made from}
    summary: dict
    note: str
    headline: list[str]
    html: str
    chart: str
    page: int = 0
    pages: int = 1  # of ROWS rows each


def read_result(folder: RunFolder, temp: Path, status: str = "", page: int = 0) -> ComparisonResult:
    """A run folder as the page shows it, whole or not; `status` says what is being done to it; `page` counts pages of
    ROWS rows from 0."""
    record, summary = folder.read(), folder.read("summary.json")
    summary = summary if "contestants" in summary else {}
    logged = pages.collect_samples(folder.events())
    names = list((record.get("config", {}).get("contestants") or dict.fromkeys(logged)) | dict.fromkeys(logged))
    kind = summary.get("modality") or _guess_modality(logged)
    table = build_table(summary, "app") if summary else None
    optimised_metric = _first_optimised(table.results.metrics) if table else None
    keys = sorted({key for part in logged.values() for key in part})
    first = ROWS * min(max(page, 0), max(0, len(keys) - 1) // ROWS)
    shown_keys = keys[first : first + ROWS]
    rows = [_result_row(folder, temp, logged, names, key, kind, optimised_metric) for key in shown_keys]
    _add_inputs(folder.path, temp, logged, rows, kind)
    state = record.get("status", "")
    note = status or {
        "stopped": "Stopped: this is the best that was found so far; “Same seed again” goes on from here.",
        "running": "This run has not finished; “Same seed again” goes on from here.",
    }.get(state, "")
    headline = findings.headline_sentences(summary) if summary else ["Nothing has been judged yet."]
    report = folder.path / "report.html"
    view = {
        "note": note,
        "summary": summary,
        "headline": headline,
        "kind": kind,
        "noun": formatting.MEDIA_NOUNS.get(kind, "sample"),
        "rows": rows,
        "part": f"Rows {first + 1} to {first + len(rows)} of {len(keys)}." if len(keys) > ROWS else "",
        "link": f"?run={quote(folder.path.name)}",
        "report": file_url(serve_copy(temp, report)) if report.is_file() else "",
        "table": table,
        "copies": {name: tables.FORMATS[kind](summary, ()) for name, kind in COPIES.items()} if summary else {},
        "tones": {name: n % 8 for n, name in enumerate(names)},
        "show_pipelines": bool(summary and estimates.contestants_by_pipeline(summary)),
        "footer": _table_footer(summary, optimised_metric) if summary else "",
    }
    weights = plain_weights(record.get("config", {}).get("reward"))
    levels = {name: mean_reward([s["scores"] for s in logged.get(name, {}).values()], weights) for name in names}
    chart = curves.draw_reward_curves(folder.path / "events.jsonl", levels)
    return ComparisonResult(
        folder.path.name, kind, names, rows, summary, note, headline, str(_macros.result(view)), chart, first // ROWS,
        -(-len(keys) // ROWS),
    )  # fmt: skip


def _first_optimised(metrics: Mapping[str, Mapping]) -> str | None:
    return next((m for m, means in metrics.items() if m != "oracle" and estimates.is_optimised(means)), None)


def _table_footer(summary: Mapping, optimised_metric: str | None) -> str:
    prompts = formatting.count_things(summary["prompts"], "prompt")
    footer = (
        f"{prompts} × {formatting.count_things(summary['seeds'], 'seed')}; small print: 95 % intervals over prompts"
    )
    noun = formatting.MEDIA_NOUNS[summary["modality"]]
    return footer + (f". The number under each {noun} is {optimised_metric}." if optimised_metric else ".")


def _guess_modality(logged: Mapping) -> str:
    first = next((s["file"] for part in logged.values() for s in part.values() if s["file"]), "")
    return guess_modality(first) or "image"


def _result_row(
    folder: RunFolder,
    temp: Path,
    logged: Mapping,
    names: Sequence[str],
    key: tuple,
    kind: str,
    optimised_metric: str | None,
) -> dict:
    first = next(logged[n][key] for n in names if key in logged.get(n, {}))
    cells = []
    for tone, name in enumerate(names):
        sample = logged.get(name, {}).get(key)
        file = sample and samples.file_inside(folder.path, sample["file"])
        scores = (sample or {}).get("scores", {})
        cell = {
            "name": name,
            "tone": tone % 8,
            "made": sample,
            "prompt": first["prompt"],
            "score": scores.get(optimised_metric),
            "file": None,
        }
        cell |= {
            "right": estimates.read_verdict(scores),
            "url": "",
            "tiny": False,
            "scores": scores,
        }
        if file:
            shown = serve_playable(temp, file, f"{name}-{file.name}", kind)
            cell |= {"file": str(shown.file), "url": file_url(shown.file), "type": shown.type, "rate": shown.rate}
            cell |= _sound_facts(file) if shown.size is None else _frame_facts(shown.size)
        cells.append(cell)
    return {
        "prompt": first["prompt"],
        "category": first.get("category"),
        "seed": first["seed"],
        "k": key[1],
        "cells": cells,
        "made": first,
    }


def _add_inputs(folder: Path, temp: Path, logged: Mapping, rows: Sequence[dict], kind: str) -> None:
    """Add to each row what its samples were made from, and to each sound how loud it is played."""
    names = list_input_names(sample for part in logged.values() for sample in part.values())
    for row in rows:
        size = next((c["size"] for c in row["cells"] if c.get("size")), None)
        row["given"] = given_inputs.input_cells(folder, temp, row["made"], names, size)
        for cell in row["cells"]:
            cell["over"] = given_inputs.over_address(row["given"], kind, cell.get("size"))
        row["over"] = any(cell["over"] for cell in row["cells"])
        if kind == "audio":
            playable = [c for c in (*row["given"], *row["cells"]) if "loudness" in c]
            for cell, volume in zip(playable, playback_volumes([c["loudness"] for c in playable]), strict=True):
                cell["volume"] = f"{volume:.4f}"


def _frame_facts(size: tuple[int, int, int]) -> dict:
    return {"tiny": max(size[1:]) <= TINY, "size": size}


def _sound_facts(file: Path) -> dict:
    sound = media.read_media(file)
    return {
        "drawn": data_uri(audio_view.sound_picture(sound)),
        "loudness": float(integrated_loudness(sound.data, sound.rate)[0]),
    }


def playback_volumes(levels: Sequence[float]) -> list[float]:
    """The share of full volume at which sounds of these loudnesses, in LUFS, are all as loud as the quietest; 1 for one
    that is silent or too short to have a loudness."""
    is_audible = [level > QUIETEST for level in levels]  # False for NaN
    quietest = min((level for level, audible in zip(levels, is_audible, strict=True) if audible), default=0.0)
    return [10 ** ((quietest - v) / 20) if audible else 1.0 for v, audible in zip(levels, is_audible, strict=True)]


def slider_state(result: ComparisonResult) -> dict:
    """What a page must remember of a result to slide between its files: those of contestants, and before them those
    pictures in their size which they were made from."""
    rows = [
        {c["title"]: c["file"] for c in row["given"] if c["file"] and c["kind"] == "image" and c["name"] != "mask"}
        | {c["name"]: c["file"] for c in row["cells"] if c["file"]}
        for row in result.rows
    ]
    return {"run": result.run, "kind": result.kind, "rows": rows, "page": result.page}


def result_for_programs(result: ComparisonResult, folder: RunFolder) -> dict:
    """A result for programs."""
    keys = ("prompt", "seed", "k", "category")
    files = [
        {"contestant": c["name"], "url": c["url"], "scores": c["scores"]} | {k: row[k] for k in keys}
        for row in result.rows
        for c in row["cells"]
        if c["url"]
    ]
    given = [
        {"name": g["name"], "url": g["original"]} | {k: row[k] for k in keys}
        for row in result.rows
        for g in row["given"]
        if g.get("original")
    ]
    state = folder.read().get("status", "")
    answer = {
        "run": result.run,
        "folder": str(folder.path),
        "state": state,
        "note": result.note,
        "headline": result.headline,
    }
    return answer | {"link": f"?run={quote(result.run)}", "summary": result.summary, "files": files, "inputs": given}


def slider_pair(
    rows: Sequence[Mapping[str, str]], kind: str, row: int, left_name: str, right_name: str
) -> tuple[str, str] | None:
    """The files for the slider: pictures as they are, tiny ones grown by whole steps, of a clip its middle frame."""
    if kind == "audio" or not 0 <= row < len(rows) or not {left_name, right_name} <= rows[row].keys():
        return None
    return tuple(_enlarge(Path(rows[row][name]), kind) for name in (left_name, right_name))


def _enlarge(file: Path, kind: str) -> str:
    if kind == "image":
        with Image.open(file) as image:
            if max(image.size) > TINY:
                return str(file)
    enlarged = file.with_name(f"large-{file.stem}.png")
    if not enlarged.is_file():
        enlarged.write_bytes(media.encode_thumbnail(file, 512))
    return str(enlarged)
