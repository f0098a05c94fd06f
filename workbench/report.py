"""A run folder becomes something that a person reads: `report.html`, `grid.png` and the terminal's table.

Every sentence is computed from `summary.json`. A difference is claimed only when its 95 % interval leaves zero out; what
an optimised reward says about itself is never called an improvement.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from rich.table import Table
from rich.text import Text

from . import media
from .store import RunFolder, write_atomic
from .types import BadInput

HERE = Path(__file__).parent
PICTURES = 48  # inlined at most, rounded down to whole rows
GRID_ROWS = 8
BYTES = 2_200_000  # of inlined media, before base64 makes them a third longer
NOUN = {"image": "picture", "video": "clip", "audio": "sound"}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def number(x: float | None, digits: int = 2) -> str:
    """0.83, 12.3, 2,000; a true minus sign; a dash for what wasn't measured."""
    if x is None or not math.isfinite(x):
        return "–"
    digits = 0 if abs(x) >= 100 else min(digits, 1) if abs(x) >= 10 else digits
    return f"{round(x, digits) + 0.0:,.{digits}f}".replace("-", "−")


def signed(x: float, digits: int = 2) -> str:
    text = number(x, digits)
    return text if text[0] == "−" else "+" + text


def digits(estimates: Iterable[Mapping]) -> int:
    """Decimals that show a tenth of the narrowest interval: two to four."""
    widths = [e["ci95"][1] - e["ci95"][0] for e in estimates if e.get("ci95")]
    narrow = min((w for w in widths if w > 0), default=1.0)
    return max(2, min(4, 1 - math.floor(math.log10(narrow))))


def metrics(summary: Mapping) -> dict[str, dict[str, Mapping]]:
    """metric -> contestant -> estimate {mean, ci95, n, optimised}: the oracle first, then what nobody optimised, then
    what was optimised. Contestants without a finite mean are left out."""
    found: dict[str, dict[str, Mapping]] = {}
    for c in finished(summary):
        own = dict(c.get("rewards", {}))
        if "oracle" in c:
            flag = own.pop("oracle", {}).get("optimised", False)
            own = {"oracle": {**c["oracle"]["overall"], "optimised": flag}} | own
        for name, estimate in own.items():
            if estimate.get("mean") is not None and math.isfinite(estimate["mean"]):
                found.setdefault(name, {})[c["name"]] = estimate
    return dict(sorted(found.items(), key=lambda item: (item[0] != "oracle", _optimised(item[1]))))


def _optimised(estimates: Mapping[str, Mapping]) -> bool:
    return any(e.get("optimised") for e in estimates.values())


def finished(summary: Mapping) -> list[Mapping]:
    return [c for c in summary["contestants"] if "failed" not in c]


def base_of(summary: Mapping) -> Mapping | None:
    """What the others are compared with: the first finished contestant that isn't itself compared with another."""
    return next((c for c in finished(summary) if "versus_base" not in c), None)


def difference(summary: Mapping, name: str, metric: str) -> tuple[int, Mapping | None]:
    """(-1 lower, 0 not shown, +1 higher than the base; the paired difference where the summary has one).

    Paired when it can be; otherwise the two intervals must not overlap.
    """
    c = next(c for c in finished(summary) if c["name"] == name)
    paired = c.get("versus_base", {}).get(metric)
    if paired and paired.get("ci95"):
        low, high = paired["ci95"]
        return (low > 0) - (high < 0), paired
    base, here = base_of(summary), metrics(summary).get(metric, {})
    return (apart(here[name], here[base["name"]]) if base and {name, base["name"]} <= here.keys() else 0), None


def apart(a: Mapping, b: Mapping) -> int:
    """+1 when a's interval lies above b's, -1 below, 0 when they overlap or one is unknown."""
    if not a.get("ci95") or not b.get("ci95"):
        return 0
    return (a["ci95"][0] > b["ci95"][1]) - (a["ci95"][1] < b["ci95"][0])


# ---- words -----------------------------------------------------------------------------------------------------------


def listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def headline(summary: Mapping) -> list[str]:
    """What happened, then what was compared and how far it can be believed: sentences true to the numbers."""
    table, base = metrics(summary), base_of(summary)
    others = [c["name"] for c in finished(summary) if c is not base]
    if not table or base is None:
        return ["Nothing finished, so there is nothing to compare.", *_failures(summary)]
    judge = next(iter(table))
    named, here = _called(judge), table[judge]
    if base["name"] not in here or not set(others) & here.keys():
        only = [f"{n} scores {number(e['mean'])}{_within(e)} on {named}" for n, e in here.items()]
        return [listing(only) + ".", "There is nothing to compare it with.", *_failures(summary)]
    out = [_outcome(summary, judge), _compared(summary)]
    out += _details(summary, judge)
    out += _between(summary, judge)
    if _optimised(here):
        held = "the oracle too was optimised" if judge == "oracle" else "every reward here was optimised by someone"
        out.append(
            f"Beware: {held}, so a rise shows that optimising works, not that the {NOUN[summary['modality']]}s are better."
        )
    return out + _failures(summary)


