"""The image-to-video part of the pack: its oracle reads the first frame exactly, its model begins with it, its lists
are what they say, and its recipe survives being killed."""

from __future__ import annotations

import json

import pytest
import torch
from killed_builds import KilledBuilds, find_equal_weights
from safetensors.torch import load_file

import pipelines
from pipelines.seam_check import media_checks
from pipelines.seam_check.evidence import Evidence
from pipelines.starter.image_to_video import build, generator, measure
from pipelines.starter.image_to_video.oracle import FirstKept
from pipelines.starter.resumable_training import Draw
from pipelines.starter.video import generator as video_generator
from pipelines.starter.video import world
from pipelines.starter.video.autoencoder import SHAPE, draw_clips
from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput, prompt_inputs
from workbench.core.paths import CONFIGS, STARTER
from workbench.core.types import Media, Prompt, Reward
from workbench.runs.prompts import read_prompt_lists


def begin_with(texts, firsts) -> list[Prompt]:
    return [
        Prompt(text, {"first": MediaInput.of(Media(first[None], "image"))})
        for text, first in zip(texts, firsts, strict=True)
    ]


@pytest.fixture(scope="module")
def clips():
    return measure.round_pixels(draw_clips(24, Draw.at_step(41, "tests"), measure.EVEN)[0])


@pytest.fixture(scope="module")
def policy():
    return pipelines.load("starter-image-to-video", device="cpu")


def score(x, firsts, texts=None) -> list[float]:
    prompts = begin_with(texts or ["a red circle growing"] * len(x), firsts)
    return FirstKept()(media=Media(x, "video", world.RATE), prompts=prompts).tolist()


# --- the oracle


def test_a_clip_keeps_its_own_first_frame_and_no_other(clips):
    firsts = clips[:, 0]
    assert score(clips, firsts) == [1.0] * len(clips)
    assert score(clips, firsts.roll(1, 0)) == [0.0] * len(clips)
    assert score(clips.roll(4, -1), firsts) == [0.0] * len(clips), "four pixels aside"
    noisy = clips + 0.02 * torch.randn(clips.shape, generator=Draw.at_step(42, "noise").torch)
    assert sum(score(noisy.clamp(0, 1), firsts)) >= 0.95 * len(clips)


def test_a_ground_that_changes_in_one_frame_is_not_kept(clips):
    x = clips[:4].clone()
    x[:, 6] = (x[:, 6] + 0.04).clamp(0, 1)
    assert score(x, clips[:4, 0]) == [0.0] * 4


def test_what_can_not_be_compared_with_a_first_frame_is_refused_or_not_a_number(clips):
    x = clips[:2].clone()
    x[1, 3, 0, 0, 0] = torch.nan
    assert torch.tensor(score(x, clips[:2, 0])).isnan().tolist() == [False, True]
    assert isinstance(FirstKept(), Reward) and FirstKept().categories(["a red circle growing", "a cat"])[0] == "grow"
    with pytest.raises(BadInput, match="9 x 3 x 64 x 64"):
        score(clips[:1, :5], clips[:1, 0])
    with pytest.raises(BadInput, match="first"):
        FirstKept()(media=Media(x, "video", world.RATE), prompts=["a red circle growing"] * 2)


# --- the model


def test_tokens_and_times_are_those_that_the_pipeline_hands_its_transformer(policy, clips):
    (prompt,) = begin_with(["a red circle growing"], clips[:1, 0])
    seen = []
    hook = policy.pipe.transformer.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named), with_kwargs=True
    )
    noise = torch.randn(1, *SHAPE, generator=Draw.at_step(43, "noise").torch)
    task = measure.Task(str(prompt), clips[0, 0])
    measure.animate_pictures(policy.pipe, [task], seed=1, seeds=1, steps=1, guidance=1.0)
    hook.remove()
    handed, times = seen[0]["hidden_states"], seen[0]["timestep"]
    x, expected = generator.lay_first_frame(noise, handed, torch.tensor([1000.0]))
    assert torch.equal(times, expected) and (times == 0).sum() == 16
    assert torch.equal(x[:, :, 0], handed[:, :, 0]) and torch.equal(x[:, :, 1:], noise[:, :, 1:])


def test_the_model_does_what_held_out_words_say_from_the_picture_that_it_is_given_and_leaves_room(policy):
    tasks = measure.draw_tasks(held_out=True, per_category=2, draw=Draw.at_step(44, "tasks"))[:10]
    how = {"seed": 2, "seeds": 1, "steps": 4, "guidance": 1.0}
    verdicts = measure.judge_clips(measure.animate_pictures(policy.pipe, tasks, **how), tasks)
    assert verdicts.kept.mean() >= 0.8 and 0.3 <= verdicts.text.mean() <= 0.9
    shuffled = measure.measure_shuffled(policy.pipe, tasks[:5], **how)
    assert shuffled["text"]["mean"] == shuffled["kept"]["mean"] == 0.0


def test_a_first_frame_that_is_given_is_no_fault_of_encoding(policy, clips):
    """The check compares only what the last state reaches."""
    prompts = begin_with(["a red circle growing", "a blue square growing"], clips[:2, 0])
    sample = policy.sample(prompts, seeds=(1, 2))
    evidence = Evidence(policy, tuple(prompts), recorded=[], sample=sample, nfe=0, places=(), exact=0.0)
    assert media_checks.check_encoding("encodes", evidence).holds


# --- the lists


def test_the_lists_have_a_first_frame_from_which_each_prompt_can_come_true():
    inputs = {"first": ""}
    test, train = (
        read_prompt_lists({"prompts": f"starter-image-to-video-{name}"}, inputs)["prompts"].prompts
        for name in ("test", "train")
    )
    assert len(test) == 72 and all(map(world.is_held_out, test)) and not any(map(world.is_held_out, train))
    assert not {prompt_inputs(p)["first"].digest for p in test} & {prompt_inputs(p)["first"].digest for p in train}
    lines = (CONFIGS / "prompts" / "starter-image-to-video-test.jsonl").read_text().splitlines()
    assert json.loads(lines[5])["first"] == "starter-image-to-video-test/005.png"
    drawn = measure.draw_tasks(held_out=True, per_category=15, draw=Draw.at_step(0, "image to video prompts", "test"))
    firsts = torch.stack([prompt_inputs(p)["first"].read().data[0] for p in test])
    assert torch.allclose(firsts, torch.stack([task.first for task in drawn]), atol=1 / 255)


# --- the recipe


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    builds = KilledBuilds(monkeypatch, build.build, video_generator, generator)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert not builds.run(killed, "save", saves=4) and builds.run(killed, "save") and builds.run(whole, "save")
    (name,) = find_equal_weights(killed, whole)
    assert name.parts[1:3] == ("base", "transformer")
    left, base = load_file(killed / name), load_file(STARTER / "video" / "base" / "transformer" / name.name)
    assert any(not torch.equal(left[k], base[k]) for k in left)
    recorded = json.loads((killed / "pack" / "fingerprints.json").read_text())
    shipped = json.loads((STARTER / "video" / "fingerprints.json").read_text())
    assert {n for n in recorded if recorded[n] == shipped[n]} == {"base/vae", "base/text_encoder"}
