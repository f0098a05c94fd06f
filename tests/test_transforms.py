"""Rewards reshaped against what the un-aligned model scores, win rates, and the Pareto front: all by hand."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from reward_fixtures import media_for

from rewards import REWARDS, build_reward
from rewards.baseline import BaselineScores
from rewards.pareto import Parrot, crowding_distance, dominance_matrix, pareto_fronts
from rewards.transforms import SHAPES, win_rate
from workbench.core.errors import BadInput

NAN, INF = torch.nan, torch.inf
SPEC = REWARDS["brightness"].spec
RED, BLUE = [0.0, 0.2, 0.4], [0.5, 0.7, 0.9]
S = 0.2  # standard deviation within a prompt: both have variance .04


@pytest.fixture
def base(tmp_path):
    """Base scores of brightness and contrast on two prompts, as a file."""
    path = tmp_path / "base.json"
    scores = {"red": RED, "blue": BLUE}
    BaselineScores({"brightness": scores, "contrast": scores}, {"brightness": "1"}).write(path)
    return str(path)


def shaped(how: str, scores, prompts, **settings):
    shape = SHAPES[how](**settings)
    return shape(torch.as_tensor(scores), name="brightness", spec=SPEC, prompts=prompts)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_par_is_the_mean_probability_to_be_preferred_to_the_base_on_that_prompt(base):
    ours = shaped("par", [0.4, 0.4], ("red", "blue"), base=base)
    by_hand = [sum(sigmoid((0.4 - r) / S) for r in rivals) / 3 for rivals in (RED, BLUE)]
    assert ours.tolist() == pytest.approx(by_hand)
    assert ours[0] > 0.7 and ours[1] < 0.3
    (warm,) = shaped("par", [0.4], ("red",), base=base, temperature=2.0)
    assert warm.item() == pytest.approx(sum(sigmoid((0.4 - r) / (2 * S)) for r in RED) / 3)
    assert shaped("par", [-1e6, 1e6], ("red", "red"), base=base).tolist() == [0.0, 1.0], "bounded"


def test_log_sigmoid_is_centred_on_the_base_quantile_of_that_prompt(base):
    ours = shaped("log_sigmoid", [0.4, 0.4], ("red", "blue"), base=base, quantile=0.5)
    assert ours.tolist() == pytest.approx([math.log(sigmoid((0.4 - m) / S)) for m in (0.2, 0.7)])
    (high,) = shaped("log_sigmoid", [0.34], ("red",), base=base)
    assert high.item() == pytest.approx(math.log(0.5)), "the .85 quantile of 0, .2, .4 is .34"
    better, worse = shaped("log_sigmoid", [9.0, -9.0], ("red", "red"), base=base)
    assert better == pytest.approx(0, abs=1e-6) and worse < -40, "what is good saturates, what is bad does not"


def test_z_is_in_standard_deviations_of_all_base_scores(base):
    pool = torch.tensor(RED + BLUE)
    ours = shaped("z", [0.1, 0.9], ("never measured", "red"), base=base)
    torch.testing.assert_close(ours, (torch.tensor([0.1, 0.9]) - pool.mean()) / pool.std())


@pytest.mark.parametrize("how", ["typical", "cosine", "z", "log_sigmoid", "par"])
def test_the_gradient_of_a_shape_is_its_slope_and_nan_spoils_one_sample(how, base):
    settings = {"base": base} if how in ("z", "log_sigmoid", "par") else {}
    x = torch.tensor([0.3, NAN, 0.6], dtype=torch.float64, requires_grad=True)
    prompts = ("red", "red", "blue")
    ours = shaped(how, x, prompts, **settings)
    assert ours.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(ours[[0, 2]].sum(), x)
    up, down = (shaped(how, x.detach() + e, prompts, **settings) for e in (1e-5, -1e-5))
    torch.testing.assert_close(gradient[[0, 2]], ((up - down) / 2e-5)[[0, 2]], rtol=1e-4, atol=1e-8)
    assert (gradient[[0, 2]] > 0).all()


def test_a_prompt_without_base_scores_is_an_error_unless_pooled(base):
    for how in ("par", "log_sigmoid"):
        with pytest.raises(BadInput, match="no base scores of brightness for the prompt 'green'"):
            shaped(how, [0.4], ("green",), base=base)
    (pooled,) = shaped("par", [0.4], ("green",), base=base, pooled=True)
    assert pooled.item() == pytest.approx(sum(sigmoid((0.4 - r) / S) for r in RED + BLUE) / 6)
    (own,) = shaped("par", [0.4], ("red",), base=base, pooled=True)
    assert own.item() == pytest.approx(sum(sigmoid((0.4 - r) / S) for r in RED) / 3), "one with scores keeps its own"
    reward = build_reward({"brightness": 1, "shape": {"how": "par", "base": base}})
    reward.check(["red", "blue"])
    with pytest.raises(BadInput, match="'green'"):
        reward.check(["red", "green"])
    nested = build_reward({"a": {"reward": {"brightness": 1, "shape": {"how": "par", "base": base}}}})
    with pytest.raises(BadInput, match="'green'"):
        nested.check(["green"])


def test_shaped_rewards_combine_and_their_spec_names_the_yardstick(base):
    block = {"brightness": 1.0, "contrast": 1.0, "shape": {"how": "log_sigmoid", "base": base}}
    reward = build_reward(block)
    assert reward.spec.differentiable and BaselineScores.read(base).version in reward.spec.version
    raw = {"brightness": torch.tensor([0.4, NAN, 0.1]), "contrast": torch.tensor([0.3, 0.2, 0.9])}
    prompts = ("red", "red", "blue")
    parts = reward.shaped(raw, prompts)
    torch.testing.assert_close(reward.total(raw, prompts), parts["brightness"] + parts["contrast"], equal_nan=True)
    assert reward.total(raw, prompts).isnan().tolist() == [False, True, False]
    worst = build_reward({**block, "combine": "worst"}).total(raw, prompts)
    torch.testing.assert_close(worst, torch.minimum(*parts.values()), equal_nan=True)
    with pytest.raises(BadInput, match="negative weight"):
        build_reward({**block, "contrast": -1.0})
    loss = build_reward({"contrast": -1.0, "shape": {"how": "par", "base": base}}).total(
        {"contrast": torch.ones(1)}, ("red",)
    )
    assert loss.item() < -0.9, "a sum of bounded shapes may ask for less"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quantile": 1.5}, "between 0 and 1"),
        ({"temperature": 0}, "must be more than 0"),
        ({"pooled": "yes"}, "true or false"),
        ({"quantil": 0.5}, "did you mean 'quantile'"),
    ],
)
def test_a_setting_that_can_not_be_is_refused(settings, says, base):
    with pytest.raises(BadInput, match=says):
        build_reward({"brightness": 1, "shape": {"how": "log_sigmoid", "base": base} | settings})


def test_base_scores_of_another_reward_version_or_spread_are_refused(base, tmp_path):
    with pytest.raises(BadInput, match="no base scores of reward 'sharpness'"):
        build_reward({"sharpness": 1, "shape": {"how": "z", "base": base}})
    other = tmp_path / "other.json"
    BaselineScores({"brightness": {"red": [0.1, 0.2]}}, {"brightness": "0"}).write(other)
    with pytest.raises(BadInput, match="are of version '0', this one is '1'"):
        build_reward({"brightness": 1, "shape": {"how": "z", "base": str(other)}})
    BaselineScores({"brightness": {"red": [0.1], "blue": [0.2]}}).write(other)
    with pytest.raises(BadInput, match="at least 2 seeds a prompt"):
        build_reward({"brightness": 1, "shape": {"how": "par", "base": str(other)}})
    build_reward({"brightness": 1, "shape": {"how": "z", "base": str(other)}})
    BaselineScores({"brightness": {"red": [0.1, 0.1]}}).write(other)
    with pytest.raises(BadInput, match="don't differ"):
        build_reward({"brightness": 1, "shape": {"how": "z", "base": str(other)}})
    other.write_text("[1]")
    with pytest.raises(BadInput, match="holds no base scores"):
        BaselineScores.read(other)


def test_base_scores_are_measured_once_written_whole_and_read_back(tmp_path):
    reward = build_reward({"brightness": 1.0, "contrast": 1.0})
    media = media_for(reward.spec, 3)
    media.data[1, 0, 0, 0] = NAN
    base = BaselineScores.measure(reward, [(media, ("a", "a", "b")), (media[[0]], ("b",))])
    assert {p: len(v) for p, v in base.scores["contrast"].items()} == {"a": 1, "b": 2}, "what is NaN is no base score"
    base.write(tmp_path / "base.json")
    again = BaselineScores.read(tmp_path / "base.json")
    assert again.scores == base.scores and again.versions == {"brightness": "1", "contrast": "1"}
    assert again.version == base.version
    assert [p.name for p in tmp_path.iterdir()] == ["base.json"], "no temporary file is left"
    assert BaselineScores.read(tmp_path / "base.json") is again, "read once while it does not change"


def test_a_run_is_its_own_base(tmp_path):
    """The contestant `base` of a run's log; a score that could not be told is none."""
    with pytest.raises(BadInput, match="no base scores at"):
        BaselineScores.read(tmp_path)
    sample = [{"prompt": "red", "scores": {"clip": s, "hps": None}} for s in (0.1, 0.3)]
    events = [
        {"contestant": "base", "batch": 0, "final": True, "samples": sample},
        {"contestant": "reno", "batch": 0, "final": True, "samples": [{"prompt": "red", "scores": {"clip": 9.0}}]},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"rewards": {"clip": "v1"}}))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events[1:]))
    with pytest.raises(BadInput, match="no finished contestant 'base'"):
        BaselineScores.read(tmp_path)
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events) + '{"torn')
    base = BaselineScores.read(tmp_path)
    assert base.scores == {"clip": {"red": [0.1, 0.3]}, "hps": {}} and base.versions == {"clip": "v1"}
    with pytest.raises(BadInput, match="no base scores of reward 'hps'"):
        base.check("hps", "2", "here")


