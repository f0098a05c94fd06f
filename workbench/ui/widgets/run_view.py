"""A run as a page shows it: the list, where it stands, its curves, samples and report, as HTML. Names are looked up, never
made into paths."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, urlencode

import yaml

from workbench.core.paths import write_atomic
from workbench.core.types import BadInput
from workbench.report import findings
from workbench.runs import store
from workbench.runs.store import RunFolder
from workbench.ui import contestant_choices, run_processes
from workbench.ui.context import Place
from workbench.ui.tabs.runs import COMPARED
from workbench.ui.widgets import curves, samples
from workbench.ui.widgets.html import bad, note, plain, table

MOST = 200  # runs listed
HEAD = ["run", "state", "when", "pipeline", "contestants"]
TONE = {"starting": 1, "running": 1, "stopping": 2, "stopped": 0, "crashed": 4, "failed": 4, "done": 3}
BARE = (
    "min-width:13em;margin:0;padding:0;border:0;background:none;color:var(--link-text-color);font-size:14px;font-weight:600;"
    "line-height:1.4;text-align:left;overflow-wrap:anywhere;cursor:pointer"
)
REPORT = 20_000_000  # bytes of a report that a page shows


def rows(runs: Path) -> list[dict[str, str]]:
    """One row a run, newest first: run, state, when, pipeline, contestants."""
    found = []
    for folder in store.folders(runs)[:MOST]:
        now = run_processes.state(folder)
        told = {} if now.name == "damaged" else folder.read()
        pipeline = Path(str((told.get("config") or {}).get("pipeline", ""))).name  # of a local one the name is enough
        names = ", ".join(told.get("methods", ()))
        own = (folder.path.name, now.name, when(told.get("created", "")), pipeline, names)
        found.append(dict(zip(HEAD, own, strict=True)))
    return found


def listing(found: Sequence[Mapping[str, str]]) -> str:
    """The rows as a table whose names are buttons."""
    body = [
        (
            f'<button type="button" data-run="{plain(r["run"])}" style="{BARE}">{plain(r["run"])}</button>',
            f'<span class="wb-t{TONE.get(r["state"], 0)}"><span class="wb-dot"></span>{plain(r["state"])}</span>',
            plain(r["when"]), plain(r["pipeline"]), plain(r["contestants"]),
        )
        for r in found
    ]  # fmt: skip
    return f'<div style="max-height:340px;overflow-y:auto">{table(HEAD, body, left=(1, 2, 3, 4))}</div>'


def when(created: str) -> str:
    try:
        return datetime.strptime(created, "%Y-%m-%dT%H:%M:%S%z").strftime("%d %b %Y, %H:%M")
    except ValueError:
        return ""


def link(runs: Path, chosen: Sequence[str]) -> str:
    """The studio's address for one run, or for trainings as contestants beside the base. Raises BadInput."""
    known = contestant_choices.trained(runs)
    if not 1 <= len(chosen) <= COMPARED or not set(chosen) <= known.keys():
        raise BadInput(f"choose one to {COMPARED} of the trainings in the list")
    return f"?{urlencode({'contestants': ','.join(chosen)})}"


# --- one run ---------------------------------------------------------------------------------------------------------


def header(folder: RunFolder, now: run_processes.State, series: curves.Series) -> str:
    """Name, state, what is being done, and what went wrong: HTML."""
    if now.name == "damaged":
        return bad(now.why)
    told, summary = folder.read(), _summary(folder)
    config = told.get("config") or {}
    facts = [f"pipeline {Path(str(config.get('pipeline'))).name}", f"optimised {_names(config.get('reward'))}"]
    facts += [f"held out {_names(config['watch'])}"] if config.get("watch") else []
    facts += [f"seed {config.get('seed')}", when(told.get("created", ""))]
    failed = {c["name"]: c["failed"] for c in summary.get("contestants", ()) if "failed" in c} | series.failures
    failed = failed if now.name == "failed" else series.failures  # what was only stopped has not failed
    alarm = series.alarm or summary.get("alarm") or trained_alarm(folder)
    said = findings.headline(summary)[0] if summary.get("contestants") and not now.live else ""
    return (
        f'<div class="wb-card wb-t{TONE.get(now.name, 0)}"><h3><span class="wb-dot"></span>{plain(folder.path.name)}: '
        f"{plain(now.name)}</h3>{note(now.why) if now.why else ''}{_doing(series, config) if now.live else ''}"
        f"{f'<p>{plain(said)}</p>' if said else ''}{note(' · '.join(filter(None, facts)))}"
        f'<p style="margin:8px 0 0">{opener(f"?run={quote(folder.path.name)}")}</p></div>'
        + (f'<div class="wb-bad" role="alert"><b>Alarm.</b> {plain(alarm)}</div>' if alarm else "")
        + "".join(bad(f"{name} failed: {why}") for name, why in failed.items())
    )


