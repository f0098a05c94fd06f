"""DRAGON: the sets it builds, against brute force; its updates, against arithmetic by hand; and what it is for, that a
policy comes to match a whole distribution where ranking samples makes it collapse."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mixture_policy import Value
from set_fixtures import Flat
from tiny import PROMPTS
from tiny_trained import trainable
from trainable_policy import TrainableMixture
from training_toys import BATCH, LIVE, Rows, gaussian_policy, one, set_weights

from rewards.compose import WeightedReward
from rewards.sets.audio_sets import FAD
from rewards.sets.frechet import Frechet, fit_normal, frechet_distance
from rewards.sets.vendi import Vendi
from workbench.core.errors import BadInput
from workbench.core.types import Batch, Media, RewardSpec, derive_seed
from workbench.evaluation.set_rewards import TrainingReward
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.demonstrations import draw_samples
from workbench.methods.common.rollout import sample_groups
from workbench.methods.common.set_scores import prepare_set_score
from workbench.methods.common.set_splits import leave_one_out_credit, random_halves, rank_pairs, swap_pairs
from workbench.methods.training.dragon import DRAGON

MEAN, STD = 0.8, 1.6  # of the reference, whose mean and spread both differ from the base's
REFERENCE = MEAN + STD * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).double()


@dataclass(frozen=True)
class Match(Frechet):
    """Minus the Fréchet distance to REFERENCE; called for a set, or asked for its features once."""

    def target(self, references, device):
        return fit_normal(REFERENCE)


MATCH = Match(model=Flat(1))


class Near:
    """Samples one by one: minus the squared distance to REFERENCE's mean. Any density of it ranks alike."""

    spec = RewardSpec("near", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return -(media.data[:, 0].flatten(1).mean(1) - REFERENCE.mean().float()).square()


class Opaque:
    """A set reward of somebody else: nothing but a call."""

    def __init__(self, inner):
        self.inner, self.spec, self.asked = inner, inner.spec, 0

    def __call__(self, *, media, prompts, references=None):
        assert len(media) == len(prompts)
        self.asked += 1
        return self.inner(media=media, prompts=prompts)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def media(x):
    return Media(x.float().view(len(x), 1, 1, -1).expand(-1, 3, -1, -1), "image")


# --- the sets --------------------------------------------------------------------------------------------------------


def test_no_swap_lowers_the_reward_and_each_prompt_stays_once_on_either_side():
    for seed in range(20):
        x, seen = torch.randn(24, 3, generator=generator(seed)).double(), []
        score = spread_score(x, seen)
        found = swap_pairs(score, random_halves(torch.arange(24), 2, generator(seed)), generator(seed), sweeps=20)
        assert (found.up // 2).tolist() == (found.down // 2).tolist() and len(set(found.up.tolist())) == 12
        assert sorted([*found.up.tolist(), *found.down.tolist()]) == list(range(24))
        assert score(found.up) == max(seen) and (found.gain >= 0).all() and found.swaps > 0
        flips = [torch.where(torch.arange(12) == p, found.down, found.up) for p in range(12)]
        losses = [score(found.up) - score(rows) for rows in flips]
        assert min(losses) >= 0, "no further swap helps"
        np.testing.assert_allclose(found.gain, losses, err_msg="and the gain says what each would lose")


def spread_score(x, seen):
    target = fit_normal(torch.randn(500, x.shape[1], generator=generator(99)).double() * 1.5 + 0.5)

    def score(rows):
        seen.append(-frechet_distance(fit_normal(x[rows]), target).item())
        return seen[-1]

    return score


def test_greedy_swaps_reach_the_best_of_all_halves_more_often_than_any_ranking():
    """Eight pairs in the plane, all 256 ways to part them. In how many of 30 draws the best is found, and how near to
    it the rest come: 0 is the mean of all ways, 1 the best."""
    found, share = {"swap": 0, "rank": 0, "credit": 0}, {"swap": [], "rank": [], "credit": []}
    for seed in range(30):
        x = torch.randn(16, 2, generator=generator(seed)).double()
        score = spread_score(x, [])
        ways = [torch.tensor([2 * p + s for p, s in enumerate(sides)]) for sides in itertools.product((0, 1), repeat=8)]
        values = [score(rows) for rows in ways]
        near = -(x - 0.5).square().sum(1)
        made = {
            "swap": swap_pairs(
                score, random_halves(torch.arange(16), 2, generator(seed)), generator(seed), sweeps=5
            ).up,
            "rank": rank_pairs(near, 2).up,
            "credit": rank_pairs(leave_one_out_credit(score, torch.arange(16)), 2).up,
        }
        for name, rows in made.items():
            value = score(rows)
            found[name] += value >= max(values) - 1e-12
            share[name].append((value - np.mean(values)) / (max(values) - np.mean(values)))
    assert found["swap"] >= 15 and found["credit"] <= 9 and found["rank"] <= 2, found
    means = {name: np.mean(values) for name, values in share.items()}
    assert means["swap"] > 0.9 and means["swap"] > means["credit"] > means["rank"], means


def test_across_prompts_a_swap_may_take_any_sample_and_reaches_further():
    better = 0
    for seed in range(20):
        x = torch.randn(24, 2, generator=generator(seed)).double()
        score = spread_score(x, [])
        own = swap_pairs(score, random_halves(torch.arange(24), 2, generator(seed)), generator(seed), sweeps=6)
        free = swap_pairs(
            score, random_halves(torch.arange(24), 24, generator(seed)), generator(seed), sweeps=6, across=True
        )
        assert sorted([*free.up.tolist(), *free.down.tolist()]) == list(range(24))
        better += score(free.up) > score(own.up)
    assert better >= 15


def test_contrast_looks_at_both_sets():
    apart = {0.0: [], 1.0: []}
    for seed in range(12):
        score = spread_score(torch.randn(24, 2, generator=generator(seed)).double(), [])
        for weight, values in apart.items():
            pairs = random_halves(torch.arange(24), 2, generator(seed))
            found = swap_pairs(score, pairs, generator(seed), sweeps=4, contrast=weight)
            values.append(score(found.up) - score(found.down))
    assert np.mean(np.array(apart[1.0]) > np.array(apart[0.0])) > 0.7


def test_ranking_sets_the_best_against_the_worst_and_leaves_out_what_cannot_be_judged():
    r = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, torch.nan, 4.0, 4.5])
    found = rank_pairs(r, 4)
    assert found.up.tolist() == [1, 3, 4] and found.down.tolist() == [0, 2, 6]
    assert found.gain.tolist() == [3.0, 1.0, 1.0]
    whole = rank_pairs(r, 8)
    assert whole.up.tolist() == [4, 7, 6] and whole.down.tolist() == [0, 2, 3]


