"""The words that a summary is given bear no more than its numbers."""

from __future__ import annotations

import pytest
from report_fixtures import compared_summary, make_contestant, make_curve, make_estimate, summary_of, usual_summary

from workbench.report.estimates import contestants_by_pipeline, costs_per_sample, estimates_by_metric, win_rates
from workbench.report.findings import best_of_n_sentences, headline_sentences, shortfall_sentences
from workbench.report.formatting import format_number


def test_headline_claims_what_the_paired_intervals_show_and_no_more():
    sentences = headline_sentences(usual_summary())
    assert sentences[0] == "reno raises the oracle from 0.52 to 0.78; no difference is shown for best_of_n (0.57)."
    assert "best_of_n +0.05 [−0.02, +0.12], which includes zero; reno +0.26 [+0.19, +0.33]" in " ".join(sentences)
    assert "draft failed: OutOfMemoryError: <no> room." in sentences
    assert (
        "At equal budget (100 denoiser rows a sample), reno (0.78) beats best_of_n (0.57) on the oracle." in sentences
    )


def test_headline_claims_no_win_when_intervals_overlap():
    """Without paired differences the intervals themselves must lie apart, and a larger mean alone is nothing."""
    first, second = (
        make_contestant("base", 0.52, 0.24, 64),
        make_contestant("reno", 0.60, 0.31, 64, make_estimate(0, 1)),
    )
    del second["versus_base"]
    sentences = headline_sentences(summary_of(first, second))
    assert sentences[0] == "On the oracle, no difference from base (0.52) is shown for reno (0.60)."
    assert "reno’s interval [0.54, 0.66] overlaps base’s [0.46, 0.58]." in sentences
    second["oracle"]["overall"] = make_estimate(0.7, 0.06)
    assert headline_sentences(summary_of(first, second))[0] == "reno raises the oracle from 0.52 to 0.70."


@pytest.mark.parametrize(
    "versus, first",
    [
        (make_estimate(-0.2, 0.05), "reno lowers the oracle from 0.52 to 0.30."),
        (make_estimate(-0.2, 0.25), "On the oracle, no difference from base (0.52) is shown for reno (0.30)."),
    ],
)
def test_headline_tells_of_a_fall_as_plainly_as_of_a_rise(versus, first):
    sentences = headline_sentences(
        summary_of(make_contestant("base", 0.52, 0.24, 64), make_contestant("reno", 0.30, 0.31, 64, versus))
    )
    assert sentences[0] == first


def test_headline_does_not_call_an_optimised_reward_an_improvement():
    """With no oracle and nothing held out, the page says so; with something held out, that is what it speaks of."""
    pair = [make_contestant("base", 0.5, 0.24, 64), make_contestant("reno", 0.5, 0.31, 64, make_estimate(0, 0.1))]
    for c in pair:
        del c["oracle"]
    assert headline_sentences(summary_of(*pair))[0].startswith("On brightness, no difference")
    for c in pair:
        del c["rewards"]["brightness"]
    sentences = headline_sentences(summary_of(*pair))
    assert sentences[0] == "reno raises starter_clip from 0.240 to 0.310." and any(
        s.startswith("Beware") for s in sentences
    )


def test_headline_survives_missing_numbers():
    lone = make_contestant("base", 0.52, 0.24, 64)
    assert headline_sentences(summary_of(lone))[:2] == [
        "base scores 0.52 [0.46, 0.58] on the oracle.", "There is nothing to compare it with."]  # fmt: skip
    gone = {"name": "reno", "method": "reno", "failed": "did not finish"}
    assert headline_sentences(summary_of(gone)) == [
        "Nothing finished, so there is nothing to compare.",
        "reno failed: did not finish.",
    ]
    blind = make_contestant("reno", 0.9, 0.3, 64, {"mean": None, "ci95": None, "n": 0})
    blind["oracle"]["overall"] = {"mean": 0.9, "ci95": None, "n": 1}
    assert "no difference from base" in headline_sentences(summary_of(lone, blind))[0]


def test_numbers_are_written_for_people():
    assert [format_number(x) for x in (0.834, -0.001, 12.34, 2000, None, float("nan"))] == [
        "0.83", "0.00", "12.3", "2,000", "–", "–"]  # fmt: skip
    assert format_number(-0.25) == "−0.25"


