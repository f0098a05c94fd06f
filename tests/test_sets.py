"""Functions of sets: closed forms, agreement with plain formulas, unbiasedness, gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from set_fixtures import cubic, draw
from torch import Tensor

from rewards.sets.frechet import (
    Normal,
    extrapolate_distance,
    fit_normal,
    frechet_distance,
    normal_from_moments,
    nuclear_norm,
)
from rewards.sets.mmd import GaussianKernel, mean_kernel, median_distance, mmd_squared
from rewards.sets.moments import Moments
from rewards.sets.prdc import fit_balls, prdc_metrics
from rewards.sets.vendi import vendi_score


def distance(x: Tensor, y: Tensor) -> Tensor:
    return frechet_distance(fit_normal(x), fit_normal(y))


# Fréchet


@pytest.mark.parametrize(("n", "d"), [(40, 8), (5, 30)])
def test_frechet_of_a_set_and_itself_moved_is_the_square_of_the_way(n, d):
    """Equal covariances leave only the means, also with fewer items than dimensions."""
    x, shift = draw(n, d), torch.linspace(-1, 2, d).double()
    assert distance(x, x).item() == pytest.approx(0, abs=1e-10)
    assert distance(x, x + shift).item() == pytest.approx(shift.square().sum().item(), abs=1e-10)


@pytest.mark.parametrize("decay", [0.0, 4.0, 9.0, 15.0])
def test_the_nuclear_norm_is_the_same_by_eigenvalues_and_by_singular_values(decay):
    """Spectra from flat to hopelessly steep: the quick way must hand over to the exact one in time."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -decay, 24, dtype=torch.float64)
    a, b = (torch.randn(n, 24, generator=generator, dtype=torch.float64) * scale for n in (60, 24))
    exact = torch.linalg.svdvals(a @ b.T).sum()
    assert abs(nuclear_norm(a, b) - exact) < 1e-8 * exact


def test_frechet_of_scaled_diagonal_normals_is_the_difference_of_their_deviations():
    """sum (s_i - t_i)^2, and the square of the way between the means."""
    s, t = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.0, 3.5]).double()
    p, q = Normal(torch.zeros(3).double(), torch.diag(s)), Normal(torch.ones(3).double(), torch.diag(t))
    assert frechet_distance(p, q).item() == pytest.approx((s - t).square().sum().item() + 3)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 6), (7, 90, 12), (7, 9, 24)])
def test_frechet_agrees_with_the_square_root_of_the_product(n, m, d):
    x, y = draw(n, d), draw(m, d, 1) @ draw(d, d, 2) / d**0.5 + 0.3
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    classic = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum() + np.trace(a + b - 2 * root.real)
    # sqrtm loses half the digits on a singular product; where there is none, the two agree to rounding
    assert distance(x, y).item() == pytest.approx(classic, rel=1e-9 if min(n, m) > d else 1e-4)
    eigen = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    assert torch.linalg.svdvals(fit_normal(x).root @ fit_normal(y).root.T).sum().item() == pytest.approx(
        eigen, rel=1e-5
    )


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)])
def test_the_gradient_of_frechet_is_its_slope(n, d):
    x, q = draw(n, d).requires_grad_(), normal_from_moments(Moments.from_rows(draw(30, d, 1)))
    assert torch.autograd.gradcheck(lambda x: frechet_distance(fit_normal(x), q), x)


def test_frechet_falls_along_its_gradient_to_the_reference():
    x, y = draw(12, 20).requires_grad_(), draw(40, 20, 1) + 1
    optimizer = torch.optim.Adam([x], 0.1)
    path = []
    for _ in range(30):
        optimizer.zero_grad()
        value = distance(x, y)
        value.backward()
        optimizer.step()
        path.append(value.item())
    assert all(b < a for a, b in pairwise(path)) and path[-1] < path[0] / 2


