"""The methods' own arithmetic, on a policy small enough to check by hand: the picture is a linear map of the noise."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.core.types import Batch, Media, RewardSpec, Trajectory
from workbench.methods import METHODS, BestOfN, ReNO, Sample
from workbench.methods.inference.reno import clip_per_sample, norm_nll

SPEC = RewardSpec("mean", "1", frozenset({"image"}), differentiable=True)


class Linear:
    """A one-step "pipeline": picture = 0.5 + 0.1 * noise, 3x4x4. Says of itself what a real policy says."""

    modality, rate, steps, provides = "image", 0.0, 1, frozenset({"latents"})

    def __init__(self):
        self.nfe = 0

    def noise(self, seeds):
        return torch.stack([torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def sample(self, prompts, *, seeds, noise=None, grad=0):
        self.nfe += len(prompts)
        x = self.noise(seeds) if noise is None else noise
        x = x if grad else x.detach()
        media = Media(0.5 + 0.1 * x, "image")
        return Trajectory(tuple(prompts), x[:, None], torch.zeros(len(x), 1), (), media, tuple(seeds))


class Mean:
    """Brightness, or its opposite for prompts that start with 'dark'."""

    spec = SPEC

    def __call__(self, *, media, prompts, references=None):
        sign = torch.tensor([-1.0 if p.startswith("dark") else 1.0 for p in prompts])
        return sign * media.data.flatten(1).mean(1)


class Unsure(Mean):
    """Can't judge the sample of the prompt 'blank'."""

    def __call__(self, *, media, prompts, references=None):
        hole = torch.tensor([math.nan if p == "blank" else 1.0 for p in prompts])
        return super().__call__(media=media, prompts=prompts) * hole


def finals(method, prompts=("light", "dark"), seeds=(3, 4), reward=None):
    events = list(method(Linear(), reward or Mean(), [Batch(tuple(prompts), tuple(seeds))]))
    assert [e.final for e in events] == [False] * (len(events) - 1) + [True]
    return events


# the toy has neither noise levels nor weights nor prompts that can be reworded; tests/test_methods_on_models.py has all
# but `corrected`, which needs a LoRA of its own: tests/test_hypernoise.py
SIMPLE = [
    n for n, cls in METHODS.items() if not {"stochastic", "trainable"} & cls.needs and n not in ("rewrite", "corrected")
]


@pytest.mark.parametrize("name", SIMPLE)
def test_a_method_makes_exactly_the_denoiser_calls_it_announces(name):
    policy, method = Linear(), METHODS[name]()
    list(method(policy, Mean(), [Batch(("light", "dark"), (3, 4))]))
    assert policy.nfe == 2 * method.calls(policy.steps)


@pytest.mark.parametrize("method", [BestOfN(n=1), ReNO(iterations=0)])
def test_with_nothing_to_do_a_method_returns_the_base_bit_for_bit(method):
    base, got = finals(Sample())[-1], finals(method)[-1]
    assert torch.equal(base.media.data, got.media.data) and torch.equal(base.latents, got.latents)


def test_best_of_n_keeps_the_candidate_with_the_highest_reward_of_each_prompt():
    events = finals(BestOfN(n=6))
    reward = torch.stack([e.scores["reward"] for e in events])  # [6,2]
    assert (reward.diff(dim=0) >= 0).all() and (reward[-1] > reward[0]).any()
    kept = Mean()(media=events[-1].media, prompts=events[-1].prompts)
    assert torch.allclose(kept, reward[-1])


def test_the_noise_that_is_kept_makes_the_picture_that_is_kept():
    for method in (BestOfN(n=5), ReNO(iterations=5)):
        end = finals(method)[-1]
        assert torch.allclose(0.5 + 0.1 * end.latents, end.media.data)


def test_one_reno_step_is_nesterov_sgd_on_the_clipped_gradient():
    """By hand: grad of -mean(0.5 + 0.1 z) is -0.1/d; of the norm term lambda (1 - (d-1)/|z|^2) z; Nesterov's first step
    moves by lr * (1 + momentum) * grad."""
    lr, momentum, lam, bound = 0.7, 0.9, 0.01, 0.05
    method = ReNO(iterations=1, lr=lr, momentum=momentum, regularise=lam, max_grad_norm=bound)
    z = Linear().noise([3])
    d, norm2 = z.numel(), z.square().sum()
    grad = -0.1 / d + lam * (1 - (d - 1) / norm2) * z
    grad = grad * min(1.0, bound / (grad.norm().item() + 1e-6))
    expected = z - lr * (1 + momentum) * grad
    events = finals(method, prompts=["light"], seeds=[3])
    assert events[-1].scores["reward"] > events[0].scores["reward"]
    assert torch.allclose(events[-1].latents, expected, atol=1e-6)


def test_reno_never_returns_less_than_it_started_from_and_pulls_the_norm_to_where_noise_lives():
    events = finals(ReNO(iterations=30, lr=40.0, regularise=0.0))  # far too long a step: the end is not the best
    assert (events[-1].scores["reward"] >= events[0].scores["reward"]).all()
    z = (3 * Linear().noise([1, 2])).requires_grad_()
    for _ in range(200):
        (grad,) = torch.autograd.grad(norm_nll(z).sum(), z)
        z = (z - 0.05 * grad).detach().requires_grad_()
    assert torch.allclose(z.flatten(1).norm(dim=1), torch.full((2,), math.sqrt(z[0].numel() - 1)), atol=1e-3)


def test_batching_changes_nothing():
    together = finals(ReNO(iterations=8))[-1]
    for row, (prompt, seed) in enumerate((("light", 3), ("dark", 4))):
        alone = finals(ReNO(iterations=8), prompts=[prompt], seeds=[seed])[-1]
        assert torch.allclose(together.media.data[row], alone.media.data[0], atol=1e-6)


def test_a_sample_that_cannot_be_judged_stays_as_it_is_and_leaves_the_others_alone():
    for method in (BestOfN(n=4), ReNO(iterations=4)):
        end = finals(method, prompts=("light", "blank"), reward=Unsure())[-1]
        assert end.media.data.isfinite().all() and end.scores["reward"].isnan().tolist() == [False, True]
        assert torch.equal(end.latents[1], Linear().noise([4])[0])
        alone = finals(method, prompts=["light"], seeds=[3])[-1]
        assert torch.allclose(end.latents[0], alone.latents[0], atol=1e-6)


def test_each_row_is_clipped_by_its_own_norm():
    grad = torch.stack([torch.full((3, 2), 2.0), torch.full((3, 2), 1e-3), torch.full((3, 2), math.inf)])
    clipped = clip_per_sample(grad, 0.1)
    assert clipped[0].norm().item() == pytest.approx(0.1, rel=1e-4)
    assert torch.equal(clipped[1], grad[1]) and torch.equal(clipped[2], torch.zeros(3, 2))
