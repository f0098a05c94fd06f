"""What a run has made so far, side by side: over time next to the base at the same seed, or contestant by contestant."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from workbench.core.io import media
from workbench.core.types import BadInput
from workbench.report import pages
from workbench.ui.widgets.html import plain

ROWS, ACROSS, WHO = 4, 6, 3  # shown
SIDE = 224
FILL = "grid-template-columns:repeat(auto-fill,minmax(min(46%,180px),1fr))"
BYTES = 1_500_000  # of a sound or a clip that plays in the page; a longer one is in the run's folder
SOUNDS = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
TIME = re.compile(r"(?:[a-z]+[-_]?)?(\d+)", re.I)  # 000020, update-20


def over_time(home: Path) -> dict[str, dict[str, dict[int, Path]]]:
    """who -> row -> update -> file, from `samples/[WHO/]UPDATE/[WHO-]ROW.png`; update 0, and whoever is called base, is the
    base of all (update 0)."""
    found: dict[str, dict[str, dict[int, Path]]] = {}
    for path in sorted(p for p in home.rglob("*") if p.suffix.lower() in media.READABLE and p.is_file()):
        folders = list(path.relative_to(home).parts[:-1])
        times = [n for n, part in enumerate(folders) if TIME.fullmatch(part)]
        if not times:
            continue
        update = int(TIME.fullmatch(folders.pop(times[-1]))[1])
        words = [w for w in re.split(r"[-_. ]+", path.stem) if w]
        who = " ".join([*folders, *(w for w in words if not w.isdigit())]) or "trained"
        update = 0 if "base" in who.split() else update
        found.setdefault(who, {}).setdefault("-".join(w for w in words if w.isdigit()), {}).setdefault(update, path)
    return found


def spread(items: Sequence, most: int) -> list:
    """The first, the last, and evenly what lies between, at most `most`."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def timeline(home: Path) -> str:
    """HTML, or "" where nothing was sampled on the way."""
    found = over_time(home)
    bases = {key: row[0] for rows in found.values() for key, row in rows.items() if 0 in row}
    body = ""
    for who, rows in list(found.items())[:WHO]:
        updates = spread(sorted({u for row in rows.values() for u in row if u}), ACROSS - 1)
        body += f'<h3 style="margin:18px 0 0">{plain(who)}</h3>'
        for key, row in list(rows.items())[:ROWS]:
            tiles = [_tile(bases.get(key), home, "base"), *(_tile(row.get(u), home, f"update {u:,}") for u in updates)]
            body += f'<div class="wb-row"><h4>{plain(_prompt(next(iter(row.values()))) or key, 400)}</h4>'
            body += f'<div class="wb-grid" style="{FILL}">{"".join(tiles)}</div></div>'
    return body


@lru_cache(256)
def _prompt(path: Path) -> str:
    try:
        story = media.read_meta(path)
    except BadInput:
        return ""
    return str(story.get("prompt", "")) if isinstance(story, dict) else ""


def contestants(folder: Path, made: Mapping[str, Mapping[tuple[int, int], Mapping]]) -> str:
    """HTML of the first samples that every contestant has made, from the same noise; "" before there is one."""
    names = list(made)[:ACROSS]
    body = ""
    for key in pages.selection(made, names)[:ROWS]:
        first = made[names[0]][key]
        tiles = (_tile(_inside(folder, made[n][key].get("file", "")), folder, n) for n in names)
        body += (
            f'<div class="wb-row"><h4>{plain(first.get("prompt"), 400)}<small>seed {plain(first.get("seed"))}</small></h4>'
            f'<div class="wb-grid" style="{FILL}">{"".join(tiles)}</div></div>'
        )
    return body


def _inside(folder: Path, file: str) -> Path | None:
    """The file, if it lies in the run's folder."""
    path = (folder / str(file)).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _tile(path: Path | None, home: Path, caption: str) -> str:
    inner = '<div class="wb-none">not made</div>'
    if path is not None and _inside(home, str(path)):
        stat = path.stat()
        inner = embedded(path, stat.st_mtime_ns, stat.st_size)
    return f'<figure class="wb-media">{inner}<figcaption><b>{plain(caption)}</b></figcaption></figure>'


@lru_cache(512)
def embedded(path: Path, stamp: int, size: int) -> str:
    """As an HTML element that carries the media with it. A file that is still being written is seen at the next look."""
    suffix = path.suffix.lower()
    if suffix in SOUNDS or (suffix == ".apng" and size <= BYTES):
        if size > BYTES:
            return '<div class="wb-none">too long to play here; it is in the run’s folder</div>'
        data = base64.b64encode(path.read_bytes()).decode()
        if suffix == ".apng":
            return f'<img alt="" class="wb-tiny" src="data:image/png;base64,{data}">'
        return f'<audio controls preload="metadata" src="data:{SOUNDS[suffix]};base64,{data}"></audio>'
    try:
        data = base64.b64encode(media.thumbnail(path, SIDE)).decode()
    except BadInput:
        return '<div class="wb-none">can’t be shown</div>'
    return f'<img alt="" src="data:image/png;base64,{data}">'
