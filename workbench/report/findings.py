"""What a summary's numbers say, in words that they bear.

A difference is claimed only when its 95 % interval leaves zero out, and what an optimised reward says about itself is never
called an improvement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from workbench.evaluation.statistics import FEWEST

SPELT = 4  # more differences than this are left to the plots
EQUAL = 0.95  # budgets are called equal when the smaller one is at least this share of the larger one
PER_SAMPLE = ("nfe", "reward_calls", "decodes", "seconds")
RIVAL = "best_of_n"  # what any cleverer search has to beat
NOUN = {"image": "picture", "video": "clip", "audio": "sound"}


def number(x: float | None, digits: int | None = None) -> str:
    """0.83, 12.3, 2,000, or so many digits; a true minus sign; a dash for what wasn't measured."""
    if x is None or not math.isfinite(x):
        return "–"
    digits = digits if digits is not None else 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{round(x, digits) + 0.0:,.{digits}f}".replace("-", "−")


def whole(x: float | None) -> str:
    """A count per sample: 64, 1,600, 2.5."""
    return number(x, 1 if _finite(x) and abs(x) < 100 and abs(x - round(x)) >= 0.05 else 0)


def share(x: float) -> str:
    return f"{number(100 * x, 0)} %"


def signed(x: float, digits: int | None = None) -> str:
    text = number(x, digits)
    return text if text[0] == "−" else "+" + text


def digits(estimates: Iterable[Mapping]) -> int:
    """Decimals that show a tenth of the narrowest interval: none to four."""
    widths = [e["ci95"][1] - e["ci95"][0] for e in estimates if e.get("ci95")]
    narrow = min((w for w in widths if w > 0), default=0.1)
    return max(0, min(4, 1 - math.floor(math.log10(narrow))))


def estimate(part: Mapping) -> dict | None:
    """{mean, ci95 or None, n, optimised}, or None where there is no finite mean."""
    if not _finite(part.get("mean")):
        return None
    sure = part.get("ci95") and all(map(_finite, part["ci95"]))
    return {"n": 0, "optimised": False, **part, "ci95": part["ci95"] if sure else None}


def _finite(x: float | None) -> bool:
    return x is not None and math.isfinite(x)


def metrics(summary: Mapping) -> dict[str, dict[str, dict]]:
    """metric -> contestant -> estimate: the oracle first, then what nobody optimised, then what was optimised.

    A contestant that never asked for a reward, nor was trained by one, has not optimised it, whatever the run did.
    """
    found: dict[str, dict[str, dict]] = {}
    for c in finished(summary):
        own = dict(c.get("rewards", {}))
        if "oracle" in c:
            own = {"oracle": {**own.pop("oracle", {}), **c["oracle"]["overall"]}} | own
        for name, part in own.items():
            if e := estimate(part):
                e["optimised"] &= c.get("reward_calls") != 0 or "training" in c
                found.setdefault(name, {})[c["name"]] = e
    return dict(sorted(found.items(), key=lambda item: (item[0] != "oracle", optimised(item[1]))))


def of_sets(summary: Mapping) -> list[str]:
    """The judges that have one score for all samples of a contestant."""
    return [name for name, here in metrics(summary).items() if any(e.get("set") for e in here.values())]


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
    named, here = called(judge), table[judge]
    if base["name"] not in here or not set(others) & here.keys():
        only = [f"{n} scores {number(e['mean'])}{within(e)} on {named}" for n, e in here.items()]
        return [listing(only) + ".", "There is nothing to compare it with.", *failures(summary)]
    out = [
        _outcome(summary, judge),
        *contest(summary, judge),
        *shortfalls(summary),
        _compared(summary),
        *_origins(summary),
    ]
    out += [*_details(summary, judge), *_between(summary, judge), *interference(summary), *unjudged(summary)]
    if optimised(here):
        silent = list(dict.fromkeys(n for c in finished(summary) for n in c.get("rewards", {}) if n not in table))
        held = (
            f"{listing(silent)}, held out, judged nothing" if silent else "every reward here was optimised by someone"
        )
        held = "the oracle too was optimised" if judge == "oracle" else held
        out.append(
            f"Beware: {held}, so a rise shows that optimising works, not that the {NOUN[summary['modality']]}s are better."
        )
    return out + failures(summary)


def unjudged(summary: Mapping) -> list[str]:
    """What judges left out: means of different contestants may then be of different samples."""
    missing: dict[str, list[str]] = {}
    for c in finished(summary):
        for name, part in c.get("rewards", {}).items():
            if (left := c.get("samples", 0) - part.get("n", 0)) > 0 and not part.get("set"):
                missing.setdefault(name, []).append(f"{left} of {c['samples']} samples of {c['name']}")
    return [f"{called(name)} could not judge {listing(told)}." for name, told in missing.items()]


def called(metric: str) -> str:
    return "the oracle" if metric == "oracle" else metric


def within(estimate: Mapping, sign=number, places: int | None = None) -> str:
    if not estimate.get("ci95"):
        return ""
    places = places or digits([estimate])
    return f" [{sign(estimate['ci95'][0], places)}, {sign(estimate['ci95'][1], places)}]"


