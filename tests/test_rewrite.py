"""Prompts said in other words: who says them, how the reward of the original prompt chooses, and Parrot's guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import tiny
import torch
from judge_server import Drop, Status, completion
from mixture_policy import MixturePolicy, Value

from pipelines.starter.image import world
from rewards.vlm.judge_client import JudgeError, Reply
from workbench.core.errors import BadInput
from workbench.core.paths import STARTER
from workbench.core.types import Batch, derive_seed
from workbench.methods.inference.best_of_n import BestOfN
from workbench.methods.inference.rewrite import Centred, Rewrite, mix_predictions
from workbench.runs.prompt_expanders import Chat, Closed, Details, make_expander, parse_wording

PROMPTS, SEEDS = ("0", "whole"), (3, 4)  # of a mixture policy: its first component alone, and all of it


@dataclass(frozen=True)
class Given:
    """Says what it was told to say."""

    said: dict

    def expand(self, prompts, n, modality):
        assert modality == "image"
        return [list(self.said.get(p, ()))[:n] for p in prompts]


OTHER = Given({"0": ["1", "2"], "whole": ["0", "1"]})


class Original(Value):
    """The value, told of every prompt that it was asked with."""

    def __init__(self, *args, blind: str = ""):
        super().__init__(*args)
        self.asked, self.hole = [], blind

    def __call__(self, *, media, prompts, references=None):
        self.asked.append(tuple(prompts))
        hole = torch.tensor([torch.nan if p == self.hole else 1.0 for p in prompts])
        return super().__call__(media=media, prompts=prompts) * hole


def policy(**more) -> MixturePolicy:
    return MixturePolicy((-1.0, 1.0, 0.2), (0.5, 0.3, 0.4), (0.5, 0.3, 0.2), **more)


def events(method, made=None, reward=None, prompts=PROMPTS, seeds=SEEDS):
    found = list(method(made or policy(), reward or Original(), [Batch(tuple(prompts), tuple(seeds))]))
    assert [e.final for e in found] == [False] * (len(found) - 1) + [True]
    return found


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Rewrite(2, OTHER), Centred(2, OTHER), Rewrite(2, OTHER, fresh_noise=True)], ids=str)
def test_the_best_wording_wins_by_the_reward_of_the_original_prompt(method):
    reward = Original()
    found = events(method, reward=reward)
    assert set(reward.asked) == {PROMPTS}  # never by the wording's own
    r = torch.stack([e.scores["reward"] for e in found])
    assert (r.diff(dim=0) >= 0).all() and (r[-1] > r[0]).all() and found[-1].metrics["reworded"] == 1.0
    for event in found:
        assert torch.equal(event.scores["reward"], Value()(media=event.media, prompts=PROMPTS))


def test_each_candidate_is_the_policys_own_sample_of_that_wording_from_the_same_noise():
    pick = events(Rewrite(2, OTHER))[-1]
    made = [policy().sample([w, v], seeds=SEEDS).media.data for w, v in (PROMPTS, ("1", "0"), ("2", "1"))]
    best = torch.stack(made)[:, :, 0].amax(0)
    assert torch.equal(pick.media.data[:, 0], best)


def test_a_reward_that_likes_the_original_best_keeps_it():
    """The negated reward, for which every wording of "0", the lowest component, is a loss."""
    end = events(Rewrite(2, OTHER), reward=Original(-1.0), prompts=["0"], seeds=[3])[-1]
    assert torch.equal(end.media.data, policy().sample(["0"], seeds=[3]).media.data) and end.metrics["reworded"] == 0


@pytest.mark.parametrize("method", [Rewrite(0), Centred(0), Rewrite(3, OTHER), Centred(2, OTHER)], ids=str)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_denoiser_is_called_as_often_as_announced(method, guidance):
    made = policy(guidance=guidance)
    events(method, made)
    pairs = 1 if guidance == 1.0 else 2  # a guided call is two rows
    assert made.nfe == pairs * len(PROMPTS) * method.calls(made.steps)


@pytest.mark.parametrize("method", [Rewrite(0), Centred(0)], ids=str)
def test_without_wordings_the_sample_is_the_bases_bit_for_bit(method):
    assert torch.equal(events(method)[-1].media.data, policy().sample(PROMPTS, seeds=SEEDS).media.data)


def test_where_wordings_run_out_the_prompt_is_tried_with_another_noise():
    end = events(Rewrite(2, Given({})), prompts=["0"], seeds=[3])
    again = [policy().sample(["0"], seeds=[derive_seed(3, "wording", j)]).media.data[0, 0].item() for j in (1, 2)]
    first = policy().sample(["0"], seeds=[3]).media.data[0, 0].item()
    assert end[-1].scores["reward"].item() == pytest.approx(max(first, *again)) and end[-1].metrics["reworded"] == 0


@pytest.mark.parametrize("method", [Rewrite(2, OTHER), Centred(2, OTHER, fresh_noise=True)], ids=str)
def test_a_rows_sample_does_not_depend_on_the_others(method):
    together = events(method)[-1]
    for row in range(2):
        alone = events(method, prompts=PROMPTS[row : row + 1], seeds=SEEDS[row : row + 1])[-1]
        assert torch.allclose(together.media.data[row], alone.media.data[0], atol=1e-5)


def test_what_cannot_be_judged_never_wins_and_spoils_nothing():
    end, seen = events(Rewrite(2, OTHER), reward=Original(blind="0"))[-1], events(Rewrite(2, OTHER))[-1]
    assert end.scores["reward"].isnan().tolist() == [True, False]
    assert torch.equal(end.media.data[0], policy().sample(["0"], seeds=[3]).media.data[0])
    assert torch.equal(end.media.data[1], seen.media.data[1])


def test_a_name_that_nobody_made_into_an_expander_is_refused():
    with pytest.raises(BadInput, match="only a name"):
        events(Rewrite(2))


# --- Parrot ----------------------------------------------------------------------------------------------------------


def test_original_prompt_centred_guidance_is_parrots_formula():
    """w1 eps(c) + w2 eps(wording) + (1 - w1 - w2) eps(nothing), with w1 + w2 the policy's guidance scale."""
    made, i, share, w = policy(guidance=2.5), 4, 0.3, 2.5
    x = made.noise(SEEDS)
    ours = mix_predictions(made.predict(x, i, ["0", "1"]), made.predict(x, i, ["2", "0"]), share)
    one, other, none = (made.predict(x, i, p, guidance=1.0) for p in (["0", "1"], ["2", "0"], ["", ""]))
    for form in ("x0", "eps", "v"):
        parrot = w * (1 - share) * getattr(one, form) + w * share * getattr(other, form) + (1 - w) * getattr(none, form)
        assert torch.allclose(getattr(ours, form), parrot, atol=1e-5)


