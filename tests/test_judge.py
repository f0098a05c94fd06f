"""Vision-language judges: what is asked, how answers become numbers, and what a judge says of itself."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from judge_server import (
    JudgeServer,
    Status,
    ask,
    clips,
    completion,
    greys,
    judge,
    level,
    pictures,
    pixels,
    question,
    yes,
)

from rewards.vlm import judge_client, judge_named
from rewards.vlm.judge import Judge
from rewards.vlm.judge_answers import Lines, Rubric, Verdict, YesNo
from rewards.vlm.judge_client import JudgeError, Reply
from rewards.vlm.judge_named import EditScore, IXCReward, QInsight, UnifiedReward, VideoDimensions
from rewards.vlm.judge_pairs import JudgePairs
from rewards.vlm.judge_presets import PRESETS
from rewards.vlm.judge_questions import Preset
from rewards.vlm.judge_regions import JudgeRegions
from workbench.core import schema
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward

NAMED = [c for c in vars(judge_named).values() if isinstance(c, type) and c.__module__ == judge_named.__name__]
EVERY = [Judge, JudgePairs, JudgeRegions, *NAMED]


# Answers become numbers, or a reason


def test_yes_is_its_share_of_yes_and_no_over_all_their_spellings():
    first = (("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("No", math.log(0.2)), ("The", math.log(0.2)))
    assert YesNo().read(Reply("", first)) == pytest.approx((0.75,))


READINGS = [
    (Rubric(("a", "b"), 0, 10), 'Well: ```json\n{"a": 3, "b": 7.5}\n``` so.', (3, 7.5)),
    (Rubric(("a",), 0, 10), '<think>{"a": 1}</think>{"a": 9}', (9,)),
    (Rubric(("a",), 0, 10), 'I first thought {"a": 2} but no: {"a": 4, "why": {"x": 1}}', (4,)),
    (Rubric(("x", "y"), 0, 25, "score", 0.4), '{"reasoning": "ok {sic}", "score": [25, 10]}', (10, 4)),
    (Lines(("rating",), ("Rating:",), 0, 10), "Rating: 3\nno...\n**Rating:** 8/10", (8,)),
    (PRESETS["unifiedreward"].questions[0].answer, "Alignment Score (1-5): 2.7\nCoherence Score (1-5): 4\n"
     "Style Score (1-5): 3.5", (2.7, 4, 3.5)),
    (PRESETS["ixc_reward"].questions[0].answer, " -1.25e-1", (-0.125,)),
    (PRESETS["pairs"].questions[0].answer, "Winner 2 loses.\nWinner: **1**", (1,)),
    (PRESETS["pairs"].questions[0].answer, "winner: tie", (0.5,)),
    (PRESETS["unifiedreward_think"].questions[0].answer,
     "<think>Image 1 is better? Total: 3 4</think><answer>Image 2 is better</answer>", (0,)),
    (PRESETS["unifiedreward_think"].questions[0].answer, "<answer>Video 1 is better</answer>", (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "numbers"), READINGS)
def test_an_answer_is_read_whatever_stands_around_it(form, text, numbers):
    assert form.read(Reply(text)) == pytest.approx(numbers)


GARBAGE = ["", "I'm sorry, I can't help with that.", "{", "[]", '{"a": "7"}', '{"a": true}', '{"a": 11}', '{"a": NaN}',
           '{"a": -1e999}', '{"a": null}', '{"a": 1' + "0" * 400 + "}", "{" * 5000, '{"a":' * 1200]  # fmt: skip


@pytest.mark.parametrize("text", GARBAGE)
def test_what_cannot_be_read_is_a_reason_and_never_a_number(text):
    wanting = Lines(("rating",), ("Rating:",), 0, 10), Verdict("first", "second", "tie"), YesNo()
    for form in (Rubric(("a",), 0, 10), Rubric(("x", "y"), 0, 25, "a"), *wanting):
        with pytest.raises(JudgeError, match=r"\w+ \w+"):
            form.read(Reply(text))


@pytest.mark.parametrize(
    ("form", "reply", "says"),
    [
        (YesNo(), Reply("Yes"), "no log-probabilities"),
        (YesNo(), Reply("", (("The", -0.01), ("A", -5.0))), "neither yes nor no.*'The', 'A'"),
        (YesNo(), Reply("", (("Yes", math.nan), ("No", -1e9))), "neither"),
        (Verdict("first", "second", "tie"), Reply("first? second!"), "which one is better"),
        (Lines(("rating",), ("Rating:",), 0, 10), Reply("Rating: 11"), "rating 11.0, outside 0 to 10"),
        (Rubric(("a",), 0, 10), Reply('{"a"', finish="length"), "cut.*raise `max_tokens`"),
    ],
)
def test_the_reason_says_what_was_wrong(form, reply, says):
    with pytest.raises(JudgeError, match=says):
        form.read(reply)


# What is asked


def test_a_question_carries_the_very_pixels_the_prompt_and_the_settings(serve):
    server = serve()
    media = Media(torch.rand(1, 3, 7, 5), "image")
    ask(judge(server, seed=5, temperature=0.25), media, ['a {prompt} in {medium} "braces"'])
    (body,) = server.bodies
    (uri,) = pictures(body)
    assert torch.equal(pixels(uri), (media.data[0] * 255).round().byte())
    assert 'a {prompt} in {medium} "braces"' in question(body) and "this image" in question(body)
    assert (body["model"], body["seed"], body["temperature"]) == ("judge", 5, 0.25)
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_a_clip_is_asked_about_as_frames_spread_evenly_over_its_true_time(serve):
    server = serve()
    media = clips(1.0, frames=16, rate=8.0)
    sent = [round(level(uri) * 15) for uri in sent_for(server, judge(server, frames=4), media)]
    assert sent == [2, 6, 10, 14]
    two_seconds_at_two = sent_for(server, judge(server, fps=2.0), media)
    assert len(two_seconds_at_two) == 4
    assert len(sent_for(server, judge(server, frames=3, fps=8.0), media)) == 3
    with pytest.raises(BadInput, match="true frame rate"):
        ask(judge(server, fps=2.0), clips(1.0, rate=0.0))


def sent_for(server: JudgeServer, reward: Reward, media: Media) -> list[str]:
    """What a fresh question shows."""
    server.bodies.clear()
    (
        judge_client.open_store.cache_clear(),
        judge_client._temporary_folder.cache_clear(),
        judge_client.shared_client.cache_clear(),
    )
    ask(reward, media)
    return pictures(server.bodies[-1])


def test_side_bounds_what_is_sent(serve):
    server = serve()
    (uri,) = sent_for(server, judge(server, side=10), Media(torch.rand(1, 3, 20, 40), "image"))
    assert pixels(uri).shape == (3, 5, 10)
    (uri,) = sent_for(server, judge(server, side=10), Media(torch.rand(1, 3, 4, 8), "image"))
    assert pixels(uri).shape == (3, 4, 8)


def test_the_questions_can_be_put_in_other_words_and_the_version_says_so(serve):
    server = serve()
    other = judge(server, wording=("Is it {prompt}?",), limit="max_completion_tokens", max_tokens=3)
    ask(other, greys(0.5))
    assert question(server.bodies[0]) == "Is it a cat?"
    assert server.bodies[0]["max_completion_tokens"] == 3 and "max_tokens" not in server.bodies[0]
    assert other.spec.version != judge(server).spec.version
    assert judge(server, wording=("Is it sharp?",)).spec.needs == frozenset()


def test_ixc_reward_scores_a_conversation(serve):
    server = serve(lambda body, n: completion("-0.75"))
    assert ask(judge(server, IXCReward), greys(0.5)).tolist() == [-0.75]
    assert [m["role"] for m in server.bodies[0]["messages"]] == ["user", "assistant"]
    assert "a cat" in question(server.bodies[0])


# How answers are combined


def test_the_score_of_each_picture_is_the_judges_probability_of_yes(serve):
    server = serve(lambda body, n: yes(level(pictures(body)[0])))
    reward = judge(server)
    scores = ask(reward, greys(0.2, 0.8, 0.4))
    torch.testing.assert_close(scores, torch.tensor([0.2, 0.8, 0.4]))
    assert not scores.requires_grad and scores.dtype == torch.float32
    torch.testing.assert_close(reward.last_dimensions["yes"], scores)


def test_unified_reward_is_the_mean_of_its_three_marks(serve):
    text = "Alignment Score (1-5): 2\nCoherence Score (1-5): 3\nStyle Score (1-5): 5"
    reward = judge(serve(lambda body, n: completion(text)), UnifiedReward)
    assert ask(reward, greys(0.5)).item() == pytest.approx(10 / 3)
    assert {n: v.item() for n, v in reward.last_dimensions.items()} == {"alignment": 2, "coherence": 3, "style": 5}


def test_editscore_averages_the_geometric_mean_of_the_worst_marks_over_its_passes(serve):
    """By hand, in 0..25: pass 0 SC (20, 10), PQ (25, 15): sqrt(4*6); pass 1 SC (25, 25), PQ (10, 20): sqrt(10*4)."""
    marks = {(2, 42): [20, 10], (1, 42): [25, 15], (2, 43): [25, 25], (1, 43): [10, 20]}

    def answer(body, n):
        return completion(json.dumps({"reasoning": "so", "score": marks[len(pictures(body)), body["seed"]]}))

    server = serve(answer)
    reward = judge(server, EditScore, passes=2)
    score = ask(reward, greys(0.25), ["make it snow"], greys(0.75))
    a, b = math.sqrt(4 * 6), math.sqrt(10 * 4)
    assert score.item() == pytest.approx((a + b) / 2)
    parts = {name: values.item() for name, values in reward.last_dimensions.items()}
    assert parts == pytest.approx(
        {"prompt_following": 9, "consistency": 7, "naturalness": 7, "artefacts": 7, "spread": abs(a - b) / 2}
    )
    pair = next(body for body in server.bodies if len(pictures(body)) == 2)
    assert [level(uri) for uri in pictures(pair)] == pytest.approx([0.75, 0.25], abs=0.01), "the source comes first"
    assert {body["temperature"] for body in server.bodies} == {0.7}


def test_a_pass_without_an_answer_takes_no_part_and_without_any_pass_there_is_no_score(serve):
    def answer(body, n):
        lucky = body["seed"] == 43 and level(pictures(body)[0]) < 0.5
        return completion("Rating: 6" if lucky else "no idea")

    reward = judge(serve(answer), preset="rating", passes=3, temperature=1.0)
    scores = ask(reward, greys(0.2, 0.8))
    assert scores[0] == 6 and scores[1].isnan()
    assert list(reward.last_failures) == [1] and "does not say rating: 'no idea'" in reward.last_failures[1]
    assert reward.cost.failed == 5


def test_only_text_alignment_of_a_clip_depends_on_the_prompt(serve):
    server = serve()
    reward = judge(server, VideoDimensions)
    ask(reward, clips(0.5, frames=16), ["one"])
    ask(reward, clips(0.5, frames=16), ["two"])
    assert len(server.bodies) == 4, "VQ and MQ are the same question and come from the cache"
    assert list(reward.last_dimensions) == ["VQ", "MQ", "TA"]


def test_an_edit_needs_its_source(serve):
    server = serve()
    with pytest.raises(BadInput, match="give a source with each prompt, or `references`"):
        ask(judge(server, EditScore), greys(0.5))
    with pytest.raises(ValueError, match="1 for 2 samples"):
        ask(judge(server, EditScore), greys(0.5, 0.6), references=greys(0.5))
    assert not server.bodies


# Before anything is asked


def test_a_reachable_judge_with_the_model_passes_the_check(serve):
    judge(serve()).check()
    judge(serve(models=Status(404))).check()  # need not list its models
    EditScore(url=serve(models=("EditScore/EditScore-7B",)).url).check()  # the published name is the default


def test_an_unreachable_judge_is_bad_input(serve):
    server = serve()
    server.close()
    with pytest.raises(BadInput, match=f"nothing answers at {server.url}.*set `url`"):
        judge(server).check()


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (("judgement",), "no model 'judge'; did you mean 'judgement'"),
        (Status(200, "<html>"), "is `url` the /v1"),
        (Status(200, "[1]"), "is `url` the /v1"),
        (Status(503), "HTTP 503"),
        (Status(401), "refuses the key"),
    ],
)
def test_the_check_says_what_is_wrong_with_the_judge(serve, models, says):
    with pytest.raises(BadInput, match=says):
        judge(serve(models=models)).check()


@pytest.mark.parametrize(
    ("cls", "settings", "says"),
    [
        (Judge, {"preset": "rubrik"}, "did you mean 'rubric'"),
        (Judge, {"preset": "pairs"}, "no preset 'pairs' here"),
        (JudgePairs, {"preset": "yes_no"}, "no preset 'yes_no' here"),
        (EditScore, {"wording": ("one",)}, "asks 2 question"),
        (Judge, {"passes": 4}, "the same answer"),
        (JudgeRegions, {"share": 1.5}, "at most 1"),
        (Judge, {"pases": 4}, "did you mean 'passes'"),
        (Judge, {"timeout": 0}, "at least 0.01"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(cls, settings, says):
    with pytest.raises(BadInput, match=says):
        schema.build_dataclass(cls, settings, "reward.judge")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": ""}, "name the `model`"),
        ({"url": "localhost:8000"}, "must look like"),
        ({"url": "http://[::1"}, "must look like"),
        ({"url": "http://me:pass@127.0.0.1/v1"}, "holds a password"),
    ],
)
def test_an_address_that_cannot_work_is_refused_by_the_check(serve, settings, says):
    with pytest.raises(BadInput, match=says) as error:
        judge(serve(), **settings).check()
    assert "me:pass" not in str(error.value)


def test_a_cache_that_is_no_folder_is_refused(serve, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "judge.sqlite3").write_text("this is no database, and long enough to be seen as none" * 50)
    for folder in (tmp_path / "file", tmp_path):
        with pytest.raises(BadInput, match="can't keep answers"):
            judge(serve(), cache=str(folder)).check()


# What a judge says of itself


@pytest.mark.parametrize("cls", EVERY)
def test_a_judge_declares_itself_and_its_default_is_what_it_declares(cls):
    assert cls().spec == cls.spec and not cls.spec.differentiable
    assert hash(cls()) == hash(cls()) and cls() == cls()
    assert cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "(")
    if cls.spec.weights:
        assert cls.spec.paper and cls.spec.licence


def test_another_model_or_setting_is_another_version():
    versions = {j.spec.version for j in (EditScore(), EditScore(passes=8), EditScore(seed=1), EditScore(model="x"))}
    versions |= {j.spec.version for j in (JudgeRegions(grid=3), JudgeRegions(share=0.1), JudgePairs(side=64))}
    assert len(versions) == 7
    assert EditScore(model="x").spec.weights == "x" and EditScore(model="x").spec.licence == ""
    assert EditScore(timeout=3, concurrency=2).spec == EditScore.spec, "how it is asked does not change the score"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_is_whole(preset: Preset):
    """Its name, words and forms fit each other, and asking needs exactly what the words mention."""
    assert PRESETS[preset.name] is preset and preset.version
    assert len(set(preset.dimensions)) == len(preset.dimensions)
    spec = preset.spec()
    assert ("source" in spec.needs) == any("source" in q.shows for q in preset.questions)
    assert ("prompt" in spec.needs) == (preset.name not in ("q_insight", "unifiedreward_edit_quality"))
    for q in preset.questions:
        assert q.answer.request["max_tokens"] >= 1
        left = q.text.replace("{prompt}", "").replace("{medium}", "").replace("{Medium}", "")
        assert not re.search(r"\{\w*\}", left), "no other placeholder, and none misspelt"


@pytest.mark.parametrize("cls", EVERY)
def test_every_judge_reads_a_plausible_answer_and_knows_the_samples_apart(serve, cls):
    reward = judge(serve(), cls)
    media = greys(0.2, 0.5, 0.8) if "image" in cls.spec.modalities else clips(0.2, 0.5, 0.8)
    scores = ask(reward, media, references=greys(0.3, 0.3, 0.3) if "source" in cls.spec.needs else None)
    assert isinstance(reward, Reward)
    assert scores.shape == (3,) and scores.isfinite().all() and reward.last_failures == {}
    assert len(set(scores.tolist())) == 3
    if cls.spec.typical:
        low, high = cls.spec.typical
        assert ((scores >= low) & (scores <= high)).all()


def test_a_judge_that_sees_no_prompt_is_asked_about_the_picture_alone(serve):
    server = serve()
    ask(judge(server, QInsight), greys(0.5), ["zebra crossing"])
    assert "zebra" not in json.dumps(server.bodies)
