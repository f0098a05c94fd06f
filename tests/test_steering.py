"""Steering samples what it says it samples: against laws computed on a grid, and against what the reference codes get
wrong.

The policy is a flow to a mixture of Gaussians whose every law is known (mixture_policy.py); with reward r and strength
lam the target is p(x) exp(lam r(x)), p being the law of the policy's own chain, its discretisation included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from mixture_policy import MixturePolicy, Value, ks

from pipelines.transitions import Ancestral, FlowSDE
from workbench.core.errors import BadInput
from workbench.core.types import Batch, Media, RewardSpec
from workbench.methods.common import particles
from workbench.methods.common.particles import effective_sample_size, resample_groups, resample_systematically
from workbench.methods.inference.beam import Beam
from workbench.methods.inference.das import DAS
from workbench.methods.inference.fk import FK, POTENTIALS
from workbench.methods.inference.svdd import SVDD

KERNELS = {"ancestral": Ancestral(), "flow-sde": FlowSDE()}
DRAW = dict(choose="draw", start=0.3, end=0.7, every=0.4)  # of 6 steps: after 2 and after 4


def policy(kernel="ancestral", **changes):
    return MixturePolicy(kernel=KERNELS[kernel], **{"steps": 6, **changes})


def events(method, prompts=("a",), seeds=(1,), reward=None, pipe=None):
    return list(method(pipe or policy(), reward or Value(), [Batch(tuple(prompts), tuple(seeds))]))


def draws(method, n, reward=None, pipe=None):
    """n independent results, each a number."""
    return events(method, ("a",) * n, range(n), reward, pipe)[-1].media.data[:, 0].flatten()


def target(pipe, reward, lam):
    values, mass = pipe.marginal()
    r = reward(media=Media(values.view(-1, 1, 1, 1), "image"), prompts=())
    mass = mass * torch.exp(lam * r)
    return values, mass / mass.sum()


class Scripted:
    """A reward that says what it was told to, call by call, [K] each; the media that it saw are kept."""

    spec = RewardSpec("scripted", "1", frozenset({"image"}), differentiable=False)

    def __init__(self, *says):
        self.says, self.saw = [torch.tensor(s) for s in says], []

    def __call__(self, *, media, prompts, references=None):
        self.saw.append(media.data[:, 0].flatten())
        return self.says[len(self.saw) - 1]


@dataclass(frozen=True)
class Watched(FK):
    """FK that judges after steps 2 and 4 of 6."""

    start: float = 0.3
    end: float = 0.7
    every: float = 0.4


def lineages(monkeypatch):
    """The ancestors of every resampling that a method does from now on, and whether it did resample."""
    log, real = [], particles.resample_groups

    def spy(logw, *rest):
        rows, low, ess = real(logw, *rest)
        log.append((logw.clone(), rows, low, ess))
        return rows, low, ess

    monkeypatch.setattr(particles, "resample_groups", spy)
    return log


# what is sampled


def test_the_grid_knows_what_the_plain_chain_samples():
    """The control under all others: no steering, and two laws that must not fit."""
    for kernel in KERNELS:
        pipe = policy(kernel)
        media = pipe.sample(("a",) * 600, seeds=range(600)).media
        values, mass = pipe.marginal()
        assert ks(media.data[:, 0], values, mass) < 0.06
        assert ks(media.data[:, 0], values + 0.3, mass) > 0.1
        assert ks(media.data[:, 0], *target(pipe, Value(), 0.5)) > 0.1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_with_more_particles_every_potential_comes_to_sample_the_tilted_law(potential, kernel):
    lam, pipe, reward = 1.0, policy(kernel), Value()
    law = target(pipe, reward, lam)
    gap = {
        k: ks(draws(FK(particles=k, lam=lam, potential=potential, **DRAW), n, reward, pipe), *law)
        for k, n in ((1, 250), (4, 250), (24, 250))
    }
    assert gap[1] > 0.3 and gap[1] > gap[4] and gap[24] < 0.1, gap


def test_a_bent_reward_is_sampled_as_well():
    """r(x) = 0.5 x - x^2 draws both modes together, which a shift of the mean can't imitate."""
    pipe, reward = policy(), Value(slope=0.5, bend=-1.0)
    law = target(pipe, reward, 1.0)
    assert ks(draws(FK(particles=1, lam=1.0, choose="draw"), 250, reward, pipe), *law) > 0.12
    for method in (FK(particles=24, lam=1.0, potential="diff", **DRAW), DAS(particles=8, lam=1.0, choose="draw")):
        assert ks(draws(method, 250, reward, pipe), *law) < 0.09


