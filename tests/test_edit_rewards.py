"""Rewards of what is made from a source: closed forms, and the inputs that come with prompts."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import pytest
import torch
from edit_fixtures import CLIP, edit, noise, score
from judge_server import greys
from reward_fixtures import serving, small_settings

from rewards import build, build_reward
from rewards.baseline import BaselineScores
from rewards.latent_training import collect_samples
from rewards.remote import TOKEN
from rewards.sets.set_credit import LeaveOneOut
from rewards.sets.vendi import Vendi
from workbench.core.errors import BadInput
from workbench.core.finite import score_finite
from workbench.core.inputs import stack_sources
from workbench.core.io import media as media_files
from workbench.core.types import Media, RewardSpec
from workbench.tools import reward_server

# The closed forms


def test_unchanged_is_minus_the_squared_difference_from_each_samples_own_source():
    x, sources = noise(2, 3, 6, 8), noise(2, 3, 6, 8, seed=1)
    prompts = [edit("make it red", source=s) for s in sources]
    scores = score("unchanged", Media(x, "image"), prompts)
    torch.testing.assert_close(scores, -(x - sources).square().flatten(1).mean(1))
    torch.testing.assert_close(score("unchanged", Media(sources, "image"), prompts), torch.zeros(2))
    swapped = score("unchanged", Media(x, "image"), prompts[::-1])
    torch.testing.assert_close(swapped, -(x - sources.flip(0)).square().flatten(1).mean(1))


def test_background_looks_only_where_the_mask_is_black():
    source, x = noise(3, 6, 8), noise(3, 6, 8, seed=1)
    mask = torch.zeros(3, 6, 8)
    mask[:, :, 5:] = 1
    half = source.clone()
    half[:, :, 5:] = x[:, :, 5:]
    prompts = [edit("paint it", source=source, mask=mask)] * 2
    scores = score("background", Media(torch.stack([half, x]), "image"), prompts)
    expected = -(x - source)[:, :, :5].square().mean()
    torch.testing.assert_close(scores, torch.stack([torch.tensor(0.0), expected]))
    everything = edit("paint it", source=source, mask=torch.ones(3, 6, 8))
    assert score("background", Media(x[None], "image"), [everything]).isnan().all()


def test_one_mask_serves_all_frames_of_a_clip():
    clip, source = noise(1, 4, 3, 6, 8), noise(1, 4, 3, 6, 8, seed=1)
    mask = torch.zeros(3, 6, 8)
    mask[:, :3] = 1
    prompt = edit("p", source=Media(source, "video", 8.0), mask=mask)
    scores = score("background", Media(clip, "video", 8.0), [prompt])
    torch.testing.assert_close(scores, -(clip - source)[..., 3:, :].square().flatten(1).mean(1))


def test_a_first_frame_is_measured_in_decibels_and_the_last_one_on_request():
    clip, first = noise(1, 3, 3, 4, 4), noise(3, 4, 4, seed=1)
    prompt = edit("it moves", first=first, last=clip[0, -1])
    ratio = -10 * math.log10((clip[0, 0] - first).square().mean().item() + 1e-6)
    assert score("first_frame", Media(clip, "video", 8.0), [prompt]).item() == pytest.approx(ratio, rel=1e-5)
    last = build("first_frame", frame="last")
    assert last.spec.needs == {"last"}
    assert last(media=Media(clip, "video", 8.0), prompts=[prompt]).item() == pytest.approx(60.0, abs=1e-3)


def test_identity_is_the_cosine_with_the_source_and_of_a_clip_the_mean_of_its_frames():
    settings = small_settings("identity")
    reward = build("identity", **settings)
    encoder = reward.load()
    x, source = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
    a, b = (encoder.embed_images(y) for y in (x, source))
    prompts = [edit("p", source=s) for s in source]
    torch.testing.assert_close(
        score({"i": {"reward": "identity", **settings}}, Media(x, "image"), prompts), (a * b).sum(1)
    )
    clip = edit("p", source=Media(source[None], "video", 8.0), first=source[0])
    whole = score({"i": {"reward": "identity", **settings}}, Media(x[None], "video", 8.0), [clip])
    torch.testing.assert_close(whole, (a * b).sum(1).mean(0, keepdim=True))
    to_first = build("identity", to="first", **settings)
    assert to_first.spec.needs == {"first"} and to_first.spec.modalities == {"video"}
    kept = to_first(media=Media(x[None], "video", 8.0), prompts=[clip])
    torch.testing.assert_close(kept, (a @ b[0]).mean()[None])


def test_directional_similarity_compares_the_change_of_picture_and_text_by_hand(tmp_path):
    settings = small_settings("directional_clip")
    x, source = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    media_files.write_media(Media(source[:1], "image"), tmp_path / "one")
    rows = [
        {"prompt": "make it a cat", "source": "one.png", "source_prompt": "a dog", "target_prompt": "a cat"},
        {"prompt": "make it a cat", "source_prompt": "a red circle", "target_prompt": "two cat"},
    ]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reward = build("directional_clip", captions=str(tmp_path / "edits.jsonl"), **settings)
    digest = media_files.file_digest(tmp_path / "one.png")
    prompts = [edit("make it a cat", source=s) for s in source]
    assert prompts[0].inputs["source"].digest == digest, "media in memory are known as the file that holds them"
    scores = build_reward({"d": {"reward": "directional_clip", "captions": str(tmp_path / "edits.jsonl"), **settings}})(
        media=Media(x, "image"), prompts=prompts
    )
    encoder = reward.load()
    image = encoder.embed_images(x) - encoder.embed_images(source)
    text = encoder.embed_texts(["a cat", "two cat"]) - encoder.embed_texts(["a dog", "a red circle"])
    torch.testing.assert_close(scores, torch.cosine_similarity(image, text), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match=r"edits.jsonl has no line for the prompt 'make it red'"):
        reward.check_prompts([edit("make it red", source=source[0])])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "p"}', "line 1: needs texts under the keys prompt and source_prompt"),
        ('{"prompt": "p", "source_prompt": "a"}\n{"prompt": "p", "source_prompt": "b"}', "line 2: the same prompt has"),
        ("", "has no line in it"),
    ],
)
def test_captions_that_cannot_be_used_are_refused_with_their_line(tmp_path, line, says):
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(BadInput, match=says):
        build("directional_clip", captions=str(tmp_path / "c.jsonl"))


def test_a_sound_is_nearest_to_its_own_source():
    time = torch.arange(8000) / 8000
    sounds = torch.stack([torch.sin(2 * torch.pi * f * time) / 2 for f in (200.0, 1500.0)])[:, None]
    prompts = [edit("louder", source=Media(s[None], "audio", 8000.0)) for s in sounds]
    block = {"a": {"reward": "audio_identity", "model": "logmel"}}
    own, other = (score(block, Media(sounds, "audio", 8000.0), p) for p in (prompts, prompts[::-1]))
    torch.testing.assert_close(own, torch.ones(2), atol=1e-4, rtol=0)
    assert (other < own - 0.01).all()


# Where sources come from


@dataclass(frozen=True)
class Recorder:
    """Somebody else's reward, which only says that it needs `source`."""

    spec = RewardSpec("recorder", "1", frozenset({"image", "video", "audio"}), False, needs=frozenset({"source"}))

    def __call__(self, *, media, prompts, references=None):
        assert references.data.shape == media.data.shape and references.modality == media.modality
        return references.data.flatten(1).mean(1)


