"""How a comparison looks: while it works, and when it is done. Everything that users or files say is shown as text."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from workbench.core.io import media
from workbench.core.types import Media
from workbench.report import findings, pages
from workbench.runs import store
from workbench.ui.studio_comparison import Live, Working, level, mixture
from workbench.ui.widgets import audio_player, curves
from workbench.ui.widgets.html import plain

SIDE = 256  # pixels of a preview
TINY = 128  # a picture of fewer is shown as squares
ROWS = 24  # of a result
SECRET = secrets.token_hex(16)  # of this app: nobody can guess where a file is served
STATES = {"waiting": "waits", "not begun": "not begun"}


def source(repo: str) -> str:
    """A pipeline in a word: a training of this machine by its run, never by its path."""
    path = Path(repo)
    if not path.is_absolute():
        return repo
    return path.parent.name if path.name == "export" else f"{path.parent.parent.name}/{path.name}"


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: v if isinstance(v, Markup) or not isinstance(v, str) else Markup(plain(v, 20_000_000)),
    )
    env.filters |= {"num": findings.number, "whole": findings.whole, "source": source}
    return env


_macros = _environment().get_template("comparison.html").module


def png(picture: Media, side: int = SIDE) -> bytes:
    """A picture [1,3,H,W] as PNG bytes, no larger than `side`; a smaller one keeps its pixels."""
    pixels = (media.quantise(picture).data[0].cpu() * 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _middle(clip: Media) -> bytes:
    return png(Media(clip.data[:, clip.data.shape[1] // 2], "image"))


PREVIEW: dict[str, Callable[[Media], bytes]] = {"image": png, "video": _middle, "audio": audio_player.picture}


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Previews:
    """The previews of a comparison, each drawn once however many look on."""

    def __init__(self, live: Live):
        self.live, self.kept = live, {}

    def of(self, part: Working) -> list[dict]:
        turn, frames = part.turns, dict(part.frames)
        if self.kept.get(part.name, (None,))[0] != turn:
            drawn = []
            for row, sample in sorted(frames.items()):
                tiny = sample.modality != "audio" and max(sample.data.shape[-2:]) <= TINY
                drawn.append(
                    {"uri": uri(PREVIEW[sample.modality](sample)), "tiny": tiny, "prompt": self.live.plan.rows[row][1]}
                )
            self.kept[part.name] = (turn, drawn)
        return self.kept[part.name][1]


def clock(seconds: float) -> str:
    """4.2 s, 1 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def view(live: Live, previews: Previews) -> dict:
    """What a comparison shows at this moment, as plain values: for the page and for programs."""
    rows, parts, left = len(live.plan.rows), [], 0.0
    for n, part in enumerate(live.parts.values()):
        done, of = live.rows_of(part)
        took, more = live.seconds_of(part)
        left += more or 0.0
        shown = previews.of(part)
        told = _told(part, done, of, took, more, rows, live.job.stop.is_set())
        parts.append(
            {"name": part.name, "tone": n % 8, "state": STATES.get(part.state, part.state), "told": told, "rows": done}
            | {"of": of, "seconds": round(took, 2), "left": more, "reward": part.reward, "previews": shown}
            | {"share": 1.0 if part.ended else min(1.0, done / of) if of else 0.0, "more": max(0, rows - len(shown))}
        )
    config, job = live.plan.config, live.job
    total = sum(p["of"] for p in parts)
    spent = sum(p["rows"] for p in parts)
    title = f"{findings.count(len(live.parts), 'contestant')} on {findings.count(len({r[1] for r in live.plan.rows}), 'prompt')}"
    title += f" × {findings.count(config.seeds, 'seed')}"
    state = "stopping" if job.stop.is_set() and not job.over else job.state
    going = f"{state}: {spent:,} of about {total:,} denoiser rows, {clock(job.seconds)}"
    if state == "working" and left:
        going += f", this contestant about {clock(left)} more"
    return {
        "key": live.key,
        "run": live.folder.path.name if live.folder else "",
        "state": state,
        "kind": live.plan.modality,
        "title": title,
        "clock": going,
        "share": spent / total if total else 0.0,
        "contestants": parts,
    }


def _told(part: Working, done: int, of: int, took: float, more: float | None, rows: int, stopping: bool) -> str:
    if part.state in STATES:
        return f"{STATES[part.state]}; about {of / max(1, rows):,.0f} denoiser rows a sample"
    if part.state == "failed":
        return f"failed: {part.note}"
    said = [f"{done:,} of about {of:,} rows" if part.state == "working" else f"{done:,} rows", clock(took)]
    if part.state == "working" and not part.turns and not done:
        said = ["loading", clock(took)]
    elif part.state == "working":
        said += [f"about {clock(more)} left"] if more and not stopping else []
    else:
        said.append(part.state)
    return " · ".join(said + ([f"reward {findings.number(part.reward, 3)}"] if part.reward is not None else []))


