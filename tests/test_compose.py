"""Several rewards as one: the sum, its parts, its spec, its config form, and what stands in for the sum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import reward_fixtures as fixtures
import torch
from reward_fixtures import media_for

from rewards import REWARDS, build, build_reward, factory
from rewards.compose import CombinedReward, WeightedReward
from rewards.ensemble import COMBINATIONS
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward, RewardSpec

IMAGE, VIDEO = frozenset({"image"}), frozenset({"video"})


@dataclass(frozen=True)
class Counting:
    """Says how often it was asked."""

    spec = RewardSpec("counting", "1", IMAGE, differentiable=False, needs=frozenset({"reference"}), licence="MIT")
    calls = []

    def __call__(self, *, media, prompts, references=None):
        self.calls.append(len(media))
        return torch.arange(len(media)).float()


@dataclass(frozen=True)
class Checked(Counting):
    """Says how often it was checked."""

    tag: str = ""
    checks = []

    def check(self):
        self.checks.append(self.tag)


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
    reward = WeightedReward({build("brightness"): 2.0, Counting(): -0.5})
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
    reward = build_reward({"brightness": 1.0, "contrast": -2.0})
    media = media_for(reward.spec, 2)
    media.data.requires_grad_()
    total = reward(media=media, prompts=("", ""))
    (both,) = torch.autograd.grad(total.sum(), media.data)
    parts = [torch.autograd.grad(build(n)(media=media, prompts=("", "")).sum(), media.data)[0] for n in reward.rewards]
    torch.testing.assert_close(both, parts[0] - 2 * parts[1])
    assert not any(values.requires_grad for values in reward.last.values())


def test_nan_of_one_sample_stays_on_that_sample():
    reward = build_reward({"brightness": 1.0, "saturated_pixels": 1.0})
    media = media_for(reward.spec, 3)
    media.data[1, 0, 0, 0] = torch.nan
    assert reward(media=media, prompts=("",) * 3).isnan().tolist() == [False, True, False]


def test_the_sum_says_of_itself_what_all_its_parts_allow():
    spec = WeightedReward({build("brightness"): 1.0, Counting(): 1.0, build("clip"): 1.0}).spec
    assert spec.name == "brightness+counting+clip"
    assert spec.modalities == IMAGE
    assert not spec.differentiable
    assert spec.needs == {"prompt", "reference"}
    assert spec.scope == "sample"
    assert WeightedReward({build("brightness"): 1.0, build("contrast"): 1.0}).spec.differentiable
    assert WeightedReward({build("brightness"): 1.0, OfGroups(): 1.0}).spec.scope == "group"
    one, three = (WeightedReward({build("clip"): weight}).spec for weight in (1.0, 3.0))
    assert one == REWARDS["clip"].spec == replace(three, typical=one.typical)
    assert three.typical == pytest.approx(tuple(3 * x for x in one.typical))


def test_rewards_that_can_not_be_added_are_refused():
    with pytest.raises(BadInput, match="no medium that all components judge"):
        WeightedReward({build("clip"): 1.0, OfVideo(): 1.0})
    with pytest.raises(BadInput, match="of_sets judges whole sets"):
        WeightedReward({build("clip"): 1.0, OfSets(): 1.0})
    with pytest.raises(BadInput, match="share a name"):
        WeightedReward({build("clip"): 1.0, build("clip", mode="scaled"): 1.0})


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
    assert build_reward(block).weights == weights


def test_settings_reach_their_reward_and_nothing_loads():
    reward = build_reward({"clip": {"weight": 0.2, "model": "nobody/nothing", "mode": "scaled"}})
    assert reward.rewards["clip"] == build("clip", model="nobody/nothing", mode="scaled")
    assert repr(reward) == "0.2 clip"


def test_a_registry_of_more_rewards_can_be_given():
    assert build_reward("counting", {**REWARDS, "counting": Counting}).weights == {"counting": 1.0}
    with pytest.raises(BadInput, match=r"^watch\.countin: unknown reward 'countin'; did you mean 'counting'"):
        build_reward(["countin"], {**REWARDS, "counting": Counting}, where="watch")


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
        ({"combine": "worst"}, "expected a reward's name"),
        ({"clip": 1, "combine": "wurst"}, r"reward\.combine: unknown combine 'wurst'; did you mean 'worst'"),
        ({"clip": 1, "combine": {"how": "lower", "kk": 1}}, r"reward\.combine: unknown key 'kk'; did you mean 'k'"),
        ({"clip": 1, "combine": {"how": "lower", "k": -1}}, r"reward\.combine\.k: must be at least 0"),
        ({"clip": 1, "combine": {"k": 1}}, r"reward\.combine: unknown combine None"),
        ({"clip": 1, "shape": ["par"]}, r"reward\.shape: unknown shape"),
        ({"clip": 1, "shape": "par"}, r"reward\.shape: the key 'base' is missing"),
        ({"clip": 1, "shape": {"how": "par", "base": "no/where"}}, "no base scores at no/where"),
        ({"clip": {"weight": 2}, "aesthetic": 1, "combine": "worst"}, r"reward\.clip: `combine: worst` has no use"),
        ({"clip": -1, "combine": "mean"}, r"reward\.clip: only a sum .* negative weight"),
        ({"clip": {"mode": "scaled"}, "combine": "worst"}, "clip declares no typical range"),
        ({"aesthetic": 1, "combine": "harmonic"}, "aesthetic is no cosine"),
        ({"clip": {"within": [1, 0]}}, r"reward\.clip\.within: expected \[low, high\]"),
        ({"clip": {"within": [None, None]}}, r"expected \[low, high\]"),
        ({"clip": {"within": 3}}, r"reward\.clip\.within: expected a list"),
        ({"a": {"reward": {"clipp": 1}}}, r"reward\.a\.reward\.clipp: unknown reward 'clipp'"),
        ({"a": {"reward": {"clip": 1}, "mode": "scaled"}}, "beside a block of rewards there is only"),
        ({"test_compose:OfSets": 1, "combine": "worst"}, "judges whole sets can only be weighed"),
    ],
)
def test_a_wrong_block_is_one_sentence_about_its_place(block, says):
    with pytest.raises(BadInput, match=says):
        build_reward(block)


def test_each_component_is_checked_once_wherever_it_stands_and_what_is_built_by_hand_when_asked():
    """A check may ask a server of another machine."""
    leaf = {n: {"reward": "test_compose:Checked", "tag": n} for n in "abcd"}
    inner = {"a": leaf["a"], "b": leaf["b"], "shape": "raw"}
    Checked.checks.clear()
    reward = build_reward({"both": {"reward": {"deep": {"reward": inner}, "c": leaf["c"]}}, "d": leaf["d"]})
    assert Checked.checks == [*"abcd"]
    reward.check_combination(("a prompt",))
    assert Checked.checks == [*"abcd"]
    reward.check()
    assert Checked.checks == [*"abcdabcd"]


def test_reno_is_the_published_loss_but_for_its_constants():
    """ReNO's four losses, with their weights and targets, fall exactly as this sum rises."""
    block = {
        n: ({"weight": v} if isinstance(v, float) else v) | fixtures.small_settings(n) for n, v in factory.RENO.items()
    }
    reward = build_reward(block).load()
    media = media_for(reward.spec, 2)
    scores = reward.breakdown(media=media, prompts=fixtures.PROMPTS[:2])
    loss = 5 * (1 - scores["hps"]) + (2 - scores["imagereward"])
    loss = loss + 0.01 * (100 - scores["clip"]) + 0.05 * (30 - scores["pickscore"])
    constants = 5 * 1 + 2 + 0.01 * 100 + 0.05 * 30
    torch.testing.assert_close(reward.total(scores), constants - loss)


