"""The video world's oracle reads content and motion exactly, its hold-out does not leak, its pipeline and reward are
what they say, and its recipe survives being killed."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from killed_builds import KilledBuilds, find_equal_weights
from transformers import CLIPModel, CLIPTokenizer

import pipelines
from pipelines.starter.resumable_training import Draw
from pipelines.starter.tokenizer import new_tokenizer
from pipelines.starter.video import autoencoder, build, generator, measure, world
from pipelines.starter.video import clip as video_clip
from pipelines.starter.video.oracle import DynamicDegree, VideoOracle, VideoOracleSoft, compare_with_prompt, read_clip
from rewards.video import starter_clip
from workbench.core import paths
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward
from workbench.runs import prompts


def video(x) -> Media:
    return Media(x, "video", world.RATE)


@pytest.fixture(scope="module")
def sample():
    """150 clips of all kinds, what they show, and one true prompt each."""
    draw = Draw.at_step(21, "tests")
    x, shown = autoencoder.draw_clips(150, draw, measure.EVEN)
    return x, shown, [draw.python.choice(world.true_captions(clip)) for clip in shown]


def test_the_oracle_reads_fresh_renders_exactly(sample):
    x, _, asked = sample
    assert measure.score_exact(x, asked).mean() == 1.0


def test_noise_on_the_pixels_does_not_fool_the_oracle(sample):
    x, _, asked = sample
    noisy = (x + 0.04 * torch.randn(x.shape, generator=Draw.at_step(22, "noise").torch)).clamp(0, 1)
    assert measure.score_exact(noisy[:60], asked[:60]).mean() >= 0.98


def test_frozen_reversed_and_interrupted_clips_are_wrong(sample):
    x, _, asked = sample
    kinds = [world.prompt_category(p) for p in asked]
    moving = [i for i, k in enumerate(kinds) if k != "still"][:40]
    ordered = [i for i, k in enumerate(kinds) if k in measure.ORDERED][:40]
    frozen = x[moving, :1].expand(-1, world.FRAMES, -1, -1, -1)
    assert measure.score_exact(frozen, [asked[i] for i in moving]).sum() == 0
    assert measure.score_exact(x[ordered].flip(1), [asked[i] for i in ordered]).sum() == 0
    assert measure.score_exact(measure.blank_one_frame(x[:40], random.Random(0)), asked[:40]).sum() == 0


def test_noise_and_prompts_of_other_clips_score_zero(sample):
    x, shown, asked = sample
    others = asked[1:] + asked[:1]
    told = measure.score_exact(x, others)
    assert [bool(t) for t in told] == [p in world.true_captions(s) for p, s in zip(others, shown, strict=True)]
    noise = torch.rand(10, *x.shape[1:], generator=Draw.at_step(23, "noise").torch)
    assert measure.score_exact(noise, asked[:10]).sum() == 0


def test_a_near_miss_is_read_as_wrong(sample):
    _, shown, asked = sample
    plain = [kind for kind in video_clip.MISSES if kind != "melted"]
    wrong, true, _ = video_clip.near_misses(shown[:80], Draw.at_step(24, "wrong"), plain)
    assert measure.score_exact(wrong, asked[:80]).mean() < 0.05
    shows = [(clip, prompts[-1]) for clip, prompts in zip(wrong, true, strict=True) if prompts]
    assert len(shows) > 30 and measure.score_exact(torch.stack([c for c, _ in shows]), [p for _, p in shows]).all()
    melted, _, _ = video_clip.near_misses(shown[:80], Draw.at_step(24, "melted"), ["melted"])
    assert measure.score_exact(melted, asked[:80]).mean() < 0.4  # some are bent where it doesn't show


def test_the_soft_oracle_is_one_only_where_the_exact_one_is_and_falls_by_degrees(sample):
    x, _, asked = sample
    others = asked[1:41]
    hard, soft = (o()(media=video(x[:40]), prompts=others) for o in (VideoOracle, VideoOracleSoft))
    assert ((soft == 1) == (hard == 1)).all() and soft[hard == 0].max() <= 0.95
    clip = world.clip_for(world.parse_prompt("a red circle moving left slowly"), random.Random(1))
    frames = read_clip(world.render_clips([clip], Draw.at_step(25, "soft").torch)[0])
    scores = [
        compare_with_prompt(frames, world.parse_prompt(f"a red circle {end}")).soft
        for end in ("moving left", "moving left quickly", "moving up")
    ]
    assert (
        scores[0]
        == 1.0
        > scores[1]
        > scores[2]
        > compare_with_prompt(frames, world.parse_prompt("a blue cross moving up")).soft
    )


def test_the_dynamic_degree_is_the_way_that_things_really_go(sample):
    x, shown, asked = sample
    for clip, told in zip(shown, DynamicDegree()(media=video(x), prompts=asked).tolist(), strict=True):
        way = sum(
            ((a.end[0] - a.start[0]) ** 2 + (a.end[1] - a.start[1]) ** 2) ** 0.5 + abs(a.radii[1] - a.radii[0])
            for a in clip
        )
        assert told == pytest.approx(100 * way / len(clip) / world.SIZE, abs=1.5)


def test_what_can_not_be_judged_is_not_a_number():
    x = torch.zeros(3, 9, 3, 64, 64)
    x[2, 4, 0, 0, 0] = float("nan")
    told = VideoOracle()(media=video(x), prompts=["a cat running", "a red circle growing", "a red circle growing"])
    assert told.isnan().tolist() == [True, False, True] and told[1] == 0
    assert DynamicDegree()(media=video(x), prompts=[""] * 3).isnan().all()
    for broken in (video(torch.zeros(1, 8, 3, 64, 64)), video(torch.zeros(1, 9, 3, 32, 32)), Media(x[0], "image")):
        with pytest.raises(BadInput, match="9 x 3 x 64 x 64"):
            VideoOracle()(media=broken, prompts=["a red circle growing"] * len(broken))
    assert isinstance(VideoOracleSoft(), Reward)
    assert VideoOracle().categories(["a red circle growing", "a cat"]) == ["grow", "other"]


def test_every_prompt_parses_back_and_has_a_clip():
    for prompt in world.all_prompts():
        assert world.write_prompt(world.parse_prompt(prompt)) == prompt
        assert prompt in world.true_captions(world.clip_for(world.parse_prompt(prompt), random.Random(3)))
    assert {world.prompt_category(p) for p in world.all_prompts()} == set(world.CATEGORIES)
    for other in ("", "a red circle", "a red circle turning red", "a circle growing", "a red circle moving"):
        assert world.parse_prompt(other) is None, other


def test_the_hold_out_leaks_neither_through_clips_nor_through_words():
    for k in range(4):
        _, captions, texts, truth, _ = video_clip.draw_batch(16, Draw.at_step(26, k))
        assert not any(world.is_held_out(t) for t in texts) and not any(world.is_held_out(c) for c in captions if c)
        assert truth[range(16), [texts.index(c) for c in captions[:16]]].all()
    _, shown = autoencoder.draw_clips(60, Draw.at_step(27, "clips"))
    assert not any(world.is_held_out(c) for clip in shown for c in world.true_captions(clip))
    seen = {word for p in world.all_prompts() if not world.is_held_out(p) for word in p.split()}
    assert seen == set(generator.vocabulary_words())


def test_the_prompt_lists_are_what_the_world_says_they_are():
    train, test, more = (prompts.read_prompts(f"starter-video-{name}") for name in ("train", "test", "more"))
    assert not any(map(world.is_held_out, train)) and all(map(world.is_held_out, test + more))
    assert not set(train) & set(test) and not set(train) & set(more) and not set(test) & set(more)
    assert list(test) == measure.choose_prompts(True, 15)
    assert {p for p in world.all_prompts() if world.is_held_out(p) and world.prompt_category(p) != "pass"} <= set(
        test + more
    )
    assert set(Counter(map(world.prompt_category, test[:12])).values()) == {2}


def test_the_strip_shows_the_frames_in_order_and_is_the_same_on_both_sides():
    x = torch.rand(2, 9, 3, 64, 64, generator=Draw.at_step(28, "strip").torch)
    for side in (video_clip.COARSE, video_clip.SIDE):
        made = video_clip.film_strip(x, side)
        assert made.shape == (2, 3, 3 * side, 3 * side)
        for k in range(9):
            top, left = side * (k // 3), side * (k % 3)
            small = torch.nn.functional.avg_pool2d(x[:, k], 64 // side)
            assert torch.equal(made[:, :, top : top + side, left : left + side], small)
        assert torch.equal(made, starter_clip.film_strip(x, side))


def test_an_encoder_of_whole_frames_begins_as_that_of_halved_ones():
    tokenizer, x = new_tokenizer(generator.vocabulary_words()), torch.rand(2, 9, 3, 64, 64)
    torch.manual_seed(0)
    coarse = video_clip.new_clip(tokenizer, video_clip.COARSE).eval()
    fine = video_clip.refine_patches(coarse, tokenizer).eval()
    with torch.no_grad():
        seen = [
            c.get_image_features(pixel_values=video_clip.film_strip(x, side)).pooler_output
            for c, side in ((coarse, 32), (fine, 64))
        ]
    assert torch.allclose(*seen, atol=1e-5)


def test_words_reach_the_transformer_as_the_pipeline_sends_them():
    torch.manual_seed(0)
    tokenizer = new_tokenizer(generator.vocabulary_words())
    encoder = generator.new_text_encoder(tokenizer).eval()
    model, vae = generator.new_transformer(32, 1).eval(), autoencoder.new_autoencoder((4, 4)).eval()
    pipe = generator.new_pipeline(vae, model, encoder, tokenizer)
    prompts = ["a red circle passing a blue square", "", "a white cross growing"]
    with torch.no_grad():
        sent, _ = pipe.encode_prompt(prompts, max_sequence_length=generator.WORDS, do_classifier_free_guidance=False)
        assert torch.allclose(sent, generator.encode_prompts(encoder, tokenizer, prompts), atol=1e-5)
    assert isinstance(pipe, WanPipeline)
    made = measure.generate_clips(pipe, prompts, seed=0, steps=2, guidance=2.0)
    assert made.shape == (3, 9, 3, 64, 64) and len(tokenizer(prompts[0]).input_ids) == 9  # each word is one token


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Killed right after a checkpoint in the middle of several stages; the weights are those of a build left alone."""
    builds = KilledBuilds(monkeypatch, build.build, autoencoder, video_clip, generator)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert [builds.run(killed, "save", saves=n) for n in (2, 4, 3)] == [False] * 3
    assert builds.run(killed, "save") and builds.run(whole, "save")
    assert len(find_equal_weights(killed, whole)) == 4