def test_a_source_arrives_in_the_size_of_the_sample_and_with_its_row():
    levels = [0.2, 0.6, 0.8]
    prompts = [edit("p", source=torch.full((3, 20, 30), v)) for v in levels]
    reward = build_reward({"r": {"reward": "test_edit_rewards:Recorder"}})
    for order in itertools.permutations(range(3)):
        scores = reward(media=greys(*[0.5] * 3), prompts=[prompts[n] for n in order])
        assert scores.tolist() == pytest.approx([levels[n] for n in order], abs=0.003)
    given = reward(media=greys(0.5), prompts=["p"], references=greys(0.3))
    assert given.item() == pytest.approx(0.3), "what is given explicitly counts"
    nested = build_reward({"both": {"reward": {"test_edit_rewards:Recorder": 1.0}}, "brightness": 1.0})
    assert nested(media=greys(0.5), prompts=prompts[:1]).item() == pytest.approx(0.7, abs=0.003)


def test_a_sample_that_is_not_finite_costs_its_own_row_and_no_source_is_out_of_step():
    prompts = [edit("p", source=torch.full((3, 8, 8), v)) for v in (0.2, 0.6, 0.8)]
    media = greys(0.5, 0.5, 0.5)
    media.data[1] = torch.nan
    reward = Recorder()
    scores = score_finite(reward, media=media, prompts=prompts, references=stack_sources(reward, media, prompts))
    assert scores.isnan().tolist() == [False, True, False]
    assert scores[[0, 2]].tolist() == pytest.approx([0.2, 0.8], abs=0.003)
    whole = score_finite(build_reward("test_edit_rewards:Recorder"), media=media, prompts=prompts)
    torch.testing.assert_close(whole, scores, equal_nan=True)