def test_media_of_another_kind_are_refused_by_name():
    with pytest.raises(BadInput, match="clip judges image, not audio"):
        build_reward("clip")(media=Media(torch.zeros(1, 1, 8), "audio", 8000.0), prompts=("",))


# Instead of the sum


def judged(block, media=None, prompts=None):
    reward = build_reward(block)
    media = media or media_for(reward.spec, 3)
    return reward, reward(media=media, prompts=prompts or ("",) * len(media))


def typical(name: str, scores: torch.Tensor) -> torch.Tensor:
    low, high = REWARDS[name].spec.typical
    return (scores - low) / (high - low)


PAIR = {"brightness": 1.0, "contrast": 1.0}


def test_the_worst_case_is_the_lower_of_rewards_brought_to_their_typical_ranges():
    reward, total = judged(PAIR | {"combine": "worst"})
    assert isinstance(reward, CombinedReward) and isinstance(reward, Reward)
    parts = [typical(n, v) for n, v in reward.last.items()]
    assert torch.equal(total, torch.minimum(*parts))
    assert list(reward.last) == ["brightness", "contrast"], "what is remembered is raw"
    assert torch.equal(reward.last["contrast"], build("contrast")(media=media_for(reward.spec, 3), prompts=("",) * 3))
    assert repr(reward) == reward.spec.name == "worst(typical(brightness), typical(contrast))"


def test_mean_less_one_deviation_of_two_is_the_lower_and_k_zero_is_the_mean():
    _, worst = judged(PAIR | {"combine": "worst"})
    _, mean = judged(PAIR | {"combine": "mean"})
    torch.testing.assert_close(judged(PAIR | {"combine": {"how": "lower", "k": 1}})[1], worst)
    torch.testing.assert_close(judged(PAIR | {"combine": {"how": "lower", "k": 0}})[1], mean)
    assert (judged(PAIR | {"combine": {"how": "lower", "k": "2"}})[1] < worst).all()


