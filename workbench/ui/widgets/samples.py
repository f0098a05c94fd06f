"""What a run has made so far, side by side: over time next to the base at the same seed, or contestant by
contestant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io import folders, media
from workbench.report import audio_view, pages
from workbench.report.sample_inputs import input_title, list_input_names
from workbench.runs.media_prompts import find_prompt
from workbench.runs.run_inputs import find_input
from workbench.ui.widgets.html import data_uri, escape_text

MAX_ROWS, MAX_COLUMNS, MAX_CONTESTANTS = 4, 6, 3  # shown
SIDE = 224
FILL = "grid-template-columns:repeat(auto-fill,minmax(min(46%,180px),1fr))"
MAX_BYTES = 1_500_000  # of a sound or a clip that plays in the page; a longer one is in the run's folder
SOUNDS = {
    ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".m4a": "audio/mp4",
    ".aac": "audio/aac",
}  # fmt: skip
TIME = re.compile(r"(?:[a-z]+[-_]?)?(\d+)", re.I)  # 000020, update-20


def find_timeline(folder: Path) -> dict[str, dict[str, dict[int, Path]]]:
    """who -> row -> update -> file, from `samples/[WHO/]UPDATE/[WHO-]ROW.png`; update 0, and whoever is called base, is
    the base of all (update 0)."""
    files: dict[str, dict[str, dict[int, Path]]] = {}
    for path in folders.list_media(folder).files:
        parts = list(path.relative_to(folder).parts[:-1])
        times = [n for n, part in enumerate(parts) if TIME.fullmatch(part)]
        if not times:
            continue
        update = int(TIME.fullmatch(parts.pop(times[-1]))[1])
        words = [w for w in re.split(r"[-_. ]+", path.stem) if w]
        who = " ".join([*parts, *(w for w in words if not w.isdigit())]) or "trained"
        update = 0 if "base" in who.split() else update
        files.setdefault(who, {}).setdefault("-".join(w for w in words if w.isdigit()), {}).setdefault(update, path)
    return files


def spread_evenly(items: Sequence, limit: int) -> list:
    """The first, the last, and evenly what lies between, at most `limit`."""
    if len(items) <= limit:
        return list(items)
    return [items[round(n * (len(items) - 1) / (limit - 1))] for n in range(limit)]


def draw_timeline(folder: Path) -> str:
    """HTML, or "" where nothing was sampled on the way."""
    files = find_timeline(folder)
    bases = {key: row[0] for rows in files.values() for key, row in rows.items() if 0 in row}
    body = ""
    for who, rows in list(files.items())[:MAX_CONTESTANTS]:
        updates = spread_evenly(sorted({u for row in rows.values() for u in row if u}), MAX_COLUMNS - 1)
        body += f'<h3 style="margin:18px 0 0">{escape_text(who)}</h3>'
        for key, row in list(rows.items())[:MAX_ROWS]:
            tiles = [
                _draw_tile(bases.get(key), folder, "base"),
                *(_draw_tile(row.get(u), folder, f"update {u:,}") for u in updates),
            ]
            body += f'<div class="wb-row"><h4>{escape_text(_read_prompt(next(iter(row.values()))) or key, 400)}</h4>'
            body += f'<div class="wb-grid" style="{FILL}">{"".join(tiles)}</div></div>'
    return body


@lru_cache(256)
def _read_prompt(path: Path) -> str:
    try:
        return find_prompt(path)[0]
    except BadInput:
        return ""


def draw_contestants(folder: Path, logged: Mapping[str, Mapping[tuple[int, int], Mapping]]) -> str:
    """HTML of the first samples that every contestant has made, from the same noise, after what they were made from; ""
    before there is one."""
    names = list(logged)[:MAX_COLUMNS]
    inputs = list_input_names(sample for part in logged.values() for sample in part.values())
    body = ""
    for key in pages.select_samples(logged, names)[:MAX_ROWS]:
        first = logged[names[0]][key]
        row = [logged[name][key] for name in names]
        tiles = [_draw_input(folder, first, name) for name in inputs]
        tiles += [
            _draw_tile(file_inside(folder, s.get("file") or ""), folder, name, s.get("reason") or "not made")
            for name, s in zip(names, row, strict=True)
        ]
        body += (
            f'<div class="wb-row"><h4>{escape_text(first.get("prompt"), 400)}'
            f"<small>seed {escape_text(first.get('seed'))}</small></h4>"
            f'<div class="wb-grid" style="{FILL}">{"".join(tiles)}</div></div>'
        )
    return body


def file_inside(folder: Path, file: str) -> Path | None:
    """The file, if it lies in the run's folder."""
    path = (folder / str(file)).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _draw_input(folder: Path, sample: Mapping, name: str) -> str:
    title, digest = input_title(name), (sample.get("inputs") or {}).get(name)
    path = digest and find_input(folder, digest)
    return _draw_tile(path or None, folder, title, "missing" if digest else f"no {title}", "wb-media wb-given")


def _draw_tile(path: Path | None, folder: Path, caption: str, gap: str = "not made", classes: str = "wb-media") -> str:
    inner = f'<div class="wb-none">{escape_text(gap)}</div>'
    if path is not None and file_inside(folder, str(path)):
        stat = path.stat()
        inner = embed_media(path, stat.st_mtime_ns, stat.st_size)
    return f'<figure class="{classes}">{inner}<figcaption><b>{escape_text(caption)}</b></figcaption></figure>'


@lru_cache(512)
def embed_media(path: Path, stamp: int, size: int) -> str:
    """As an HTML element that carries the media with it. A file that is still being written is seen at the next
    look."""
    suffix = path.suffix.lower()
    if suffix in SOUNDS or (suffix == ".apng" and size <= MAX_BYTES):
        if size > MAX_BYTES:
            return '<div class="wb-none">too long to play here; it is in the run’s folder</div>'
        address = data_uri(path.read_bytes(), SOUNDS.get(suffix, "image/png"))
        if suffix == ".apng":
            return f'<img alt="" class="wb-tiny" src="{address}">'
        return f'<audio controls preload="metadata" src="{address}"></audio>'
    try:
        is_sound = folders.modality_of(path) == "audio"  # of a kind that browsers don't play
        picture = audio_view.sound_picture(media.read_media(path)) if is_sound else media.encode_thumbnail(path, SIDE)
        address = data_uri(picture)
    except BadInput:
        return '<div class="wb-none">can’t be shown</div>'
    return f'<img alt="" src="{address}">'