SOUND = Media(torch.zeros(1, 1, 400), "audio", 8000.0)


@pytest.mark.parametrize(
    ("media", "source", "says"),
    [
        (greys(0.5), None, "'make it red': this prompt comes without a source; give one with each prompt"),
        (greys(0.5), CLIP, "compares image with what it was made from, and got video"),
        (greys(0.5), SOUND, "compares image with what it was made from, and got audio"),
        (SOUND, greys(0.5), "compares audio with what it was made from, and got image"),
        (CLIP, greys(0.5), "compares video with what it was made from, and got image"),
        (Media(torch.zeros(1, 5, 3, 8, 8), "video", 8.0), CLIP, "a clip of 2 frames can't be compared with one of 5"),
    ],
)
def test_a_source_that_is_missing_or_of_another_kind_is_one_sentence(media, source, says):
    prompt = "make it red" if source is None else edit("make it red", source=source)
    with pytest.raises(BadInput, match=says):
        build_reward("test_edit_rewards:Recorder")(media=media, prompts=[prompt])


def test_a_source_of_another_size_is_refused_where_it_is_given_by_hand():
    with pytest.raises(BadInput, match="3x8x8 and 3x6x6 of sample and source can't be compared"):
        build("unchanged")(media=greys(0.5), prompts=[""], references=greys(0.5, size=6))


def test_what_cannot_see_a_source_refuses_rewards_that_compare_with_one(tmp_path):
    with pytest.raises(BadInput, match="identity compares with the source of a whole clip; name it without frames"):
        build("frames", of={"identity": small_settings("identity")})
    with pytest.raises(BadInput, match="latent reward: unchanged compares with the source of a sample"):
        collect_samples(None, {"unchanged": build("unchanged")}, ["p"], tmp_path)


def test_diversity_counts_within_one_source():
    """Edits of two sources by one instruction: of each source two that are alike. Over all four they look diverse."""
    reward = LeaveOneOut(of=Vendi(**small_settings("vendi")), per="prompt")
    x = noise(2, 3, 32, 32).repeat_interleave(2, 0)
    prompts = [edit("make it red", source=s) for s in noise(2, 3, 32, 32, seed=1).repeat_interleave(2, 0)]
    apart = reward(media=Media(x, "image"), prompts=prompts)
    torch.testing.assert_close(apart, torch.zeros(4), atol=1e-3, rtol=0)
    together = reward(media=Media(x, "image"), prompts=[str(p) for p in prompts])
    assert not torch.allclose(together, apart, atol=1e-3)


def test_base_scores_of_one_instruction_are_kept_apart_by_source(tmp_path):
    prompts = [edit("make it red", source=torch.full((3, 8, 8), v)) for v in (0.2, 0.6)]
    measured = BaselineScores.measure(build_reward("test_edit_rewards:Recorder"), [(greys(0.5, 0.5), prompts)])
    measured.write(tmp_path / "base.json")
    read = BaselineScores.read(tmp_path / "base.json")
    found = [read.for_prompt("recorder", p).item() for p in prompts]
    assert found == pytest.approx([0.2, 0.6], abs=0.003)
    with pytest.raises(BadInput, match="no base scores of recorder for the prompt 'make it red'"):
        read.for_prompt("recorder", "make it red")


def test_a_served_reward_gets_sources_and_masks_too(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret-of-this-test")
    served = {"background": build("background"), "brightness": build("brightness")}
    url = serving(reward_server.create_app(served, "secret-of-this-test"))
    x, source = noise(2, 3, 6, 8), noise(2, 3, 12, 16, seed=1)
    mask = torch.zeros(3, 12, 16)
    mask[:, :, 8:] = 1
    prompts = [edit("paint it", source=s, mask=mask) for s in source]
    media = Media(x, "image")
    remote = build_reward({"r": {"reward": "remote", "names": ["background"], "url": url}})
    assert remote.spec.needs == {"source", "mask"}
    torch.testing.assert_close(
        remote(media=media, prompts=prompts), score("background", media, prompts), atol=1e-5, rtol=0
    )
    with pytest.raises(BadInput, match="comes without a mask"):
        remote(media=media, prompts=[edit("paint it", source=s) for s in source])
    with pytest.raises(BadInput, match="says: .*background needs the source of each sample as references"):
        remote.rewards["r"](media=media, prompts=prompts)