def test_pairs_that_do_not_differ_teach_nothing_and_a_share_is_of_those_that_differ_most():
    found = rank_pairs(torch.tensor([1.0, 1.0, 0.0, 3.0, 2.0, 1.0]), 2)
    assert found.select_pairs(1.0).up.tolist() == [3, 4] and found.select_pairs(0.34).up.tolist() == [3]
    unknown = replace(found, gain=torch.tensor([torch.nan, 3.0, 1.0]))
    assert unknown.select_pairs(0.34).up.tolist() == [3], "an unknown difference takes no place"


def test_credit_of_a_mean_ranks_as_the_scores_themselves():
    r = torch.tensor([0.3, -1.0, 2.0, 0.7]).double()
    got = leave_one_out_credit(lambda rows: r[rows].mean().item(), torch.arange(4))
    torch.testing.assert_close(got, 4 / 3 * (r - r.mean()))


def test_a_batch_is_embedded_once_however_many_sets_are_tried():
    x = torch.randn(16, 2, generator=generator(3))
    reward = WeightedReward({Match(model=Flat(1)): 2.0, Vendi(model=Flat(6)): -0.5}, ["match", "vendi"])
    Flat.seen.clear()
    score, fine = prepare_set_score(reward, media(x), ["p"] * 16)
    rows = [torch.randperm(16, generator=generator(s))[:8] for s in range(10)]
    values = [score(r) for r in rows]
    assert Flat.seen == [16, 16] and fine.tolist() == list(range(16))
    outside, _ = prepare_set_score(Opaque(reward), media(x), ["p"] * 16)
    np.testing.assert_allclose(values, [outside(r) for r in rows], rtol=1e-5, atol=1e-6)