# Win rates


def test_a_win_rate_counts_the_others_of_the_prompt_and_ties_half():
    scores = torch.tensor([1.0, 2.0, 2.0, 3.0, NAN, 7.0, NAN])
    prompts = ("a", "a", "a", "a", "a", "b", "c")
    expected = torch.tensor([0.0, 0.5, 0.5, 1.0, NAN, 0.5, NAN])
    torch.testing.assert_close(win_rate(scores, prompts), expected, equal_nan=True)
    torch.testing.assert_close(win_rate(scores.exp(), prompts), expected, equal_nan=True)


# The Pareto front

#  a and b are traded off, c is between them, d is dominated by c alone, e by all that matters, f a copy of a
POINTS = torch.tensor([[0.0, 4.0, 2.0, 1.0, -1.0, 0.0], [4.0, 0.0, 2.0, 1.5, -1.0, 4.0]])


def test_the_fronts_are_those_of_a_drawing():
    assert pareto_fronts(POINTS).tolist() == [0, 0, 0, 1, 2, 0]
    assert not dominance_matrix(POINTS)[0, 5] and not dominance_matrix(POINTS)[5, 0], (
        "copies do not dominate each other"
    )


def test_the_fronts_agree_with_peeling_by_brute_force():
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)

    def beats(i, j):
        return bool((values[:, i] >= values[:, j]).all() and (values[:, i] > values[:, j]).any())

    left, front, expected = set(range(40)), 0, [-1] * 40
    while left:
        top = {j for j in left if not any(beats(i, j) for i in left)}
        for j in top:
            expected[j] = front
        left, front = left - top, front + 1
    assert pareto_fronts(values).tolist() == expected
    assert max(expected) > 1
    assert pareto_fronts(values + torch.tensor([[5.0], [0.0], [-3.0]])).tolist() == expected, (
        "a constant changes nothing"
    )