def test_each_contestant_is_held_against_best_of_n_at_its_own_budget():
    """A smaller budget meets best-of-n where its curve had that budget, not where it ended."""
    assert best_of_n_sentences(compared_summary(), "oracle") == [
        "At equal budget (64 denoiser rows a sample), reno (0.78) beats best_of_n (0.57) on the oracle.",
        "At equal budget (32 denoiser rows a sample, though of different pipelines), no difference from "
        "best_of_n (0.55) is shown on the oracle for fk (0.56).",
    ]
    sentences = headline_sentences(compared_summary())
    assert sentences[1:3] == best_of_n_sentences(compared_summary(), "oracle")
    assert not any(s.startswith("Between") for s in sentences)  # said once, not twice


def test_a_paired_difference_from_best_of_n_decides_where_there_is_one():
    summary = compared_summary()
    reno = summary["contestants"][2]
    for mean, words in (
        (0.21, "reno (+0.21 [+0.11, +0.31]) beats best_of_n (0.57)"),
        (0.05, "no difference from best_of_n (0.57) is shown"),
        (-0.2, "reno (−0.20 [−0.30, −0.10]) does worse than best_of_n"),
    ):
        reno["versus_best_of_n"] = {"oracle": make_estimate(mean, 0.1)}
        assert words in best_of_n_sentences(summary, "oracle")[0]
    reno["versus_best_of_n"] = {"oracle": {"mean": 0.9, "ci95": None, "n": 1}}  # no interval: the means' own must do
    assert "reno (0.78) beats best_of_n (0.57) on the oracle" in best_of_n_sentences(summary, "oracle")[0]


def test_unequal_budgets_are_called_unequal_and_equal_times_equal():
    summary = compared_summary()
    base, best_of_n, reno, *_ = summary["contestants"]
    summary["contestants"] = [base, best_of_n, reno]
    best_of_n |= {"nfe": 512, "curve": [], "seconds": 10.0}
    assert best_of_n_sentences(summary, "oracle")[0].startswith(
        "At unequal budgets (64 denoiser rows a sample against best_of_n’s 32), reno (0.78) beats"
    )
    best_of_n["seconds"] = reno["seconds"]
    assert best_of_n_sentences(summary, "oracle")[0].startswith(
        "In equal time (1.33 seconds a sample), reno (0.78) beats"
    )
    best_of_n |= {"nfe": None, "seconds": None}
    assert best_of_n_sentences(summary, "oracle")[0].startswith("At budgets that are not known, reno (0.78) beats")


def test_without_best_of_n_nothing_is_said_of_it():
    summary = compared_summary()
    for c in summary["contestants"]:
        if c["name"] == "best_of_n":
            c["method"] = "zero_order"
    assert best_of_n_sentences(summary, "oracle") == [] and "from best_of_n" not in " ".join(
        headline_sentences(summary)[1:]
    )
    summary["contestants"] = [
        c if c["name"] != "best_of_n" else c | {"failed": "lost"} for c in compared_summary()["contestants"]
    ]
    assert best_of_n_sentences(summary, "oracle") == []


def test_the_two_best_are_held_against_each_other_when_neither_is_best_of_n():
    summary = compared_summary()
    summary["contestants"][1]["oracle"]["overall"] = make_estimate(0.3, 0.06)
    assert "reno’s interval lies above fk’s; reno used 2.0× the denoiser rows of fk." in headline_sentences(summary)


def test_who_fell_short_of_the_largest_budget_is_named():
    assert shortfall_sentences(compared_summary()) == [
        "fk used 32 of the 64 denoiser rows a sample that best_of_n used."
    ]
    summary = compared_summary()
    summary["contestants"][1]["nfe"] = 160
    assert shortfall_sentences(summary) == [
        "best_of_n used 10 and fk 32 of the 64 denoiser rows a sample that reno used."
    ]
    assert shortfall_sentences(usual_summary()) == []


def test_costs_are_per_sample_and_plain_sampling_cannot_fall_short():
    costs = costs_per_sample(compared_summary())
    assert costs["fk"] == {
        "nfe": 32,
        "reward_calls": 32,
        "decodes": 32,
        "seconds": 512 / 48 / 16,
        "peak_mb": 913.4,
        "share": 0.5,
    }
    assert costs["base"]["share"] is None and costs["base"]["nfe"] == 1 and "draft" not in costs
    older = make_contestant("reno", 0.6, 0.3, 64, make_estimate(0, 1)) | {"nfe": float("nan"), "seconds": None}
    del older["decodes"]
    costs = costs_per_sample(summary_of(older))["reno"]
    assert {costs[u] for u in ("nfe", "seconds", "decodes", "share")} == {None}


