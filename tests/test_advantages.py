"""Advantages by hand, and the rule that says when a proxy's gain proves nothing any more."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.methods.common.advantages import (
    ChiSquareStop,
    centre,
    chi_square,
    chi_square_of_best,
    chi_square_of_kl,
    gdpo,
    leave_one_out,
    sure_gain,
    zscore,
)

NAN = torch.nan


def test_zscore_is_the_z_score_of_each_group():
    scores = torch.tensor([1.0, 2.0, 3.0, 100.0, 100.0, 400.0])
    ours = zscore(scores, 3)
    for rows in (slice(0, 3), slice(3, 6)):
        x = scores[rows]
        torch.testing.assert_close(ours[rows], (x - x.mean()) / x.std(correction=0))


def test_a_group_of_equals_has_no_advantage_even_off_by_rounding():
    assert torch.equal(zscore(torch.full((4,), 0.1), 4), torch.zeros(4))
    assert torch.equal(zscore(torch.tensor([21.5, 21.5 * (1 + 1e-7)]), 2), torch.zeros(2))
    assert zscore(torch.tensor([21.5, 21.5001]), 2).abs().min() > 0.9


def test_nan_takes_no_part_in_a_group():
    nan = torch.nan
    ours = zscore(torch.tensor([1.0, nan, 3.0, nan, nan, nan]), 3)
    torch.testing.assert_close(ours, torch.tensor([-1.0, nan, 1.0, nan, nan, nan]), equal_nan=True)


def test_gdpo_does_not_care_about_the_scale_of_a_reward():
    """Unlike the z-score of the raw sum, which the larger reward decides alone."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(24, generator=g), torch.randn(24, generator=g)
    weights = {"a": 1.0, "b": 1.0}
    ours = gdpo({"a": a, "b": b}, weights, group=6)
    torch.testing.assert_close(gdpo({"a": a, "b": 1000 * b + 7}, weights, group=6), ours, rtol=1e-4, atol=1e-4)
    assert ours.mean().abs() < 1e-6 and abs(ours.std(correction=0) - 1) < 1e-5
    raw, scaled = zscore(a + b, 6), zscore(a + 1000 * b, 6)
    assert (raw - scaled).abs().max() > 0.5


def test_in_gdpo_a_group_of_equals_stays_out_wherever_the_batchs_mean_lies():
    """A sample that one reward could not judge would else move the mean of the others of its group, and with it the batch's."""
    a = torch.tensor([1.0, 2, 3, 4, 5, 5, 5, 5, 1, 3, 2, 9])
    b = torch.tensor([4.0, 1, torch.nan, 2, 7, 7, 7, 7, 2, 2, 3, 1])
    ours = gdpo({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, group=4)
    assert (ours[4:8] == 0).all() and ours.isnan().tolist() == b.isnan().tolist()
    rest = torch.tensor([0, 1, 3])
    alone = sum(zscore(part[rest], 3) for part in (a, b))
    apart = ours[rest] - ours[rest].mean()
    torch.testing.assert_close(apart / apart.norm(), alone / alone.norm())


def test_groups_must_be_whole():
    with pytest.raises(ValueError, match="whole groups of 4"):
        zscore(torch.zeros(6), 4)


def test_the_spread_of_the_batch_does_not_blow_up_a_group_of_near_equals():
    """Flow-GRPO: mean by group, deviation of all."""
    scores = torch.tensor([1.0, 1.001, 5.0, 9.0])
    ours = zscore(scores, 2, spread="batch")
    std = scores.std(correction=0)
    torch.testing.assert_close(ours, torch.tensor([-0.0005, 0.0005, -2.0, 2.0]) / std, rtol=1e-3, atol=1e-6)
    assert zscore(scores, 2)[1] > 0.99, "which the spread of the group alone does"
    assert torch.equal(zscore(torch.full((4,), 3.0), 2, spread="batch"), torch.zeros(4))
    spoilt = zscore(torch.tensor([1.0, NAN, 5.0, 9.0]), 2, spread="batch")
    assert spoilt.isnan().tolist() == [False, True, False, False]


def test_centring_keeps_the_scale():
    ours = centre(torch.tensor([1.0, 3.0, 10.0, NAN]), 2)
    torch.testing.assert_close(ours, torch.tensor([-1.0, 1.0, 0.0, NAN]), equal_nan=True)


def test_leave_one_out_is_each_less_the_mean_of_the_others():
    ours = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 4.0, NAN, 8.0, 7.0, NAN, NAN]), 3)
    expected = torch.tensor([-3.0, -1.5, 4.5, -4.0, NAN, 4.0, 0.0, NAN, NAN])
    torch.testing.assert_close(ours, expected, equal_nan=True)


