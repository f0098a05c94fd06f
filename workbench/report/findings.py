"""Findings of a run: sentences that its summary's numbers support.

A difference is claimed only where its 95 % interval excludes zero, and a rise of an optimised reward is never called an
improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.evaluation.statistics import FEWEST_PROMPTS
from workbench.report.estimates import (
    EQUAL_BUDGET_SHARE,
    base_contestant,
    best_of_n_contestant,
    compare_intervals,
    contestants_by_pipeline,
    costs_per_sample,
    difference_from_base,
    estimates_by_metric,
    finished_contestants,
    is_imported,
    is_optimised,
    read_estimate,
)
from workbench.report.formatting import (
    MEDIA_NOUNS,
    count_things,
    decimals_for,
    format_count,
    format_interval,
    format_number,
    format_signed,
    join_words,
    name_in_sentence,
)
from workbench.report.sample_findings import sample_sentences

MAX_SPELT_OUT = 4  # more differences than this are left to the plots
CONTROL_SENTENCES = {
    "shuffled": "Every sample was judged against another prompt. Nothing here should beat the base.",
    "negated": "The methods were paid for what the reward dislikes. Nothing here should beat the base.",
    "shuffled_inputs": "Every sample was made from what another prompt comes with, and judged by what its own comes "
    "with. All scores that depend on it should be lower than without this control.",
}


def headline_sentences(summary: Mapping) -> list[str]:
    """All findings of a run: the outcome, then what was compared, and how reliable it is."""
    table, base = estimates_by_metric(summary), base_contestant(summary)
    others = [c["name"] for c in finished_contestants(summary) if c is not base]
    if not table or base is None:
        warnings = [*training_sentences(summary), *sample_sentences(summary), *failure_sentences(summary)]
        unscored = "No reward scored these samples. People can compare them: workbench app, Blind vote."
        finished = is_imported(summary) and base is not None
        return [unscored if finished else "Nothing finished, so there is nothing to compare.", *warnings]
    judge = next(iter(table))
    judge_name, estimates = name_in_sentence(judge), table[judge]
    if base["name"] not in estimates or not set(others) & estimates.keys():
        only = [
            f"{n} scores {format_number(e['mean'])}{format_interval(e)} on {judge_name}" for n, e in estimates.items()
        ]
        warnings = [*training_sentences(summary), *sample_sentences(summary), *failure_sentences(summary)]
        return [join_words(only) + ".", "There is nothing to compare it with.", *warnings]
    out = [
        _outcome_sentence(summary, judge),
        *training_sentences(summary),
        *best_of_n_sentences(summary, judge),
        *shortfall_sentences(summary),
        _setup_sentence(summary),
        *_pipeline_sentences(summary),
    ]
    out += [
        *_difference_sentences(summary, judge),
        *_best_two_sentence(summary, judge),
        *interference_sentences(summary),
        *sample_sentences(summary),
        *unjudged_sentences(summary),
    ]
    if is_optimised(estimates):
        silent = list(
            dict.fromkeys(n for c in finished_contestants(summary) for n in c.get("rewards", {}) if n not in table)
        )
        caveat = (
            f"{join_words(silent)}, held out, judged nothing"
            if silent
            else "every reward here was optimised by someone"
        )
        caveat = "the oracle too was optimised" if judge == "oracle" else caveat
        out.append(
            f"Beware: {caveat}, so a rise shows that optimising works, not that the "
            f"{MEDIA_NOUNS[summary['modality']]}s are better."
        )
    return out + failure_sentences(summary)


def training_sentences(summary: Mapping) -> list[str]:
    """Sentences on trainings that raised the alarm or taught nothing."""
    trainings = {c["name"]: c["training"] for c in summary.get("contestants", ()) if c.get("training")}
    return [sentence for name, training in trainings.items() for sentence in warnings_of_training(name, training)]


def warnings_of_training(name: str, training: Mapping) -> list[str]:
    """Sentences on one contestant's training, by its record: the alarm that it ended with, and what it did not
    teach."""
    alarm = [f"the alarm rang: {training['alarm']}"] if training.get("alarm") else []
    return [f"In the training of {name}, {sentence}" for sentence in [*alarm, *training.get("warnings", ())]]


def unjudged_sentences(summary: Mapping) -> list[str]:
    """A sentence per metric that could not score some samples: means are then of different samples."""
    gaps: dict[str, list[str]] = {}
    for c in finished_contestants(summary):
        blank = c.get("blank", {}).get("count", 0)
        for name, part in c.get("rewards", {}).items():
            if (unscored := c.get("samples", 0) - blank - part.get("n", 0)) > 0 and not part.get("set"):
                gaps.setdefault(name, []).append(f"{unscored} of {c['samples']} samples of {c['name']}")
    return [f"{name_in_sentence(name)} could not judge {join_words(counts)}." for name, counts in gaps.items()]


def _outcome_sentence(summary: Mapping, judge: str) -> str:
    base, estimates, judge_name = (
        base_contestant(summary)["name"],
        estimates_by_metric(summary)[judge],
        name_in_sentence(judge),
    )
    value = {n: format_number(e["mean"], decimals_for(estimates.values())) for n, e in estimates.items()}
    sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for name in estimates:
        if name != base:
            sides[difference_from_base(summary, name, judge)[0]].append(name)
    scored = {side: join_words([f"{n} ({value[n]})" for n in names]) for side, names in sides.items()}
    clauses = []
    if is_imported(summary):
        clauses = [
            f"{scored[side]} {'scores' if len(sides[side]) == 1 else 'score'} {word} on {judge_name} than {base} "
            f"({value[base]})"
            for side, word in ((1, "higher"), (-1, "lower"))
            if sides[side]
        ]
    for side, verb in () if is_imported(summary) else ((1, "raise"), (-1, "lower")):
        if len(sides[side]) == 1:
            clauses.append(f"{sides[side][0]} {verb}s {judge_name} from {value[base]} to {value[sides[side][0]]}")
        elif sides[side]:
            clauses.append(f"{scored[side]} {verb} {judge_name} from {base}’s {value[base]}")
    if sides[0] and clauses:
        clauses.append(f"no difference is shown for {scored[0]}")
    elif sides[0]:
        clauses.append(f"On {judge_name}, no difference from {base} ({value[base]}) is shown for {scored[0]}")
    return "; ".join(clauses) + "."


def _setup_sentence(summary: Mapping) -> str:
    names = join_words([c["name"] for c in finished_contestants(summary)])
    prompts, seeds = count_things(summary["prompts"], "prompt"), count_things(summary["seeds"], "seed")
    no_intervals = f"fewer than {FEWEST_PROMPTS} prompts can show no difference at 95 %, so there are no intervals"
    intervals = "brackets hold 95 % intervals" if summary["prompts"] >= FEWEST_PROMPTS else no_intervals
    if is_imported(summary):
        return f"{names} have samples of the same {prompts}; {intervals}."
    return f"{names} answered the same {prompts} with {seeds} each; {intervals}."


def _difference_sentences(summary: Mapping, judge: str) -> list[str]:
    base, estimates, paired, unpaired = base_contestant(summary)["name"], estimates_by_metric(summary)[judge], [], []
    for name in estimates:
        side, pair = difference_from_base(summary, name, judge)
        if name == base:
            continue
        if pair:
            text = f"{name} {format_signed(pair['mean'], decimals_for([pair]))}{format_interval(pair, format_signed)}"
            paired.append(text if side else f"{text}, which includes zero")
        elif estimates[name]["ci95"] and estimates[base]["ci95"]:
            verb = "lies apart from" if side else "overlaps"
            unpaired.append(
                f"{name}’s interval{format_interval(estimates[name])} {verb} "
                f"{base}’s{format_interval(estimates[base])}."
            )
        else:
            unpaired.append(f"No interval is known for {name} and {base}, so no difference is claimed.")
    how = "set against set" if estimates[base].get("set") else "sample by sample"
    intro = f"Difference from {base} on {name_in_sentence(judge)}, {how}: {'; '.join(paired)}."
    return ([intro] if 0 < len(paired) <= MAX_SPELT_OUT else []) + unpaired[:MAX_SPELT_OUT]


def _best_two_sentence(summary: Mapping, judge: str) -> list[str]:
    """A sentence on the two best contestants besides base and best-of-n, and on their budgets; or none."""
    base, estimates, rows = (
        base_contestant(summary)["name"],
        estimates_by_metric(summary)[judge],
        costs_per_sample(summary),
    )
    best = sorted((n for n in estimates if n != base and estimates[n]["ci95"]), key=lambda n: -estimates[n]["mean"])
    rival = best_of_n_contestant(summary)
    if len(best) < 2 or rival and rival["name"] in best[:2]:  # see `best_of_n_sentences`
        return []
    first, second = best[:2]
    sentence = f"Between {first} and {second} no difference is shown: their intervals overlap"
    if compare_intervals(estimates[first], estimates[second]) > 0:
        sentence = f"{first}’s interval lies above {second}’s"
    budgets = {n: rows[n]["nfe"] or 0 for n in best[:2]}
    less, more = sorted(budgets, key=budgets.get)
    if budgets[less] and budgets[less] >= EQUAL_BUDGET_SHARE * budgets[more]:
        sentence += f"; both used about {format_count(budgets[more])} denoiser rows a sample"
    elif budgets[less]:
        sentence += f"; {more} used {budgets[more] / budgets[less]:.1f}× the denoiser rows of {less}"
    return [sentence + "."]


def best_of_n_sentences(summary: Mapping, judge: str) -> list[str]:
    """Sentences, one per budget, on which contestants beat best-of-n by the metric `judge`.

    Paired, sample by sample, where the summary has `versus_best_of_n` and the whole budgets are compared; otherwise the
    two intervals must lie apart.
    """
    other, estimates = best_of_n_contestant(summary), estimates_by_metric(summary)[judge]
    if other is None or other["name"] not in estimates:
        return []
    places, verdicts = decimals_for(estimates.values()), {}
    for c in finished_contestants(summary):
        if c in (other, base_contestant(summary)) or c["name"] not in estimates:
            continue
        budget, reference, paired = _match_budget(summary, c, other, judge)
        if paired:
            low, high = paired["ci95"]
            side, text = (
                (low > 0) - (high < 0),
                format_signed(paired["mean"], decimals_for([paired])) + format_interval(paired, format_signed),
            )
        else:
            side, text = (
                compare_intervals(estimates[c["name"]], reference),
                format_number(estimates[c["name"]]["mean"], places),
            )
        versus = f"{other['name']} ({format_number(reference['mean'], places)})"
        verdicts.setdefault((budget, versus), {}).setdefault(side, []).append(f"{c['name']} ({text})")
    return [_budget_sentence(*key, sides, name_in_sentence(judge)) for key, sides in verdicts.items()]


def _budget_sentence(budget: str, other: str, sides: Mapping[int, Sequence[str]], judge: str) -> str:
    clauses = []
    for side, singular, plural in ((1, "beats", "beat"), (-1, "does worse than", "do worse than")):
        if names := sides.get(side):
            clauses.append(f"{join_words(names)} {plural if names[1:] else singular} {other} on {judge}")
    if names := sides.get(0):
        where = f"from {other} is shown on {judge}" if not clauses else "from it is shown"
        clauses.append(f"no difference {where} for {join_words(names)}")
    return f"{budget}, {'; '.join(clauses)}."


def _match_budget(summary: Mapping, c: Mapping, other: Mapping, judge: str) -> tuple[str, Mapping, Mapping | None]:
    """(words on the budget at which contestant c and best-of-n are compared, best-of-n's estimate there, the paired
    difference if it is known).

    A smaller budget is looked up on best-of-n's curve. Rows of different pipelines don't cost the same.
    """
    costs, reference = costs_per_sample(summary), estimates_by_metric(summary)[judge][other["name"]]
    own_cost, other_cost = costs[c["name"]], costs[other["name"]]
    paired = read_estimate(c.get("versus_best_of_n", {}).get(judge, {}))
    paired = paired if paired and paired["ci95"] else None
    caveat = "" if c.get("pipeline") == other.get("pipeline") else ", though of different pipelines"
    if _are_equal_budgets(own_cost["nfe"], other_cost["nfe"]):
        return f"At equal budget ({format_count(other_cost['nfe'])} denoiser rows a sample{caveat})", reference, paired
    for point in other.get("curve", ()):
        early = read_estimate(point.get("rewards", {}).get(judge, {}))
        if early and _are_equal_budgets(own_cost["nfe"], point.get("nfe")):
            return f"At equal budget ({format_count(own_cost['nfe'])} denoiser rows a sample{caveat})", early, None
    if _are_equal_budgets(own_cost["seconds"], other_cost["seconds"]):
        return f"In equal time ({format_number(other_cost['seconds'])} seconds a sample)", reference, paired
    if own_cost["nfe"] is None or other_cost["nfe"] is None:
        return "At budgets that are not known", reference, paired
    return (f"At unequal budgets ({format_count(own_cost['nfe'])} denoiser rows a sample against {other['name']}’s "
            f"{format_count(other_cost['nfe'])}{caveat})", reference, paired)  # fmt: skip


def _are_equal_budgets(a: float | None, b: float | None) -> bool:
    return bool(a and b) and min(a, b) >= EQUAL_BUDGET_SHARE * max(a, b)


def shortfall_sentences(summary: Mapping) -> list[str]:
    """A sentence on the contestants that used less than the largest budget, with which comparisons aren't fair."""
    costs = {n: p for n, p in costs_per_sample(summary).items() if p["share"] is not None}
    short = [(n, format_count(p["nfe"])) for n, p in costs.items() if p["share"] < EQUAL_BUDGET_SHARE]
    if not short:
        return []
    leader = max(costs, key=lambda n: costs[n]["share"])
    clauses = [f"{name} {'' if k else 'used '}{rows}" for k, (name, rows) in enumerate(short)]
    return [
        f"{join_words(clauses)} of the {format_count(costs[leader]['nfe'])} denoiser rows a sample that {leader} used."
    ]


