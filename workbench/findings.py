"""What a summary's numbers say, in words that they bear.

A difference is claimed only when its 95 % interval leaves zero out, and what an optimised reward says about itself is never
called an improvement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

SPELT = 4  # more differences than this are left to the plots
NOUN = {"image": "picture", "video": "clip", "audio": "sound"}


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


def estimate(part: Mapping) -> dict | None:
    """{mean, ci95 or None, n, optimised}, or None where there is no finite mean."""
    known = part.get("mean") is not None and math.isfinite(part["mean"])
    return {"ci95": None, "n": 0, "optimised": False, **part} if known else None


def metrics(summary: Mapping) -> dict[str, dict[str, dict]]:
    """metric -> contestant -> estimate: the oracle first, then what nobody optimised, then what was optimised.

    A contestant that never asked for a reward has not optimised it, whatever the run did.
    """
    found: dict[str, dict[str, dict]] = {}
    for c in finished(summary):
        own = dict(c.get("rewards", {}))
        if "oracle" in c:
            own = {"oracle": {**own.pop("oracle", {}), **c["oracle"]["overall"]}} | own
        for name, part in own.items():
            if e := estimate(part):
                e["optimised"] &= c.get("reward_calls") != 0
                found.setdefault(name, {})[c["name"]] = e
    return dict(sorted(found.items(), key=lambda item: (item[0] != "oracle", optimised(item[1]))))


def optimised(estimates: Mapping[str, Mapping]) -> bool:
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


def listing(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if words[1:] else "") + "".join(words[-1:])


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def headline(summary: Mapping) -> list[str]:
    """What happened, then what was compared and how far it can be believed: sentences true to the numbers."""
    table, base = metrics(summary), base_of(summary)
    others = [c["name"] for c in finished(summary) if c is not base]
    if not table or base is None:
        return ["Nothing finished, so there is nothing to compare.", *failures(summary)]
    judge = next(iter(table))
    named, here = _called(judge), table[judge]
    if base["name"] not in here or not set(others) & here.keys():
        only = [f"{n} scores {number(e['mean'])}{within(e)} on {named}" for n, e in here.items()]
        return [listing(only) + ".", "There is nothing to compare it with.", *failures(summary)]
    out = [_outcome(summary, judge), _compared(summary), *_details(summary, judge), *_between(summary, judge)]
    if optimised(here):
        held = "the oracle too was optimised" if judge == "oracle" else "every reward here was optimised by someone"
        out.append(
            f"Beware: {held}, so a rise shows that optimising works, not that the {NOUN[summary['modality']]}s are better."
        )
    return out + failures(summary)


def _called(metric: str) -> str:
    return "the oracle" if metric == "oracle" else metric


def within(estimate: Mapping, sign=number, places: int | None = None) -> str:
    if not estimate.get("ci95"):
        return ""
    places = places or digits([estimate])
    return f" [{sign(estimate['ci95'][0], places)}, {sign(estimate['ci95'][1], places)}]"


def _outcome(summary: Mapping, judge: str) -> str:
    base, here, named = base_of(summary)["name"], metrics(summary)[judge], _called(judge)
    value = {n: number(e["mean"], digits(here.values())) for n, e in here.items()}
    sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for name in here:
        if name != base:
            sides[difference(summary, name, judge)[0]].append(name)
    scored = {side: listing([f"{n} ({value[n]})" for n in names]) for side, names in sides.items()}
    said = []
    for side, verb in ((1, "raise"), (-1, "lower")):
        if len(sides[side]) == 1:
            said.append(f"{sides[side][0]} {verb}s {named} from {value[base]} to {value[sides[side][0]]}")
        elif sides[side]:
            said.append(f"{scored[side]} {verb} {named} from {base}’s {value[base]}")
    if sides[0] and said:
        said.append(f"no difference is shown for {scored[0]}")
    elif sides[0]:
        said.append(f"On {named}, no difference from {base} ({value[base]}) is shown for {scored[0]}")
    return "; ".join(said) + "."


def _compared(summary: Mapping) -> str:
    names = listing([c["name"] for c in finished(summary)])
    prompts, seeds = count(summary["prompts"], "prompt"), count(summary["seeds"], "seed")
    return f"{names} answered the same {prompts} with {seeds} each; brackets hold 95 % intervals."


def _details(summary: Mapping, judge: str) -> list[str]:
    base, here, paired, said = base_of(summary)["name"], metrics(summary)[judge], [], []
    for name in here:
        side, pair = difference(summary, name, judge)
        if name == base:
            continue
        if pair:
            shown = f"{name} {signed(pair['mean'], digits([pair]))}{within(pair, signed)}"
            paired.append(shown if side else f"{shown}, which includes zero")
        elif here[name]["ci95"] and here[base]["ci95"]:
            verb = "lies apart from" if side else "overlaps"
            said.append(f"{name}’s interval{within(here[name])} {verb} {base}’s{within(here[base])}.")
        else:
            said.append(f"No interval is known for {name} and {base}, so no difference is claimed.")
    intro = f"Difference from {base} on {_called(judge)}, sample by sample: {'; '.join(paired)}."
    return ([intro] if 0 < len(paired) <= SPELT else []) + said[:SPELT]


def _between(summary: Mapping, judge: str) -> list[str]:
    """The two best that aren't the base, against each other, and whether they had the same budget."""
    base, here = base_of(summary)["name"], metrics(summary)[judge]
    best = sorted((n for n in here if n != base and here[n]["ci95"]), key=lambda n: -here[n]["mean"])
    if len(best) < 2:
        return []
    first, second = best[:2]
    said = f"Between {first} and {second} no difference is shown: their intervals overlap"
    if apart(here[first], here[second]) > 0:
        said = f"{first}’s interval lies above {second}’s"
    calls = {c["name"]: c.get("nfe") or 0 for c in finished(summary)}
    less, more = sorted((first, second), key=calls.get)
    if calls[less] and calls[more] < 1.05 * calls[less]:
        said += f"; both used about {number(calls[more], 0)} denoiser calls"
    elif calls[less]:
        said += f"; {more} used {calls[more] / calls[less]:.1f}× the denoiser calls of {less}"
    return [said + "."]


def failures(summary: Mapping) -> list[str]:
    return [f"{c['name']} failed: {c['failed'].rstrip('.')}." for c in summary["contestants"] if "failed" in c]


CONTROLS = {
    "shuffled": "Every sample was judged against another prompt. Nothing here should beat the base.",
    "negated": "The methods were paid for what the reward dislikes. Nothing here should beat the base.",
}