def test_the_gradient_lets_das_sample_the_tilted_law_with_fewer_particles():
    lam, pipe, reward = 1.5, policy(), Value()
    law = target(pipe, reward, lam)
    gap = {k: ks(draws(DAS(particles=k, lam=lam, choose="draw"), 250, reward, pipe), *law) for k in (1, 4, 16)}
    blind = ks(draws(FK(particles=1, lam=lam, choose="draw"), 250, reward, pipe), *law)
    assert blind > gap[1] > gap[16] and gap[16] < 0.1, (blind, gap)


def test_a_shortened_push_leaves_the_law_that_das_samples_as_it_is():
    lam, pipe, reward = 1.5, policy(), Value()
    method = DAS(particles=16, lam=lam, choose="draw", push_limit=0.2)
    assert ks(draws(method, 250, reward, pipe), *target(pipe, reward, lam)) < 0.1


def test_a_push_keeps_its_direction_and_is_no_longer_than_its_limit():
    push = (
        torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([40, 1, 0.1, 0])[:, None, None]
    )
    short = DAS(push_limit=1.0)._limit_push(push)
    assert short.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1, push[2].norm().item(), 0])
    assert torch.allclose(short[0] * push[0].norm(), push[0], rtol=1e-4)
    assert torch.equal(short[2:], push[2:]) and torch.equal(DAS(push_limit=None)._limit_push(push), push)


def test_svdd_samples_the_tilted_law_where_its_value_is_the_true_one():
    """For a Gaussian and a linear reward, the reward of the posterior mean IS the soft value up to a constant."""
    pipe, reward, alpha = policy(means=(0.3,), stds=(0.8,), weights=(1.0,)), Value(), 0.7
    law = target(pipe, reward, 1 / alpha)
    gap = {m: ks(draws(SVDD(candidates=m, alpha=alpha), 250, reward, pipe), *law) for m in (1, 6, 24)}
    assert gap[1] > 0.25 and gap[1] > gap[6] and gap[24] < 0.1, gap


@pytest.mark.parametrize("method", [FK(particles=8, lam=1.0, choose="draw"), DAS(lam=1.0, choose="draw")])
def test_a_negative_strength_steers_the_other_way(method):
    plain = policy().sample(("a",) * 100, seeds=range(100)).media.data.mean().item()
    up, down = (draws(replace(method, lam=lam), 100).mean().item() for lam in (1.0, -1.0))
    assert up > plain + 0.2 and down < plain - 0.2


def test_more_strength_and_more_candidates_raise_the_reward():
    weak, strong = (draws(FK(particles=4, lam=lam), 80).mean() for lam in (0.0, 3.0))
    few, many = (draws(SVDD(candidates=m), 80).mean() for m in (2, 6))
    soft, greedy = (draws(SVDD(candidates=4, alpha=a), 80).mean() for a in (5.0, 0.0))
    assert strong > weak and many > few and greedy > soft + 0.3


# nothing to do


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "method", [FK(particles=1), FK(lam=0.0, particles=1), SVDD(candidates=1), Beam(1, 1), DAS(particles=1, lam=0.0)]
)
def test_one_particle_without_a_push_is_the_policys_own_chain_bit_for_bit(method, kernel):
    pipe = policy(kernel)
    base = pipe.sample(("a", "b"), seeds=(3, 4)).media.data
    assert torch.equal(events(method, "ab", (3, 4), pipe=pipe)[-1].media.data, base)