def test_an_unknown_stage_is_named():
    with pytest.raises(BadInput, match="'dream'"):
        build.build("unused", "unused", stages=["dream"])


# --- what ships ------------------------------------------------------------------------------------------------------


def test_the_base_makes_what_it_was_never_told_and_leaves_room():
    prompts = measure.choose_prompts(True, 8)
    made = measure.generate_clips(
        DiffusionPipeline.from_pretrained(paths.resolve_repo("starter:video/base")), prompts, seed=1, **build.BASE
    )
    right = measure.score_exact(made, prompts).mean()
    assert 0.2 <= right <= 0.85
    assert measure.score_exact(made.roll(1, 0), prompts).mean() <= 0.05


def test_the_policy_of_the_config_is_the_pipeline_itself():
    policy, prompts, seeds = pipelines.load("starter-video", device="cpu"), measure.choose_prompts(True, 2)[:2], (3, 4)
    made = policy.sample(prompts, seeds=seeds).media
    plain = policy.pipe(
        prompts, generator=[torch.Generator().manual_seed(s) for s in seeds], num_inference_steps=8, guidance_scale=3.0,
        height=64, width=64, num_frames=9, max_sequence_length=12, output_type="pt",
    ).frames  # fmt: skip
    assert made.data.shape == (2, 9, 3, 64, 64) and made.rate == world.RATE
    assert torch.allclose(made.data, plain.clamp(0, 1), atol=1e-5)