def trained_alarm(folder: RunFolder) -> str:
    """What a training of this run ended with, if it raised the alarm."""
    ends = [RunFolder(p.parent).read(p.name) for p in sorted(folder.path.glob("checkpoints/*/done.json"))]
    return next((str(end["alarm"]) for end in ends if end.get("alarm")), "")


def _summary(folder: RunFolder) -> dict:
    try:
        return folder.read("summary.json")
    except BadInput:
        return {}


def _names(block) -> str:
    return ", ".join(map(str, block)) if isinstance(block, (Mapping, list)) else str(block)


def _doing(series: curves.Series, config: Mapping) -> str:
    """Where the run is, and a bar where it says how far it has to go."""
    last = series.latest
    if not last:
        return note("loading what it needs")
    key = next(k for k in curves.X if k in last)
    training, at = "phase" in last or key == "update", last[key]
    of = (config.get("train") or {}).get("updates") if training else None
    told = f"{last.get('contestant', 'trained')}, {'update' if training else key} {at:,}" + (
        f" of {of:,}" if of else ""
    )
    return note(told) + (
        f'<div class="wb-bar"><i style="width:{min(100, 100 * at / of):.1f}%"></i></div>' if of else ""
    )


def drawn(folder: RunFolder, now: run_processes.State, series: curves.Series) -> str:
    """Its curves: HTML."""
    if lines := series.lines():
        return curves.draw(lines, folder.read().get("methods", ()) if now.name != "damaged" else ())
    return note("Curves grow here once there are two points.") if now.live else note("This run has no curves.")


def shown(folder: RunFolder, series: curves.Series) -> str:
    """Over time first, then the contestants."""
    parts = []
    if grown := samples.timeline(folder.path / "samples"):
        parts.append(f"<h3>Over time, next to the base at the same seed</h3>{grown}")
    if made := samples.contestants(folder.path, series.samples):
        parts.append(f'<h3 style="margin:22px 0 0">What was made, from the same noise</h3>{made}')
    return "".join(parts) or note("Samples appear here as soon as there are some.")


def settings(folder: RunFolder, now: run_processes.State) -> str:
    """The run's config as YAML."""
    return (
        ""
        if now.name == "damaged"
        else yaml.safe_dump(folder.read().get("config"), sort_keys=False, allow_unicode=True)
    )


def opener(address: str) -> str:
    return f'<a class="wb-copy" style="text-decoration:none" href="{plain(address)}">Open in the studio</a>'


def report(place: Place, name: str) -> tuple[str, str]:
    """(the run's report inside a frame that runs no script and opens nothing, a copy that the page may serve).

    Raises BadInput where there is none."""
    path = run_processes.find(place.runs, name).path / "report.html"
    if not path.is_file() or path.stat().st_size > REPORT:
        raise BadInput("this run has no report yet; it is written when the run ends")
    home = place.temp / f"report-{uuid.uuid4().hex}"
    home.mkdir(parents=True)
    write_atomic(home / f"{name}.html", path.read_bytes())
    frame = (
        f'<iframe sandbox="" title="Report of {plain(name)}" srcdoc="{plain(path.read_text(encoding="utf-8"), REPORT)}" '
        'style="width:100%;height:80vh;border:1px solid var(--wb-rule);border-radius:10px;background:#fff"></iframe>'
    )
    return frame, str(home / f"{name}.html")