@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", [FK(lam=0.0, choose="draw"), DAS(lam=0.0, choose="draw")])
def test_without_strength_particles_are_plain_samples_and_the_one_drawn_is_any_of_them(method, ess):
    pipe, seeds = policy(), range(40)
    got = events(replace(method, ess_threshold=ess), ("a",) * 40, seeds, pipe=pipe)[-1].media.data
    prompts = ("a",) * 4
    chains = [
        pipe.sample(prompts, seeds=[s, *(particles.derive_seed(s, "candidate", j) for j in (1, 2, 3))]).media.data
        for s in seeds
    ]
    slot = [next(j for j in range(4) if torch.equal(chain[j], row)) for chain, row in zip(chains, got, strict=True)]
    assert set(slot) == {0, 1, 2, 3}


def test_a_wider_beam_finds_better_samples_and_one_wide_is_the_greedy_choice():
    mean = {w: float(draws(Beam(w, 3), 80).mean()) for w in (1, 4)}
    assert mean[1] == pytest.approx(float(draws(SVDD(candidates=3), 80).mean()), abs=0.1)
    assert mean[4] > mean[1] > float(draws(Beam(1, 1), 80).mean())


def test_soft_choice_at_a_high_temperature_is_the_plain_law():
    assert ks(draws(SVDD(candidates=4, alpha=1e6), 300), *policy().marginal()) < 0.09


# resampling


def test_systematic_resampling_gives_floor_or_ceil_of_k_w_children_and_the_right_mean():
    weights = torch.tensor([[0.5, 0.26, 0.2, 0.04, 0.0]], dtype=torch.float64)
    u = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = resample_systematically(weights.expand(2000, 5), u)
    children = torch.nn.functional.one_hot(rows, 5).sum(1)  # [2000,5]
    assert (children >= (5 * weights).floor()).all() and (children <= (5 * weights).ceil()).all()
    assert torch.allclose(children.double().mean(0), 5 * weights[0], atol=0.05)
    independent = torch.multinomial(weights[0], 10000, replacement=True).view(2000, 5)
    assert (torch.nn.functional.one_hot(independent, 5).sum(1) > (5 * weights).ceil()).any()  # the control


@pytest.mark.parametrize("u", [2**-32, 0.5, 1 - 2**-32])
@pytest.mark.parametrize("k", [1, 3, 7, 64, 1000])
def test_equal_weights_leave_every_particle_one_child(k, u):
    """At the ends of what `uniforms` can say, too: rounding neither skips a particle nor runs over the last."""
    weights = torch.full((1, k), 0.1, dtype=torch.float64).softmax(1)
    assert torch.equal(resample_systematically(weights, torch.tensor([u], dtype=torch.float64))[0], torch.arange(k))


def test_the_effective_sample_size_counts_the_particles_that_matter():
    inf = math.inf
    logw = torch.tensor([[0.0, 0.0, 0.0, 0.0], [700.0, 0.0, 0.0, 0.0], [5.0, 5.0, -inf, -inf]], dtype=torch.float64)
    assert torch.allclose(effective_sample_size(logw), torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))
    rows, low, _ = resample_groups(logw, 0.5, (1, 2, 3), 0)
    assert low.flatten().tolist() == [False, True, False]
    assert rows.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]]


def test_a_constant_reward_never_resamples(monkeypatch):
    log = lineages(monkeypatch)
    events(FK(lam=50.0), reward=Value(slope=0.0))
    events(DAS(lam=50.0), reward=Value(slope=0.0, bend=0.0))
    assert log and not any(low.any() for *_, low, _ in log)


# what the reference code gets wrong


def spent(potential, a, b):
    """Logarithm of the potentials of two judgements, over lam, written out."""
    return {"diff": b, "max": a + torch.maximum(a, b), "add": a + (a + b), "rt": a + b}[potential]