def test_a_stochastic_step_is_replayed_as_it_was_drawn():
    policy = pipelines.load("starter-video", device="cpu", kernel={"name": "flow-sde", "eta": 0.7})
    prompts, seeds = measure.choose_prompts(True, 2)[:2], (3, 4)
    path = policy.sample(prompts, seeds=seeds)
    step = policy.transition(path.x[:, 2], 2, prompts)
    assert torch.allclose(step.log_prob(path.x[:, 3]), path.log_prob[:, 2], atol=1e-5)


def test_the_encoder_prefers_the_truth_to_near_misses_in_words_and_in_clips():
    draw, reward = Draw.at_step(31, "reward"), starter_clip.StarterVideoCLIP()
    prompts = measure.choose_prompts(True, 12)
    shown = [world.clip_for(world.parse_prompt(p), draw.python) for p in prompts]
    x = world.render_clips(shown, draw.torch)
    near = [
        video_clip.false_prompts(p, world.true_captions(s), draw.python, 1, allow_held_out=True)[0]
        for p, s in zip(prompts, shown, strict=True)
    ]
    wrong, _, _ = video_clip.near_misses(shown, draw, allow_held_out=True)
    own = reward(media=video(x), prompts=prompts)
    assert (own > reward(media=video(x), prompts=near)).float().mean() >= 0.8
    assert (own > reward(media=video(wrong), prompts=prompts)).float().mean() >= 0.8


def test_the_reward_sees_as_the_encoder_was_trained_and_its_gradient_is_right(sample):
    x, _, asked = sample
    folder, reward = paths.resolve_repo("starter:video/clip"), starter_clip.StarterVideoCLIP()
    clip, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    trained = video_clip.cosine_scores(clip, tokenizer, x[:6], asked[:6])
    assert torch.allclose(reward(media=video(x[:6]), prompts=asked[:6]), trained, atol=1e-4)
    x = x[:2].clone().requires_grad_()
    reward(media=video(x), prompts=asked[:2]).sum().backward()
    step = x.grad / x.grad.norm()
    with torch.no_grad():
        ends = [reward(media=video(x + h * step), prompts=asked[:2]).double().sum() for h in (0.02, -0.02)]
    assert ((ends[0] - ends[1]) / 0.04).item() == pytest.approx(x.grad.norm().item(), rel=0.05)