def _pipeline_sentences(summary: Mapping) -> list[str]:
    by_pipeline = contestants_by_pipeline(summary)
    if len(by_pipeline) > MAX_SPELT_OUT:
        return [f"The contestants are of {len(by_pipeline)} pipelines. Their rows don’t cost the same."]
    clauses = [f"{join_words(names)} from {repo}" for repo, names in by_pipeline.items()]
    return [f"The pipelines differ: {'; '.join(clauses)}. Their rows don’t cost the same."] if clauses else []


def failure_sentences(summary: Mapping) -> list[str]:
    """A sentence for each contestant that failed, or whose samples are predictions of chains cut by the budget."""
    failed = [f"{c['name']} failed: {c['failed'].rstrip('.')}." for c in summary["contestants"] if "failed" in c]
    return failed + [c["predicted"] for c in finished_contestants(summary) if "predicted" in c]


def interference_sentences(summary: Mapping) -> list[str]:
    """Sentences on how each stage of a training changed each task's score, by held-out rewards where there are any, and
    on what was forgotten."""
    stages = summary.get("stages")
    if not stages:
        return []
    kind = "held out" if "held out" in stages else "reward"
    by = "held-out judge" if kind == "held out" else "reward"
    pairs = {judge: None for judge in stages[kind]["judges"]}
    judge_name = (
        f"{by}s" if len(pairs) > 1 else by if kind == "reward" else f"{by}, {name_in_sentence(next(iter(pairs)))}"
    )
    clauses = []
    for after, row in zip(stages["after"][1:], stages[kind]["gained"], strict=True):
        gains = [f"{task} {format_signed(x, 3)}" for task, x in zip(stages["tasks"], row, strict=True) if x is not None]
        clauses.append(f"stage {after}: {join_words(gains)}")
    forgotten = stages[kind]["forgotten"]
    losses = [f"{task} {format_number(x, 3)}" for task, x in forgotten.items() if x and x > 0]
    unknown = [task for task, x in forgotten.items() if x is None]
    out = [
        f"What each stage brought the tasks, by their {judge_name}: {'; '.join(clauses)}. "
        "These are means, without intervals."
    ]
    if losses:
        out.append(f"Of that was forgotten by the end: {join_words(losses)}.")
    elif not unknown:
        out.append("Nothing was forgotten by the end.")
    return (
        [*out, f"What was forgotten of {join_words(unknown)} is not known: it could not be judged."] if unknown else out
    )