@pytest.mark.parametrize("potential", POTENTIALS)
def test_weights_of_a_step_that_does_not_resample_are_kept(monkeypatch, potential):
    """The effective sample size stays high after the first judgement; the second adds to its weights."""
    log = lineages(monkeypatch)
    a, b, end = [0.1, 0.0, 0.2, 0.0], [0.3, 0.0, 0.0, 0.1], [0.0, 0.5, 0.2, 0.1]
    final = events(Watched(lam=1.0, potential=potential, ess_threshold=0.01), reward=Scripted(a, b, end))[-1]
    a, b, end = (torch.tensor([v]).double() for v in (a, b, end))
    assert not any(low.any() for *_, low, _ in log)
    assert torch.allclose(log[0][0], a) and torch.allclose(log[1][0], spent(potential, a, b))
    assert final.metrics["ess"] == pytest.approx(effective_sample_size(end).item(), rel=1e-6)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_last_weight_divides_the_final_reward_by_all_that_was_spent(monkeypatch, potential):
    """By hand, from the ancestors of the second judgement, the only one at which particles are resampled."""
    log, lam = lineages(monkeypatch), 2.0
    a, b, end = [0.1, 0.0, 0.3, 0.0], [3.0, 0.0, 2.9, 0.0], [3.5, 3.0, 3.2, 3.4]
    final = events(Watched(lam=lam, potential=potential), reward=Scripted(a, b, end))[-1]
    assert [low.item() for *_, low, _ in log] == [False, True]
    a, b, end = (torch.tensor(v).double() for v in (a, b, end))
    rows = log[1][1][0]
    assert set(rows.tolist()) == {0, 2}
    right = effective_sample_size(lam * (end - spent(potential, a, b)[rows])[None]).item()
    running_maximum = effective_sample_size(lam * torch.maximum(end, b[rows])[None]).item()
    assert final.metrics["ess"] == pytest.approx(right, rel=1e-6) != pytest.approx(running_maximum, rel=1e-3)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_rewards_far_below_zero_still_rank_the_particles(monkeypatch, potential):
    """A floor of 0 under the maximum would tie them all."""
    log = lineages(monkeypatch)
    events(Watched(lam=10.0, potential=potential), reward=Scripted([-9.0, -3.0, -8.0, -7.0], [-1.0] * 4, [0.0] * 4))
    assert log[0][1].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("method", [FK(lam=1e6), FK(lam=1e6, choose="draw"), SVDD(alpha=1e-6), SVDD(alpha=1e-300)])
@pytest.mark.parametrize("slope", [1e3, -1e3])
def test_no_strength_saturates_or_empties_the_weights(method, slope):
    """exp(23) is where raw weights clipped at 1e10 tie; exp(-800) is where all of them are 0."""
    result = draws(method, 20, Value(slope=slope))
    plain = draws(replace(FK(), particles=1), 20)
    assert result.isfinite().all() and (result.mean() - plain.mean()) * slope > 0


def test_a_deterministic_kernel_is_refused_where_copies_would_never_part():
    pipe = MixturePolicy(kernel=Ancestral(0.0), steps=6)
    for method in (FK(lam=50.0), DAS(lam=50.0), SVDD(candidates=2)):
        with pytest.raises(BadInput, match="deterministic"):
            events(method, ("a",) * 4, range(4), pipe=pipe)
    assert events(FK(particles=1), pipe=pipe)[-1].final


def test_copies_part_at_once():
    reward = Scripted([9.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0] * 4)
    events(Watched(lam=10.0), reward=reward)
    assert len(reward.saw[1].unique()) == 4  # four children of one particle, each its own


def test_the_schedule_is_a_share_of_the_chain():
    assert FK().resampling_steps(100) == {20, 40, 60, 80}  # the paper's 100 steps
    assert (
        FK().resampling_steps(8) == {2, 3, 5, 6}
        and FK().resampling_steps(4) == {1, 2}
        and FK().resampling_steps(1) == set()
    )
    with pytest.raises(BadInput, match="start 0.9"):
        FK(start=0.9, end=0.1)


def test_das_tempers_the_reward_in_as_the_paper_does():
    method = DAS()
    assert [method.tempering(i, 100) for i in (0, 87, 88, 100)] == [0, pytest.approx(1.0, abs=2e-3), 1, 1]
    assert method.tempering(25, 50) == method.tempering(50, 100)
    assert DAS(gamma=0.0).tempering(7, 8) == 0 and DAS(gamma=0.0).tempering(8, 8) == 1


# rows


