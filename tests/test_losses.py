"""The losses that training methods share, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.core.types import Transition
from workbench.methods.common import losses

EXACT = dict(rtol=1e-12, atol=1e-12)


def test_a_denoising_error_is_a_mean_over_dimensions_in_units_of_velocity():
    """v = (x - x0) / s at a given x: an error of 0.4 in x0 at s = 0.5 is one of 0.8 in v."""
    ours, clean = torch.tensor([[0.4, 0.0], [1.0, 1.0]]), torch.zeros(2, 2)
    torch.testing.assert_close(losses.denoising_distance(ours, clean, 0.5), torch.tensor([0.32, 4.0]).double())


def test_a_relative_error_has_the_gradient_of_a_sign_in_one_dimension():
    x = torch.tensor([[0.3], [-7.0]], dtype=torch.float64, requires_grad=True)
    error = losses.self_normalised_error(x, torch.zeros(2, 1))
    torch.testing.assert_close(error.detach(), torch.tensor([0.3, 7.0], dtype=torch.float64), **EXACT)
    (grad,) = torch.autograd.grad(error.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([[2.0], [-2.0]], dtype=torch.float64), **EXACT)


def test_a_relative_error_of_zero_is_finite():
    x = torch.zeros(1, 3, requires_grad=True)
    losses.self_normalised_error(x, torch.zeros(1, 3)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "slope"),
    [
        (0.0, 2.0, -2.0, -2.0),
        (0.0, -2.0, 2.0, 2.0),
        (1.0, 2.0, -2.2, 0.0),  # far up already: no more reason to go
        (-1.0, -2.0, 1.8, 0.0),
        (1.0, -2.0, 2 * math.e, 2 * math.e),  # gone the wrong way: full gradient back
    ],
)
def test_ppo_stops_what_has_gone_far_enough_and_nothing_else(log_ratio, advantage, loss, slope):
    x = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    value = losses.clipped_surrogate(x, torch.tensor([advantage]), 0.1)
    torch.testing.assert_close(value.item(), loss)
    (grad,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(grad.item(), slope)


def test_the_guarded_log_ratio_is_the_raw_one_without_its_bias():
    """s (log p - log p_old) + mean(delta^2) / (2 s), the definition of its paper; and its mean is 0 where the raw
    one's is not."""
    g = torch.Generator().manual_seed(0)
    old, shift, std = torch.randn(2000, 3, generator=g).double(), 0.3, torch.tensor(0.5).double()
    new, x = old + shift, old + std * torch.randn(2000, 3, generator=g).double()
    raw = Transition(new, std, new).log_prob(x) - Transition(old, std, old).log_prob(x)
    guard = losses.guard_log_ratio(new, old, std, x)
    torch.testing.assert_close(guard, std * raw + shift**2 / (2 * std), **EXACT)
    error = guard.std() / math.sqrt(len(guard))
    assert guard.mean().abs() < 4 * error
    assert raw.mean() < -10 * raw.std() / math.sqrt(len(raw))


def test_without_preference_the_loss_is_log_two():
    torch.testing.assert_close(losses.preference_loss(torch.zeros(2)), torch.full((2,), math.log(2)))
    torch.testing.assert_close(losses.preference_loss(torch.tensor([3.0])), -torch.sigmoid(torch.tensor([3.0])).log())


def test_optimality_maps_the_bounds_to_zero_and_one():
    got = losses.optimality_probability(torch.tensor([-9.0, -5.0, 0.0, 2.5, 9.0]), 5.0)
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))


def test_group_sums_keep_to_their_group():
    values, group = torch.tensor([1.0, 10.0, 2.0, 30.0]), torch.tensor([4, 7, 4, 7])
    torch.testing.assert_close(losses.group_sum(values, group), torch.tensor([3.0, 40.0, 3.0, 40.0]))
    torch.testing.assert_close(losses.group_mean(values, group), torch.tensor([1.5, 20.0, 1.5, 20.0]))