def test_a_control_whose_reward_is_negated_builds_sets_of_the_opposite():
    reward, x = WeightedReward({MATCH: 1.0}), torch.randn(16, 1, generator=generator(3))
    config, alone = (
        SimpleNamespace(control="negated", seed=0),
        SimpleNamespace(score_rows=lambda some, n: some([*range(n)])),
    )
    judging = TrainingReward(reward, alone, config, [""])
    ways = [prepare_set_score(r, media(x), [""] * 16)[0] for r in (reward, judging)]
    assert judging.samples_scored == 16, "what is looked at is counted"
    plain, turned = (
        swap_pairs(way, random_halves(torch.arange(16), 2, generator()), generator(), sweeps=9) for way in ways
    )
    assert ways[0](plain.up) == pytest.approx(-ways[1](plain.up), rel=1e-5)
    assert ways[0](turned.up) < ways[0](turned.down) < ways[0](plain.up)


def test_a_sample_that_has_no_point_stands_on_neither_side():
    x = torch.randn(16, 1, generator=generator(3))
    x[5] = torch.nan
    for reward in (MATCH, Opaque(MATCH)):
        score, fine = prepare_set_score(reward, media(x), [""] * 16)
        pairs = random_halves(fine, 2, generator())
        assert 5 not in fine and 4 in fine and pairs.shape == (7, 2) and not (pairs // 2 == 2).any()
        assert math.isfinite(score(fine))


# --- updates ---------------------------------------------------------------------------------------------------------

SETTINGS = {
    "kto": dict(objective="kto", beta=2.0),
    "dpo": dict(objective="dpo", beta=2.0),
    "nft": dict(objective="nft", beta=0.5),
    "kto, anchored": dict(objective="kto", beta=2.0, anchor=0.5),
    "dpo, anchored": dict(objective="dpo", beta=2.0, anchor=1.0),
}
FOUR = (0.3, -0.5, 1.0, 2.0)  # rewards of two prompts' two samples
PAIRS = {True: [(0, 1), (3, 2)], False: [(3, 1), (2, 0)]}


def by_hand(method, policy, path, pairs):
    """The gradient at LIVE by loops: x0_hat = t0 + (1 + t1) m of N(0,1) data, over two dimensions."""
    total = np.zeros(2)
    for i, level in enumerate(policy.levels):
        seen = {}
        for up, down in pairs:
            eps = seeded_normal([path.seeds[up]], (1, 1, 2), "eps", i, 0).numpy().ravel()
            for n in (up, down):
                x0 = path.x[n, -1].numpy().ravel().astype(float)
                m = level.a * (level.a * x0 + level.s * eps) / (level.a**2 + level.s**2)
                live, base = LIVE[0] + (1 + LIVE[1]) * m - x0, m - x0
                gain = np.mean(base**2 - live**2) / level.s**2
                seen[n] = gain, -np.array([live.sum(), (live * m).sum()]) / level.s**2, np.abs(live).mean() / level.s**2
        z = max(0.0, np.mean([gain for gain, *_ in seen.values()]))
        for up, down in pairs:
            (g1, d1, e1), (g2, d2, e2) = seen[up], seen[down]
            if method.objective == "dpo":
                steep = method.beta / 2 / (1 + math.exp(method.beta / 2 * (g1 - g2)))
                total += -steep * (d1 - d2)
            elif method.objective == "nft":  # live and old are alike: each row's own error, over its size
                total += -(d1 / e1 - d2 / e2) / 2
            else:
                for sign, g, d in ((1, g1, d1), (-1, g2, d2)):
                    u = 1 / (1 + math.exp(-sign * method.beta * (g - z)))
                    total += -u * (1 - u) * sign * method.beta * d / 2
            total += -method.anchor * d1
    return total / (len(pairs) * policy.steps)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_update_is_the_one_computed_by_hand(name, paired):
    method = DRAGON(**SETTINGS[name], paired=paired, lr=0.1)
    policy = set_weights(gaussian_policy(method))
    expected = by_hand(method, policy, sample_groups(policy, BATCH, 2), PAIRS[paired])
    _, event = one(method, Rows(FOUR), policy=policy)
    np.testing.assert_allclose(policy.grads[0], expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(policy.theta.detach(), np.array(LIVE) - 0.1 * expected, rtol=1e-4)
    assert event.metrics["taught"] == 1 and event.metrics["good"] > event.metrics["reward"] > event.metrics["bad"]


def test_a_reward_of_sets_moves_what_its_own_sets_say():
    """As a reward of samples would that ranked its swapped sets."""
    method, batch = DRAGON(beta=2.0), Batch(tuple("abcdef"), tuple(range(6)))
    policy = set_weights(gaussian_policy(method))
    path = sample_groups(policy, batch, 2)
    score, fine = prepare_set_score(MATCH, path.media, path.prompts)
    g = generator(derive_seed(batch.seeds[0], "demonstrations"))
    found = swap_pairs(score, random_halves(fine, 2, g), g, method.max_sweeps)
    sign = torch.zeros(12)
    sign[found.up], sign[found.down] = 1.0, -1.0
    ours, event = one(method, MATCH, batch, set_weights(gaussian_policy(method)))
    told, _ = one(method, Rows(tuple(sign.tolist())), batch, set_weights(gaussian_policy(method)))
    np.testing.assert_allclose(ours.grads[0], told.grads[0], rtol=1e-6)
    assert event.metrics["good"] == pytest.approx(score(found.up)) and event.metrics["swaps"] == found.swaps
    assert (event.scores["reward"].sign() == sign).all()
    opaque, _ = one(method, Opaque(MATCH), batch, set_weights(gaussian_policy(method)))
    np.testing.assert_allclose(ours.grads[0], opaque.grads[0], rtol=1e-6)


@pytest.mark.parametrize("reward", [MATCH, Near()], ids=["sets", "samples"])
@pytest.mark.parametrize(
    "change",
    [{}, dict(sampling_steps=2), dict(levels_per_sample=2, optimizer_steps=2), dict(group=4), dict(paired=False)],
    ids=str,
)
def test_the_denoiser_calls_are_those_announced_however_many_go_at_once(reward, change):
    batch = Batch(("a", "b", "c"), (5, 6, 7))
    method, grads = DRAGON(beta=2.0, objective="dpo", **change), []
    for at_once in (0, 1):
        policy, event = one(replace(method, prompts_per_pass=at_once), reward, batch, gaussian_policy())
        assert policy.nfe == len(batch) * method.calls(policy.steps) and event.metrics["taught"] == 1
        grads.append(policy.grads[0])
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-5, atol=1e-9)


def test_where_nothing_can_be_judged_or_all_is_equal_nothing_moves():
    for reward in (Value(blind=-math.inf), Value(0.0), Rows((1.0,) * 4), Match(model=Blind()), Opaque(Constant())):
        policy, event = one(DRAGON(), reward)
        assert policy.updates == 0 and event.metrics["taught"] == 0 and policy.theta.tolist() == [0, 0]


class Blind(Flat):
    def __call__(self, media):
        return super().__call__(media) * torch.nan


class Constant:
    spec = replace(MATCH.spec, name="constant")

    def __call__(self, *, media, prompts, references=None):
        return torch.tensor(3.0)


def test_fewer_steps_walk_the_same_chain_on_a_part_of_its_levels():
    policy = gaussian_policy(steps=6, kernel=None)
    whole, own = draw_samples(DRAGON(sampling_steps=6), policy, BATCH), sample_groups(policy, BATCH, 2)
    torch.testing.assert_close(whole.x[:, 0], own.x[:, -1])
    few = draw_samples(DRAGON(sampling_steps=2), policy, BATCH)
    x = policy.noise(own.seeds)
    middle = policy.noised((said := policy.predict(x, 0, own.prompts)).x0, 3, said.eps)
    torch.testing.assert_close(few.x[:, 0], policy.predict(middle, 3, own.prompts).x0)
    with pytest.raises(BadInput, match="6 steps"):
        draw_samples(DRAGON(sampling_steps=7), policy, BATCH)


def test_an_odd_group_makes_no_pairs_of_a_prompt_but_halves_of_a_batch():
    with pytest.raises(BadInput, match="even"):
        DRAGON(group=3)
    _, event = one(DRAGON(group=1, paired=False), Value())
    assert event.metrics["taught"] == 1


# --- what it is for --------------------------------------------------------------------------------------------------


class Shuffled(DRAGON):
    """The control: which of a pair is good is tossed."""

    def learn_pairs(self, policy, path, found):
        heads = torch.rand(len(found.up), generator=generator(path.seeds[0])) < 0.5
        up, down = torch.where(heads, found.down, found.up), torch.where(heads, found.up, found.down)
        return super().learn_pairs(policy, path, replace(found, up=up, down=down))


def trained(method, reward, seed, rounds=15):
    """Distance [] of 1024 held-out samples to REFERENCE after a training, from N(0,1) data."""
    policy = TrainableMixture((0.0,), (1.0,), (1.0,), steps=3, adam=True)
    batches = [Batch(("x",) * 16, tuple(derive_seed(seed, k, b) for b in range(16))) for k in range(rounds)]
    list(method(policy, reward, batches))
    return distance(policy)


def distance(policy):
    x = policy.sample(("",) * 1024, seeds=range(10**6, 10**6 + 1024)).x[:, -1].flatten(1)
    return frechet_distance(fit_normal(x), fit_normal(REFERENCE)).item()


def interval(values):
    """95 %, Student's t of six."""
    mean, half = np.mean(values), 2.571 * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean - half, mean + half


def test_sets_built_for_the_set_match_a_distribution_where_ranked_samples_collapse():
    """The paper's key finding, on six seeds: negative Fréchet distance to a reference of another mean and a wider
    spread."""
    settings = dict(objective="kto", beta=2.0, lr=0.06)
    start = distance(TrainableMixture((0.0,), (1.0,), (1.0,), steps=3))
    arms = {
        "swap": (DRAGON(**settings), MATCH),
        "rank": (DRAGON(**settings), Near()),
        "shuffled": (Shuffled(**settings), MATCH),
    }
    gain = {name: np.array([start - trained(*arm, seed) for seed in range(6)]) for name, arm in arms.items()}
    swap, rest = interval(gain["swap"]), interval(gain["swap"] - gain["rank"])
    assert swap[0] > 0.5 * start and rest[0] > 0.5 * start, (start, gain)
    assert interval(gain["shuffled"])[0] < 0 and interval(gain["swap"] - gain["shuffled"])[0] > 0, (start, gain)


# --- on models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AudioLDM2Pipeline", "WanPipeline"])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_model_of_sound_or_film_learns_from_sets_of_its_own_samples(name, steps):
    policy, reward = trainable(name), Vendi(model=Timed())
    if name == "AudioLDM2Pipeline":
        reward = FAD(model="logmel", rows="windows", window=0.05, hop=0.02)
        heard = policy.sample(PROMPTS, seeds=(1, 2)).media
        object.__setattr__(
            reward, "target", lambda references, device: reward.prepare(reward.embed_windows(heard).flatten(1))
        )
    before = policy.adapters.content_hash()
    batch = Batch(("a red cat", "two dogs", "rain"), (5, 6, 7))
    (event,) = DRAGON(sampling_steps=steps, levels_per_sample=1, lr=1e-3)(policy, reward, [batch])
    assert event.metrics["grad_norm"] > 0 and event.metrics["good"] > event.metrics["bad"]
    assert policy.adapters.content_hash() != before and len(event.media) == 6


class Timed(Flat):
    modalities = frozenset({"video"})
