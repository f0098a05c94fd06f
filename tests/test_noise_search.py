"""Searching and climbing noise: zero-order search, search over paths, DNO, DITTO, and noise that is used again.

The policy is a denoiser that can be written down: data are N(0, SPREAD^2), the schedule is flow matching, and the clean
sample that the denoiser expects of x = a x0 + s eps is a SPREAD^2 / (a^2 SPREAD^2 + s^2) x. A picture is 0.5 + 0.1 x0.
"""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from mixture_policy import Value
from test_methods import Mean, Unsure
from training_toys import gaussian_policy

from pipelines.transitions import Ancestral
from workbench.core.errors import BadInput
from workbench.core.types import Batch, Media, Prediction, Trajectory, Transition
from workbench.methods.common.best_sample import BestSample, seeded_normal
from workbench.methods.common.noise_plausibility import noise_implausibility
from workbench.methods.inference.best_of_n import BestOfN
from workbench.methods.inference.ditto import DITTO
from workbench.methods.inference.dno import DNO, BlackBoxDNO
from workbench.methods.inference.reno import ascend_noise
from workbench.methods.inference.reuse import Reuse
from workbench.methods.inference.sample import Sample
from workbench.methods.inference.search_over_paths import SearchOverPaths, redenoise, select_best
from workbench.methods.inference.zero_order import ZeroOrder, rotate_towards
from workbench.runs.run_noise import RunNoise

SPREAD, SHAPE, BATCH = 0.8, (3, 4, 4), Batch(("light", "dark"), (3, 4))


class Chain:
    """Says of itself what a real policy says, and keeps the noises that it was asked to sample."""

    modality, rate, provides = "image", 0.0, frozenset({"latents", "stochastic"})

    def __init__(self, steps: int = 4):
        self.steps, self.nfe, self.asked = steps, 0, []

    def level(self, i):
        s = 0.9 * (1 - i / self.steps)  # a little of the data in the first state, or one step would say nothing
        return 1 - s, s

    def noise(self, seeds):
        return seeded_normal(seeds, SHAPE, "noise")

    def start(self, noise, prompts=()):
        return noise

    def noised(self, x0, i, eps):
        a, s = self.level(i)
        return a * x0 + s * eps

    def predict(self, x, i, prompts, guidance=None):
        self.nfe += len(x)
        a, s = self.level(i)
        x0 = a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * x
        eps = (x - a * x0) / s
        return Prediction(x0, eps, eps - x0)

    def transition(self, x, i, prompts):
        said, (a, s), (b, t) = self.predict(x, i, prompts), self.level(i), self.level(i + 1)
        var = t**2 * (1 - (a * t / (b * s)) ** 2)
        return Transition(b * said.x0 + math.sqrt(t**2 - var) * said.eps, torch.tensor(math.sqrt(var)), said.x0)

    def sample(self, prompts, *, seeds, noise=None, grad=0):
        x = self.noise(seeds) if noise is None else noise
        x = x if grad else x.detach()
        self.asked.append(x.detach().clone())
        states = [x]
        for i in range(self.steps):
            said = self.predict(states[-1], i, prompts)
            states.append(said.x0 if i + 1 == self.steps else self.noised(said.x0, i + 1, said.eps))
        flat = torch.zeros(len(x), self.steps)
        media = self.decode(states[-1], prompts)
        return Trajectory(tuple(prompts), torch.stack(states, 1), flat, (), media, tuple(seeds))

    def decode(self, latents, prompts):
        return Media(0.5 + 0.1 * latents, "image")


class Counts(Mean):
    """The same brightness by way of numbers: no gradient passes."""

    def __call__(self, *, media, prompts, references=None):
        return torch.tensor(super().__call__(media=media, prompts=prompts).tolist())


METHODS = {
    "zero_order": ZeroOrder(iterations=3, neighbours=2),
    "search_over_paths": SearchOverPaths(paths=2, branches=2, rounds=2),
    "search_over_one_path": SearchOverPaths(paths=1, branches=3, rounds=1, renoise_fraction=0.3),
    "dno": DNO(iterations=4, permutations=3),
    "dno_all": DNO(iterations=4, permutations=3, noises="all"),
    "dno_black_box": BlackBoxDNO(iterations=3, permutations=3, directions=3),
    "ditto": DITTO(iterations=4),
}
IDLE = {
    "zero_order": ZeroOrder(iterations=0),
    "zero_order without an angle": ZeroOrder(iterations=2, angle=0.0),
    "search_over_paths": SearchOverPaths(paths=1, rounds=0),
    "dno": DNO(iterations=0),
    "dno without a step": DNO(iterations=2, lr=0.0, permutations=2),
    "dno_black_box": BlackBoxDNO(iterations=0),
    "ditto": DITTO(iterations=0),
    "reuse": Reuse(),
}


