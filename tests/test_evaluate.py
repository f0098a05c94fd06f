"""Intervals that cover, differences that pair, an alarm that rings when it should and only then."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.evaluation import statistics


def rows(values, name="clip", seeds=2, **other):
    """Samples with `seeds` noises a prompt, scores in order."""
    return [
        {
            "index": n // seeds,
            "k": n % seeds,
            "category": None,
            "scores": {name: float(v)} | {k: w[n] for k, w in other.items()},
        }
        for n, v in enumerate(values)
    ]


def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100():
    """Samples of one prompt share an effect: an interval over samples would cover far too rarely (the control)."""
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for n in range(240):
        effect = np.repeat(rng.normal(size=40), 4)
        values, clusters = effect + 0.1 * rng.normal(size=160), np.repeat(np.arange(40), 4)
        for name, groups in (("hits", clusters), ("naive", np.arange(160)))[: 2 if n < 60 else 1]:
            low, high = statistics.mean_with_interval(values, groups)["ci95"]
            hits += name == "hits" and low <= 0 <= high
            naive += name == "naive" and low <= 0 <= high
    assert 0.90 <= hits / 240 <= 0.98
    assert naive / 60 < 0.80


def test_prompts_drawn_within_their_categories_give_a_narrower_interval_that_still_covers():
    """Two categories of a set number of prompts, far apart: how far is no uncertainty about the mean of the list."""
    rng, covered, narrower = np.random.default_rng(1), 0, 0
    kinds = np.repeat([0, 1], 20)
    for _ in range(200):
        values = np.where(kinds == 0, 0.2, 0.9) + rng.normal(scale=0.1, size=40)
        low, high = statistics.mean_with_interval(values, range(40), kinds)["ci95"]
        unstratified = statistics.mean_with_interval(values, range(40))["ci95"]
        covered += low <= 0.55 <= high
        narrower += high - low < 0.5 * (unstratified[1] - unstratified[0])
    assert 180 <= covered <= 199 and narrower == 200


def votes(rng, prompts, share, samples, alike):
    """0 or 1 for `samples` of each of `prompts`, whose own shares are a Beta's: (values, clusters)."""
    own = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), size=prompts)
    return (rng.random((prompts, samples)) < own[:, None]).ravel().astype(float), np.repeat(range(prompts), samples)


@pytest.mark.parametrize("prompts", [6, 12, 40])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_the_interval_of_a_share_covers_it_and_stays_within_0_and_1(prompts, share):
    """The control are the intervals of unbounded scores, which leave 0...1 with few prompts and cover too rarely."""
    rng, runs, covered, control, outside = np.random.default_rng(0), 150, 0, 0, 0
    for _ in range(runs):
        values, clusters = votes(rng, prompts, share, samples=2, alike=0.3)
        low, high = statistics.mean_with_interval(values, clusters, bounds=(0.0, 1.0))["ci95"]
        assert 0 <= low <= values.mean() <= high <= 1
        covered += low <= share <= high
        low, high = statistics.mean_with_interval(values, clusters)["ci95"]
        control += low <= share <= high
        outside += low < 0 or high > 1
    assert covered / runs >= 0.92
    if share > 0.9 and prompts < 40:
        assert control / runs < 0.87
    if prompts == 6:
        assert outside / runs > 0.2


@pytest.mark.parametrize("prompts", [6, 12])
def test_paired_differences_of_shares_stay_within_their_range_and_claim_no_more_than_is_there(prompts):
    """0 or 1 before and after, as likely to rise as to fall: one table in twenty may claim a difference."""
    rng, runs, false = np.random.default_rng(0), 200, 0
    for _ in range(runs):
        then, now = (votes(rng, prompts, 0.8, samples=1, alike=0.3)[0] for _ in range(2))
        pair = (rows(now, "oracle", 1), rows(then, "oracle", 1))
        low, high = statistics.compare_paired(*pair, {"oracle": (0.0, 1.0)})["oracle"]["ci95"]
        assert -1 <= low <= high <= 1
        false += low > 0 or high < 0
    assert false / runs < 0.07
    all_risen = (rows([1] * prompts, "oracle", 1), rows([0] * prompts, "oracle", 1))
    assert 0 < statistics.compare_paired(*all_risen, {"oracle": (0, 1)})["oracle"]["ci95"][0] < 1
    assert 0.5 < statistics.win_rates(*all_risen)["oracle"]["ci95"][0] < 1


def test_many_prompts_far_from_the_ends_have_the_bootstrap_that_unbounded_scores_have():
    values, clusters = votes(np.random.default_rng(0), 60, 0.6, samples=2, alike=0.3)
    estimate = statistics.mean_with_interval(values, clusters, bounds=(0.0, 1.0))
    assert estimate == statistics.mean_with_interval(values, clusters)
    assert (
        statistics.mean_with_interval(values + 1, clusters, bounds=(0.0, 1.0))["ci95"][1] > 1
    )  # bounds that are wrong