def test_the_limit_of_frechet_is_nearer_the_truth_than_its_value_at_any_size():
    """Two draws of one distribution: the truth is 0, the raw value is not; with duplicates the limit is not either."""
    q = Normal(torch.zeros(8).double(), torch.eye(8).double())
    raw, limit, bootstrapped = [], [], []
    for seed in range(20):
        x = draw(400, 8, seed)
        raw.append(frechet_distance(fit_normal(x), q).item())
        line = extrapolate_distance(x, q)
        limit.append(line.value.item())
        drawn = [x[torch.randint(400, (n,), generator=torch.Generator().manual_seed(n))] for n in range(40, 401, 24)]
        y, t = np.array([frechet_distance(fit_normal(s), q) for s in drawn]), 1 / np.arange(40, 401, 24)
        bootstrapped.append(np.polyfit(t, y, 1)[1])
        assert line.slope > 0 and 0 < line.r2 <= 1
    assert np.mean(raw) > 0.05
    assert abs(np.mean(limit)) < np.mean(raw) / 5
    assert np.mean(bootstrapped) > 2 * abs(np.mean(limit))


# Moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_streamed_moments_are_those_of_the_whole_in_any_order(offset):
    """Also far from 0, where the sum of squares would have lost its digits."""
    x = draw(1000, 7) + offset
    whole = np.cov(x.numpy(), rowvar=False)
    for sizes in ([1000], [1, 999], [0, 300, 0, 500, 200], [10] * 100):
        chunks = x.split(sizes)
        for order in (chunks, chunks[::-1]):
            m = Moments.from_chunks(order)
            assert m.count == 1000
            np.testing.assert_allclose(m.mean.numpy(), x.numpy().mean(0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(m.covariance.numpy(), whole, rtol=1e-10, atol=1e-10)


def test_a_stream_holds_one_chunk_at_a_time():
    """Its memory is its moments: a hundred times the rows, the same numbers kept."""
    alive = []

    def chunks(n):
        import weakref

        for seed in range(n):
            x = draw(50, 4, seed)
            alive.append(weakref.ref(x))
            yield x
            del x
            assert sum(r() is not None for r in alive) <= 1  # the consumer's own name for it

    m = Moments.from_chunks(chunks(100))
    assert m.count == 5000 and m.mean.numel() + m.scatter.numel() == 20


def test_compact_moments_are_the_distribution_of_their_rows():
    x, y = draw(50, 9), draw(6, 9, 1)
    for rows in (x, y):  # of full rank, and not
        p = normal_from_moments(Moments.from_rows(rows))
        torch.testing.assert_close(p.root.T @ p.root, torch.cov(rows.T))
        assert len(p.root) == min(len(rows) - 1, 9)
    torch.testing.assert_close(
        frechet_distance(normal_from_moments(Moments.from_rows(x)), normal_from_moments(Moments.from_rows(y))),
        distance(x, y),
    )


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        Moments.from_chunks([])
    assert Moments.from_rows(draw(1, 3)).covariance.isnan().all()


# Vendi


@pytest.mark.parametrize("q", [0, 0.5, 1, 1.5, 2, 5, math.inf])
def test_vendi_counts_different_items(q):
    for k, copies in ((4, 1), (4, 3), (1, 5)):
        x = 3 * torch.eye(9)[:k].repeat(copies, 1)
        assert vendi_score(x, q).item() == pytest.approx(k, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12)])
@pytest.mark.parametrize("q", [0.5, 1, 2, 3, math.inf])
def test_vendi_is_that_of_the_whole_kernel(n, d, q):
    x = draw(n, d)
    unit = x / x.norm(dim=1, keepdim=True)
    p = np.linalg.eigvalsh((unit @ unit.T).numpy() / n)
    p = p[p > 1e-12]
    if q == 1:
        told = math.exp(-(p * np.log(p)).sum())
    elif q == math.inf:
        told = 1 / p.max()
    else:
        told = (p**q).sum() ** (1 / (1 - q))
    assert vendi_score(x, q).item() == pytest.approx(told, rel=1e-9)
    torch.testing.assert_close(vendi_score(x[torch.randperm(n)], q), vendi_score(x, q))


@pytest.mark.parametrize(("n", "d"), [(7, 3), (3, 7)])
@pytest.mark.parametrize("q", [0.5, 1, 2, 3])
def test_the_gradient_of_vendi_is_its_slope(n, d, q):
    assert torch.autograd.gradcheck(lambda x: vendi_score(x, q), draw(n, d).requires_grad_())


