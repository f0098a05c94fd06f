"""What the report draws: axes with round ticks, and the summary's numbers laid out on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workbench.evaluation.statistics import FEW
from workbench.report.findings import base_of, costs, digits, estimate, finished, metrics, optimised

ROOM = 28  # letters beside each other along the narrowest axis


@dataclass(frozen=True)
class Axis:
    """A scale with round ticks, which ends at ticks or (tight: of whole numbers) at the data; `at` is in percent."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @staticmethod
    def over(
        values: Iterable[float], bounds: tuple[float, float] | None = None, *, count: int = 3, tight: bool = False
    ) -> Axis:
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
        return round(100 * (x - self.low) / (self.high - self.low), 3)

    def labels(self) -> list[tuple[float, str]]:
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        places += round(step, places) != round(step, 9)  # steps of 0.25
        texts = [f"{t + 0.0:,.{places}f}".replace("-", "−") for t in self.ticks]
        every = 1 + (sum(map(len, texts)) > ROOM)
        return [(self.at(t), text) for t, text in zip(self.ticks, texts, strict=True)][::every]


@dataclass(frozen=True)
class Doublings:
    """A log2 axis of counts, with a tick at every power of two, or at every so many when there are more than `most`."""

    low: int  # powers of two
    high: int
    every: int

    @staticmethod
    def over(values: Iterable[float], most: int = 7) -> Doublings:
        powers = [math.log2(v) for v in values]
        low, high = math.floor(min(powers) + 1e-9), math.ceil(max(powers) - 1e-9)
        return Doublings(low, max(high, low + 1), max(1, math.ceil((high - low) / (most - 1))))

    def at(self, x: float) -> float:
        """In percent; the ends lie a little inside, where a marker has room."""
        return round(4 + 92 * (math.log2(x) - self.low) / (self.high - self.low), 3)

    def labels(self) -> list[tuple[float, str]]:
        return [(self.at(2.0**p), f"{2.0**p:,g}") for p in range(self.low, self.high + 1, self.every)]


def _ends(estimates: Iterable[Mapping]) -> list[float]:
    return [x for e in estimates for x in (e["mean"], *(e["ci95"] or ()))]


def panels(summary: Mapping) -> list[dict]:
    """One dot-and-whisker panel for each metric."""
    out = []
    for name, here in metrics(summary).items():
        unit = name == "oracle" and all(0 <= x <= 1 for x in _ends(here.values()))
        axis = Axis.over(_ends(here.values()), (0.0, 1.0) if unit else None)
        out.append({"name": name, "axis": axis, "rows": list(here.items()), "optimised": optimised(here),
                    "digits": digits(here.values())})  # fmt: skip
    return out


def differences(summary: Mapping) -> dict | None:
    judge = next(iter(metrics(summary)), None)
    pairs = [(c["name"], estimate(c.get("versus_base", {}).get(judge, {}))) for c in finished(summary)]
    pairs = [(name, e) for name, e in pairs if e]
    if not pairs:
        return None
    rows = [e for _, e in pairs]
    return {"name": judge, "axis": Axis.over([0.0, *_ends(rows)]), "rows": pairs, "digits": digits(rows)}


def categories(summary: Mapping) -> list[dict]:
    names = dict.fromkeys(k for c in finished(summary) for k in c.get("oracle", {}) if k != "overall")
    out = []
    for name in names:
        rows = [(c["name"], estimate(c.get("oracle", {}).get(name, {}))) for c in finished(summary)]
        rows = [(n, e) for n, e in rows if e]
        if rows:
            n = max(e["n"] for _, e in rows)
            out.append({"name": name, "rows": rows, "n": n, "few": n < FEW * summary["seeds"]})
    return out


def curves(events: Iterable[Mapping], limit: int = 2) -> list[dict]:
    """`reward`, or else what the methods report first, against the step; a line for each contestant: the mean over its
    batches, at the steps that all of them reached (fewer batches at later steps would bend the line)."""
    found: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for e in events:
        for metric, value in e.get("metrics", {}).items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                steps = found.setdefault(metric, {}).setdefault(e["contestant"], {}).setdefault(e["step"], {})
                steps[e.get("batch", 0)] = value
    out = []
    for metric in sorted(found, key=lambda m: m != "reward"):
        lines = {}
        for name, steps in found[metric].items():
            most = max(map(len, steps.values()))
            line = [(s, sum(b.values()) / len(b)) for s, b in sorted(steps.items()) if len(b) == most]
            if len(line) > 1:
                lines[name] = line
        if lines:
            points = [p for line in lines.values() for p in line]
            out.append({"name": metric, "x": Axis.over([p[0] for p in points], tight=True), "y": Axis.over([p[1] for p in points]),
                        "lines": lines})  # fmt: skip
    return out[:limit]


def scaling(summary: Mapping) -> list[dict]:
    """What more budget buys: the judge, then what was optimised, against denoiser rows per sample; a line for each
    contestant that has a curve, a point for one that has none, and a level line for the base. Nothing without a curve."""
    if not any(len(c.get("curve", ())) > 1 for c in finished(summary)):
        return []
    table = metrics(summary)
    judge = next(iter(table), None)
    paid = next((m for m, here in table.items() if m != judge and optimised(here)), None)
    return [chart for m in (judge, paid) if m is not None and (chart := _scaling(summary, m, table[m]))]


def _scaling(summary: Mapping, metric: str, here: Mapping[str, Mapping]) -> dict | None:
    spent, base = costs(summary), (base_of(summary) or {}).get("name")
    lines = {}
    for c in finished(summary):
        curve = [(p.get("nfe"), estimate(p.get("rewards", {}).get(metric, {}))) for p in c.get("curve", ())]
        end = [(spent[c["name"]]["nfe"], here.get(c["name"]))]
        if points := _drawable(curve) or _drawable(end):
            lines[c["name"]] = points
    if not lines:
        return None
    level = here.get(base)
    y = Axis.over(_ends([e for points in lines.values() for _, e in points] + [level] * (level is not None)))
    x = Doublings.over([n for points in lines.values() for n, _ in points])
    places = digits([points[-1][1] for points in lines.values()])
    return {"name": metric, "optimised": optimised(here), "x": x, "y": y, "base": base, "level": level, "digits": places,
            "lines": lines, "shifts": _shifts(lines, base)}  # fmt: skip


def _drawable(points: Iterable[tuple[float | None, Mapping | None]]) -> list[tuple[float, Mapping]]:
    return sorted(((x, e) for x, e in points if e and x is not None and 0 < x < math.inf), key=lambda p: p[0])


def _shifts(names: Iterable[str], base: str | None) -> dict[str, float]:
    """Pixels to either side, so that whiskers at the same budget stand beside each other."""
    moved = [n for n in names if n != base]
    step = min(12.0, 42 / max(1, len(moved)))
    return {n: round(step * (k - (len(moved) - 1) / 2), 1) for k, n in enumerate(moved)}