def test_a_constant_within_the_bounds_is_no_share():
    assert statistics.mean_with_interval([0.2] * 12, range(12), bounds=(0.0, 1.0))["ci95"] == pytest.approx([0.2, 0.2])


def test_tables_keep_the_intervals_of_bounded_scores_within_their_bounds():
    before, after = (rows([1.0] * n + [0.0] * (16 - n), "clip", oracle=[1.0] * n + [0.0] * (16 - n)) for n in (13, 15))
    part = statistics.summarise_contestant(after, before, {}, {"oracle": (0.0, 1.0)})
    assert part["rewards"]["oracle"]["ci95"][1] <= 1 < part["rewards"]["clip"]["ci95"][1]
    assert part["oracle"]["overall"] == {k: part["rewards"]["oracle"][k] for k in ("mean", "ci95", "n")}
    assert part["versus_base"]["oracle"]["ci95"] != part["versus_base"]["clip"]["ci95"]
    assert all(0 <= end <= 1 for estimate in part["wins"].values() for end in estimate["ci95"])


def test_what_could_not_be_judged_is_left_out_and_counted():
    estimate = statistics.mean_with_interval([1.0, float("nan"), 3.0], [0, 1, 2])
    assert estimate["mean"] == 2.0 and estimate["n"] == 2
    assert statistics.mean_with_interval([float("nan")], [0]) == {"mean": None, "ci95": None, "n": 0}


def test_the_difference_from_the_base_is_taken_sample_by_sample():
    rng = np.random.default_rng(1)
    start = rng.normal(size=60)
    estimate = statistics.compare_paired(rows(start + 0.1), rows(start)[::-1])["clip"]
    assert estimate["mean"] == pytest.approx(0.1) and estimate["ci95"] == pytest.approx([0.1, 0.1])


def test_diversity_is_the_distance_between_samples_of_one_prompt():
    same, other = np.zeros((3, 4, 4)), np.full((3, 4, 4), 0.5)
    assert statistics.measure_diversity([[same, other], [same, same]]) == pytest.approx(0.25)
    assert statistics.measure_diversity([[same]]) is None


def contest(reward_gain, judge_gain, diversity=0.3, weight=1.0):
    start = rows([0.5] * 20, oracle=[0.5] * 20)
    after = rows([0.5 + reward_gain] * 20, oracle=[0.5 + judge_gain] * 20)
    base = {"name": "base", "diversity": 0.3} | statistics.summarise_contestant(start, None, {"clip": weight})
    return [
        base,
        {"name": "reno", "diversity": diversity} | statistics.summarise_contestant(after, start, {"clip": weight}),
    ]


@pytest.mark.parametrize(
    ("parts", "rings"),
    [
        (contest(0.2, -0.1), True),
        (contest(-0.2, -0.1, weight=-1.0), True),
        (contest(0.2, -0.1, weight=-1.0), False),
        (contest(0.2, 0.0, diversity=0.1), True),
        (contest(0.2, 0.1), False),
        (contest(0.2, -0.01), False),
        (contest(0.2, 0.0), False),
        (contest(-0.1, -0.1), False),
        ([contest(0, 0)[0], {"name": "reno", "failed": "it broke"}], False),
    ],
)
def test_the_alarm_rings_when_the_optimised_reward_rises_and_a_held_out_judge_or_diversity_falls(parts, rings):
    assert bool(statistics.hacking_alarm(parts, "base", {"oracle": 0.02})) is rings


@pytest.mark.parametrize("prompts", [6, 8, 10])
def test_few_prompts_claim_a_difference_no_oftener_than_one_time_in_twenty(prompts):
    """Two samples of each, no true difference. As plain percentiles they would claim one in every eighth to twelfth
    table."""
    rng, false, runs = np.random.default_rng(0), 0, 400
    clusters = np.repeat(np.arange(prompts), 2)
    for _ in range(runs):
        values = np.repeat(rng.normal(size=prompts), 2) + rng.normal(size=2 * prompts)
        low, high = statistics.mean_with_interval(values, clusters)["ci95"]
        false += low > 0 or high < 0
    assert 0.01 < false / runs < 0.07


def test_five_prompts_that_all_agree_show_nothing():
    assert statistics.mean_with_interval([0.2] * 10, np.repeat(np.arange(5), 2)) == {
        "mean": pytest.approx(0.2),
        "ci95": None,
        "n": 10,
    }
    assert statistics.mean_with_interval([0.2] * 12, np.repeat(np.arange(6), 2))["ci95"] == pytest.approx([0.2, 0.2])