def _called(metric: str) -> str:
    return "the oracle" if metric == "oracle" else metric


def _within(estimate: Mapping, sign=number) -> str:
    if not estimate.get("ci95"):
        return ""
    d = digits([estimate])
    return f" [{sign(estimate['ci95'][0], d)}, {sign(estimate['ci95'][1], d)}]"


def _outcome(summary: Mapping, judge: str) -> str:
    base, here = base_of(summary)["name"], metrics(summary)[judge]
    named, start = _called(judge), number(here[base]["mean"])
    sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for name in here:
        if name != base:
            sides[difference(summary, name, judge)[0]].append(name)
    said = []
    for side, verb in ((1, "raise"), (-1, "lower")):
        scored = [f"{n} ({number(here[n]['mean'])})" for n in sides[side]]
        if len(scored) == 1:
            said.append(f"{sides[side][0]} {verb}s {named} from {start} to {number(here[sides[side][0]]['mean'])}")
        elif scored:
            said.append(f"{listing(scored)} {verb} {named} from {base}’s {start}")
    if sides[0]:
        scored = listing([f"{n} ({number(here[n]['mean'])})" for n in sides[0]])
        tail = (
            f"no difference from {base} ({start}) is shown for {scored}"
            if not said
            else f"no difference is shown for {scored}"
        )
        said.append(tail if said else f"On {named}, {tail}")
    return "; ".join(said) + "."


def _compared(summary: Mapping) -> str:
    names, seeds = [c["name"] for c in finished(summary)], summary["seeds"]
    return (
        f"{listing(names)} answered the same {summary['prompts']} prompts with {seeds} "
        f"seed{'s' if seeds > 1 else ''} each; brackets hold 95 % intervals."
    )


def _details(summary: Mapping, judge: str) -> list[str]:
    said = []
    for name in metrics(summary)[judge]:
        if name == base_of(summary)["name"]:
            continue
        side, paired = difference(summary, name, judge)
        if paired:
            shown = f"{name} {signed(paired['mean'], digits([paired]))}{_within(paired, signed)}"
            said.append(shown if side else f"{shown}, which includes zero")
        else:
            said.append(
                f"{name}: the interval {'lies apart from' if side else 'is not shown to differ from'} the base’s"
            )
    return [f"Difference from {base_of(summary)['name']} on {_called(judge)}, sample by sample: {'; '.join(said)}."]


def _between(summary: Mapping, judge: str) -> list[str]:
    """The two best that aren't the base, against each other, and whether they had the same budget."""
    base, here = base_of(summary)["name"], metrics(summary)[judge]
    first, second = (sorted((n for n in here if n != base), key=lambda n: -here[n]["mean"]) + [None])[:2]
    if second is None:
        return []
    calls = {c["name"]: c.get("nfe") for c in finished(summary)}
    said = f"{first}’s interval lies above {second}’s" if apart(here[first], here[second]) > 0 else (
        f"Between {first} and {second} no difference is shown: their intervals overlap")  # fmt: skip
    if calls[first] and calls[second]:
        ratio = max(calls[first], calls[second]) / min(calls[first], calls[second])
        more = max(first, second, key=calls.get)
        said += "; both had the same budget" if ratio < 1.05 else f"; {more} used {ratio:.1f}× the denoiser calls"
    return [said + "."]


def _failures(summary: Mapping) -> list[str]:
    return [f"{c['name']} failed: {c['failed'].rstrip('.')}." for c in summary["contestants"] if "failed" in c]


CONTROLS = {
    "shuffled": "A control: every sample was judged against another prompt. Nothing here should beat the base.",
    "negated": "A control: methods were paid for what the reward dislikes. Nothing here should beat the base.",
}


# ---- what is shown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A scale with round ticks; `at` gives a position in percent of its length."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @staticmethod
    def over(values: Iterable[float], bounds: tuple[float, float] | None = None, count: int = 4) -> Axis:
        values = [v for v in values if math.isfinite(v)]
        low, high = bounds or (min(values), max(values))
        if high - low < 1e-9 * max(1.0, abs(high)):
            low, high = low - 0.5, high + 0.5
        rough = (high - low) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(n * step for n in range(first, last + 1))
        return Axis(ticks[0], ticks[-1], ticks)

    def at(self, x: float) -> float:
        return round(100 * (x - self.low) / (self.high - self.low), 3)

    def labels(self) -> list[tuple[float, str]]:
        step = self.ticks[1] - self.ticks[0]
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        places += round(step, places) != round(step, 9)  # steps of 0.25
        return [(self.at(t), f"{t + 0.0:,.{places}f}".replace("-", "−")) for t in self.ticks]