# The chi-square rule


def test_chi_square_of_samples_is_that_of_the_two_gaussians():
    """N(m,1) against N(0,1): exp(m^2) - 1, which is exp(2 KL) - 1 with KL = m^2 / 2."""
    m = 0.5
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + m
    log_ratio = m * x - m**2 / 2
    assert chi_square_of_kl(m**2 / 2) == pytest.approx(math.expm1(m**2))
    assert chi_square(log_ratio) == pytest.approx(math.expm1(m**2), rel=0.02)
    assert chi_square(torch.zeros(10)) == 0.0
    assert chi_square(torch.tensor([NAN, 0.0])) == 0.0
    assert math.isnan(chi_square(torch.tensor([NAN])))


def test_chi_square_of_best_of_n_is_the_integral():
    """The density ratio at quantile u is n u^(n-1): chi2 = integral of its square, less 1."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for n in (1, 2, 8):
        assert chi_square_of_best(n) == pytest.approx(((n * u ** (n - 1)) ** 2).mean().item() - 1, abs=1e-4)


def test_the_sure_gain_is_never_more_than_the_true_one():
    """A proxy that correlates by .6 with the truth on the base, and any reweighting of the base's samples."""
    g = torch.Generator().manual_seed(0)
    true, other = torch.randn(2, 5000, generator=g, dtype=torch.float64)
    true = (true - true.mean()) / true.std(correction=0)
    other = other - other.mean()
    other = other - (other * true).mean() * true
    proxy = 0.6 * true + 0.8 * other / other.std(correction=0)
    sharp = {"true": true, "proxy": proxy, "the rest": other}
    for direction in sharp.values():
        for strength in (0.1, 0.5, 1.0):
            w = (strength * direction).softmax(0) * len(true)  # density ratio policy / base
            chi2 = (w.square().mean() - 1).item()
            gained, proved = (w * true).mean().item(), sure_gain((w * proxy).mean().item(), chi2, 0.6)
            assert proved <= gained + 1e-9
    w = (0.3 * true).softmax(0) * len(true)
    assert sure_gain((w * true).mean().item(), (w.square().mean() - 1).item(), 1.0) == pytest.approx((w * true).mean())


def test_the_bound_by_hand():
    """Gain 2 at chi2 = 1 and rho = .6: (2 - .8) / .6 = 2. At gain .8 nothing is proved."""
    assert sure_gain(2.0, 1.0, 0.6) == pytest.approx(2.0)
    assert sure_gain(0.8, 1.0, 0.6) == pytest.approx(0.0)
    for rho in (0.0, 1.5, -0.2):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            sure_gain(1.0, 1.0, rho)


def test_the_rule_stops_when_the_distance_outgrows_the_gain_and_not_before():
    stop = ChiSquareStop(correlation=0.6, base=torch.tensor([-1.0, 1.0, NAN]), patience=2)
    assert not stop(torch.tensor([0.0]), 0.0), "where it started there is nothing to prove"
    assert not stop(torch.tensor([1.0, NAN]), 1.0)  # 1 > .8
    assert not stop(torch.tensor([1.0]), 4.0)  # 1 < 1.6, once
    assert not stop(torch.tensor([2.0]), 4.0)  # 2 > 1.6: proved again
    assert not stop(torch.tensor([2.0]), 9.0)
    assert stop(torch.tensor([2.0]), 9.0)
    with pytest.raises(ValueError, match="that differ"):
        ChiSquareStop(0.5, torch.ones(3))
