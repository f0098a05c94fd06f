"""What must hold for all methods that train: who takes part, what it costs, where it goes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from mixture_policy import Value
from training_toys import (
    BATCH,
    CHAINS,
    DIRECT,
    LIVE,
    METHODS,
    RANKED,
    G,
    Rows,
    Unsure,
    Worded,
    gaussian_policy,
    one,
    set_weights,
)

from pipelines.transitions import CPS, Ancestral, FlowSDE
from rewards.compose import WeightedReward
from workbench.core.errors import BadInput
from workbench.core.types import Batch
from workbench.methods.common.noised_batch import NoisedBatch
from workbench.methods.common.rollout import sample_groups, score_samples
from workbench.methods.common.windows import sample_in_window
from workbench.methods.training.direct import AlignProp, DRaFT
from workbench.methods.training.dpo import DPO
from workbench.methods.training.grpo import GRPO
from workbench.methods.training.nft import NFT
from workbench.methods.training.parrot import Parrot, non_dominated
from workbench.methods.training.raft import RAFT
from workbench.methods.training.refl import ReFL
from workbench.methods.training.rwr import RWR
from workbench.methods.training.srpo import SRPO

# --- chains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [Ancestral(1.0), FlowSDE(), CPS()], ids=lambda k: k.name)
@pytest.mark.parametrize("name", [n for n in CHAINS if n.startswith("grpo")])
def test_before_the_first_update_every_ratio_is_exactly_one(name, kernel):
    policy = gaussian_policy(CHAINS[name], kernel=kernel)
    _, event = one(CHAINS[name], Value(), policy=policy)
    assert event.metrics["log_ratio"] == 0.0 and event.metrics["clipped"] == 0.0
    assert event.metrics["grad_norm"] > 0


@pytest.mark.parametrize("ratio", ["guard", "raw"])
def test_at_the_second_update_of_a_batch_ratios_have_moved(ratio):
    _, event = one(GRPO(group=G, optimizer_steps=2, lr=1e-3, ratio=ratio), Value())
    assert 1e-7 < event.metrics["log_ratio"] < 1


def test_a_window_over_the_whole_chain_is_the_policys_own_chain():
    policy = gaussian_policy(shape=(1, 1, 1))
    ours, own = sample_in_window(policy, BATCH, G, range(policy.steps)), sample_groups(policy, BATCH, G)
    assert torch.equal(ours.x, own.x) and torch.equal(ours.log_prob, own.log_prob)
    assert ours.stochastic == own.stochastic and torch.equal(ours.media.data, own.media.data)


def test_samples_of_a_prompt_that_begin_alike_part_in_the_window_alone():
    policy = gaussian_policy(shape=(1, 1, 1), steps=6)
    path = sample_in_window(policy, BATCH, G, range(2, 4), same_noise=True)
    apart = path.x.view(2, G, 7).std(1).amin(0)
    assert (apart[:3] == 0).all() and (apart[3:] > 0).all() and path.stochastic == (2, 3)
    assert (path.x[0, 0] != path.x[G, 0]).all()
    separate = sample_in_window(policy, BATCH, G, range(2, 4), same_noise=True, prompts_per_pass=1)
    torch.testing.assert_close(path.x, separate.x)


def test_outside_its_window_a_chain_is_the_deterministic_flow():
    policy, plain = gaussian_policy(shape=(1, 1, 1)), gaussian_policy(shape=(1, 1, 1), kernel=None)
    path = sample_in_window(policy, BATCH, 1, range(0))
    torch.testing.assert_close(path.x, sample_groups(plain, BATCH, 1).x, rtol=1e-5, atol=1e-6)


def test_the_window_slides_from_noise_to_data_and_begins_again():
    method, policy = GRPO(group=2, window="mix", window_size=2, window_interval=3), gaussian_policy(steps=6)
    starts = [method.sample_chains(policy, BATCH, k).stochastic for k in range(13)]
    assert starts[:12:3] == [(0, 1), (1, 2), (2, 3), (3, 4)] and starts[12] == (0, 1) and starts[1] == starts[0]


def test_a_chain_without_noise_is_refused():
    with pytest.raises(BadInput, match="kernel"):
        one(GRPO(group=G), Value(), policy=gaussian_policy(kernel=None))


# --- what holds for every method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("level", [0.0, 21.7])
def test_rewards_that_are_all_equal_move_nothing(name, level):
    method = RANKED[name]
    policy = set_weights(gaussian_policy(method), LIVE, LIVE)
    _, event = one(method, Value(0.0, 0.0) if not level else Rows((level,) * (2 * method.group)), policy=policy)
    assert policy.updates == 0 and policy.theta.tolist() == list(LIVE)
    assert event.metrics["taught"] == 0 and event.metrics["grad_norm"] == 0
    assert event.metrics.get("flat", 1.0) == 1.0


def test_a_sample_without_advantage_has_no_gradient_in_nft_at_the_old_weights():
    predicted, zero = torch.randn(5, 2).double(), torch.zeros(5).double()
    live = predicted.clone().requires_grad_()
    seen = NoisedBatch(torch.randn(5, 2).double(), 0.5, 0.5, zero, zero.long(), live, predicted, predicted)
    (grad,) = torch.autograd.grad(NFT().loss(seen).sum(), live)
    assert grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", RANKED)
def test_a_sample_that_cannot_be_judged_changes_nothing_for_the_others(name):
    """The update is bit for bit the one without it: same seeds, one sample less."""
    method = RANKED[name]
    if method.group == 1:
        with_it, without = (method, Batch(("a", "b", "c"), (5, 6, 7)), 3), (method, BATCH)
    else:
        with_it, without = (method, BATCH, G), (replace(method, group=G - 1), BATCH)
    seen, event = one(with_it[0], Unsure(Value(1.0, 0.3), with_it[2]), with_it[1])
    alone, _ = one(without[0], Value(1.0, 0.3), without[1])
    assert seen.grads[0].abs().min() > 0
    np.testing.assert_allclose(seen.grads[0], alone.grads[0], rtol=1e-6)
    assert math.isfinite(event.metrics["reward"]) and event.metrics["taught"] < 1


@pytest.mark.parametrize("name", DIRECT)
def test_a_sample_that_cannot_be_judged_sends_no_gradient(name):
    """The update is the one of the other sample alone."""
    policy, event = one(DIRECT[name], Unsure(Value(), 2))
    alone, _ = one(DIRECT[name], Value(), Batch(BATCH.prompts[:1], BATCH.seeds[:1]))
    assert policy.grads[0].abs().min() > 0
    np.testing.assert_allclose(policy.grads[0], alone.grads[0], rtol=1e-5)
    assert event.scores["reward"].isnan().tolist() == [False, True]


@pytest.mark.parametrize("name", METHODS)
def test_where_nothing_can_be_judged_nothing_moves(name):
    policy, event = one(METHODS[name], Value(blind=-math.inf))
    assert policy.theta.tolist() == [0, 0] and math.isnan(event.metrics["reward"])


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_that_teaches_nothing_ends_in_an_update_like_any_other(name):
    """Where gradients gather over batches, what others have gathered may be due."""
    method = METHODS[name]
    policy, _ = one(method, Value(blind=-math.inf))
    assert len(policy.grads) == method.optimizer_steps


@pytest.mark.parametrize("name", [n for n in RANKED if n != "ddpo"])
def test_how_many_prompts_go_through_the_denoiser_at_once_changes_nothing(name):
    method = RANKED[name]
    whole, parts = (one(replace(method, prompts_per_pass=n), Value(1.0, 0.3))[0] for n in (0, 1))
    np.testing.assert_allclose(whole.grads[0], parts.grads[0], rtol=1e-5, atol=1e-9)
    assert parts.updates == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_the_denoiser_calls_it_announces(name):
    method = METHODS[name]
    policy, _ = one(method, Value(1.0, 0.3))
    announced = len(BATCH) * method.calls(policy.steps)
    assert policy.nfe == announced or (name.endswith(":fast") and policy.nfe < announced)  # shares a part of its chains


@pytest.mark.parametrize("name", METHODS)
def test_events_tell_what_was_made_and_what_it_was_worth(name):
    _, event = one(METHODS[name], Value(1.0, 0.3))
    n = len(event.media)
    assert len(event.prompts) == len(event.seeds) == n == len(event.scores["reward"]) and not event.final
    assert {"reward", "grad_norm"} <= set(event.metrics) and all(map(math.isfinite, event.metrics.values()))
    assert not event.media.data.requires_grad


CLIMB = {  # settings under which ten batches are enough to be seen
    "nft": dict(group=16), "awm": dict(group=16, anchor=0.1), "crd": dict(group=16, kl=0.0, optimizer_steps=1),
    "dgpo": dict(group=16, beta=1.0, schedule_fraction=1.0, clip_range=0.5), "dpo": dict(group=8, beta=1.0),
    "kto": dict(group=16, beta=1.0), "raft": dict(group=8, keep_best=1), "rwr": dict(group=16),
    "grpo": dict(group=16, clip_range=0.2), "grpo:raw": dict(group=16, clip_range=0.2),
    "grpo:random": dict(group=16, clip_range=0.2), "grpo:mix": dict(group=16, clip_range=0.2),
    "grpo:fast": dict(group=16, clip_range=0.2), "ddpo": dict(clip_range=0.2), "d3po": dict(group=8, clip_range=0.9),
    "prdp": dict(group=16, beta=1.0, clip_range=0.2, optimizer_steps=1),
    "prdp:fast": dict(group=16, beta=1.0, clip_range=0.2, optimizer_steps=1),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_samples_go_where_the_reward_points_and_away_from_it_when_it_is_negated(name):
    """Data N(0,1), reward the number itself. The same seeds before and after."""
    method, means = replace(METHODS[name], lr=0.05, **CLIMB.get(name, {})), {}
    for sign in (1.0, -1.0):
        policy = gaussian_policy(method, shape=(1, 1, 1), adam=True)
        batch = (("x",) * 16, 16) if name == "ddpo" else (("x", "y"), 2)
        batches = [Batch(batch[0], tuple(range(100 * k, 100 * k + batch[1]))) for k in range(10)]
        list(method(policy, Worded("Natural", sign) if name == "srpo" else Value(sign), batches))
        means[sign] = policy.sample([""] * 64, seeds=range(64)).x[:, -1].mean().item()
    start = gaussian_policy(method, shape=(1, 1, 1)).sample([""] * 64, seeds=range(64)).x[:, -1].mean().item()
    assert means[1.0] - start > 0.1
    assert means[-1.0] - start < -0.1


# --- several rewards -------------------------------------------------------------------------------------------------


def two(a=1.0, b=1.0):
    return WeightedReward({Value(1.0): a, Value(0.0, -1.0): b}, ["high", "small"])


def test_gdpo_takes_rewards_apart_and_one_number_has_no_parts():
    policy, event = one(GRPO(group=G, advantage="gdpo"), two())
    scaled, _ = one(
        GRPO(group=G, advantage="gdpo"), WeightedReward({Value(1000.0): 1.0, Value(0.0, -1.0): 1.0}, ["high", "small"])
    )
    np.testing.assert_allclose(policy.grads[0], scaled.grads[0], rtol=1e-3)
    assert event.metrics["grad_norm"] > 0
    with pytest.raises(BadInput, match="gdpo"):
        one(GRPO(group=G, advantage="gdpo"), Value())


def test_undominated_samples_are_those_that_brute_force_finds():
    values = torch.randint(0, 5, (2, 30), generator=torch.Generator().manual_seed(0)).float()
    values[0, 4] = torch.nan
    rows = values.T.tolist()
    found = [
        not any(all(q >= p for q, p in zip(b, a, strict=True)) and b != a for b in rows) and not math.isnan(sum(a))
        for a in rows
    ]
    assert non_dominated(values).tolist() == found and 0 < sum(found) < 29
    assert non_dominated(values + torch.tensor([[10.0], [-3.0]])).tolist() == found


def test_parrot_learns_from_the_front_alone_and_prizes_it():
    policy, reward = gaussian_policy(), two()
    judged = score_samples(reward, sample_groups(policy, BATCH, 16), 16)
    a = Parrot(group=16).advantages(judged).view(2, 16)
    for row, *parts in zip(a, *(v.view(2, 16) for v in judged.parts.values()), strict=True):
        assert (~row.isnan()).tolist() == non_dominated(torch.stack(parts)).tolist()
        assert (row[~row.isnan()] > 0).all()
    with pytest.raises(BadInput, match="two"):
        one(Parrot(group=G), Value())


def test_parrot_raises_both_of_two_rewards():
    """Numbers should be high and small: from N(0,1) the best compromise of x - x^2 is 1/2."""
    policy = gaussian_policy(shape=(1, 1, 1), adam=True)
    method = Parrot(group=32, lr=0.03, clip_range=0.2)
    before, *_, after = list(method(policy, two(), [Batch(("x", "y"), (10 * k, 10 * k + 1)) for k in range(15)]))
    assert after.metrics["reward"] > before.metrics["reward"] + 0.2


# --- settings --------------------------------------------------------------------------------------------------------


def test_alignprop_draws_its_depth_for_each_batch_and_stays_inside_the_chain():
    method = AlignProp()
    depths = {method.draw_depth(Batch(("a",), (k,)), 50) for k in range(200)}
    assert min(depths) >= 1 and max(depths) <= 50 and len(depths) > 10
    assert abs(np.mean([method.draw_depth(Batch(("a",), (k,)), 50) for k in range(400)]) - 8) < 1
    assert {AlignProp().draw_depth(Batch(("a",), (k,)), 4) for k in range(50)} <= {1, 2, 3, 4}


def test_refl_stops_teaching_what_is_good_enough():
    policy, _ = one(ReFL(reward_threshold=-math.inf), Value())
    assert policy.grads[0].norm() == 0
    policy, _ = one(ReFL(reward_threshold=0.0), Rows((0.0, 1.0)))
    assert policy.grads[0].norm() == 0


def test_the_old_copy_of_nft_samples_and_follows():
    """The first batch copies (decay 0), later ones keep a share of the old weights."""
    method, policy = NFT(group=G, old_decay_slope=0.4, lr=0.1), gaussian_policy(NFT())
    seen = []
    for _ in method(policy, Value(), [BATCH, Batch(("a",), (9,))]):
        seen.append((policy.theta.detach().clone(), policy.copies["old"].clone()))
    assert torch.equal(*seen[0])
    torch.testing.assert_close(seen[1][1], 0.4 * seen[0][1] + 0.6 * seen[1][0])


@pytest.mark.parametrize("cls", [RAFT, RWR])
def test_what_the_base_made_is_learnt_from_however_far_training_is(cls):
    def media(samples, live):
        policy = set_weights(gaussian_policy(cls()), live=live)
        return one(cls(group=G, lr=0.0, samples=samples), Value(), policy=policy)[1].media.data

    near, far = (0.0, 0.0), (1.0, -1.0)
    assert torch.equal(media("reference", near), media("reference", far))
    assert not torch.equal(media("train", near), media("train", far))


def test_online_dpo_renews_its_reference():
    method, policy = DPO(group=G, refresh_every=2, lr=0.1), gaussian_policy(DPO())
    kept = [policy.copies["old"].clone() for _ in method(policy, Value(), [Batch(("a",), (k,)) for k in range(4)])]
    assert (
        torch.equal(kept[0], torch.zeros(2).double())
        and torch.equal(kept[1], kept[2])
        and not torch.equal(kept[0], kept[1])
    )
    torch.testing.assert_close(kept[3], policy.theta.detach())


@pytest.mark.parametrize(
    ("cls", "settings", "word"),
    [
        (RAFT, dict(group=2, keep_best=3), "keep_best"),
        (ReFL, dict(start=0.9, end=0.5), "start"),
        (DRaFT, dict(renoise_repeats=2), "renoise_repeats"),
        (SRPO, dict(start=0.9, end=0.5), "start"),
    ],
)
def test_settings_that_make_no_sense_are_refused(cls, settings, word):
    with pytest.raises(BadInput, match=word):
        cls(**settings)
