"""A run as a page shows it: the list, where it stands, its curves, samples and report, as HTML. Names are looked up,
never made into paths."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml

from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic
from workbench.report import findings, grid_page
from workbench.runs import run_search, store
from workbench.runs.run_notes import read_notes
from workbench.runs.run_search import format_date
from workbench.runs.store import RunFolder
from workbench.ui import contestant_choices, run_processes
from workbench.ui.context import AppContext
from workbench.ui.limits import MAX_TRAININGS
from workbench.ui.widgets import curves, samples
from workbench.ui.widgets.html import error_html, escape_text, hint_html, table_html

MAX_RUNS = 200  # runs listed
HEAD = ["run", "state", "when", "pipeline", "contestants"]
TONE = {"queued": 2, "starting": 1, "running": 1, "stopping": 2, "stopped": 0, "crashed": 4, "failed": 4, "done": 3}
BARE = (
    "min-width:13em;margin:0;padding:0;border:0;background:none;color:var(--link-text-color);font-size:14px;"
    "font-weight:600;line-height:1.4;text-align:left;overflow-wrap:anywhere;cursor:pointer"
)
MAX_REPORT_BYTES = 20_000_000  # bytes of a report that a page shows
MAX_GRID_BYTES = 40_000_000  # and of a grid


def list_runs(runs: Path, search: str = "") -> list[dict[str, Any]]:
    """One row a run, newest first: run, title, state, when, pipeline, contestants, tags, note. `search`: words that all
    are in it (run_search.matches_words)."""
    rows = []
    for folder in store.list_run_folders(runs):
        row = run_search.describe_run_row(folder, run_processes.run_state(folder).name)
        rows += [row] if run_search.matches_words(row, search.split()) else []
        if len(rows) == MAX_RUNS:
            break
    return rows


def runs_table(listed_runs: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table whose names are buttons."""
    body = [
        (
            f'<button type="button" data-run="{escape_text(r["run"])}" style="{BARE}">'
            f"{escape_text(r['title'] or r['run'])}</button>{_draw_labels(r)}",
            f'<span class="wb-t{TONE.get(r["state"], 0)}"><span class="wb-dot"></span>{escape_text(r["state"])}</span>',
            escape_text(r["when"]), escape_text(r["pipeline"]), escape_text(shorten_names(r["contestants"])),
        )
        for r in listed_runs
    ]  # fmt: skip
    return f'<div style="max-height:340px;overflow-y:auto">{table_html(HEAD, body, text_columns=(1, 2, 3, 4))}</div>'


def _draw_labels(row: Mapping[str, Any]) -> str:
    """The folder's name under a title, the tags, and the beginning of the note."""
    name = escape_text(row["run"]) if row["title"] else ""
    tags = " ".join(f"#{escape_text(tag)}" for tag in row["tags"])
    note = escape_text(row["note"] if len(row["note"]) <= 80 else f"{row['note'][:80]}…")
    words = " · ".join(filter(None, (name, tags, note)))
    return f'<br><span class="wb-note" style="font-weight:400">{words}</span>' if words else ""


def shorten_names(contestants: str, letters: int = 64) -> str:
    """The first names of a list of contestants, and how many more there are."""
    names = contestants.split(", ")
    count = sum(len(", ".join(names[: n + 1])) <= letters for n in range(len(names)))
    count = max(count, 1)
    return contestants if count == len(names) else f"{', '.join(names[:count])} and {len(names) - count} more"


def studio_link(runs: Path, chosen: Sequence[str]) -> str:
    """The studio's address for one run, or for trainings as contestants beside the base. Raises BadInput."""
    trained = contestant_choices.list_trained(runs)
    if not 1 <= len(chosen) <= MAX_TRAININGS or not set(chosen) <= trained.keys():
        raise BadInput(f"choose one to {MAX_TRAININGS} of the trainings in the list")
    return f"?{urlencode({'contestants': ','.join(chosen)})}"


# --- one run ---------------------------------------------------------------------------------------------------------


def draw_header(folder: RunFolder, state: run_processes.RunState, series: curves.Series) -> str:
    """Name, state, what is being done, and what went wrong: HTML."""
    if state.name == "damaged":
        return error_html(state.reason)
    record, summary = folder.read(), _read_summary(folder)
    config = record.get("config") or {}
    facts = [
        f"pipeline {Path(pipeline_label(config.get('pipeline'))).name}",
        f"optimised {_list_names(config.get('reward'))}",
    ]
    facts += [f"held out {_list_names(config['watch'])}"] if config.get("watch") else []
    facts += [f"seed {config.get('seed')}", format_date(record.get("created", ""))]
    failed = {c["name"]: c["failed"] for c in summary.get("contestants", ()) if "failed" in c} | series.failures
    failed = failed if state.name == "failed" else series.failures  # what was only stopped has not failed
    alarm = series.alarm or summary.get("alarm") or ""
    warnings = [text for text in training_warnings(folder) if not alarm or alarm not in text]
    headline = findings.headline_sentences(summary)[0] if summary.get("contestants") and not state.is_live else ""
    return (
        f'<div class="wb-card wb-t{TONE.get(state.name, 0)}"><h3><span class="wb-dot"></span>'
        f"{escape_text(read_notes(folder).title or folder.path.name)}: {escape_text(state.name)}</h3>"
        f"{hint_html(state.reason) if state.reason else ''}"
        f"{_draw_progress(series, config) if state.is_live else ''}"
        f"{f'<p>{escape_text(headline)}</p>' if headline else ''}{hint_html(' · '.join(filter(None, facts)))}"
        f'<p style="margin:8px 0 0">{studio_button(f"?run={quote(folder.path.name)}")}</p></div>'
        + (f'<div class="wb-bad" role="alert"><b>Alarm.</b> {escape_text(alarm)}</div>' if alarm else "")
        + "".join(f'<div class="wb-bad" role="alert">{escape_text(text)}</div>' for text in warnings)
        + "".join(error_html(f"{name} failed: {why}") for name, why in failed.items())
    )


