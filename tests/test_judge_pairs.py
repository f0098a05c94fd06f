"""Judges that compare samples of one prompt, and judges of a picture's parts."""

from __future__ import annotations

import json

import pytest
import torch
from judge_server import ask, clips, completion, greys, judge, level, pictures, question

from rewards.vlm.judge_named import UnifiedRewardThink
from rewards.vlm.judge_pairs import JudgePairs
from rewards.vlm.judge_regions import JudgeRegions
from workbench.core.types import Media

# Pairs


def winner(n) -> dict:
    return completion(f"Because.\nWinner: {n}")


def brighter(body, n) -> dict:
    a, b = (level(uri) for uri in pictures(body)[-2:])
    return winner("tie" if abs(a - b) < 0.01 else 1 if a > b else 2)


@pytest.mark.parametrize("place", [1, 2])
def test_a_judge_that_always_prefers_one_place_gives_every_sample_one_half(serve, place):
    server = serve(lambda body, n: winner(place))
    reward = judge(server, JudgePairs)
    assert ask(reward, greys(0.1, 0.5, 0.9)).tolist() == [0.5, 0.5, 0.5]
    assert len(server.bodies) == 6
    assert reward.last_dimensions["first_place"].tolist() == [2.0 - place] * 3, "and the bias is reported"


def test_win_rates_follow_an_unbiased_judge(serve):
    reward = judge(serve(brighter), JudgePairs)
    scores = ask(reward, greys(0.5, 0.1, 0.9, 0.5))
    torch.testing.assert_close(scores, torch.tensor([1.5 / 3, 0, 1, 1.5 / 3]))
    assert reward.last_dimensions["first_place"].tolist() == [0.5] * 4
    assert reward.spec.scope == "group"


def test_a_biased_but_seeing_judge_still_ranks(serve):
    """It says `first` unless the second is much brighter: one order alone would rank by place."""

    def answer(body, n):
        a, b = (level(uri) for uri in pictures(body))
        return winner(2 if b > a + 0.3 else 1)

    scores = ask(judge(serve(answer), JudgePairs), greys(0.1, 0.2, 0.9))
    torch.testing.assert_close(scores, torch.tensor([0.25, 0.25, 1.0]))


def test_only_samples_of_one_prompt_and_one_source_meet(serve):
    server = serve(brighter)
    scores = ask(judge(server, JudgePairs), greys(0.1, 0.9, 0.2, 0.1), ["a", "a", "b", "b"])
    assert scores.tolist() == [0, 1, 1, 0]
    assert len(server.bodies) == 4
    reward = judge(server, JudgePairs, preset="pairs_edit")
    scores = ask(reward, greys(0.1, 0.9, 0.3), ["a"] * 3, greys(0.4, 0.4, 0.6))
    assert scores[:2].tolist() == [0, 1] and scores[2].isnan()
    assert "only judged sample of its prompt" in reward.last_failures[2]
    assert [round(level(u), 1) for u in pictures(server.bodies[-1])][0] == 0.4


def test_a_pair_without_both_orders_is_left_out(serve):
    def answer(body, n):
        a, b = (round(level(uri), 1) for uri in pictures(body))
        return completion("hm") if (a, b) == (0.1, 0.9) else brighter(body, n)

    reward = judge(serve(answer), JudgePairs)
    assert ask(reward, greys(0.1, 0.5, 0.9)).tolist() == [0, 0.5, 1]
    assert reward.last_failures == {}
    scores = ask(reward, greys(0.1, 0.9))
    assert scores.isnan().all() and set(reward.last_failures) == {0, 1}


def test_clips_of_a_pair_come_one_after_the_other(serve):
    server = serve(lambda body, n: completion("<answer>Video 1 is better</answer>"))
    ask(judge(server, UnifiedRewardThink, frames=2), clips(0.2, 0.8))
    levels = [[level(uri) for uri in pictures(body)] for body in server.bodies]
    assert sorted(max(half[:2]) < max(half[2:]) for half in levels) == [False, True]
    assert "Video 1 is better / Video 2 is better" in question(server.bodies[0])


# Regions


def test_regions_weigh_the_whole_and_its_tiles(serve):
    """Tiles of level t are marked 10 t, the whole 4: by hand (1 - 0.25) 4 + 0.25 mean(1, 2, 3, 8)."""
    tiles = torch.tensor([[0.1, 0.2], [0.3, 0.8]])
    picture = tiles.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(1, 3, 8, 8).clone()

    def answer(body, n):
        shown = pictures(body)
        if len(shown) == 1:
            return completion('{"global": 4}')
        return completion(json.dumps({"local": round(10 * level(shown[1]))}))

    reward = judge(serve(answer), JudgeRegions, share=0.25)
    assert ask(reward, Media(picture, "image")).item() == pytest.approx(0.75 * 4 + 0.25 * 3.5)
    assert reward.last_dimensions["map"].tolist() == [[[1, 2], [3, 8]]]
    assert (reward.last_dimensions["global"].item(), reward.last_dimensions["local"].item()) == (4, 3.5)


def test_without_the_whole_a_picture_has_no_score(serve):
    reward = judge(serve(lambda body, n: completion('{"local": 5}' if len(pictures(body)) == 2 else "?")), JudgeRegions)
    assert ask(reward, greys(0.5)).isnan().all()
    assert "global" in reward.last_failures[0]
