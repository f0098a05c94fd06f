"""A run's metrics while they are written: read from where the last look ended, thinned, and drawn as inline SVG."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.report.charts import Axis
from workbench.report.findings import number
from workbench.ui.widgets.html import plain

X = ("update", "step", "iteration", "epoch")  # what an event may call its place in time; the first it has counts
GROUPS = ("metrics", "eval", "scores", "watch", "held_out")  # where an event may keep numbers
POINTS = 400  # drawn of a line
PANELS = 8
SAMPLES = 64  # remembered of a contestant
BLOCK = 2**20  # bytes read at once
TRAINING = -1  # in the place of a batch: updates are the run's own time, a step is its batch's
FILL = "grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))"
TONES = 8  # wb-t0 … wb-t7
DASHES = ("", "7 3", "2 3", "8 3 2 3")


@dataclass
class Series:
    """metric -> line -> batch -> place in time -> value, and what went wrong on the way; grows with the file."""

    path: Path
    found: dict[str, dict[str, dict[int, dict[float, float]]]] = field(default_factory=dict)
    samples: dict[str, dict[tuple[int, int], dict]] = field(default_factory=dict)  # as workbench.report has them
    failures: dict[str, str] = field(default_factory=dict)
    alarm: str = ""
    latest: dict = field(default_factory=dict)  # the newest event that has a place in time
    changes: int = 0
    _at: int = 0
    _file: tuple[int, int] = (0, 0)  # device and inode: a file that was replaced is read anew
    _rest: bytes = b""
    _one: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> Series:
        """Take in what was appended since."""
        with self._one:
            try:
                with open(self.path, "rb") as f:
                    stat = self.path.stat()
                    if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._at:
                        self._forget((stat.st_dev, stat.st_ino))
                    f.seek(self._at)
                    while block := f.read(BLOCK):
                        self._at += len(block)
                        *lines, self._rest = (self._rest + block).split(b"\n")
                        for line in lines:
                            self._take(line)
            except FileNotFoundError:
                pass
        return self

    def _forget(self, file: tuple[int, int]) -> None:
        self.found, self.samples, self.failures, self.alarm, self.latest = {}, {}, {}, "", {}
        self._file, self._at, self._rest = file, 0, b""

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
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
            made = self.samples.setdefault(name, {})
            if len(made) < SAMPLES and {"index", "seed", "file"} <= sample.keys():
                made[sample["index"], sample.get("k", sample["seed"])] = sample
        key = next((k for k in X if _finite(event.get(k))), None)
        if key is None:
            return
        batch = TRAINING if "phase" in event or key != "step" else event.get("batch", 0)
        self.latest = {k: v for k, v in event.items() if k != "samples"}
        for metric, value in _numbers(event):
            self.found.setdefault(metric, {}).setdefault(name, {}).setdefault(batch, {})[event[key]] = value

    def lines(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """metric -> line -> points, the mean over batches at the places that all of them have, without a batch that is
        still behind the first; `reward` comes first, then what was held out."""
        out: dict[str, dict[str, list]] = {}
        for metric in sorted(self.found, key=lambda m: (m != "reward", not m.startswith("held"), "reward" not in m)):
            for name, found in self.found[metric].items():
                if TRAINING in found:  # a trained contestant is sampled too, which is another clock
                    found = {TRAINING: found[TRAINING]}
                first, *more = found.values()
                batches = [first, *more[:-1], *(b for b in more[-1:] if len(b) >= len(first))]
                places = sorted(set.intersection(*map(set, batches)))
                line = [(x, sum(b[x] for b in batches) / len(batches)) for x in places]
                if len(line) > 1:
                    out.setdefault(metric, {})[name] = thin(line)
        return out


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(event: Mapping) -> Iterator[tuple[str, float]]:
    for group in GROUPS:
        inner = event.get(group)
        for name, value in inner.items() if isinstance(inner, Mapping) else ():
            value = value.get("mean") if isinstance(value, Mapping) else value
            if _finite(value):
                yield (str(name) if group == "metrics" else f"{group} {name}").replace("_", " "), float(value)


def thin(line: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most about `most` points that look like all of them: of each stretch its first, lowest, highest and last."""
    if len(line) <= most:
        return list(line)
    size, out = -(-len(line) // (most // 4)), []
    for at in range(0, len(line), size):
        part = range(at, min(at + size, len(line)))
        low, high = min(part, key=lambda n: line[n][1]), max(part, key=lambda n: line[n][1])
        out += [line[n] for n in sorted({part[0], low, high, part[-1]})]
    return out


_known: OrderedDict[Path, Series] = OrderedDict()
_guard = threading.Lock()


def series(path: Path) -> Series:
    """The one reader of this file; the latest few are remembered."""
    with _guard:
        found = _known.setdefault(path, Series(path))
        _known.move_to_end(path)
        while len(_known) > 16:
            _known.popitem(last=False)
    return found.read()


def draw(lines: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], order: Iterable[str] = ()) -> str:
    """A panel a metric, a legend for all: HTML. A line keeps the tone of its place in `order`."""
    shown = dict(list(lines.items())[:PANELS])
    drawn = {name for panel in shown.values() for name in panel}
    places = enumerate(dict.fromkeys([*order, *sorted(drawn)]))
    style = {name: (n % TONES, DASHES[n // TONES % len(DASHES)]) for n, name in places if name in drawn}
    key = "".join(
        f'<li class="wb-t{tone}"><svg width="24" height="8" aria-hidden="true" style="display:inline;margin-right:7px">'
        f'<line x1="0" x2="24" y1="4" y2="4" stroke="var(--tone)" stroke-width="2.5" stroke-dasharray="{dash}"/></svg>'
        f"{plain(name)}</li>"
        for name, (tone, dash) in style.items()
    )
    more = f'<p class="wb-note">{len(lines) - PANELS} more metrics are in the log.</p>' if len(lines) > PANELS else ""
    panels = "".join(_panel(metric, panel, style) for metric, panel in shown.items())
    return f'<ul class="wb-key">{key}</ul><div class="wb-grid" style="{FILL}">{panels}</div>{more}'


WIDE, HIGH, LEFT, FOOT, TOP = 340, 190, 52, 24, 10  # of a panel, in its own units


def _panel(
    metric: str, lines: Mapping[str, Sequence[tuple[float, float]]], style: Mapping[str, tuple[int, str]]
) -> str:
    points = [p for line in lines.values() for p in line]
    x, y = Axis.over([p[0] for p in points], tight=True), Axis.over([p[1] for p in points])
    across, down = WIDE - LEFT - 12, HIGH - TOP - FOOT

    def at(px: float, py: float) -> tuple[float, float]:
        return round(LEFT + across * x.at(px) / 100, 1), round(TOP + down * (1 - y.at(py) / 100), 1)

    rules = "".join(
        f'<line x1="{LEFT}" x2="{WIDE - 12}" y1="{(h := TOP + down * (1 - p / 100)):.1f}" y2="{h:.1f}" '
        f'stroke="var(--wb-rule)"/><text x="{LEFT - 7}" y="{h + 4:.1f}" text-anchor="end">{text}</text>'
        for p, text in y.labels()
    )
    ticks = "".join(
        f'<text x="{LEFT + across * p / 100:.1f}" y="{HIGH - 6}" text-anchor="middle">{text}</text>'
        for p, text in x.labels()
    )
    drawn = ""
    for name, line in lines.items():
        tone, dash = style[name]
        path = " ".join(f"{a},{b}" for a, b in (at(*p) for p in line))
        (a, b), last = at(*line[-1]), line[-1]
        drawn += (
            f'<g class="wb-t{tone}"><polyline points="{path}" fill="none" stroke="var(--tone)" stroke-width="2" '
            f'stroke-dasharray="{dash}" stroke-linejoin="round"/><circle cx="{a}" cy="{b}" r="3.2" fill="var(--tone)">'
            f"<title>{plain(name)}: {number(last[1], 4)} at {number(last[0], 0)}</title></circle></g>"
        )
    told = "; ".join(f"{name} {number(line[-1][1], 4)}" for name, line in lines.items())
    return (
        f'<figure class="wb-card" style="margin:0"><h3>{plain(metric)}</h3>'
        f'<svg viewBox="0 0 {WIDE} {HIGH}" width="100%" role="img" aria-label="{plain(f"{metric}, latest: {told}")}" '
        f'style="display:block;font-size:11px" fill="var(--wb-soft)">{rules}{ticks}{drawn}</svg></figure>'
    )