def _ends(estimates: Iterable[Mapping]) -> list[float]:
    return [x for e in estimates for x in (e["mean"], *(e.get("ci95") or ()))]


def _panels(summary: Mapping) -> list[dict]:
    """One dot-and-whisker panel for each metric."""
    out = []
    for name, here in metrics(summary).items():
        unit = name == "oracle" and all(0 <= x <= 1 for x in _ends(here.values()))
        axis = Axis.over(_ends(here.values()), (0.0, 1.0) if unit else None)
        out.append({"name": name, "axis": axis, "rows": list(here.items()), "optimised": _optimised(here),
                    "digits": digits(here.values())})  # fmt: skip
    return out


def _differences(summary: Mapping) -> dict | None:
    judge = next(iter(metrics(summary)), None)
    pairs = [(c["name"], c.get("versus_base", {}).get(judge)) for c in finished(summary)]
    pairs = [(name, e) for name, e in pairs if e and e.get("mean") is not None]
    if not pairs:
        return None
    rows = [e for _, e in pairs]
    return {"name": judge, "axis": Axis.over([0.0, *_ends(rows)]), "rows": pairs, "digits": digits(rows)}


def _categories(summary: Mapping) -> list[dict]:
    names = dict.fromkeys(k for c in finished(summary) for k in c.get("oracle", {}) if k != "overall")
    out = []
    for name in names:
        rows = [(c["name"], c.get("oracle", {}).get(name)) for c in finished(summary)]
        rows = [(n, e) for n, e in rows if e and e.get("mean") is not None]
        if rows:
            out.append({"name": name, "rows": rows, "n": max(e.get("n", 0) for _, e in rows)})
    return out


def curves(events: Iterable[Mapping], limit: int = 3) -> list[dict]:
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
            out.append({"name": metric, "x": Axis.over([p[0] for p in points]), "y": Axis.over([p[1] for p in points], count=3),
                        "lines": lines})  # fmt: skip
    return out[:limit]


def samples(events: Iterable[Mapping]) -> dict[str, dict[tuple[int, int], Mapping]]:
    """contestant -> (prompt's position, which of its samples) -> sample; a sample logged twice counts once."""
    out: dict[str, dict[tuple[int, int], Mapping]] = {}
    for e in events:
        if e.get("final"):
            for s in e["samples"]:
                out.setdefault(e["contestant"], {})[s["index"], s.get("k", s["seed"])] = s
    return out


def selection(made: Mapping[str, Mapping], names: Sequence[str]) -> list[tuple[int, int]]:
    """Which samples are shown, decided without looking at a score or a picture: each prompt's first sample that every
    contestant has made, taking one prompt of each category in turn, in the order of the prompt list."""
    have = [set(made[n]) for n in names if n in made]
    if not have:
        return []
    first: dict[int, tuple[int, int]] = {}
    for key in sorted(set.intersection(*have)):
        first.setdefault(key[0], key)
    some = next(made[n] for n in names if n in made)
    queues: dict[str | None, list] = {}
    for key in first.values():
        queues.setdefault(some[key].get("category"), []).append(key)
    turns = range(max(map(len, queues.values()), default=0))
    return [queue[turn] for turn in turns for queue in queues.values() if turn < len(queue)]


def _file(run: Path, sample: Mapping) -> Path | None:
    """The sample's file, if it lies in the run folder and is what the log says it is."""
    path = (run / sample["file"]).resolve()
    if not path.is_relative_to(run.resolve()) or not path.is_file():
        return None
    return path if sample.get("sha256") in (None, media.fingerprint(path)) else None


def _right(sample: Mapping) -> bool | None:
    verdict = sample.get("scores", {}).get("oracle")
    return None if verdict is None else verdict >= 1


MIME = {".png": "image/png", ".wav": "audio/wav"}


