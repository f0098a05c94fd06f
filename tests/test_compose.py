"""Several rewards as one: the sum, its parts, its spec, its config form, and the normalisations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import reward_fixtures as fixtures
import torch
from reward_fixtures import media_for

from rewards import REWARDS, build, compose
from rewards.compose import Weighted, from_config, gdpo, zscore
from workbench.types import BadInput, Media, Reward, RewardSpec

IMAGE, VIDEO = frozenset({"image"}), frozenset({"video"})


@dataclass(frozen=True)
class Counting:
    """Says how often it was asked."""

    spec = RewardSpec("counting", "1", IMAGE, differentiable=False, needs=frozenset({"reference"}), licence="MIT")
    calls = []

    def __call__(self, *, media, prompts, references=None):
        self.calls.append(len(media))
        return torch.arange(len(media)).float()


class OfVideo:
    """Judges clips only."""

    spec = RewardSpec("of_video", "1", VIDEO, differentiable=True)


class OfSets:
    """Judges a whole set."""

    spec = RewardSpec("of_sets", "1", IMAGE, differentiable=False, scope="set")


class OfGroups:
    """Judges the samples of one prompt against each other."""

    spec = RewardSpec("of_groups", "1", IMAGE, differentiable=False, scope="group")


def test_the_total_is_the_weighted_sum_of_one_pass():
    reward = Weighted({build("brightness"): 2.0, Counting(): -0.5})
    assert isinstance(reward, Reward)
    media = media_for(REWARDS["brightness"].spec, 3)
    Counting.calls.clear()
    total = reward(media=media, prompts=("",) * 3)
    assert Counting.calls == [3]
    assert list(reward.last) == ["brightness", "counting"]
    assert torch.equal(total, 2 * reward.last["brightness"] - 0.5 * torch.arange(3))
    scores = reward.breakdown(media=media, prompts=("",) * 3)
    assert torch.equal(reward.total(scores), total)


def test_the_total_keeps_the_graph_and_what_is_remembered_does_not():
    reward = from_config({"brightness": 1.0, "contrast": -2.0})
    media = media_for(reward.spec, 2)
    media.data.requires_grad_()
    total = reward(media=media, prompts=("", ""))
    (both,) = torch.autograd.grad(total.sum(), media.data)
    parts = [torch.autograd.grad(build(n)(media=media, prompts=("", "")).sum(), media.data)[0] for n in reward.rewards]
    torch.testing.assert_close(both, parts[0] - 2 * parts[1])
    assert not any(values.requires_grad for values in reward.last.values())


def test_nan_of_one_sample_stays_on_that_sample():
    reward = from_config({"brightness": 1.0, "saturated_pixels": 1.0})
    media = media_for(reward.spec, 3)
    media.data[1, 0, 0, 0] = torch.nan
    assert reward(media=media, prompts=("",) * 3).isnan().tolist() == [False, True, False]


def test_the_sum_says_of_itself_what_all_its_parts_allow():
    spec = Weighted({build("brightness"): 1.0, Counting(): 1.0, build("clip"): 1.0}).spec
    assert spec.name == "brightness+counting+clip"
    assert spec.modalities == IMAGE
    assert not spec.differentiable
    assert spec.needs == {"prompt", "reference"}
    assert spec.scope == "sample"
    assert Weighted({build("brightness"): 1.0, build("contrast"): 1.0}).spec.differentiable
    assert Weighted({build("brightness"): 1.0, OfGroups(): 1.0}).spec.scope == "group"
    assert Weighted({build("clip"): 3.0}).spec is REWARDS["clip"].spec


def test_rewards_that_can_not_be_added_are_refused():
    with pytest.raises(BadInput, match="no medium that all components judge"):
        Weighted({build("clip"): 1.0, OfVideo(): 1.0})
    with pytest.raises(BadInput, match="of_sets judges whole sets"):
        Weighted({build("clip"): 1.0, OfSets(): 1.0})
    with pytest.raises(BadInput, match="share a name"):
        Weighted({build("clip"): 1.0, build("clip", mode="scaled"): 1.0})


@pytest.mark.parametrize(
    ("block", "weights"),
    [
        ("brightness", {"brightness": 1.0}),
        (["brightness", "contrast"], {"brightness": 1.0, "contrast": 1.0}),
        ({"brightness": 2, "contrast": "1e-1"}, {"brightness": 2.0, "contrast": 0.1}),
        ({"compressibility": {"weight": -0.2, "quality": 50}}, {"compressibility": -0.2}),
        ({"clip": {"model": "some/clip"}}, {"clip": 1.0}),
        ({"big": {"reward": "clip", "model": "some/clip"}, "clip": 0.5}, {"big": 1.0, "clip": 0.5}),
        ({"test_compose:Counting": 1.0}, {"counting": 1.0}),
        ("reno", {"hps": 5.0, "imagereward": 1.0, "clip": 0.01, "pickscore": 0.05}),
    ],
)
def test_a_block_names_rewards_and_weights(block, weights):
    assert from_config(block).weights == weights


def test_settings_reach_their_reward_and_nothing_loads():
    reward = from_config({"clip": {"weight": 0.2, "model": "nobody/nothing", "mode": "scaled"}})
    assert reward.rewards["clip"] == build("clip", model="nobody/nothing", mode="scaled")
    assert repr(reward) == "0.2 clip"


def test_a_registry_of_more_rewards_can_be_given():
    assert from_config("counting", {**REWARDS, "counting": Counting}).weights == {"counting": 1.0}
    with pytest.raises(BadInput, match=r"^watch\.countin: unknown reward 'countin'; did you mean 'counting'"):
        from_config(["countin"], {**REWARDS, "counting": Counting}, where="watch")


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("clipp", r"reward\.clipp: unknown reward 'clipp'; did you mean 'clip'"),
        ({}, "expected a reward's name"),
        (3, "expected a reward's name"),
        ({"clip": 0}, r"reward\.clip: a weight is a finite number"),
        ({"clip": float("nan")}, "finite number"),
        ({"clip": "much"}, "finite number"),
        ({"clip": True}, "finite number"),
        ({"clip": {"weight": 1, "modl": "x"}}, r"reward\.clip: unknown key 'modl'; did you mean 'model'"),
        ({"clip": {"checkpoint": "often"}}, r"reward\.clip\.checkpoint: expected true or false"),
        ({"a": {"reward": 3}}, r"reward\.a\.reward: expected a reward's name"),
        ({"a": {"reward": "clip"}, "b": {"reward": "clip"}}, "b is the same reward as a"),
        (["clip", "clip"], "clip is named twice"),
        ({"clip": {"model": "./nowhere"}}, r"no config\.json"),
    ],
)
def test_a_wrong_block_is_one_sentence_about_its_place(block, says):
    with pytest.raises(BadInput, match=says):
        from_config(block)


def test_reno_is_the_published_loss_but_for_its_constants():
    """ReNO's four losses, with their weights and targets, fall exactly as this sum rises."""
    small = fixtures.small_settings()
    block = {n: ({"weight": v} if isinstance(v, float) else v) | small[n] for n, v in compose.RENO.items()}
    reward = from_config(block).load()
    media = media_for(reward.spec, 2)
    scores = reward.breakdown(media=media, prompts=fixtures.PROMPTS[:2])
    loss = 5 * (1 - scores["hps"]) + (2 - scores["imagereward"])
    loss = loss + 0.01 * (100 - scores["clip"]) + 0.05 * (30 - scores["pickscore"])
    constants = 5 * 1 + 2 + 0.01 * 100 + 0.05 * 30
    torch.testing.assert_close(reward.total(scores), constants - loss)


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


def test_groups_must_be_whole():
    with pytest.raises(ValueError, match="whole groups of 4"):
        zscore(torch.zeros(6), 4)


def test_media_of_another_kind_are_refused_by_name():
    with pytest.raises(BadInput, match="clip judges image, not audio"):
        from_config("clip")(media=Media(torch.zeros(1, 1, 8), "audio", 8000.0), prompts=("",))