STEERED = [
    FK(lam=2.0),
    FK(lam=2.0, choose="draw"),
    SVDD(candidates=3, alpha=0.3),
    SVDD(candidates=3),
    DAS(lam=2.0),
    Beam(2, 2),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", STEERED)
def test_a_row_does_not_depend_on_its_batch(method, kernel):
    together = events(method, ("0", "a", "1"), (5, 6, 7), pipe=policy(kernel))
    torch.manual_seed(99)  # nor on anything drawn before
    for row, (prompt, seed) in enumerate((("0", 5), ("a", 6), ("1", 7))):
        alone = events(method, (prompt,), (seed,), pipe=policy(kernel))
        assert len(alone) == len(together)
        for one, all_ in zip(alone, together, strict=True):
            assert torch.allclose(all_.media.data[row], one.media.data[0], atol=1e-5)
            assert torch.allclose(all_.scores["reward"][row], one.scores["reward"][0], atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("method", [FK(particles=3), SVDD(candidates=3), DAS(particles=3, lam=1.0), Beam(2, 3)])
def test_a_method_makes_exactly_the_denoiser_calls_it_announces(method, steps, guidance):
    """Also the particles that are asked for: nothing overrides their number."""
    pipe = policy(steps=steps, guidance=guidance)
    got = events(method, "01", (1, 2), pipe=pipe)
    assert pipe.nfe == 2 * method.calls(steps) * (1 if guidance == 1 else 2)
    assert [e.final for e in got] == [False] * (len(got) - 1) + [True]


@pytest.mark.parametrize("method", STEERED)
def test_every_event_can_be_delivered_and_says_what_it_is_worth(method):
    reward = Value(slope=0.7)
    got = events(method, "01", (1, 2), reward)
    for event in got:
        assert torch.allclose(reward(media=event.media, prompts=event.prompts), event.scores["reward"], atol=1e-6)
        assert event.latents is None and not event.media.data.requires_grad and len(event.media) == 2
    shown = torch.stack([e.scores["reward"] for e in got[:-1]])  # x0-predictions on the way; the last are finished
    assert (shown.diff(dim=0) >= 0).all()


@pytest.mark.parametrize(
    "method", [FK(lam=3.0), DAS(lam=3.0), SVDD(candidates=4), SVDD(candidates=4, alpha=0.3), Beam(2, 2)]
)
def test_what_cannot_be_judged_never_wins_and_harms_no_one(method):
    """The reward is blind above 0.4: what is delivered lies below, wherever one particle does."""
    blind = Value(blind=0.4)
    end = events(method, ("a",) * 60, range(60), blind)[-1]
    scores = end.scores["reward"]
    assert end.media.data.isfinite().all() and torch.equal(scores.isnan(), end.media.data[:, 0].flatten() > 0.4)
    assert scores.isnan().float().mean() < 0.2 < (draws(SVDD(candidates=1), 60) > 0.4).float().mean()


@pytest.mark.parametrize(
    "method", [FK(lam=3.0), DAS(lam=3.0), SVDD(candidates=4), SVDD(candidates=4, alpha=0.3), Beam(2, 2)]
)
def test_where_nothing_can_be_judged_the_plain_chain_is_delivered(method):
    pipe = policy()
    end = events(method, "ab", (3, 4), Value(blind=-math.inf), pipe)[-1]
    assert end.scores["reward"].isnan().all()
    if not getattr(method, "alpha", 0):  # the first of its particles; a soft choice is one of them at random
        assert torch.equal(end.media.data, pipe.sample("ab", seeds=(3, 4)).media.data)


def test_a_gradient_that_is_not_finite_pushes_nobody():
    class Steep(Value):
        """The square root of 0 at one prompt: a finite reward, an infinite slope."""

        def __call__(self, *, media, prompts, references=None):
            x = media.data[:, 0].flatten(1).mean(1)
            still = torch.tensor([p == "0" for p in prompts])
            return torch.where(still, torch.where(still, 0 * x, 1.0).sqrt(), x)

    got = events(DAS(lam=2.0, particles=1), "0a", (3, 4), Steep())[-1].media.data
    pipe = policy()
    assert torch.equal(got[:1], pipe.sample("0", seeds=(3,)).media.data)
    assert got[1, 0] > pipe.sample("a", seeds=(4,)).media.data[0, 0]