def test_nan_neither_dominates_nor_is_on_a_front():
    values = torch.tensor([[9.0, 1.0, 0.0], [NAN, 1.0, 0.0]])
    assert pareto_fronts(values).tolist() == [-1, 0, 1]
    reward = build_reward({"brightness": 1.0, "contrast": 1.0, "combine": "pareto"})
    total = reward.total(dict(zip(("brightness", "contrast"), values, strict=True)), ("", "", ""))
    assert total.isnan().tolist() == [True, False, False]


def test_crowding_is_the_sum_of_the_gaps_between_neighbours():
    values = torch.tensor([[0.0, 1.0, 3.0, 4.0], [8.0, 6.0, 1.0, 0.0]])
    assert crowding_distance(values).tolist() == pytest.approx([INF, 3 / 4 + 7 / 8, 3 / 4 + 6 / 8, INF])
    assert crowding_distance(values[:, :2]).tolist() == [INF, INF]
    assert crowding_distance(torch.ones(2, 3)).tolist()[1] == 0.0


def test_the_pareto_reward_sorts_by_front_then_by_standing_apart_within_each_prompt():
    reward = build_reward({"brightness": 1.0, "contrast": 1.0, "combine": "pareto"})
    scores = dict(zip(("brightness", "contrast"), torch.cat([POINTS, POINTS[:, :1] - 100], 1), strict=True))
    total = reward.total(scores, ("p",) * 6 + ("q",))
    a, b, c, d, e, f, alone = total.tolist()
    # a and its copy f tie in the first reward: the sort is stable, so a is the end there and f in the second
    assert a == b == f == alone == 0.5
    assert 0 < c < 0.5 and d == -0.5 and e == -1.5
    everywhere = reward.total(scores, ("p",) * 7)
    assert everywhere[-1] < e, "among the others the last would be dominated by all"