def training_warnings(folder: RunFolder) -> list[str]:
    """Sentences on finished trainings of this run that raised the alarm or taught nothing."""
    records = {p.parent.name: RunFolder(p.parent).read(p.name) for p in folder.path.glob("checkpoints/*/done.json")}
    return [text for name in sorted(records) for text in findings.warnings_of_training(name, records[name])]


def _read_summary(folder: RunFolder) -> dict:
    try:
        return folder.read("summary.json")
    except BadInput:
        return {}


def _list_names(block: object) -> str:
    return ", ".join(map(str, block)) if isinstance(block, (Mapping, list)) else str(block)


def _draw_progress(series: curves.Series, config: Mapping) -> str:
    """Where the run is, and a bar where it says how far it has to go."""
    last = series.latest
    if not last:
        return hint_html("loading what it needs")
    key = next(k for k in curves.CLOCK_KEYS if k in last)
    training, at = "phase" in last or key == "update", last[key]
    train = config.get("train") or {}
    total = train.get("rounds", train.get("updates")) if training else None  # runs of before have the second
    sentence = f"{last.get('contestant', 'trained')}, {'update' if training else key} {at:,}"
    if not total:
        return hint_html(sentence)
    bar = f'<div class="wb-bar"><i style="width:{min(100, 100 * at / total):.1f}%"></i></div>'
    return hint_html(f"{sentence} of {total:,}") + bar


def draw_curves(folder: RunFolder, state: run_processes.RunState, series: curves.Series) -> str:
    """Its curves: HTML."""
    if lines := series.mean_lines():
        return curves.draw_curves(lines, folder.read().get("methods", ()) if state.name != "damaged" else ())
    return hint_html("Curves grow here once there are two points." if state.is_live else "This run has no curves.")


def draw_samples(folder: RunFolder, series: curves.Series) -> str:
    """Over time first, then the contestants."""
    parts = []
    if timeline := samples.draw_timeline(folder.path / "samples"):
        parts.append(f"<h3>Over time, next to the base at the same seed</h3>{timeline}")
    if contestants := samples.draw_contestants(folder.path, series.samples):
        parts.append(f'<h3 style="margin:22px 0 0">What was made, from the same noise</h3>{contestants}')
    return "".join(parts) or hint_html("Samples appear here as soon as there are some.")


def config_yaml(folder: RunFolder, state: run_processes.RunState) -> str:
    """The run's config as YAML."""
    if state.name == "damaged":
        return ""
    return yaml.safe_dump(folder.read().get("config"), sort_keys=False, allow_unicode=True)


def studio_button(address: str) -> str:
    return f'<a class="wb-copy" style="text-decoration:none" href="{escape_text(address)}">Open in the studio</a>'


def report_frame(context: AppContext, name: str) -> tuple[str, str]:
    """(the run's report inside a frame that runs no script and opens nothing, a copy that the page may serve); of a
    grid its page first, in a frame whose scripts reach nothing of ours.

    Raises BadInput where there is none."""
    run = run_processes.find_run(context.runs, name).path
    path = run / "report.html"
    if not path.is_file() or path.stat().st_size > MAX_REPORT_BYTES:
        raise BadInput("this run has no report yet; it is written when the run ends")
    folder = context.temp / f"report-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    write_atomic(folder / f"{name}.html", path.read_bytes())
    frames = draw_frame(path, f"Report of {name}")
    grid = run / grid_page.FILE
    if grid.is_file() and grid.stat().st_size <= MAX_GRID_BYTES:
        frames = draw_frame(grid, f"Grid of {name}", sandbox="allow-scripts") + frames
    elif grid.is_file():
        frames = hint_html(f"The grid is too large for this page; open {grid_page.FILE} in the run's folder.") + frames
    return frames, str(folder / f"{name}.html")


def draw_frame(path: Path, title: str, sandbox: str = "") -> str:
    """A file in a frame of its own origin, which is none: it reaches neither this page nor its cookies."""
    content = escape_text(path.read_text(encoding="utf-8"), MAX_GRID_BYTES)
    return (
        f'<iframe sandbox="{sandbox}" title="{escape_text(title)}" srcdoc="{content}" '
        'style="width:100%;height:80vh;border:1px solid var(--wb-rule);border-radius:10px;background:#fff"></iframe>'
    )