def finals(method, policy=None, batch=BATCH, reward=None):
    events = list(method(policy or Chain(), reward or Mean(), [batch]))
    assert [e.final for e in events] == [False] * (len(events) - 1) + [True]
    return events


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_exactly_the_denoiser_calls_it_announces(name, steps):
    policy, method = Chain(steps), METHODS[name]
    finals(method, policy)
    assert policy.nfe == 2 * method.calls(steps)


@pytest.mark.parametrize("name", IDLE)
def test_with_nothing_to_do_a_method_returns_the_base_bit_for_bit(name):
    base, got = finals(Sample())[-1], finals(IDLE[name])[-1]
    assert torch.equal(base.media.data, got.media.data)
    assert got.latents is None or torch.equal(base.latents, got.latents)


@pytest.mark.parametrize("name", METHODS)
def test_what_can_be_delivered_never_gets_worse_and_each_event_is_what_it_says(name):
    events = finals(METHODS[name])
    rewards = torch.stack([e.scores["reward"] for e in events])  # [E,2]
    assert (rewards.diff(dim=0) >= 0).all() and (rewards[-1] > rewards[0]).all()
    for e in events:
        assert torch.equal(Mean()(media=e.media, prompts=e.prompts), e.scores["reward"])
        if e.latents is not None:
            again = Chain().sample(e.prompts, seeds=e.seeds, noise=e.latents).media
            assert torch.equal(again.data, e.media.data)
    assert (events[-1].latents is None) == (name.startswith("search") or name.endswith("all"))


@pytest.mark.parametrize("name", METHODS)
def test_batching_changes_nothing(name):
    together = finals(METHODS[name])[-1]
    for row in range(2):
        alone = finals(METHODS[name], batch=Batch(BATCH.prompts[row : row + 1], BATCH.seeds[row : row + 1]))[-1]
        assert torch.allclose(together.media.data[row], alone.media.data[0], atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_that_cannot_be_judged_stays_as_it_is_and_leaves_the_others_alone(name):
    end = finals(METHODS[name], batch=Batch(("light", "blank"), (3, 4)), reward=Unsure())[-1]
    first = finals(METHODS[name], batch=Batch(("light", "blank"), (3, 4)), reward=Unsure())[0]
    assert end.scores["reward"].isnan().tolist() == [False, True]
    assert torch.equal(end.media.data[1], first.media.data[1])
    alone = finals(METHODS[name], batch=Batch(("light",), (3,)))[-1]
    assert torch.allclose(end.media.data[0], alone.media.data[0], atol=1e-5)


def test_a_judged_sample_beats_an_unjudged_one_and_a_tie_keeps_the_earlier():
    best, bad = BestSample(BATCH), math.nan
    for value, reward in ((0.1, [bad, 1.0]), (0.2, [bad, bad]), (0.3, [-5.0, 1.0]), (0.4, [bad, 0.9])):
        best.take(Media(torch.full((2, *SHAPE), value), "image"), torch.tensor(reward))
    assert best.media.data[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.1])
    assert best.reward.tolist() == [-5.0, 1.0]


def test_a_neighbour_keeps_the_norm_and_lies_at_the_angle_asked_for():
    z, towards = 2 * Chain().noise([1, 2]), Chain().noise([7, 8])
    for angle in (0.0, 18.0, 90.0, 170.0):
        near = rotate_towards(z, towards, angle)
        assert torch.allclose(near.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-5)
        cosine = torch.cosine_similarity(near.flatten(1), z.flatten(1))
        assert torch.allclose(cosine, torch.full((2,), math.cos(math.radians(angle))), atol=1e-5)
    assert torch.equal(rotate_towards(z, towards, 0.0), z)