def test_parrot_rewards_the_front_and_nothing_else_and_never_pays_less_for_it():
    values = torch.tensor([[-5.0, -1.0, -4.0, -6.0], [-1.0, -5.0, -4.0, -6.0]])
    ours = Parrot()(values, torch.tensor([1.0, 2.0]), ("p",) * 4)
    assert ours.tolist() == [1 + 2 * 5, 5 + 2 * 1, 2 + 2 * 2, 0.0]
    apart = Parrot()(values, torch.tensor([1.0, 2.0]), ("p", "p", "q", "q"))
    assert apart.tolist() == [8.0, 4.0, 2 + 2 * 2, 0.0]
    spoilt = Parrot()(torch.tensor([[NAN, 1.0, 0.0]]), torch.ones(1), ("p",) * 3)
    torch.testing.assert_close(spoilt, torch.tensor([NAN, 1.0, 0.0]), equal_nan=True)


def test_every_pair_of_shape_and_combination_gives_one_score_a_sample(base):
    from rewards.ensemble import COMBINATIONS

    raw = {"brightness": torch.tensor([0.4, 0.2, 0.1]), "contrast": torch.tensor([0.3, NAN, 0.9])}
    for shape, combine in itertools.product(SHAPES, COMBINATIONS):
        settings = {"how": shape} | ({"base": base} if shape in ("z", "log_sigmoid", "par") else {})
        total = build_reward({"brightness": 1.0, "contrast": 1.0, "shape": settings, "combine": combine}).total(
            raw, ("red", "red", "blue")
        )
        assert total.shape == (3,) and total.dtype == torch.float32
        assert total.isnan().tolist() == [False, True, False]