def test_vendi_of_a_collapsed_set_has_a_finite_gradient():
    x = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    for q in (0.5, 1, 2, math.inf):
        (g,) = torch.autograd.grad(vendi_score(x, q), x)
        assert g.isfinite().all()


# MMD

KERNELS = {"gaussian": GaussianKernel(2.0), "cubic": cubic}


@pytest.mark.parametrize("name", KERNELS)
def test_unbiased_mmd_of_one_distribution_averages_to_zero(name):
    """And a shifted one, and the biased estimate, which must fail the same test, do."""
    kernel, same, other, biased = KERNELS[name], [], [], []
    for seed in range(300):
        x, y = draw(8, 4, 2 * seed), draw(10, 4, 2 * seed + 1)
        same.append(mmd_squared(x, y, kernel).item())
        other.append(mmd_squared(x + 0.5, y, kernel).item())
        biased.append(mmd_squared(x, y, kernel, biased=True).item())

    def z(values):
        return np.mean(values) / (np.std(values) / len(values) ** 0.5)

    assert abs(z(same)) < 3 and min(same) < 0
    assert z(other) > 6
    assert z(biased) > 6 and min(biased) >= 0


def test_mmd_is_its_double_sums():
    x, y, k = draw(5, 3), draw(7, 3, 1), GaussianKernel(1.3)
    told = sum(k(a[None], b[None]) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    told = told + sum(k(a[None], b[None]) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 42
    told = told - 2 * sum(k(a[None], b[None]) for a in x for b in y) / 35
    torch.testing.assert_close(mmd_squared(x, y, k), told[0, 0])
    torch.testing.assert_close(mmd_squared(x, y, k, yy=mean_kernel(y, k)), told[0, 0])
    assert k(x[:1], x[1:2]).item() == pytest.approx(math.exp(-(x[0] - x[1]).square().sum().item() / (2 * 1.69)))


def test_a_kernel_matrix_is_never_whole_in_memory(monkeypatch):
    x = draw(23, 3)
    whole = mean_kernel(x, cubic), mean_kernel(x, cubic, biased=True)
    monkeypatch.setattr("rewards.sets.mmd.BLOCK_ROWS", 5)
    torch.testing.assert_close((mean_kernel(x, cubic), mean_kernel(x, cubic, biased=True)), whole)


@pytest.mark.parametrize("name", KERNELS)
def test_the_gradient_of_mmd_is_its_slope(name):
    y = draw(6, 3, 1)
    assert torch.autograd.gradcheck(lambda x: mmd_squared(x, y, KERNELS[name]), draw(5, 3).requires_grad_())


def test_the_median_distance_is_the_median_of_distances():
    y = torch.tensor([[0.0], [1.0], [3.0]])
    assert median_distance(y) == 2
    assert median_distance(draw(3000, 5), max_rows=500) == pytest.approx(median_distance(draw(3000, 5)), rel=0.05)


# Precision, recall, density, coverage


def test_neighbourhoods_by_hand():
    """Reals 0, 1, 3 with radii 1, 1, 2 (k = 1); fakes 0.5, 10, 0.9 with radii 0.4, 9.1, 0.4."""
    y, x = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [0.9]])
    assert fit_balls(y, 1).radii.tolist() == [1, 1, 2]
    found = {name: value.item() for name, value in prdc_metrics(x, y, k=1).items()}
    # 0.5 lies in the balls of 0 and 1; 0.9 in those of 0, 1 (and 3 - 0.9 = 2.1 is out of reach); 10 in none
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["density"] == pytest.approx(4 / 3)
    assert found["coverage"] == pytest.approx(2 / 3)  # nothing within 2 of 3
    assert found["recall"] == pytest.approx(2 / 3)  # 1 is in 0.9's ball, 3 in 10's; 0 in none


def test_equal_sets_cover_each_other_and_distant_ones_do_not():
    x = draw(30, 4)
    assert all(prdc_metrics(x, x)[name] == 1 for name in ("precision", "recall", "coverage"))
    assert all(value == 0 for value in prdc_metrics(x, x + 100).values())
    collapsed = x[:1] + 1e-3 * draw(30, 4, 1)
    assert prdc_metrics(collapsed, x)["coverage"] < 0.5 and prdc_metrics(collapsed, x)["recall"] < 0.5