def _outcome(summary: Mapping, judge: str) -> str:
    base, here, named = base_of(summary)["name"], metrics(summary)[judge], called(judge)
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
    few = f"fewer than {FEWEST} prompts can show no difference at 95 %, so there are no intervals"
    shown = "brackets hold 95 % intervals" if summary["prompts"] >= FEWEST else few
    return f"{names} answered the same {prompts} with {seeds} each; {shown}."


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
    how = "set against set" if here[base].get("set") else "sample by sample"
    intro = f"Difference from {base} on {called(judge)}, {how}: {'; '.join(paired)}."
    return ([intro] if 0 < len(paired) <= SPELT else []) + said[:SPELT]


def _between(summary: Mapping, judge: str) -> list[str]:
    """The two best that are neither the base nor best-of-n, against each other, and whether they had the same budget."""
    base, here, rows = base_of(summary)["name"], metrics(summary)[judge], costs(summary)
    best = sorted((n for n in here if n != base and here[n]["ci95"]), key=lambda n: -here[n]["mean"])
    known = rival(summary)
    if len(best) < 2 or known and known["name"] in best[:2]:  # that one has a sentence of its own: see `contest`
        return []
    first, second = best[:2]
    said = f"Between {first} and {second} no difference is shown: their intervals overlap"
    if apart(here[first], here[second]) > 0:
        said = f"{first}’s interval lies above {second}’s"
    spent = {n: rows[n]["nfe"] or 0 for n in best[:2]}
    less, more = sorted(spent, key=spent.get)
    if spent[less] and spent[less] >= EQUAL * spent[more]:
        said += f"; both used about {whole(spent[more])} denoiser rows a sample"
    elif spent[less]:
        said += f"; {more} used {spent[more] / spent[less]:.1f}× the denoiser rows of {less}"
    return [said + "."]


def rival(summary: Mapping) -> Mapping | None:
    """Best-of-n with the largest budget."""
    found = [c for c in finished(summary) if c.get("method") == RIVAL and c is not base_of(summary)]
    return max(found, key=lambda c: c.get("nfe") or 0, default=None)


def contest(summary: Mapping, judge: str) -> list[str]:
    """For each contestant whether it beats best-of-n on the judge, and at which budget: a sentence for each budget.

    Paired, sample by sample, where the summary has `versus_best_of_n` and the whole budgets are compared; otherwise the
    two intervals must lie apart.
    """
    other, here = rival(summary), metrics(summary)[judge]
    if other is None or other["name"] not in here:
        return []
    places, verdicts = digits(here.values()), {}
    for c in finished(summary):
        if c in (other, base_of(summary)) or c["name"] not in here:
            continue
        budget, reference, paired = _match(summary, c, other, judge)
        if paired:
            low, high = paired["ci95"]
            side, told = (low > 0) - (high < 0), signed(paired["mean"], digits([paired])) + within(paired, signed)
        else:
            side, told = apart(here[c["name"]], reference), number(here[c["name"]]["mean"], places)
        versus = f"{other['name']} ({number(reference['mean'], places)})"
        verdicts.setdefault((budget, versus), {}).setdefault(side, []).append(f"{c['name']} ({told})")
    return [_verdict(*key, sides, called(judge)) for key, sides in verdicts.items()]


def _verdict(budget: str, other: str, sides: Mapping[int, Sequence[str]], judge: str) -> str:
    said = []
    for side, one, many in ((1, "beats", "beat"), (-1, "does worse than", "do worse than")):
        if names := sides.get(side):
            said.append(f"{listing(names)} {many if names[1:] else one} {other} on {judge}")
    if names := sides.get(0):
        where = f"from {other} is shown on {judge}" if not said else "from it is shown"
        said.append(f"no difference {where} for {listing(names)}")
    return f"{budget}, {'; '.join(said)}."


def _match(summary: Mapping, c: Mapping, other: Mapping, judge: str) -> tuple[str, Mapping, Mapping | None]:
    """(the budget at which c meets best-of-n, best-of-n's estimate there, the paired difference if it is known).

    A smaller budget is looked up on best-of-n's curve. Rows of different pipelines don't cost the same.
    """
    spent, reference = costs(summary), metrics(summary)[judge][other["name"]]
    mine, theirs = spent[c["name"]], spent[other["name"]]
    paired = estimate(c.get("versus_best_of_n", {}).get(judge, {}))
    paired = paired if paired and paired["ci95"] else None
    apart_ = "" if c.get("pipeline") == other.get("pipeline") else ", though of different pipelines"
    if _equal(mine["nfe"], theirs["nfe"]):
        return f"At equal budget ({whole(theirs['nfe'])} denoiser rows a sample{apart_})", reference, paired
    for point in other.get("curve", ()):
        early = estimate(point.get("rewards", {}).get(judge, {}))
        if early and _equal(mine["nfe"], point.get("nfe")):
            return f"At equal budget ({whole(mine['nfe'])} denoiser rows a sample{apart_})", early, None
    if _equal(mine["seconds"], theirs["seconds"]):
        return f"In equal time ({number(theirs['seconds'])} seconds a sample)", reference, paired
    if mine["nfe"] is None or theirs["nfe"] is None:
        return "At budgets that are not known", reference, paired
    return (f"At unequal budgets ({whole(mine['nfe'])} denoiser rows a sample against {other['name']}’s "
            f"{whole(theirs['nfe'])}{apart_})", reference, paired)  # fmt: skip


