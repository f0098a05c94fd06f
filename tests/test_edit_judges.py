"""Vision-language judges of edits: what they are asked, and in which order pictures meet."""

from __future__ import annotations

import json

import pytest
import torch
from edit_fixtures import build_reward_of, edit
from judge_server import completion, greys, judge, level, pictures, user_turn

from rewards.vlm.judge_named import EditScore, UnifiedRewardEdit, UnifiedRewardEditPairs, UnifiedRewardEditQuality
from rewards.vlm.judge_pairs import JudgePairs


def answer_marks(*marks: float) -> dict:
    return completion(json.dumps({"reasoning": "so", "score": marks}))


def test_editscore_asks_as_published_byte_for_byte(serve):
    """Turns, labels, order of the pictures and sampling are its authors'; their words can be given as `wording`."""
    server = serve(lambda body, n: answer_marks(20, 10))
    reward = judge(server, EditScore, passes=1, wording=("Edit: {prompt}", "Look."))
    prompt = edit("make it snow", source=torch.full((3, 8, 8), 0.8))
    assert build_reward_of(reward)(media=greys(0.2), prompts=[prompt]).item() == pytest.approx(4.0)
    bodies = sorted(server.bodies, key=lambda body: -len(pictures(body)))
    source, result = pictures(bodies[0])
    assert [round(level(uri), 1) for uri in (source, result)] == [0.8, 0.2]

    def request(*content):
        return {
            "model": "judge",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": list(content)},
            ],
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 20,
            "max_tokens": 512,
            "seed": 42,
        }

    def text(words):
        return {"type": "text", "text": words}

    def image(uri):
        return {"type": "image_url", "image_url": {"url": uri}}

    expected = [
        request(text("<img1>: "), image(source), text("<img2>: "), image(result), text("Edit: make it snow")),
        request(text("<img1>: "), image(result), text("Look.")),
    ]
    assert [json.dumps(b, sort_keys=True) for b in bodies] == [json.dumps(b, sort_keys=True) for b in expected]


def test_an_endpoint_that_knows_no_top_k_is_not_sent_it(serve):
    server = serve(lambda body, n: answer_marks(25, 25))
    judge(server, EditScore, passes=1, top_k=0, top_p=1.0)(media=greys(0.2), prompts=["p"], references=greys(0.8))
    assert not {"top_k", "top_p"} & set(server.bodies[0])


@pytest.mark.parametrize(
    ("cls", "shown", "names"),
    [
        (UnifiedRewardEdit, [0.8, 0.2], ["success", "overediting"]),
        (UnifiedRewardEditQuality, [0.2], ["naturalness", "artefacts"]),
    ],
)
def test_unified_reward_edit_is_the_mean_of_two_marks_up_to_25(serve, cls, shown, names):
    server = serve(lambda body, n: answer_marks(25, 10))
    reward = judge(server, cls)
    prompt = edit("make it snow", source=torch.full((3, 8, 8), 0.8))
    assert build_reward_of(reward)(media=greys(0.2), prompts=[prompt]).item() == 17.5
    (body,) = server.bodies
    assert [round(level(uri), 1) for uri in pictures(body)] == shown
    assert [m["role"] for m in body["messages"]] == ["user"] and body["max_tokens"] == 4096
    assert [part["type"] for part in user_turn(body)] == ["image_url"] * len(shown) + ["text"]
    assert list(reward.last_dimensions) == names


@pytest.mark.parametrize("cls", [UnifiedRewardEditPairs, JudgePairs])
def test_edits_of_one_source_meet_in_both_orders_after_their_source(serve, cls):
    def answer(body, n):
        source, first, second = (level(uri) for uri in pictures(body))
        assert source == pytest.approx(0.4, abs=0.01) or source == pytest.approx(0.6, abs=0.01)
        better = 1 if first > second else 2
        return completion(f"Edited image {better} is better\nWinner: {better}")

    server = serve(answer)
    preset = {} if cls is UnifiedRewardEditPairs else {"preset": "pairs_edit"}
    sources = [torch.full((3, 8, 8), v) for v in (0.4, 0.4, 0.6, 0.6)]
    prompts = [edit("make it snow", source=s) for s in sources]
    scores = build_reward_of(judge(server, cls, **preset))(media=greys(0.1, 0.9, 0.3, 0.2), prompts=prompts)
    assert scores.tolist() == [0, 1, 1, 0] and len(server.bodies) == 4


def test_a_judge_of_pairs_compares_each_sample_with_its_own_rival(serve):
    def answer(body, n):
        first, second = (level(uri) for uri in pictures(body))
        return completion("hm" if 0.25 < first < 0.35 else f"Winner: {1 if first > second else 2}")

    reward = judge(serve(answer), JudgePairs)
    media, rivals = greys(0.9, 0.1, 0.3, 0.5), greys(0.2, 0.6, 0.8, 0.5)
    media.data[3] = torch.nan
    scores = reward.score_against(media=media, rivals=rivals, prompts=["a"] * 4)
    assert scores[:2].tolist() == [1, 0] and scores[2:].isnan().all()
    assert set(reward.last_failures) == {2, 3} and reward.last_dimensions["first_place"][:2].tolist() == [0.5, 0.5]
