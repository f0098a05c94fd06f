"""The charts of the report as data: axes with round ticks, and the summary's numbers on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workbench.evaluation.statistics import FEW_PROMPTS
from workbench.report.estimates import (
    base_contestant,
    costs_per_sample,
    estimates_by_metric,
    finished_contestants,
    is_optimised,
    read_estimate,
)
from workbench.report.formatting import decimals_for

MAX_LABEL_LETTERS = 28  # letters that fit along the narrowest axis


@dataclass(frozen=True)
class Axis:
    """A linear scale with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @staticmethod
    def over(
        values: Iterable[float], bounds: tuple[float, float] | None = None, *, count: int = 3, tight: bool = False
    ) -> Axis:
        """The axis of these values, or of `bounds`, with about `count` steps. It ends at ticks; a tight one, with ticks
        at whole numbers, ends at the data."""
        values = [v for v in values if math.isfinite(v)]
        low, high = bounds or (min(values), max(values))
        if high - low < 1e-9 * max(1.0, abs(high)):
            low, high = low - 0.5, high + 0.5
        rough = (high - low) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        if tight:
            step = max(1, round(step))
            ticks = tuple(step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))
            return Axis(low, high, ticks)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(n * step for n in range(first, last + 1))
        return Axis(ticks[0], ticks[-1], ticks)

    def at(self, x: float) -> float:
        """The position of x in percent."""
        return round(100 * (x - self.low) / (self.high - self.low), 3)

    def labels(self) -> list[tuple[float, str]]:
        """(position in percent, text) of the ticks, or of every other one where they would not fit."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        places += round(step, places) != round(step, 9)  # steps of 0.25
        texts = [f"{t + 0.0:,.{places}f}".replace("-", "−") for t in self.ticks]
        every = 1 + (sum(map(len, texts)) > MAX_LABEL_LETTERS)
        return [(self.at(t), text) for t, text in zip(self.ticks, texts, strict=True)][::every]


@dataclass(frozen=True)
class Doublings:
    """A log2 axis of counts, with a tick at every `every`-th power of two."""

    low: int  # powers of two
    high: int
    every: int

    @staticmethod
    def over(values: Iterable[float], max_ticks: int = 7) -> Doublings:
        """The axis of these positive values, with at most `max_ticks` ticks."""
        powers = [math.log2(v) for v in values]
        low, high = math.floor(min(powers) + 1e-9), math.ceil(max(powers) - 1e-9)
        return Doublings(low, max(high, low + 1), max(1, math.ceil((high - low) / (max_ticks - 1))))

    def at(self, x: float) -> float:
        """The position of x in percent; the ends lie a little inside, so that markers fit."""
        return round(4 + 92 * (math.log2(x) - self.low) / (self.high - self.low), 3)

    def labels(self) -> list[tuple[float, str]]:
        """(position in percent, text) of the ticks."""
        return [(self.at(2.0**p), f"{2.0**p:,g}") for p in range(self.low, self.high + 1, self.every)]


def _axis_values(estimates: Iterable[Mapping]) -> list[float]:
    return [x for e in estimates for x in (e["mean"], *(e["ci95"] or ()))]


def metric_panels(summary: Mapping) -> list[dict]:
    """A dot-and-whisker panel for each metric: the contestants' means and intervals on a common axis."""
    out = []
    for name, estimates in estimates_by_metric(summary).items():
        unit = name == "oracle" and all(0 <= x <= 1 for x in _axis_values(estimates.values()))
        axis = Axis.over(_axis_values(estimates.values()), (0.0, 1.0) if unit else None)
        out.append({"name": name, "axis": axis, "rows": list(estimates.items()), "optimised": is_optimised(estimates),
                    "digits": decimals_for(estimates.values())})  # fmt: skip
    return out


def difference_panel(summary: Mapping) -> dict | None:
    """The panel of the paired differences from the base on the first metric; None without any."""
    judge = next(iter(estimates_by_metric(summary)), None)
    pairs = [(c["name"], read_estimate(c.get("versus_base", {}).get(judge, {}))) for c in finished_contestants(summary)]
    pairs = [(name, e) for name, e in pairs if e]
    if not pairs:
        return None
    rows = [e for _, e in pairs]
    return {"name": judge, "axis": Axis.over([0.0, *_axis_values(rows)]), "rows": pairs, "digits": decimals_for(rows)}