def _equal(a: float | None, b: float | None) -> bool:
    return bool(a and b) and min(a, b) >= EQUAL * max(a, b)


def costs(summary: Mapping) -> dict[str, dict]:
    """contestant -> {nfe, reward_calls, decodes, seconds: per sample, peak_mb, share of the largest budget in rows}.

    None is what was not counted; plain sampling has no budget to fall short of, so it has no share.
    """
    out = {}
    for c in finished(summary):
        n = c.get("samples") or summary["prompts"] * summary["seeds"]
        out[c["name"]] = {unit: c[unit] / n if _finite(c.get(unit)) else None for unit in PER_SAMPLE}
        out[c["name"]]["peak_mb"] = c.get("peak_mb")
    spent = {c["name"]: out[c["name"]]["nfe"] for c in finished(summary) if c.get("method") != "sample"}
    most = max((rows for rows in spent.values() if rows), default=None)
    for name, part in out.items():
        part["share"] = spent[name] / most if most and spent.get(name) is not None else None
    return out


def shortfalls(summary: Mapping) -> list[str]:
    """Who used less than the largest budget: a comparison with them is not at equal budget."""
    spent = {n: p for n, p in costs(summary).items() if p["share"] is not None}
    less = [(n, whole(p["nfe"])) for n, p in spent.items() if p["share"] < EQUAL]
    if not less:
        return []
    most = max(spent, key=lambda n: spent[n]["share"])
    said = [f"{name} {'' if k else 'used '}{rows}" for k, (name, rows) in enumerate(less)]
    return [f"{listing(said)} of the {whole(spent[most]['nfe'])} denoiser rows a sample that {most} used."]


def wins(summary: Mapping) -> tuple[str, dict[str, dict]] | None:
    """(judge, contestant -> share of samples that the judge likes better than the base's with the same prompt and seed, a
    tie counting half). None when the summary has none."""
    judge = next(iter(metrics(summary)), None)
    found = {c["name"]: estimate(c.get("wins", {}).get(judge, {})) for c in finished(summary)}
    found = {name: e for name, e in found.items() if e}
    return (judge, found) if found else None


def sources(summary: Mapping) -> dict[str, list[str]]:
    """pipeline -> its finished contestants, when there is more than one pipeline; else nothing."""
    found: dict[str, list[str]] = {}
    for c in finished(summary):
        if c.get("pipeline"):
            found.setdefault(c["pipeline"], []).append(c["name"])
    return found if len(found) > 1 else {}


def _origins(summary: Mapping) -> list[str]:
    told = [f"{listing(names)} from {repo}" for repo, names in sources(summary).items()]
    return [f"The pipelines differ: {'; '.join(told)}. Their rows don’t cost the same."] if told else []


def failures(summary: Mapping) -> list[str]:
    failed = [f"{c['name']} failed: {c['failed'].rstrip('.')}." for c in summary["contestants"] if "failed" in c]
    return failed + [c["predicted"] for c in finished(summary) if "predicted" in c]  # cut before it was a sample


def interference(summary: Mapping) -> list[str]:
    """What each stage of a training brought each task, by held-out judges where there are any, and what was forgotten."""
    told = summary.get("stages")
    if not told:
        return []
    kind = "held out" if "held out" in told else "reward"
    by = "held-out judge" if kind == "held out" else "reward"
    pairs = {judge: None for judge in told[kind]["judges"]}
    named = f"{by}s" if len(pairs) > 1 else by if kind == "reward" else f"{by}, {called(next(iter(pairs)))}"
    said = []
    for after, row in zip(told["after"][1:], told[kind]["gained"], strict=True):
        gains = [f"{task} {signed(x, 3)}" for task, x in zip(told["tasks"], row, strict=True) if x is not None]
        said.append(f"stage {after}: {listing(gains)}")
    forgotten = told[kind]["forgotten"]
    lost = [f"{task} {number(x, 3)}" for task, x in forgotten.items() if x and x > 0]
    unknown = [task for task, x in forgotten.items() if x is None]
    out = [
        f"What each stage brought the tasks, by their {named}: {'; '.join(said)}. These are means, without intervals."
    ]
    if lost:
        out.append(f"Of that was forgotten by the end: {listing(lost)}.")
    elif not unknown:
        out.append("Nothing was forgotten by the end.")
    return [*out, f"What was forgotten of {listing(unknown)} is not known: it could not be judged."] if unknown else out


CONTROLS = {
    "shuffled": "Every sample was judged against another prompt. Nothing here should beat the base.",
    "negated": "The methods were paid for what the reward dislikes. Nothing here should beat the base.",
}