def live(shown: Mapping) -> str:
    return str(_macros.live(shown))


def waiting(shown: Mapping, ahead: int, first: str) -> str:
    """First `first`, then `ahead` - 1 others."""
    many = f"{findings.count(ahead, 'job')} before this one; at work: {first}." if ahead else "Starting."
    return str(_macros.waiting({**shown, "told": many, "clock": ""}))


def drawn(running: Live) -> str:
    """The reward as it grows, of every contestant."""
    if running.folder is None:
        return ""
    return _chart(running.folder, {name: part.level for name, part in running.parts.items()})


def _chart(folder: store.RunFolder, levels: Mapping[str, float | None]) -> str:
    """A line for whoever says its reward on the way, a level one for whoever was only judged."""
    found = curves.series(folder.path / "events.jsonl").lines().get("reward", {})
    places = [x for line in found.values() for x, _ in line]
    if not places:
        return ""
    level = {n: [(min(places), v), (max(places), v)] for n, v in levels.items() if v is not None}
    lines = {name: found.get(name) or level[name] for name in levels if name in found or name in level}
    return curves.draw({"reward, by step": lines})


@dataclass(frozen=True)
class Result:
    """A stored comparison, ready to be shown."""

    run: str
    kind: str
    names: list[str]
    rows: list[dict]  # {prompt, category, seed, k, cells}
    summary: dict
    note: str
    headline: list[str]
    html: str
    chart: str


def served(temp: Path, file: Path, name: str = "") -> Path:
    """A copy of a file where the page may serve from, under a name that nobody can guess. Old ones are removed in time."""
    token = hashlib.sha256(f"{SECRET}{file}{file.stat().st_mtime_ns}".encode()).hexdigest()[:32]
    copy = temp / "studio" / token / (name or file.name)
    if copy.is_file():
        os.utime(copy)
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    half = copy.with_name(f".{secrets.token_hex(8)}")
    shutil.copyfile(file, half)
    os.replace(half, copy)
    return copy


def url(file: Path) -> str:
    return f"gradio_api/file={quote(str(file))}"


def sweep(temp: Path, old: float = 6 * 3600.0) -> None:
    """Remove served copies that nobody has asked for in `old` seconds."""
    for folder in (temp / "studio").glob("*"):
        newest = max((f.stat().st_mtime for f in folder.glob("*")), default=folder.stat().st_mtime)
        if time.time() - newest > old:
            shutil.rmtree(folder, ignore_errors=True)


def result(folder: store.RunFolder, temp: Path, still: str = "") -> Result:
    """A run folder as the page shows it, whole or not; `still` says what is being done to it."""
    record, summary = folder.read(), folder.read("summary.json")
    summary = summary if "contestants" in summary else {}
    made = pages.samples(folder.events())
    names = list((record.get("config", {}).get("contestants") or dict.fromkeys(made)) | dict.fromkeys(made))
    kind = summary.get("modality") or _kind(made)
    table = findings.metrics(summary) if summary else {}
    paid = next((m for m, here in table.items() if m != "oracle" and findings.optimised(here)), None)
    keys = sorted({key for part in made.values() for key in part})
    rows = [_row(folder, temp, made, names, key, kind, paid) for key in keys[:ROWS]]
    state = record.get("status", "")
    note = still or {
        "stopped": "Stopped: this is the best that was found so far; “Same seed again” goes on from here."
    }.get(state, "")
    note = note or ("This run has not finished; “Same seed again” goes on from here." if state == "running" else "")
    headline = findings.headline(summary) if summary else ["Nothing has been judged yet."]
    page = folder.path / "report.html"
    tones = {name: n % 8 for n, name in enumerate(names)}
    shown = {
        "note": note,
        "summary": summary,
        "headline": headline,
        "kind": kind,
        "rows": rows,
        "more": max(0, len(keys) - ROWS),
    }
    shown |= {"link": f"?run={quote(folder.path.name)}", "noun": findings.NOUN.get(kind, "sample"), "tone": tones}
    shown |= {"report": url(served(temp, page)) if page.is_file() else "", "metrics": table}
    if summary:
        won = findings.wins(summary)
        shown |= {"places": {m: findings.digits(h.values()) for m, h in table.items()}, "wins": won and won[1]}
        shown |= {
            "costs": findings.costs(summary),
            "several": bool(findings.sources(summary)),
            "foot": _foot(summary, paid),
        }
        shown |= {"spread": any(c.get("diversity") is not None for c in summary["contestants"])}
        shown |= {"judge": findings.called(next(iter(table), ""))}
    weights = mixture(record.get("config", {}).get("reward"))
    levels = {name: level([s["scores"] for s in made.get(name, {}).values()], weights) for name in names}
    chart = _chart(folder, levels)
    return Result(folder.path.name, kind, names, rows, summary, note, headline, str(_macros.result(shown)), chart)


