"""Credit for each sample of a set: leave-one-out and the witness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from set_fixtures import ALL, BLUE, RED, STARTER, Flat, ask, draw, pictures, save, sound
from torch import Tensor

from rewards import build, build_reward, compose
from rewards.sets.mmd import KAD, GaussianKernel, mean_kernel, mmd_squared, witness_function
from rewards.sets.set_credit import LeaveOneOut, Witness, leave_one_out
from workbench.core.errors import BadInput
from workbench.core.types import RewardSpec


def mean_of(x: Tensor, kept: Tensor) -> Tensor:
    return x[kept].mean()


def test_leave_one_out_of_a_mean_is_the_advantage_over_the_others():
    r = torch.tensor([1.0, 2.0, 6.0])
    credit = leave_one_out(mean_of, r)
    torch.testing.assert_close(credit, torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5]))
    assert credit.sum().abs() < 1e-6
    with pytest.raises(ValueError, match="takes two"):
        leave_one_out(mean_of, r[:1])


def directions(n: int, seed: int) -> Tensor:
    """Unit vectors around one direction."""
    return torch.nn.functional.normalize(0.1 * draw(n, 6, seed) + torch.eye(6).double()[0], dim=1)


def test_a_planted_outlier_has_the_least_credit_and_it_is_negative():
    x, y = directions(24, 0), directions(60, 1)
    reward = LeaveOneOut(ALL["frechet"])
    before = ask(reward, x, y)
    x[7] *= -1
    credit = ask(reward, x, y)
    assert credit.argmin() == 7 and credit[7] < 0 and before.argmin() != 7
    assert credit.dtype == torch.float32 and credit.shape == (24,)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("frechet", LeaveOneOut), *((name, w) for name in ("kid", "kad", "cmmd") for w in (LeaveOneOut, Witness))],
)
def test_samples_of_a_planted_stray_mode_have_negative_credit_and_less_than_any_other(name, wrapper):
    x, y = directions(24, 0), directions(60, 1)
    before = ask(wrapper(ALL[name]), x, y)
    x[:5] *= -1
    credit = ask(wrapper(ALL[name]), x, y)
    assert (credit[:5] < 0).all() and credit[:5].max() < credit[5:].min()
    assert before[:5].max() > before[5:].min()  # without the plant they are like the others


def test_one_stray_sample_is_invisible_to_the_unbiased_mmd_and_several_are_not():
    """Its distance to itself is left out, and what is lost in E k(x,y) is gained in E k(x,x'): 0 in expectation."""
    found = {strays: [] for strays in (1, 4)}
    for seed in range(300):
        y = draw(30, 4, 2 * seed)
        for strays, values in found.items():
            x = draw(12, 4, 2 * seed + 1)
            x[:strays] = 50
            values.append(mmd_squared(x, y, GaussianKernel(2.0)).item())
    z = {n: np.mean(v) / (np.std(v) / len(v) ** 0.5) for n, v in found.items()}
    assert abs(z[1]) < 3 and z[4] > 6


def test_for_diversity_a_duplicate_has_less_credit_than_an_original():
    x = torch.eye(6)[[0, 1, 2, 3, 3]]
    credit = ask(LeaveOneOut(ALL["vendi"]), x)
    assert (credit[:3] > credit[3:].max() + 0.1).all() and credit[3] == pytest.approx(credit[4].item(), abs=1e-5)


def test_the_witness_is_leave_one_out_but_for_a_constant_in_large_batches():
    x, y = draw(200, 6) + 0.3, draw(300, 6, 1)
    one, two = (ask(cls(ALL["kad"]), x, y) for cls in (LeaveOneOut, Witness))
    torch.testing.assert_close(one - one.mean(), two - two.mean(), rtol=0, atol=0.1 * two.std().item())
    assert np.corrcoef(one, two)[0, 1] > 0.999


def test_the_witness_sums_to_what_the_batch_lacks_of_its_reference():
    x, y, k = draw(9, 4), draw(11, 4, 1), GaussianKernel(1.5)
    torch.testing.assert_close(witness_function(x, y, k).mean(), 2 * (k(x, y).mean() - mean_kernel(x, k)))


@pytest.mark.parametrize("wrapper", [LeaveOneOut, Witness])
def test_each_credit_pulls_at_its_own_sample_and_all_together_as_n_times_the_set(wrapper):
    media, references = sound(draw(7, 6)), sound(draw(30, 6, 1))
    media.data.requires_grad_()
    credit = wrapper(ALL["kad"])(media=media, prompts=[""] * 7, references=references)
    (one,) = torch.autograd.grad(credit[2], media.data, retain_graph=True)
    assert one[2].any() and not one[[0, 1, 3, 4, 5, 6]].any()
    (all_,) = torch.autograd.grad(credit.sum(), media.data)
    whole = ALL["kad"](media=media, prompts=[""] * 7, references=references)
    (of_set,) = torch.autograd.grad(whole, media.data)
    torch.testing.assert_close(all_, 7 * of_set)
    with torch.no_grad():
        torch.testing.assert_close(wrapper(ALL["kad"])(media=media, prompts=[""] * 7, references=references), credit)


def test_a_sample_that_is_not_finite_has_nan_credit_and_changes_no_other():
    x, y = draw(9, 6), draw(30, 6, 1)
    for wrapped in (LeaveOneOut(ALL["frechet"]), Witness(ALL["kid"])):
        credit = ask(wrapped, x, y)
        bad = torch.cat([x[:4], torch.full((1, 6), torch.nan).double(), x[4:]])
        found = ask(wrapped, bad, y)
        assert found.isnan().nonzero().flatten().tolist() == [4]
        torch.testing.assert_close(found[[*range(4), *range(5, 10)]], credit)


def test_credit_can_be_of_each_prompt_by_itself():
    x, prompts = torch.eye(6)[[0, 1, 1, 2, 3, 3, 5]], ["a", "b", "a", "b", "a", "b", "alone"]
    credit = ask(LeaveOneOut(ALL["vendi"], per="prompt"), x, prompts=prompts)
    for rows in ([0, 2, 4], [1, 3, 5]):
        torch.testing.assert_close(credit[rows], ask(LeaveOneOut(ALL["vendi"]), x[rows]))
    assert credit[6].isnan()
    assert not torch.allclose(credit[:6], ask(LeaveOneOut(ALL["vendi"]), x)[:6])


class Spread:
    """A set reward of someone else: no embedding to share, only its call. Counts prompts too."""

    spec = RewardSpec(
        "spread", "1", frozenset({"audio"}), differentiable=True, scope="set", needs=frozenset({"prompt"})
    )

    def __call__(self, *, media, prompts, references=None):
        return media.data.flatten(1).var(0).sum() + len(set(prompts))


def test_any_set_reward_gets_credit_through_its_call():
    x, prompts = draw(5, 6), ["a", "a", "a", "a", "b"]
    credit = ask(LeaveOneOut(Spread()), x, prompts=prompts)
    x = x.float()
    without = [x[[j for j in range(5) if j != i]].var(0).sum() for i in range(5)]
    told = 5 * (x.var(0).sum() - torch.stack(without)) + torch.tensor([0.0, 0, 0, 0, 5])
    torch.testing.assert_close(credit, told)
    media = sound(x)
    media.data.requires_grad_()
    credit = LeaveOneOut(Spread())(media=media, prompts=prompts)
    (g,) = torch.autograd.grad(credit[1], media.data)
    assert g[1].any() and not g[[0, 2, 3, 4]].any()


def test_credit_of_a_weighted_sum_is_the_sum_of_credits():
    x, y = draw(6, 6), draw(30, 6, 1)
    both = LeaveOneOut(compose.WeightedReward({ALL["vendi"]: 0.5, ALL["kad"]: 2.0}))
    assert both.spec.scope == "group" and both.spec.needs == {"reference"} and both.spec.differentiable
    told = 0.5 * ask(LeaveOneOut(ALL["vendi"]), x, y) + 2 * ask(LeaveOneOut(ALL["kad"]), x, y)
    torch.testing.assert_close(ask(both, x, y), told)


def test_a_batch_is_embedded_once_however_many_are_left_out():
    Flat.seen.clear()
    ask(LeaveOneOut(ALL["frechet"]), draw(10, 6), draw(30, 6, 1))
    assert Flat.seen == [10, 30]


def test_credit_is_refused_where_it_means_nothing():
    with pytest.raises(BadInput, match=r"leave_one_out\.of: brightness scores single samples already"):
        build("leave_one_out", of="brightness")
    with pytest.raises(BadInput, match=r"witness\.of: frechet has no kernel"):
        Witness(ALL["frechet"])
    with pytest.raises(BadInput, match=r"leave_one_out\.of\.nothing: unknown reward 'nothing'"):
        build("leave_one_out", of="nothing")
    assert not LeaveOneOut(ALL["prdc"]).spec.differentiable


def test_credit_is_named_in_a_config(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    folder = save(pictures([RED] * 3), tmp_path / "red")
    of = {"near": {"reward": "rewards.sets.mmd:KAD", "model": STARTER, "reference": folder}}
    reward = build_reward({"rewards.sets.set_credit:LeaveOneOut": {"weight": 2.0, "of": of, "per": "prompt"}})
    (credit,) = reward.rewards.values()
    assert credit.per == "prompt" and credit.of.rewards == {"near": KAD(model=STARTER, reference=folder)}
    assert (reward.spec.scope, reward.spec.needs) == ("group", frozenset())
    assert reward(media=pictures([RED, BLUE, RED]), prompts=["", "", ""]).isfinite().all()
    with pytest.raises(BadInput, match="does not exist"):
        build("leave_one_out", of={"near": {**of["near"], "reference": "no/where"}})
