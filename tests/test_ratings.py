"""Ratings find what was planted, and say how much they can be trusted."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import minimize

from workbench.feedback import ratings

THETA = np.array([-1.5, -0.8, -0.4, 0.0, 0.3, 0.6, 0.8, 1.0])


def draw_votes(rng, count: int, theta=THETA, ties: float = 0.1, lean: float = 0.0, prompts: int = 200):
    """(left, right, score, prompts) of votes by people who follow the model, and lean to the left by so many
    log-odds."""
    n = len(theta)
    lefts = rng.integers(n, size=count)
    rights = (lefts + rng.integers(1, n, size=count)) % n
    score = (rng.random(count) < 1 / (1 + np.exp(-(theta[lefts] - theta[rights] + lean)))).astype(float)
    score[rng.random(count) < ties] = 0.5
    return lefts, rights, score, rng.integers(prompts, size=count)


def leaderboard_of(lefts, rights, score, prompts) -> ratings.Leaderboard:
    words = {1.0: "left", 0.0: "right", 0.5: "tie"}
    names = [f"c{n}" for n in range(8)]
    return ratings.build_leaderboard(
        [names[i] for i in lefts],
        [names[i] for i in rights],
        [words.get(s, "bad") for s in score],
        [str(p) for p in prompts],
    )


def test_planted_strengths_come_back_within_their_intervals_and_in_their_order():
    board = leaderboard_of(*draw_votes(np.random.default_rng(0), 6000, ties=0.0))
    assert [r.name for r in board.rows] == [f"c{n}" for n in range(7, -1, -1)]
    for r in board.rows:
        truth = 1000 + ratings.POINTS * (THETA - THETA.mean())[int(r.name[1:])]
        assert r.low < r.rating < r.high and abs(r.rating - truth) < 40 and r.high - r.low < 120
        assert r.first <= 8 - int(r.name[1:]) <= r.last
    assert len(board.islands) == 1 and not board.one_sided and board.by == "prompts"


@pytest.mark.parametrize("prompts", [100, 4])
def test_a_95_percent_interval_holds_the_truth_about_19_times_in_20(prompts):
    """Whether whole prompts are resampled, or single votes where prompts are few."""
    rng, covered = np.random.default_rng(1), []
    truth = THETA - THETA.mean()
    for _ in range(60):
        lefts, rights, score, prompt = draw_votes(rng, 700, ties=0.0, prompts=prompts)
        low, high = np.quantile(
            ratings.bootstrap_strengths(lefts, rights, score, prompt, 8, 300), [0.025, 0.975], axis=0
        )
        covered.append((low < truth) & (truth < high))
    assert 0.90 < np.mean(covered) < 0.985


def test_votes_that_agree_within_a_prompt_make_the_interval_wider():
    """Ten copies of one vote on each prompt are no ten votes."""
    lefts, rights, score, prompts = draw_votes(np.random.default_rng(2), 150, prompts=10**6)
    width = [np.ptp(np.quantile(ratings.bootstrap_strengths(np.tile(lefts, k), np.tile(rights, k), np.tile(score, k),
                                                  np.tile(prompts, k), 8), [0.025, 0.975], axis=0), axis=0).mean()
             for k in (1, 10)]  # fmt: skip
    assert width[1] == pytest.approx(width[0], rel=0.1)


def test_newton_finds_the_same_maximum_as_a_general_optimiser():
    lefts, rights, score, _ = draw_votes(np.random.default_rng(3), 300)
    won = ratings.count_wins(lefts, rights, score, 8)

    def loss(theta):
        gap = theta[:, None] - theta[None, :]
        return (won * np.logaddexp(0, -gap)).sum() + ratings.PRIOR / 2 * np.square(theta).sum()

    np.testing.assert_allclose(ratings.fit_strengths(won), minimize(loss, np.zeros(8), tol=1e-12).x, atol=1e-4)


def test_a_tie_is_half_a_win_for_each_and_both_bad_rates_nobody():
    two_ties = ratings.build_leaderboard(["a"] * 2, ["b"] * 2, ["tie"] * 2, ["p"] * 2)
    split = ratings.build_leaderboard(["a"] * 2, ["b"] * 2, ["left", "right"], ["p"] * 2)
    assert [r.rating for r in two_ties.rows] == [r.rating for r in split.rows] == [1000, 1000]
    more = ratings.build_leaderboard(["a"] * 3, ["b"] * 3, ["left", "right", "bad"], ["p"] * 3)
    assert [(r.rating, r.votes, r.bad) for r in more.rows] == [(1000, 2, 1)] * 2
    assert more.bias.votes == 2


def test_who_never_lost_has_a_finite_rating_a_wide_interval_and_a_warning():
    board = ratings.build_leaderboard(["a"] * 4 + ["b", "c"] * 6, ["b"] * 4 + ["c", "b"] * 6, ["left"] * 16, ["p"] * 16)
    first = board.rows[0]
    assert first.name == "a" and board.one_sided == ("a",)
    assert 1000 < first.rating < 2000 and first.high - first.low > 400


def test_two_groups_that_never_met_are_told_apart():
    board = ratings.build_leaderboard(["a", "c", "a"], ["b", "d", "b"], ["left", "right", "tie"], ["p"] * 3)
    assert board.islands == (("a", "b"), ("c", "d"))
    assert len(ratings.build_leaderboard(["a", "c", "b"], ["b", "d", "c"], ["left"] * 3, ["p"] * 3).islands) == 1


def test_matrices_are_in_the_order_of_the_table_and_add_up():
    lefts, rights, score, prompts = draw_votes(np.random.default_rng(4), 900)
    board = leaderboard_of(lefts, rights, score, prompts)
    assert board.met.sum() == 2 * 900 and (board.met == board.met.T).all()
    first, last = board.rows[0].name, board.rows[-1].name
    i, j = int(first[1:]), int(last[1:])
    row = score[(lefts == i) & (rights == j)].sum() + (1 - score[(lefts == j) & (rights == i)]).sum()
    assert board.rates[0, -1] == pytest.approx(row / board.met[0, -1])
    assert np.isnan(np.diag(board.rates)).all()
    assert board.rows[0].share == pytest.approx(np.nansum(board.rates[0] * board.met[0]) / board.met[0].sum())


def test_a_planted_position_bias_is_found_and_an_absent_one_is_not():
    """Sides are drawn by lot, so whatever the strengths, an honest crowd's left wins are coins: at most one set of
    votes in twenty may be called biased."""
    rng = np.random.default_rng(5)
    honest = [ratings.position_bias(draw_votes(rng, 400)[2]).is_shown for _ in range(400)]
    leaning = [ratings.position_bias(draw_votes(rng, 1000, lean=0.5)[2]) for _ in range(40)]
    assert np.mean(honest) < 0.07
    assert all(bias.is_shown and bias.share > 0.5 for bias in leaning)
    assert "lean to the left" in str(leaning[0])
    assert "lean to the right" in str(ratings.position_bias(draw_votes(rng, 1000, lean=-0.6)[2]))
    assert "no position bias shown" in str(ratings.position_bias(draw_votes(np.random.default_rng(0), 400)[2]))
    assert not ratings.position_bias(np.array([0.5, np.nan])).is_shown


def test_the_pair_that_met_least_tells_most_and_a_hopeless_one_little():
    won = np.array([[0, 20, 2.0], [20, 0, 20], [2, 20, 0]])
    gain = ratings.expected_gain(won)
    assert gain[0, 2] > gain[0, 1] > 0 and np.allclose(np.diag(gain), 0) and np.allclose(gain, gain.T)
    decided = np.array([[0, 400.0], [0, 0]])
    assert ratings.expected_gain(decided)[0, 1] < ratings.expected_gain(np.zeros((2, 2)))[0, 1] / 10


def test_two_thousand_votes_on_eight_contestants_take_less_than_a_second():
    votes = draw_votes(np.random.default_rng(6), 2000)
    start = time.process_time()
    leaderboard_of(*votes)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("choices", [[], ["bad", "bad"]])
def test_no_vote_that_decides_anything_is_no_crash(choices):
    board = ratings.build_leaderboard(["a"] * len(choices), ["b"] * len(choices), choices, ["p"] * len(choices))
    assert len(board.rows) == 2 * bool(choices) and not board.bias.is_shown
    assert all(r.low < 900 and r.high > 1100 and np.isnan(r.share) for r in board.rows), (
        "nothing is known, and it says so"
    )