def _gallery(run: Path, made: Mapping, names: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[dict]:
    """Rows of inlined media, as many whole rows as the limits allow."""
    rows, room = [], BYTES
    for key in keys[: max(1, PICTURES // max(1, len(names)))]:
        cells = []
        for name in names:
            sample = made.get(name, {}).get(key)
            path = sample and _file(run, sample)
            data = b"" if not path else media.thumbnail(path) if path.suffix == ".png" else path.read_bytes()
            room -= len(data)
            uri = f"data:{MIME[path.suffix]};base64,{base64.b64encode(data).decode()}" if data else ""
            cells.append({"name": name, "uri": uri, "right": _right(sample or {}), "scores": (sample or {}).get("scores", {})})
        if room < 0 and rows:
            break
        first = next(made[n][key] for n in names if key in made.get(n, {}))
        rows.append({"prompt": first["prompt"], "category": first.get("category"), "seed": first["seed"], "cells": cells})
    return rows


def _sheet(run: Path, made: Mapping, names: Sequence[str], keys: Sequence[tuple[int, int]], shown: str | None) -> bytes:
    """grid.png: the first rows of the same selection."""
    cells, captions = [], []
    for key in keys[:GRID_ROWS]:
        row = [made.get(n, {}).get(key) for n in names]
        files = [s and _file(run, s) for s in row]
        notes = [f"{shown} {number((s or {}).get('scores', {}).get(shown))}" if s and shown else "" for s in row]
        cells.append([media.Cell(f and media.read(f), _right(s or {}), note)
                      for s, f, note in zip(row, files, notes, strict=True)])  # fmt: skip
        first = next(s for s in row if s)
        captions.append(" ".join(first["prompt"].split()) + (f"\n{first['category']}" if first.get("category") else ""))
    return media.grid(cells, rows=captions, columns=names)


# ---- the report and the terminal's table -----------------------------------------------------------------------------


def write_report(run_dir: Path) -> Path:
    """Write `grid.png` (pictures only) and the self-contained `report.html`; returns the latter's path.

    Reads run.json, summary.json, events.jsonl and media/. Raises BadInput when the folder isn't a run with a summary.
    """
    run_dir = Path(run_dir)
    folder = RunFolder(run_dir)
    run, summary = folder.read(), folder.read("summary.json")
    for name, content in (("run.json", run), ("summary.json", summary)):
        if not content:
            raise BadInput(f"{run_dir}: no {name} here; give the folder of a finished run")
    events = folder.events()
    made, names = samples(events), [c["name"] for c in finished(summary)]
    keys = selection(made, names)
    shown = next((m for m, here in metrics(summary).items() if m != "oracle" and _optimised(here)), None)
    if summary["modality"] == "image" and keys:
        write_atomic(run_dir / "grid.png", _sheet(run_dir, made, names, keys, shown))
    page = _page(run, summary, curves(events), _gallery(run_dir, made, names, keys), shown)
    write_atomic(run_dir / "report.html", page)
    return run_dir / "report.html"


def _page(run: Mapping, summary: Mapping, lines: Sequence, gallery: Sequence, shown: str | None) -> str:
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
                             trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    env.filters |= {"num": number, "signed": signed}
    first, *rest = headline(summary)
    return env.get_template("report.html").render(
        run=run,
        summary=summary,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        first=first,
        rest=rest,
        control=CONTROLS.get(summary.get("control")),
        metrics=metrics(summary),
        tone={c["name"]: n % 8 for n, c in enumerate(summary["contestants"])},
        sides={(c["name"], m): difference(summary, c["name"], m)[0] for c in finished(summary) for m in metrics(summary)},
        panels=_panels(summary),
        differences=_differences(summary),
        categories=_categories(summary),
        unit=Axis.over((0, 1), (0.0, 1.0), count=2),
        curves=lines,
        gallery=gallery,
        shown=shown,
        base=(base_of(summary) or {}).get("name"),
        noun=NOUN[summary["modality"]],
        config=yaml.safe_dump(run.get("config", {}), sort_keys=False, allow_unicode=True),
    )


def table(summary: Mapping) -> Table:
    """The comparison for a terminal. An asterisk marks a mean of what the contestant itself optimised."""
    here = metrics(summary)
    out = Table(title=Text(summary["run"]), caption="95 % intervals; * this contestant optimised it", caption_justify="left")
    out.add_column("contestant", no_wrap=True)
    for head in (*here, "diversity", "calls", "judged", "seconds", "MB"):
        out.add_column(Text(head), justify="right")
    for c in summary["contestants"]:
        if "failed" in c:
            out.add_row(Text(c["name"]), Text(f"failed: {c['failed']}", style="red"))
            continue
        cells = []
        for metric in here:
            e = here[metric].get(c["name"])
            cells.append(Text(f"{number(e['mean'])}{'*' * bool(e.get('optimised'))}{_within(e)}" if e else "–"))
        costs = (c.get("nfe"), c.get("reward_calls"), c.get("seconds"), c.get("peak_mb"))
        out.add_row(Text(c["name"]), *cells, number(c.get("diversity")), *(number(x, 0) for x in costs))
    return out
