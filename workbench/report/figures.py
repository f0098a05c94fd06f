"""The report's charts as figures for a paper, one drawing each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workbench.core.errors import BadInput
from workbench.report import charts
from workbench.report.columns import choose_contestants
from workbench.report.drawings import INK, RULE, SOFT, Drawing, measure_text, to_pdf, to_svg
from workbench.report.formatting import format_interval, format_number, format_signed

TONES = ("#7b818b", "#0b6fb8", "#d55e00", "#008f6b", "#b3478c", "#8a6d00", "#5b4bc4", "#2b2f36")  # as in report.css
WIDTH, PLOT = 400.0, 170.0  # points, of a page and of the scale in a panel
LINE, SIZE = 17.0, 9.0  # points, between rows and of letters
ENCODERS: dict[str, Callable[[Drawing], str | bytes]] = {"svg": to_svg, "pdf": to_pdf}


def draw_figures(summary: Mapping, events: Iterable[Mapping], contestants: Sequence[str] = ()) -> dict[str, Drawing]:
    """File name without suffix -> drawing: `means-METRIC` for each metric, `difference-METRIC` from the base,
    `scaling-METRIC` against the budget, `progress-METRIC` of what methods report. contestants: only these, in this
    order. Raises BadInput for an unknown contestant, and where there is nothing to draw."""
    names = [c["name"] for c in choose_contestants(summary, contestants)]
    tones = {c["name"]: TONES[n % len(TONES)] for n, c in enumerate(summary["contestants"])}
    figures: dict[str, Drawing] = {}

    def add(kind: str, metric: str, drawing: Drawing | None) -> None:
        if drawing is not None:
            figures[f"{kind}-{re.sub(r'[^A-Za-z0-9_-]+', '-', metric)}"] = drawing

    for panel in charts.metric_panels(summary):
        title = panel["name"] + (", optimised" if panel["optimised"] else ", never optimised")
        add("means", panel["name"], draw_panel(panel, title, names, tones, format_number))
    if panel := charts.difference_panel(summary):
        title = f"{panel['name']}, paired difference from the base"
        add("difference", panel["name"], draw_panel(panel, title, names, tones, format_signed))
    for chart in charts.scaling_charts(summary):
        lines = {n: [(x, e["mean"], e["ci95"]) for x, e in points] for n, points in chart["lines"].items()}
        level = chart["level"]["mean"] if chart["level"] else None
        title = f"{chart['name']} by denoiser rows a sample"
        add("scaling", chart["name"], draw_lines(chart, title, lines, names, tones, level))
    for chart in charts.progress_charts(events):
        lines = {n: [(x, y, None) for x, y in points] for n, points in chart["lines"].items()}
        add("progress", chart["name"], draw_lines(chart, f"{chart['name']} by step", lines, names, tones))
    if not figures:
        raise BadInput("this run has no chart to draw: nothing of it was judged")
    return figures


def draw_panel(
    panel: Mapping, title: str, names: Sequence[str], tones: Mapping[str, str], form: Callable[..., str]
) -> Drawing | None:
    """Dots with whiskers on a common axis, the numbers beside them; None without a row."""
    estimates = dict(panel["rows"])
    rows = [(name, estimates[name]) for name in names if name in estimates]
    if not rows:
        return None
    left = max(measure_text(name, SIZE) for name, _ in rows) + 14
    texts = [form(e["mean"], panel["digits"]) + format_interval(e, form, panel["digits"]) for _, e in rows]
    right = max(measure_text(text, SIZE) for text in texts)
    drawing = Drawing(left + PLOT + 14 + right, 26 + LINE * len(rows) + 22)
    drawing.text(0, 11, title, SIZE + 1)
    axis, bottom = panel["axis"], 24 + LINE * len(rows)
    for place, label in axis.labels():
        x = left + PLOT * place / 100
        drawing.line((x, 20), (x, bottom), colour=RULE)
        drawing.text(x, bottom + 12, label, SIZE - 1, "middle", SOFT)
    if axis.low < 0 < axis.high:
        zero = left + PLOT * axis.at(0) / 100
        drawing.line((zero, 20), (zero, bottom), colour=SOFT)
    for n, ((name, estimate), text) in enumerate(zip(rows, texts, strict=True)):
        y = 20 + LINE * (n + 0.5)
        drawing.text(0, y + 3, name)
        if estimate["ci95"]:
            ends = [left + PLOT * axis.at(end) / 100 for end in estimate["ci95"]]
            drawing.line((ends[0], y), (ends[1], y), colour=tones[name], width=1.5)
        drawing.dot(left + PLOT * axis.at(estimate["mean"]) / 100, y, tones[name])
        drawing.text(left + PLOT + 14, y + 3, text)
    return drawing


def draw_lines(
    chart: Mapping[str, Any],
    title: str,
    lines: Mapping[str, Sequence[tuple]],
    names: Sequence[str],
    tones: Mapping[str, str],
    level: float | None = None,
) -> Drawing | None:
    """A line for each contestant over (x, y, interval of y or None), and a level to compare with; None without one."""
    shown = [name for name in names if name in lines]
    if not shown:
        return None
    x_axis, y_axis = chart["x"], chart["y"]
    left = max(measure_text(label, SIZE - 1) for _, label in y_axis.labels()) + 8
    top, tall = 22.0, 180.0
    wide = WIDTH - left - 10
    drawing = Drawing(WIDTH, top + tall + 24 + LINE * len(shown))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + wide * x_axis.at(x) / 100, top + tall * (1 - y_axis.at(y) / 100)

    drawing.text(0, 11, title, SIZE + 1)
    for place, label in y_axis.labels():
        y = top + tall * (1 - place / 100)
        drawing.line((left, y), (left + wide, y), colour=RULE)
        drawing.text(left - 5, y + 3, label, SIZE - 1, "end", SOFT)
    for place, label in x_axis.labels():
        drawing.text(left + wide * place / 100, top + tall + 12, label, SIZE - 1, "middle", SOFT)
    if level is not None:
        y = top + tall * (1 - y_axis.at(level) / 100)
        drawing.line((left, y), (left + wide, y), colour=INK, dashed=True)
    for n, name in enumerate(shown):
        shift = chart.get("shifts", {}).get(name, 0.0) * 0.5
        places = [(at(x, y)[0] + shift, at(x, y)[1]) for x, y, _ in lines[name]]
        if len(places) > 1:
            drawing.line(*places, colour=tones[name], width=1.5)
        if len(places) == 1 or any(interval for *_, interval in lines[name]):
            for (px, py), (x, _, interval) in zip(places, lines[name], strict=True):
                drawing.dot(px, py, tones[name], 2.5)
                if interval:
                    drawing.line((px, at(x, interval[0])[1]), (px, at(x, interval[1])[1]), colour=tones[name])
        y = top + tall + 24 + LINE * (n + 0.5)
        drawing.line((left, y), (left + 16, y), colour=tones[name], width=2)
        drawing.text(left + 22, y + 3, name)
    return drawing