def test_its_ends_are_the_original_and_the_wording_and_the_same_prompt_twice_is_plain_guidance():
    made = policy(guidance=2.0)
    said = ["1", "2"]
    batch = Batch(PROMPTS, SEEDS)
    media = {
        share: Centred(wording_fraction=share).sample_wordings(made, batch, said, SEEDS).data
        for share in (0.0, 0.5, 1.0)
    }
    assert torch.equal(media[0.0], made.sample(PROMPTS, seeds=SEEDS).media.data)
    assert torch.equal(media[1.0], made.sample(said, seeds=SEEDS).media.data)
    assert torch.equal(Centred(wording_fraction=0.5).sample_wordings(made, batch, PROMPTS, SEEDS).data, media[0.0])
    assert ((media[0.5] - media[0.0]) * (media[1.0] - media[0.0]) > 0).all()


@pytest.mark.parametrize("cls", [Rewrite, Centred])
def test_it_works_on_a_real_pipeline(cls):
    made, batch = tiny.policy("StableDiffusionPipeline"), Batch(tiny.PROMPTS[:1], tiny.SEEDS[:1])

    def reward(*, media, prompts, references=None):
        return media.data.flatten(1).mean(1)

    found = list(cls(1, Details())(made, reward, [batch]))
    base = made.sample(batch.prompts, seeds=batch.seeds).media
    assert (
        torch.equal(found[0].media.data, base.data) and (found[1].scores["reward"] >= found[0].scores["reward"]).all()
    )


def test_with_fresh_noise_and_no_wordings_it_is_the_search_that_best_of_n_is():
    """Not the same draws, but the same law: the mean of the best of 3 over 200 rows, within 4 standard errors."""
    n = 200
    rows = {"prompts": ["any"] * n, "seeds": range(n)}
    ours, theirs = (
        events(m, policy(), **rows)[-1].scores["reward"] for m in (Rewrite(2, Given({}), fresh_noise=True), BestOfN(3))
    )
    error = 4 * (ours.var() / n + theirs.var() / n).sqrt()
    assert (
        (ours.mean() - theirs.mean()).abs()
        < error
        < theirs.mean() - events(Rewrite(0), **rows)[-1].scores["reward"].mean()
    )


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_details_praise_and_leave_the_prompt_as_it_is(modality):
    said = Details().expand(["a cat", "two dogs"], 5, modality)
    assert [len(set(row)) for row in said] == [5, 5]
    assert all(w.startswith(p + ", ") for p, row in zip(["a cat", "two dogs"], said, strict=True) for w in row)
    assert (
        Details().expand(["two dogs"], 5, modality)[0]
        == said[1]
        != Details(seed=1).expand(["two dogs"], 5, modality)[0]
    )


def test_closed_says_the_same_in_other_order():
    (row,) = Closed().expand(["a red circle above a cross"], 9, "image")
    assert row[0] == "a cross below a red circle" and "red circle above cross" in row
    assert "a red red circle above a cross" in row and len(row) == len(set(row)) >= 4
    assert Closed().expand(["a circle and a red square"], 1, "image") == [["a red square and a circle"]]
    assert Closed().expand(["three circles"], 9, "image") == [["three circles three circles"]]
    assert Closed(longest=3).expand(["three circles"], 9, "image") == [[]]


