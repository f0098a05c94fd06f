"""A run folder becomes something that a person reads: `report.html`, `grid.png` and the terminal's table."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import yaml
from rich.table import Table
from rich.text import Text

from workbench.core.io import media
from workbench.core.paths import write_atomic
from workbench.core.types import BadInput
from workbench.report import audio_view, charts
from workbench.report.findings import (
    CONTROLS,
    EQUAL,
    NOUN,
    base_of,
    called,
    costs,
    digits,
    failures,
    finished,
    headline,
    listing,
    metrics,
    number,
    of_sets,
    optimised,
    share,
    signed,
    sources,
    whole,
    wins,
    within,
)
from workbench.runs.store import RunFolder

HERE = Path(__file__).parent
ROWS = 14  # of inlined media at most
GRID_ROWS = 8
BYTES = 2_200_000  # of inlined media, before base64 makes them a third longer


def samples(events: Iterable[Mapping]) -> dict[str, dict[tuple[int, int], Mapping]]:
    """contestant -> (prompt's position, which of its samples) -> sample; a sample logged twice counts once."""
    out: dict[str, dict[tuple[int, int], Mapping]] = {}
    for e in events:
        if e.get("final"):
            for s in e["samples"]:
                out.setdefault(e["contestant"], {})[s["index"], s.get("k", s["seed"])] = s
    return out


def selection(made: Mapping[str, Mapping], names: Sequence[str]) -> list[tuple[int, int]]:
    """Which samples are shown, decided without looking at a score or a picture: each prompt's first sample that every
    contestant has made, taking one prompt of each category in turn, in the order of the prompt list."""
    have = [set(made[n]) for n in names if n in made]
    if not have:
        return []
    first: dict[int, tuple[int, int]] = {}
    for key in sorted(set.intersection(*have)):
        first.setdefault(key[0], key)
    some = next(made[n] for n in names if n in made)
    queues: dict[str | None, list] = {}
    for key in first.values():
        queues.setdefault(some[key].get("category"), []).append(key)
    turns = range(max(map(len, queues.values()), default=0))
    return [queue[turn] for turn in turns for queue in queues.values() if turn < len(queue)]


def _file(run: Path, sample: Mapping) -> Path | None:
    """The sample's file, if it lies in the run folder and is what the log says it is."""
    path = (run / sample["file"]).resolve()
    if not path.is_relative_to(run.resolve()) or not path.is_file():
        return None
    return path if sample.get("sha256") in (None, media.fingerprint(path)) else None


def _right(sample: Mapping) -> bool | None:
    verdict = sample.get("scores", {}).get("oracle")
    return None if verdict is None else verdict >= 1


MIME = {".png": "image/png", ".apng": "image/apng", ".wav": "audio/wav"}


def _gallery(run: Path, made: Mapping, names: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[dict]:
    """Rows of inlined media, as many whole rows as the limits allow."""
    rows, room = [], BYTES
    for key in keys[:ROWS]:
        cells = []
        for name in names:
            sample = made.get(name, {}).get(key)
            path = sample and _file(run, sample)
            data = b"" if not path else media.thumbnail(path) if path.suffix == ".png" else path.read_bytes()
            room -= len(data)
            uri = f"data:{MIME[path.suffix]};base64,{base64.b64encode(data).decode()}" if data else ""
            cells.append(
                {"name": name, "uri": uri, "right": _right(sample or {}), "scores": (sample or {}).get("scores", {})}
            )
        if room < 0 and rows:
            break
        first = next(made[n][key] for n in names if key in made.get(n, {}))
        rows.append(
            {"prompt": first["prompt"], "category": first.get("category"), "seed": first["seed"], "cells": cells}
        )
    return rows


def _sheet(run: Path, made: Mapping, names: Sequence[str], keys: Sequence[tuple[int, int]], shown: str | None) -> bytes:
    """grid.png: the first rows of the same selection, clips as nine of their frames and sounds as spectrograms."""
    cells, captions = [], []
    for key in keys[:GRID_ROWS]:
        row = [made.get(n, {}).get(key) for n in names]
        files = [s and _file(run, s) for s in row]
        notes = [f"{shown} {number(s['scores'].get(shown), 3)}" if s and shown else "" for s in row]
        cells.append([media.Cell(f and audio_view.still(media.read(f)), _right(s or {}), note)
                      for s, f, note in zip(row, files, notes, strict=True)])  # fmt: skip
        first = next(s for s in row if s)
        captions.append(" ".join(first["prompt"].split()) + (f"\n{first['category']}" if first.get("category") else ""))
    return media.grid(cells, rows=captions, columns=names)


def write_report(run_dir: Path) -> Path:
    """Write `grid.png` and the self-contained `report.html`; returns the latter's path.

    Reads run.json, summary.json, events.jsonl and media/. Raises BadInput when the folder isn't a run with a summary.
    """
    run_dir = Path(run_dir)
    folder = RunFolder(run_dir)
    run, summary = folder.read(), folder.read("summary.json")
    for name, content in (("run.json", run), ("summary.json", summary)):
        if not content:
            raise BadInput(f"{run_dir}: no {name} here; give the folder of a finished run")
    events = folder.events()
    made, names = samples(events), [c["name"] for c in finished(summary)]
    keys = selection(made, names)
    whole_sets = of_sets(summary)
    shown = next(
        (m for m, here in metrics(summary).items() if m not in ("oracle", *whole_sets) and optimised(here)), None
    )
    if keys:
        write_atomic(run_dir / "grid.png", _sheet(run_dir, made, names, keys, shown))
    page = _page(run, summary, charts.curves(events), _gallery(run_dir, made, names, keys), shown)
    write_atomic(run_dir / "report.html", page)
    return run_dir / "report.html"


def _page(run: Mapping, summary: Mapping, lines: Sequence, gallery: Sequence, shown: str | None) -> str:
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
                             trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    env.filters |= {"num": number, "signed": signed, "whole": whole, "share": share}
    first, *rest = headline(summary)
    return env.get_template("report.html").render(
        run=run,
        summary=summary,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        first=first,
        rest=rest,
        control=CONTROLS.get(summary.get("control")),
        metrics=metrics(summary),
        places={m: digits(here.values()) for m, here in metrics(summary).items()},
        wins=wins(summary),
        sets=of_sets(summary),
        paid=any(map(optimised, metrics(summary).values())),
        costs=costs(summary),
        equal=EQUAL,
        several=bool(sources(summary)),
        tone={c["name"]: n % 8 for n, c in enumerate(summary["contestants"])},
        panels=charts.panels(summary),
        differences=charts.differences(summary),
        scaling=charts.scaling(summary),
        categories=charts.categories(summary),
        unit=charts.Axis.over((0, 1), (0.0, 1.0), count=2),
        curves=lines,
        gallery=gallery,
        shown=shown,
        judge=called(next(iter(metrics(summary)), "")),
        base=(base_of(summary) or {}).get("name"),
        noun=NOUN[summary["modality"]],
        config=yaml.safe_dump(run.get("config", {}), sort_keys=False, allow_unicode=True),
    )


def table(summary: Mapping) -> Table:
    """The comparison for a terminal. An asterisk marks a mean of what the contestant itself optimised."""
    here, won = metrics(summary), wins(summary)
    notes = ["95 % intervals; * this contestant optimised it"]
    if won:
        notes.append(f"wins %: samples that {called(won[0])} likes better than the base’s, a tie counting half")
    if of_sets(summary):
        notes.append(
            f"{listing(of_sets(summary))}: one score of all samples as a set, its interval from halves of the prompts"
        )
    out = Table(title=Text(summary["run"]), caption=Text("\n".join(notes + failures(summary))), caption_justify="left")
    heads = [*here, *(["wins %"] if won else []), "diversity", "calls", "judged", "seconds", "MB"]
    for head in ("contestant", *heads):
        out.add_column(Text(head), justify="left" if head == "contestant" else "right")
    for c in summary["contestants"]:
        if "failed" in c:
            out.add_row(Text(c["name"]), Text("failed", style="red"))
            continue
        cells = []
        for estimates in here.values():
            e, places = estimates.get(c["name"]), digits(estimates.values())
            cells.append(f"{number(e['mean'], places)}{'*' * e['optimised']}{within(e, places=places)}" if e else "–")
        if won:
            e = won[1].get(c["name"])
            cells.append(number(100 * e["mean"], 0) + within(e, lambda x, _: number(100 * x, 0)) if e else "–")
        spent = (c.get("nfe"), c.get("reward_calls"), c.get("seconds"), c.get("peak_mb"))
        cells += [number(c.get("diversity")), *(number(x, 0) for x in spent)]
        out.add_row(Text(c["name"]), *map(Text, cells))
    return out