def test_the_harmonic_mean_of_cosines_is_lambda_harmonic():
    """RPO's reward of an image cosine .5 and a text cosine 0 at lambda .25: 1 / (.25 / .75 + .75 / .5)."""
    total = build_reward({"brightness": 0.25, "contrast": 0.75, "combine": "harmonic"}).total(
        {"brightness": torch.tensor([0.5]), "contrast": torch.tensor([0.0])}
    )
    assert total.item() == pytest.approx(1 / (0.25 / 0.75 + 0.75 / 0.5))


def test_a_reward_outside_its_range_stops_counting():
    """Its value stands still and its gradient is nothing; inside it is itself."""
    media = Media(torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1).repeat(1, 3, 4, 4), "image")
    media.data.requires_grad_()
    reward, total = judged({"brightness": {"weight": 2.0, "within": [0.3, 0.7]}}, media)
    torch.testing.assert_close(total, 2 * torch.tensor([0.3, 0.5, 0.7]))
    (gradient,) = torch.autograd.grad(total.sum(), media.data)
    assert gradient.flatten(1).any(1).tolist() == [False, True, False]
    torch.testing.assert_close(reward.last["brightness"], torch.tensor([0.2, 0.5, 0.9]))
    _, open_end = judged({"brightness": {"within": [None, 0.7]}}, Media(media.data.detach(), "image"))
    torch.testing.assert_close(open_end, torch.tensor([0.2, 0.5, 0.7]))
    assert repr(reward) == "sum(2 brightness[0.3,0.7])"


@pytest.mark.parametrize("combine", ["sum", "mean", "worst", {"how": "lower", "k": 0.5}, "harmonic"])
def test_the_gradient_of_a_combination_is_its_slope_and_nan_spoils_one_sample(combine):
    reward = build_reward(PAIR | {"combine": combine})
    assert reward.spec.differentiable and reward.spec.scope == "sample"
    media = media_for(reward.spec, 3)
    media.data.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(media=media, prompts=("",) * 3).sum(), media.data)
    step = 0.01 * gradient / gradient.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    at = [reward(media=Media(media.data.detach() + s, "image"), prompts=("",) * 3) for s in (step, -step)]
    torch.testing.assert_close((at[0] - at[1]) / 0.02, gradient.flatten(1).norm(dim=1), rtol=0.02, atol=1e-4)
    spoilt = media.data.detach().clone()
    spoilt[1, 0, 0, 0] = torch.nan
    spoilt.requires_grad_()
    total = reward(media=Media(spoilt, "image"), prompts=("",) * 3)
    assert total.isnan().tolist() == [False, True, False]
    (there,) = torch.autograd.grad(total[[0, 2]].sum(), spoilt)
    torch.testing.assert_close(there[[0, 2]], gradient[[0, 2]])


def test_where_rewards_agree_the_deviation_has_no_gradient_instead_of_nan():
    x = torch.tensor([[0.5, 0.2], [0.5, 0.4]], requires_grad=True)
    lower = COMBINATIONS["lower"]()(x, torch.ones(2), ("", ""))
    torch.testing.assert_close(lower, torch.tensor([0.5, 0.2]))
    (gradient,) = torch.autograd.grad(lower.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, 1.0], [0.5, 0.0]]))


def test_what_compares_samples_says_so_and_has_no_gradient():
    for block in (PAIR | {"shape": "win_rate"}, PAIR | {"combine": "pareto"}, PAIR | {"combine": "parrot"}):
        spec = build_reward(block).spec
        assert spec.scope == "group" and not spec.differentiable


def test_win_rates_are_taken_within_each_prompt():
    reward = build_reward({"brightness": 1.0, "shape": "win_rate"})
    total = reward.total({"brightness": torch.tensor([0.1, 0.9, 0.3, 0.8])}, ("a", "b", "a", "b"))
    assert total.tolist() == [0.0, 1.0, 1.0, 0.0]
    with pytest.raises(BadInput, match="was given one of each"):
        reward.total({"brightness": torch.tensor([0.1, 0.9])}, ("a", "b"))


def test_a_block_of_rewards_is_a_component_like_any_other():
    inner = PAIR | {"combine": "worst"}
    reward, total = judged({"both": {"reward": inner, "weight": 2.0}, "colourfulness": -1.0})
    _, worst = judged(inner)
    assert list(reward.last) == ["both", "colourfulness"]
    torch.testing.assert_close(total, 2 * worst - reward.last["colourfulness"])
    assert list(reward.rewards["both"].last) == ["brightness", "contrast"]


def test_a_shaped_breakdown_is_what_the_combination_adds():
    reward, total = judged({"brightness": 2.0, "contrast": -1.0, "shape": "typical"})
    shaped = reward.shaped(reward.last, ("",) * 3)
    torch.testing.assert_close(total, 2 * shaped["brightness"] - shaped["contrast"])
    plain = build_reward(PAIR)
    scores = plain.breakdown(media=media_for(plain.spec, 2), prompts=("", ""))
    assert plain.shaped(scores, ("", "")) == scores