def test_closed_keeps_to_the_words_and_the_length_that_the_picture_worlds_tokenizer_knows():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(STARTER / "image" / "teacher" / "tokenizer")
    known = {t.removesuffix("</w>") for t in tokenizer.get_vocab() if t.endswith("</w>")}
    prompts = world.all_prompts()[::7]
    for prompt, row in zip(prompts, Closed().expand(prompts, 4, "image"), strict=True):
        assert row or len(prompt.split()) == 2
        for w in row:
            assert set(w.split()) <= known and w != prompt
            assert len(tokenizer(w)["input_ids"]) <= tokenizer.model_max_length
    meaning = world.parse_prompt("a red circle left of a blue cross")
    turned = world.parse_prompt(Closed().expand(["a red circle left of a blue cross"], 1, "image")[0][0])
    assert turned.things == meaning.things[::-1] and turned.relation == "right of"


def test_an_expander_is_a_rule_or_an_endpoint_with_its_model():
    assert (make_expander("details"), make_expander("closed")) == (Details(), Closed()) and make_expander(
        OTHER
    ) is OTHER
    assert make_expander({"url": "http://x/v1", "model": "m"}) == Chat("http://x/v1", "m")
    for value, told in (("closd", "did you mean 'closed'"), ("http://x/v1", "needs its model"),
                        ({"url": "http://x/v1"}, "'model' is missing"), ({"urk": 1}, "unknown key 'urk'"),
                        ({"url": "http://x", "model": "m", "instruction": "hello"}, "must say {prompt}")):  # fmt: skip
        with pytest.raises(BadInput, match=told):
            make_expander(value)


# --- a language model ------------------------------------------------------------------------------------------------


def chat(server, **settings) -> Chat:
    return Chat(server.url, "judge", **({"backoff": 0.01, "retries": 1} | settings))


def text_of(body: dict) -> str:
    return body["messages"][0]["content"]


def test_every_wording_is_asked_for_with_a_seed_of_its_own(serve):
    def answer(body, n):
        said = text_of(body).rsplit("Prompt: ", 1)[1]
        return completion(f"<think>hm</think> <answer>{said}, take\n {body['seed']}</answer>")

    server = serve(answer)
    asked = chat(server)
    assert asked.expand(["a cat", "a dog"], 2, "video") == [
        ["a cat, take 42", "a cat, take 43"],
        ["a dog, take 42", "a dog, take 43"],
    ]
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.7, 0.9, 256, "judge")
    assert "video clips" in text_of(body) and "{" not in text_of(body) and asked.cost.requests == 4
    asked.expand(["a cat"], 2, "video")
    assert asked.cost.requests == 4 and len(server.bodies) == 4  # remembered


def test_what_failed_is_missing_and_told_and_the_method_goes_on(serve):
    def answer(body, n):
        if "Prompt: 0" in text_of(body) or body["seed"] == 43:
            return Status(400, "no") if body["seed"] == 43 else Drop
        return completion("1")

    asked = chat(serve(answer))
    assert asked.expand(["0", "whole"], 2, "image") == [[], ["1"]]
    assert set(asked.last_failures) == {("0", 0), ("0", 1), ("whole", 1)} and "HTTP 400" in asked.last_failures["0", 1]
    found = events(Rewrite(2, asked))
    assert found[-1].scores["reward"][1] > found[0].scores["reward"][1]


def test_an_endpoint_that_answers_nothing_usable_stops_with_a_sentence(serve):
    with pytest.raises(BadInput, match="no answer of http.* can be used"):
        events(Rewrite(2, chat(serve(lambda body, n: completion("")))))
    with pytest.raises(BadInput, match="nothing answers"):
        Chat("http://127.0.0.1:9/v1", "m", retries=0).check()
    chat(serve(lambda body, n: completion("x"))).check()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<answer>a</answer> or <answer> a  cat\n</answer>", "a cat"),
        ("<think>long <answer>no</think>a cat", None),
        ("<think>long</think>\n“a cat”", "a cat"),
        ('"a cat"', "a cat"),
        ("<think>never ends", None),
        ("", None),
    ],
)
def test_how_an_answer_is_read(content, found):
    if found is None:
        with pytest.raises(JudgeError):
            parse_wording(Reply(content))
    else:
        assert parse_wording(Reply(content)) == (found,)
    with pytest.raises(JudgeError, match="cut short"):
        parse_wording(Reply("a ca", finish="length"))


def test_a_wording_like_the_prompt_or_another_one_is_left_out(serve):
    said = iter(["a cat", "a tabby", "a  tabby"])
    asked = chat(serve(lambda body, n: completion(next(said))), concurrency=1)
    assert asked.expand(["a cat"], 3, "image") == [["a tabby"]]
    assert replace(asked, temperature=0.0) != asked