def test_pipelines_are_named_only_when_they_differ():
    assert contestants_by_pipeline(compared_summary()) == {
        "starter-image": ["base", "best_of_n", "reno"],
        "starter-image-teacher": ["fk"],
    }
    sentence = "The pipelines differ: base, best_of_n and reno from starter-image; fk from starter-image-teacher."
    assert any(s.startswith(sentence) for s in headline_sentences(compared_summary()))
    assert contestants_by_pipeline(usual_summary()) == {} and "pipeline" not in " ".join(
        headline_sentences(usual_summary())
    )


def test_wins_are_those_of_the_judge():
    judge, won = win_rates(compared_summary())
    assert judge == "oracle" and won["reno"]["mean"] == 0.71 and set(won) == {"best_of_n", "reno", "fk"}
    assert win_rates(usual_summary()) is None
    summary = compared_summary()
    for c in summary["contestants"]:
        c.pop("oracle", None)
        if "wins" in c:
            c["wins"] = {"brightness": make_estimate(0.4, 0.1), "starter_clip": make_estimate(0.9, 0.1)}
    assert win_rates(summary)[0] == "brightness"  # held out, unlike starter_clip


def test_an_interval_that_is_not_a_number_is_no_interval():
    summary = usual_summary()
    summary["contestants"][2]["oracle"]["overall"] = {"mean": 0.9, "ci95": [float("nan"), None], "n": 3}
    assert estimates_by_metric(summary)["oracle"]["reno"]["ci95"] is None
    assert "no difference from best_of_n (0.57) is shown" in best_of_n_sentences(summary, "oracle")[0]


def test_curves_of_no_finite_mean_are_not_looked_up():
    summary = compared_summary()
    summary["contestants"][1]["curve"] = make_curve((32.0, float("nan")))
    assert "At unequal budgets" in best_of_n_sentences(summary, "oracle")[1]


def test_several_at_one_budget_share_a_sentence():
    summary = compared_summary()
    base, best_of_n, reno, *_ = summary["contestants"]
    others = [
        reno | {"name": n, "oracle": {"overall": make_estimate(m, 0.06)}}
        for n, m in (("das", 0.75), ("dno", 0.3), ("svdd", 0.6))
    ]
    summary["contestants"] = [base, best_of_n, reno, *others]
    assert best_of_n_sentences(summary, "oracle") == [
        "At equal budget (64 denoiser rows a sample), reno (0.78) and das (0.75) beat best_of_n (0.57) on the oracle; "
        "dno (0.30) does worse than best_of_n (0.57) on the oracle; no difference from it is shown for svdd (0.60)."
    ]


def test_a_training_in_stages_is_told_as_what_each_brought_and_what_was_forgotten():
    held_out = {
        "judges": ["oracle"] * 2,
        "gained": [[0.1, -0.02], [-0.04, 0.2]],
        "forgotten": {"edit": 0.04, "draw": 0.0},
    }
    summary = usual_summary() | {
        "stages": {"tasks": ["edit", "draw"], "after": ["", "edit", "draw"], "held out": held_out}
    }
    sentences = " ".join(headline_sentences(summary))
    assert (
        "by their held-out judge, the oracle: stage edit: edit +0.100 and draw −0.020; stage draw: edit −0.040"
        in sentences
    )
    assert "Of that was forgotten by the end: edit 0.040." in sentences
    held_out["forgotten"] = {"edit": 0.0, "draw": 0.0}
    assert "Nothing was forgotten by the end." in headline_sentences(summary) and "stage" not in " ".join(
        headline_sentences(usual_summary())
    )


def test_what_a_judge_left_out_is_said_and_a_silent_one_is_not_taken_for_none():
    summary = usual_summary()
    for c in summary["contestants"]:
        if "failed" not in c:
            c["samples"] = 40
            c["rewards"] = {
                n: {**part, "n": 40} | ({"mean": None, "ci95": None, "n": 0} if not part["optimised"] else {})
                for n, part in c["rewards"].items()
            }
            c.pop("oracle", None)
    sentences = " ".join(headline_sentences(summary))
    assert "could not judge 40 of 40 samples of base" in sentences and "judged nothing" in sentences
    assert "every reward here was optimised" not in sentences


def test_fewer_prompts_than_can_show_anything_are_told():
    sentences = " ".join(headline_sentences(usual_summary() | {"prompts": 4})).replace("\xa0", " ")
    assert "fewer than 6 prompts can show no difference at 95 %, so there are no intervals." in sentences
