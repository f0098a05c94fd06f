"""Advantages by hand."""

from __future__ import annotations

import pytest
import torch

from workbench.methods.common.advantages import (
    centre_groups,
    gdpo_advantages,
    leave_one_out,
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
    ours = gdpo_advantages({"a": a, "b": b}, weights, group=6)
    torch.testing.assert_close(
        gdpo_advantages({"a": a, "b": 1000 * b + 7}, weights, group=6), ours, rtol=1e-4, atol=1e-4
    )
    assert ours.mean().abs() < 1e-6 and abs(ours.std(correction=0) - 1) < 1e-5
    raw, scaled = zscore(a + b, 6), zscore(a + 1000 * b, 6)
    assert (raw - scaled).abs().max() > 0.5


def test_in_gdpo_a_group_of_equals_stays_out_wherever_the_batchs_mean_lies():
    """A sample that one reward could not judge would else move the mean of the others of its group, and with it the
    batch's."""
    a = torch.tensor([1.0, 2, 3, 4, 5, 5, 5, 5, 1, 3, 2, 9])
    b = torch.tensor([4.0, 1, torch.nan, 2, 7, 7, 7, 7, 2, 2, 3, 1])
    ours = gdpo_advantages({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, group=4)
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
    ours = centre_groups(torch.tensor([1.0, 3.0, 10.0, NAN]), 2)
    torch.testing.assert_close(ours, torch.tensor([-1.0, 1.0, 0.0, NAN]), equal_nan=True)


def test_leave_one_out_is_each_less_the_mean_of_the_others():
    ours = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 4.0, NAN, 8.0, 7.0, NAN, NAN]), 3)
    expected = torch.tensor([-3.0, -1.5, 4.5, -4.0, NAN, 4.0, 0.0, NAN, NAN])
    torch.testing.assert_close(ours, expected, equal_nan=True)
