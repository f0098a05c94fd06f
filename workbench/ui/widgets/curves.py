"""A run's metrics while they are written: read from where the last look ended, thinned, and drawn as inline SVG."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.report.charts import Axis
from workbench.report.formatting import format_number
from workbench.ui.widgets.html import escape_text

CLOCK_KEYS = (
    "update",
    "step",
    "iteration",
    "epoch",
)  # what an event may call its place in time; the first it has counts
GROUPS = ("metrics", "eval", "scores", "watch", "held_out")  # where an event may keep numbers
MAX_POINTS = 400  # drawn of a line
MAX_PANELS = 8
MAX_SAMPLES = 64  # remembered of a contestant
BLOCK_BYTES = 2**20  # bytes read at once
TRAINING = -1  # stands for a batch: updates are a clock of the run, steps one of their batch
FILL = "grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))"
TONES = 8  # wb-t0 … wb-t7
DASHES = ("", "7 3", "2 3", "8 3 2 3")


@dataclass
class Series:
    """metric -> line -> batch -> place in time -> value, and what went wrong on the way; grows with the file."""

    path: Path
    values: dict[str, dict[str, dict[int, dict[float, float]]]] = field(default_factory=dict)
    samples: dict[str, dict[tuple[int, int], dict]] = field(default_factory=dict)  # as workbench.report has them
    failures: dict[str, str] = field(default_factory=dict)
    alarm: str = ""
    latest: dict = field(default_factory=dict)  # the newest event that has a place in time
    changes: int = 0
    _offset: int = 0
    _file_id: tuple[int, int] = (0, 0)  # device and inode: a file that was replaced is read anew
    _torn_line: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> Series:
        """Take in what was appended since."""
        with self._lock:
            try:
                with open(self.path, "rb") as f:
                    stat = self.path.stat()
                    if (stat.st_dev, stat.st_ino) != self._file_id or stat.st_size < self._offset:
                        self._start_over((stat.st_dev, stat.st_ino))
                    f.seek(self._offset)
                    while block := f.read(BLOCK_BYTES):
                        self._offset += len(block)
                        *lines, self._torn_line = (self._torn_line + block).split(b"\n")
                        for line in lines:
                            self._take_line(line)
            except FileNotFoundError:
                pass
        return self

    def _start_over(self, file: tuple[int, int]) -> None:
        self.values, self.samples, self.failures, self.alarm, self.latest = {}, {}, {}, "", {}
        self._file_id, self._offset, self._torn_line = file, 0, b""

    def _take_line(self, line: bytes) -> None:
        try:
            event = parse_json(line, "events.jsonl")
        except BadInput:
            return  # the run itself says what is wrong with its log
        if not isinstance(event, Mapping):
            return
        self.changes += 1
        name = str(event.get("contestant", "trained"))
        if failed := event.get("failed"):
            self.failures[name] = str(failed)
        if alarm := event.get("alarm"):
            self.alarm = str(alarm)
        for sample in event.get("samples") or ():
            samples = self.samples.setdefault(name, {})
            if len(samples) < MAX_SAMPLES and {"index", "seed", "file"} <= sample.keys():
                samples[sample["index"], sample.get("k", sample["seed"])] = sample
        key = next((k for k in CLOCK_KEYS if _is_finite(event.get(k))), None)
        if key is None:
            return
        batch = TRAINING if "phase" in event or key != "step" else event.get("batch", 0)
        self.latest = {k: v for k, v in event.items() if k != "samples"}
        for metric, value in _read_numbers(event):
            self.values.setdefault(metric, {}).setdefault(name, {}).setdefault(batch, {})[event[key]] = value

    def mean_lines(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """metric -> line -> points, the mean over batches at the places that all of them have, without a batch that is
        still behind the first; `reward` comes first, then what was held out."""
        out: dict[str, dict[str, list]] = {}
        for metric in sorted(self.values, key=lambda m: (m != "reward", not m.startswith("held"), "reward" not in m)):
            for name, batches_by_index in self.values[metric].items():
                if TRAINING in batches_by_index:  # a trained contestant is sampled too, which is another clock
                    batches_by_index = {TRAINING: batches_by_index[TRAINING]}
                first, *more = batches_by_index.values()
                batches = [first, *more[:-1], *(b for b in more[-1:] if len(b) >= len(first))]
                places = sorted(set.intersection(*map(set, batches)))
                line = [(x, sum(b[x] for b in batches) / len(batches)) for x in places]
                if len(line) > 1:
                    out.setdefault(metric, {})[name] = thin_line(line)
        return out


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_numbers(event: Mapping) -> Iterator[tuple[str, float]]:
    for group in GROUPS:
        inner = event.get(group)
        for name, value in inner.items() if isinstance(inner, Mapping) else ():
            value = value.get("mean") if isinstance(value, Mapping) else value
            if _is_finite(value):
                yield (str(name) if group == "metrics" else f"{group} {name}").replace("_", " "), float(value)


def thin_line(line: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `limit` points that look like all of them: of each stretch its first, lowest, highest and last."""
    if len(line) <= limit:
        return list(line)
    size, out = -(-len(line) // (limit // 4)), []
    for at in range(0, len(line), size):
        part = range(at, min(at + size, len(line)))
        low, high = min(part, key=lambda n: line[n][1]), max(part, key=lambda n: line[n][1])
        out += [line[n] for n in sorted({part[0], low, high, part[-1]})]
    return out


_series_by_path: OrderedDict[Path, Series] = OrderedDict()
_series_lock = threading.Lock()


def read_series(path: Path) -> Series:
    """The one reader of this file; the latest few are remembered."""
    with _series_lock:
        series = _series_by_path.setdefault(path, Series(path))
        _series_by_path.move_to_end(path)
        while len(_series_by_path) > 16:
            _series_by_path.popitem(last=False)
    return series.read()


def draw_curves(lines: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], order: Iterable[str] = ()) -> str:
    """A panel a metric, a legend for all: HTML. A line keeps the tone of its place in `order`."""
    panel_lines = dict(list(lines.items())[:MAX_PANELS])
    line_names = {name for panel in panel_lines.values() for name in panel}
    places = enumerate(dict.fromkeys([*order, *sorted(line_names)]))
    style = {name: (n % TONES, DASHES[n // TONES % len(DASHES)]) for n, name in places if name in line_names}
    key = "".join(
        f'<li class="wb-t{tone}"><svg width="24" height="8" aria-hidden="true" style="display:inline;margin-right:7px">'
        f'<line x1="0" x2="24" y1="4" y2="4" stroke="var(--tone)" stroke-width="2.5" stroke-dasharray="{dash}"/></svg>'
        f"{escape_text(name)}</li>"
        for name, (tone, dash) in style.items()
    )
    more = (
        f'<p class="wb-note">{len(lines) - MAX_PANELS} more metrics are in the log.</p>'
        if len(lines) > MAX_PANELS
        else ""
    )
    panels = "".join(_draw_panel(metric, panel, style) for metric, panel in panel_lines.items())
    return f'<ul class="wb-key">{key}</ul><div class="wb-grid" style="{FILL}">{panels}</div>{more}'


def draw_reward_curves(events: Path, levels: Mapping[str, float | None]) -> str:
    """The reward of every contestant as HTML: a line for those that report it on the way, a level one, at `levels`, for
    those that were only judged at the end; "" before there is a point."""
    series = read_series(events).mean_lines().get("reward", {})
    places = [x for line in series.values() for x, _ in line]
    if not places:
        return ""
    level = {n: [(min(places), v), (max(places), v)] for n, v in levels.items() if v is not None}
    lines = {name: series.get(name) or level[name] for name in levels if name in series or name in level}
    return draw_curves({"reward, by step": lines})


WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP = 340, 190, 52, 24, 10  # of a panel, in its own units


def _draw_panel(
    metric: str, lines: Mapping[str, Sequence[tuple[float, float]]], style: Mapping[str, tuple[int, str]]
) -> str:
    points = [p for line in lines.values() for p in line]
    x, y = Axis.over([p[0] for p in points], tight=True), Axis.over([p[1] for p in points])
    across, down = WIDTH - MARGIN_LEFT - 12, HEIGHT - MARGIN_TOP - MARGIN_BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return round(MARGIN_LEFT + across * x.at(px) / 100, 1), round(MARGIN_TOP + down * (1 - y.at(py) / 100), 1)

    rules = "".join(
        f'<line x1="{MARGIN_LEFT}" x2="{WIDTH - 12}" y1="{(h := MARGIN_TOP + down * (1 - p / 100)):.1f}" y2="{h:.1f}" '
        f'stroke="var(--wb-rule)"/><text x="{MARGIN_LEFT - 7}" y="{h + 4:.1f}" text-anchor="end">{text}</text>'
        for p, text in y.labels()
    )
    ticks = "".join(
        f'<text x="{MARGIN_LEFT + across * p / 100:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{text}</text>'
        for p, text in x.labels()
    )
    polylines = ""
    for name, line in lines.items():
        tone, dash = style[name]
        path = " ".join(f"{a},{b}" for a, b in (at(*p) for p in line))
        (a, b), last = at(*line[-1]), line[-1]
        polylines += (
            f'<g class="wb-t{tone}"><polyline points="{path}" fill="none" stroke="var(--tone)" stroke-width="2" '
            f'stroke-dasharray="{dash}" stroke-linejoin="round"/><circle cx="{a}" cy="{b}" r="3.2" fill="var(--tone)">'
            f"<title>{escape_text(name)}: {format_number(last[1], 4)} at {format_number(last[0], 0)}</title>"
            "</circle></g>"
        )
    latest = "; ".join(f"{name} {format_number(line[-1][1], 4)}" for name, line in lines.items())
    return (
        f'<figure class="wb-card" style="margin:0"><h3>{escape_text(metric)}</h3>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" '
        f'aria-label="{escape_text(f"{metric}, latest: {latest}")}" '
        f'style="display:block;font-size:11px" fill="var(--wb-soft)">{rules}{ticks}{polylines}</svg></figure>'
    )