def _foot(summary: Mapping, paid: str | None) -> str:
    same = f"{findings.count(summary['prompts'], 'prompt')} × {findings.count(summary['seeds'], 'seed')}; small print: 95 % intervals over prompts"
    return same + (f". The number under each {findings.NOUN[summary['modality']]} is {paid}." if paid else ".")


def _kind(made: Mapping) -> str:
    first = next((s["file"] for part in made.values() for s in part.values()), "")
    return next((kind for kind, suffix in media.SUFFIX.items() if first.endswith(suffix)), "image")


def _row(folder, temp, made: Mapping, names: Sequence[str], key: tuple, kind: str, paid: str | None) -> dict:
    first = next(made[n][key] for n in names if key in made.get(n, {}))
    cells = []
    for tone, name in enumerate(names):
        sample = made.get(name, {}).get(key)
        file = sample and _file(folder.path, sample)
        scores = (sample or {}).get("scores", {})
        cell = {
            "name": name,
            "tone": tone % 8,
            "made": sample,
            "prompt": first["prompt"],
            "score": scores.get(paid),
            "file": None,
        }
        cell |= {
            "right": None if scores.get("oracle") is None else scores["oracle"] >= 1,
            "url": "",
            "tiny": False,
            "scores": scores,
        }
        if file:
            copy = served(temp, file, f"{name}-{file.name}")
            cell |= {"file": str(copy), "url": url(copy)} | FACTS[kind](file)
        cells.append(cell)
    if kind == "audio":
        heard = [c for c in cells if c["url"]]
        for cell, volume in zip(heard, audio_player.volumes([c["loudness"] for c in heard]), strict=True):
            cell["volume"] = f"{volume:.4f}"
    return {
        "prompt": first["prompt"],
        "category": first.get("category"),
        "seed": first["seed"],
        "k": key[1],
        "cells": cells,
    }


def _file(run: Path, sample: Mapping) -> Path | None:
    """The sample's file, if it lies in the run folder."""
    path = (run / sample["file"]).resolve()
    return path if path.is_relative_to(run.resolve()) and path.is_file() else None


def _picture(file: Path) -> dict:
    with Image.open(file) as image:
        return {"tiny": max(image.size) <= TINY}


def _clip(file: Path) -> dict:
    with Image.open(file) as image:
        return {"tiny": max(image.size) <= TINY, "rate": 1000 / (image.info.get("duration") or 125)}


def _sound(file: Path) -> dict:
    sound = media.read(file)
    return {"drawn": uri(audio_player.picture(sound)), "loudness": audio_player.loudness(sound)}


FACTS: dict[str, Callable[[Path], dict]] = {"image": _picture, "video": _clip, "audio": _sound}


def kept(found: Result) -> dict:
    """What a page must remember of a result to slide between its files."""
    rows = [{c["name"]: c["file"] for c in row["cells"] if c["file"]} for row in found.rows]
    return {"run": found.run, "kind": found.kind, "rows": rows}


def told(found: Result, folder: store.RunFolder) -> dict:
    """A result for programs."""
    keys = ("prompt", "seed", "k", "category")
    files = [
        {"contestant": c["name"], "url": c["url"], "scores": c["scores"]} | {k: row[k] for k in keys}
        for row in found.rows
        for c in row["cells"]
        if c["url"]
    ]
    state = folder.read().get("status", "")
    said = {
        "run": found.run,
        "folder": str(folder.path),
        "state": state,
        "note": found.note,
        "headline": found.headline,
    }
    return said | {"link": f"?run={quote(found.run)}", "summary": found.summary, "files": files}


def pair(rows: Sequence[Mapping[str, str]], kind: str, row: int, left: str, right: str) -> tuple[str, str] | None:
    """The files for the slider: pictures as they are, tiny ones grown by whole steps, of a clip its middle frame."""
    if kind == "audio" or not 0 <= row < len(rows) or not {left, right} <= rows[row].keys():
        return None
    return tuple(_large(Path(rows[row][name]), kind) for name in (left, right))


def _large(file: Path, kind: str) -> str:
    with Image.open(file) as image:
        if kind == "image" and max(image.size) > TINY:
            return str(file)
    grown = file.with_name(f"large-{file.stem}.png")
    if not grown.is_file():
        grown.write_bytes(media.thumbnail(file, 512))
    return str(grown)


def archive(folder: store.RunFolder, temp: Path) -> Path:
    """The whole run folder as one zip file."""
    home = temp / "studio" / secrets.token_hex(16)
    home.mkdir(parents=True)
    staged = shutil.make_archive(str(home / folder.path.name), "zip", folder.path.parent, folder.path.name)
    return Path(staged)