def category_panels(summary: Mapping) -> list[dict]:
    """A panel of the oracle's means for each category of prompts; "few" marks categories of few prompts."""
    names = dict.fromkeys(k for c in finished_contestants(summary) for k in c.get("oracle", {}) if k != "overall")
    out = []
    for name in names:
        rows = [(c["name"], read_estimate(c.get("oracle", {}).get(name, {}))) for c in finished_contestants(summary)]
        rows = [(n, e) for n, e in rows if e]
        if rows:
            n = max(e["n"] for _, e in rows)
            out.append({"name": name, "rows": rows, "n": n, "few": n < FEW_PROMPTS * summary["seeds"]})
    return out


def progress_charts(events: Iterable[Mapping], limit: int = 2) -> list[dict]:
    """Up to `limit` charts of metrics that methods report against the step, `reward` first. A contestant's line is the
    mean over its batches, at the steps that all of them reached (fewer batches at later steps would bend the line)."""
    values: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for e in events:
        for metric, value in e.get("metrics", {}).items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                steps = values.setdefault(metric, {}).setdefault(e["contestant"], {}).setdefault(e["step"], {})
                steps[e.get("batch", 0)] = value
    out = []
    for metric in sorted(values, key=lambda m: m != "reward"):
        lines = {}
        for name, steps in values[metric].items():
            max_batches = max(map(len, steps.values()))
            line = [(s, sum(b.values()) / len(b)) for s, b in sorted(steps.items()) if len(b) == max_batches]
            if len(line) > 1:
                lines[name] = line
        if lines:
            points = [p for line in lines.values() for p in line]
            out.append(
                {
                    "name": metric,
                    "x": Axis.over([p[0] for p in points], tight=True),
                    "y": Axis.over([p[1] for p in points]),
                    "lines": lines,
                }
            )
    return out[:limit]


def scaling_charts(summary: Mapping) -> list[dict]:
    """Scores against the budget in denoiser rows per sample: a chart for the first metric and one for the first
    optimised one. A contestant with a curve is a line, one without a point, the base a horizontal line. Empty where no
    contestant has a curve."""
    if not any(len(c.get("curve", ())) > 1 for c in finished_contestants(summary)):
        return []
    table = estimates_by_metric(summary)
    judge = next(iter(table), None)
    optimised_metric = next((m for m, estimates in table.items() if m != judge and is_optimised(estimates)), None)
    return [
        chart for m in (judge, optimised_metric) if m is not None and (chart := _scaling_chart(summary, m, table[m]))
    ]


def _scaling_chart(summary: Mapping, metric: str, estimates: Mapping[str, Mapping]) -> dict | None:
    costs, base = costs_per_sample(summary), (base_contestant(summary) or {}).get("name")
    lines = {}
    for c in finished_contestants(summary):
        curve = [(p.get("nfe"), read_estimate(p.get("rewards", {}).get(metric, {}))) for p in c.get("curve", ())]
        end = [(costs[c["name"]]["nfe"], estimates.get(c["name"]))]
        if points := _drawable_points(curve) or _drawable_points(end):
            lines[c["name"]] = points
    if not lines:
        return None
    level = estimates.get(base)
    y = Axis.over(_axis_values([e for points in lines.values() for _, e in points] + [level] * (level is not None)))
    x = Doublings.over([n for points in lines.values() for n, _ in points])
    places = decimals_for([points[-1][1] for points in lines.values()])
    return {
        "name": metric,
        "optimised": is_optimised(estimates),
        "x": x,
        "y": y,
        "base": base,
        "level": level,
        "digits": places,
        "lines": lines,
        "shifts": _marker_shifts(lines, base),
    }


def _drawable_points(points: Iterable[tuple[float | None, Mapping | None]]) -> list[tuple[float, Mapping]]:
    return sorted(((x, e) for x, e in points if e and x is not None and 0 < x < math.inf), key=lambda p: p[0])


def _marker_shifts(names: Iterable[str], base: str | None) -> dict[str, float]:
    """Horizontal shifts in pixels, so that whiskers at the same budget don't overlap."""
    shifted_names = [n for n in names if n != base]
    step = min(12.0, 42 / max(1, len(shifted_names)))
    return {n: round(step * (k - (len(shifted_names) - 1) / 2), 1) for k, n in enumerate(shifted_names)}