def test_zero_order_search_asks_for_neighbours_of_its_best_noise_so_far():
    policy, method = Chain(), ZeroOrder(iterations=4, neighbours=3, angle=25.0)
    events = finals(method, policy)
    assert len(policy.asked) == 13 and torch.equal(policy.asked[0], policy.noise(BATCH.seeds))
    for step in range(1, 13):
        pivot = events[3 * ((step - 1) // 3)].latents
        cosine = torch.cosine_similarity(policy.asked[step].flatten(1), pivot.flatten(1))
        assert torch.allclose(cosine, torch.full((2,), math.cos(math.radians(25.0))), atol=1e-5)
    assert not torch.allclose(policy.asked[1], policy.asked[2], atol=0.1)
    assert not torch.equal(events[-1].latents, events[0].latents), "a pivot that never moved would show nothing"


def test_survivors_are_the_best_of_each_row_and_the_unjudged_come_last():
    scores = [torch.tensor(s) for s in ([1.0, math.nan], [3.0, 2.0], [2.0, math.nan], [3.0, 4.0])]
    clean = [torch.full((2, 1), float(k)) for k in range(4)]
    kept, said = select_best(clean, scores, 3)
    assert torch.cat(kept, 1).tolist() == [[1.0, 3.0, 2.0], [3.0, 1.0, 0.0]]
    assert torch.stack(said)[:2].tolist() == [[3.0, 4.0], [3.0, 2.0]] and said[2].isnan().tolist() == [False, True]


def test_the_later_a_sample_is_noised_back_to_the_more_of_it_is_kept():
    policy, seeds = Chain(8), tuple(range(40))
    batch = Batch(("light",) * 40, seeds)
    x0 = policy.sample(batch.prompts, seeds=seeds).x[:, -1]
    kept = [torch.cosine_similarity(redenoise(policy, x0, i, batch, 0).flatten(1), x0.flatten(1)) for i in range(8)]
    means = [k.mean().item() for k in kept]
    assert abs(means[0]) < 0.3 and means[-1] > 0.95, "all the way back little is kept, one step back nearly everything"
    assert means == sorted(means)
    again = redenoise(policy, x0, 4, batch, 1)
    assert not torch.allclose(again, redenoise(policy, x0, 4, batch, 2), atol=0.1), "other draws, other ways"


def test_a_share_of_the_schedule_is_an_index_of_it_and_at_least_one_step_is_walked_again():
    found = {
        back: [SearchOverPaths(renoise_fraction=back).renoise_index(steps) for steps in (1, 2, 8, 50)]
        for back in (0.0, 0.5, 0.78, 2.0)
    }
    assert found == {0.0: [0, 1, 7, 49], 0.5: [0, 1, 4, 25], 0.78: [0, 0, 2, 11], 2.0: [0, 0, 0, 0]}


def test_implausibility_by_hand():
    """12 vectors of 4 ones: |mean|^2 = 4 and cov = 11^T, so M2 = 3. -log p1 = 12 * 4 / 8 - ln 2 and, with sqrt(1 + 3) -
    1 - sqrt(4 / 12), -log p2 = 12 * 0.4226^2 / 2 - ln 2; any order of ones is the same. Vectors of alternating sign
    have the mean 0."""
    ones = torch.ones(1, 48)
    p1, p2 = 6 - math.log(2), 6 * (1 - math.sqrt(1 / 3)) ** 2 - math.log(2)
    assert noise_implausibility(ones, 4).item() == pytest.approx(p1 + p2, rel=1e-5)
    assert noise_implausibility(ones, 4, permutations=5).item() == pytest.approx(2 * (p1 + p2), rel=1e-5)
    alternating = torch.cat([torch.ones(1, 4), -torch.ones(1, 4)] * 6, 1)
    assert noise_implausibility(alternating, 4).item() == pytest.approx(p2, rel=1e-5)


def test_gaussian_noise_is_plausible_and_what_only_has_its_norm_is_not():
    z = seeded_normal(range(20), (4096,), "z")
    norm = z.norm(dim=1, keepdim=True)
    told = {
        "gaussian": z,
        "constant": torch.ones_like(z),
        "every number twice": z[:, :2048].repeat_interleave(2, dim=1),
        "every other number 0": z * torch.tensor([1.0, 0.0]).repeat(2048),
        "one large number": torch.cat([z[:, :1] * 0 + 40, z[:, 1:]], 1),
        "a slope": z + torch.linspace(-2, 2, 4096),
    }
    values = {
        name: noise_implausibility(row / row.norm(dim=1, keepdim=True) * norm, 4, permutations=10)
        for name, row in told.items()
    }
    gaussians = values.pop("gaussian")  # beyond t with a chance of exp(-t) at most, for mean and covariance each
    assert gaussians.mean() < 0.5 and gaussians.max() < 5.0
    for name, value in values.items():
        assert value.min() > 10.0, name
    shuffled = told["every number twice"][:, torch.randperm(4096, generator=torch.Generator().manual_seed(0))]
    assert noise_implausibility(shuffled, 4).max() < 5.0, "only as it lies can this be seen: the norm is right"


def test_only_implausible_rows_feel_the_regulariser():
    z = torch.cat([seeded_normal([1], (1024,), "z"), torch.ones(1, 1024)]).requires_grad_()
    (grad,) = torch.autograd.grad(noise_implausibility(z, 4, permutations=3).sum(), z)
    assert torch.equal(grad[0], torch.zeros(1024)) and grad[1].norm() > 1


def test_dno_stays_plausible_where_bare_ascent_does_not():
    far = dict(iterations=40, lr=0.15, permutations=3)
    held, bare = (finals(DNO(**far, regularise=g))[-1] for g in (1.0, 0.0))
    strange = [noise_implausibility(e.latents.flatten(1), 4, permutations=20).max().item() for e in (held, bare)]
    assert strange[1] > 50 and strange[0] < 0.1 * strange[1]
    assert (bare.scores["reward"] > held.scores["reward"]).all(), "what it costs"


def test_searching_the_noise_of_all_steps_reaches_higher_than_that_of_the_first():
    fast = dict(iterations=10, lr=0.05, regularise=0.0, permutations=0)
    first, every = (finals(DNO(**fast, noises=n)) for n in ("first", "all"))
    gain = [e[-1].scores["reward"] - e[0].scores["reward"] for e in (first, every)]
    assert (gain[1] > gain[0]).all()


def test_a_gradient_estimated_from_values_points_the_way_of_the_true_one():
    policy = Chain(2)
    z = policy.noise(BATCH.seeds).requires_grad_()
    make = lambda z: policy.sample(BATCH.prompts, seeds=BATCH.seeds, noise=z, grad=2).media  # noqa: E731
    judge = lambda media: Mean()(media=media, prompts=BATCH.prompts)  # noqa: E731
    (true,) = torch.autograd.grad(judge(make(z)).sum(), z)
    flat = z.detach().flatten(1).requires_grad_()
    media = make(flat.view_as(z))
    cosines = []
    for directions in (1, 400):
        method = BlackBoxDNO(directions=directions)
        gain = method.climb_target(lambda f: make(f.view_as(z)), judge, flat, media, judge(media).detach(), BATCH.seeds)
        (guess,) = torch.autograd.grad(gain.sum(), flat, retain_graph=True)
        cosines.append(torch.cosine_similarity(guess, true.flatten(1)).min().item())
    assert cosines[1] > 0.9 > cosines[0]
    events = finals(BlackBoxDNO(iterations=5, directions=20), reward=Counts())
    assert (events[-1].scores["reward"] > events[0].scores["reward"]).all()


def test_dittos_first_step_is_adams():
    """Adam's first step moves every number by lr towards its gradient's sign; the mean's gradient has one sign."""
    events = finals(DITTO(iterations=1, lr=0.03))
    z = Chain().noise(BATCH.seeds)
    assert torch.allclose(events[-1].latents - z, torch.tensor([0.03, -0.03]).view(2, 1, 1, 1).expand_as(z), atol=1e-5)


def test_ditto_raises_the_reward_steadily_and_its_norm_can_be_held():
    free, held = (finals(DITTO(iterations=30, regularise=g)) for g in (0.0, 0.5))
    assert (free[-1].scores["reward"] > free[0].scores["reward"] + 0.05).all()
    now = [e.metrics["reward_now"] for e in free]
    assert len(set(now)) == 31, "both rows climb: they cancel in the mean only at the start"
    assert held[-1].metrics["norm"] < free[-1].metrics["norm"]
    assert abs(held[-1].metrics["norm"] - math.sqrt(47)) < abs(free[-1].metrics["norm"] - math.sqrt(47))


def test_a_row_without_a_finite_gain_or_gradient_is_not_moved_by_momentum_either():
    z = torch.zeros(3, 2, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    ascend_noise(optimizer, z, z.sum(1))
    before = z.detach().clone()
    ascend_noise(optimizer, z, torch.stack([z[0].sum(), z[1].sum() + math.nan, (z[2] * 0).sqrt().sum()]))
    assert (z[0] > before[0]).all() and torch.equal(z[1:], before[1:])


def stored(tmp_path, noise):
    """A run folder as far as noise goes: two batches, of one row each, of contestant `reno`."""
    (tmp_path / "latents" / "reno").mkdir(parents=True)
    lines = [{"contestant": "reno", "batch": 0, "step": 0}, {"contestant": "other", "final": True, "samples": []}]
    for b, (prompt, seed) in enumerate(zip(BATCH.prompts, BATCH.seeds, strict=True)):
        file = f"latents/reno/{b:04d}.safetensors"
        safetensors.torch.save_file({"noise": noise[b : b + 1].contiguous()}, tmp_path / file)
        sample = {"prompt": prompt, "seed": seed, "latents": file}
        lines.append({"contestant": "reno", "batch": b, "final": True, "samples": [sample]})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    return str(tmp_path / "reno")


def test_noise_is_found_again_by_prompt_and_seed_and_given_to_a_chain_of_other_length(tmp_path):
    best = finals(DITTO(iterations=20), Chain(1))[-1]
    method = Reuse(noise=RunNoise(stored(tmp_path, best.latents)))
    swapped = Batch(BATCH.prompts[::-1], BATCH.seeds[::-1])
    policy = Chain(8)
    (event,) = finals(method, policy, batch=swapped)
    assert torch.equal(policy.asked[0], best.latents.flip(0)) and policy.nfe == 2 * method.calls(8)
    base = finals(Sample(), Chain(8), batch=swapped)[-1].media
    assert (Mean()(media=event.media, prompts=swapped.prompts) > Mean()(media=base, prompts=swapped.prompts)).all()


def test_noise_that_is_not_there_is_said_in_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="holds no finished noise"):
        RunNoise(str(tmp_path / "reno"))
    where = stored(tmp_path, torch.randn(2, *SHAPE))
    with pytest.raises(BadInput, match="holds no finished noise"):
        RunNoise(str(tmp_path / "other"))
    with pytest.raises(BadInput, match="none for 'light' and seed 99"):
        finals(Reuse(noise=RunNoise(where)), batch=Batch(("light",), (99,)))
    small = stored(tmp_path / "small", torch.randn(2, 3, 2, 2))
    with pytest.raises(BadInput, match=r"noise of \(3, 2, 2\), but this pipeline draws \(3, 4, 4\)"):
        finals(Reuse(noise=RunNoise(small)))


def test_more_numbers_in_a_vector_than_in_the_noise_are_refused():
    with pytest.raises(BadInput, match="subvector: this pipeline's noise has 48 numbers"):
        finals(DNO(subvector=49))


class Seen(Value):
    """Keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def __call__(self, *, media, prompts, references=None):
        self.shown.append(media.data)
        return super().__call__(media=media, prompts=prompts)


@pytest.mark.parametrize("method", [BestOfN(n=64), SearchOverPaths(paths=64, rounds=0)], ids=["best_of_n", "paths"])
def test_where_every_step_is_random_candidates_are_as_different_as_samples_are(method):
    """With the later draws of the base's sample they would be copies of it: a step that renews all noise forgets the
    first."""
    policy, reward = gaussian_policy(kernel=Ancestral(1.0)), Seen()
    *_, event = method(policy, reward, [Batch(("x",), (3,))])
    found = torch.cat([data[:, 0].flatten(1) for data in reward.shown])
    apart = policy.sample(["x"] * 64, seeds=range(64)).media.data[:, 0].flatten(1)
    assert found.std(0).mean() > 0.7 * apart.std(0).mean()
    assert event.latents is None, "no noise alone makes it"


def test_noise_whose_sample_could_not_be_judged_stays_where_it_is():
    """Also under the momentum of earlier steps, and under the regulariser, which knows nothing of samples."""
    z = seeded_normal((3, 4), SHAPE, "noise").requires_grad_()
    optimizer = torch.optim.SGD([z], lr=1.0, momentum=0.9, nesterov=True)
    ascend_noise(optimizer, z, z.flatten(1).sum(1), 0.1)
    moved = z.detach().clone()
    ascend_noise(optimizer, z, torch.stack([z[0].sum(), z[1].sum() * math.nan]), 0.1)
    assert torch.equal(z[1].detach(), moved[1]) and not torch.equal(z[0].detach(), moved[0])
