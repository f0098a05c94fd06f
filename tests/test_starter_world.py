"""The picture world's oracle is exact, its hold-out does not leak, and its recipe survives being killed."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
import torch
from killed_builds import KilledBuilds, find_equal_weights

from pipelines.starter import pack_builder
from pipelines.starter.image import autoencoder, build, clip, distil, generator, measure, negatives, rendering, world
from pipelines.starter.image.autoencoder import MIX
from pipelines.starter.image.clip import draw_batch, vocabulary_words
from pipelines.starter.image.oracle import ImageOracle, ImageOracleSoft, compare_with_prompt, read_picture
from pipelines.starter.resumable_training import Draw
from pipelines.starter.tokenizer import new_tokenizer
from workbench.core.errors import BadInput
from workbench.core.paths import ROOT, STARTER
from workbench.core.types import Media, Reward
from workbench.runs import prompts


def drawn(n: int, name: str):
    """n scenes with one caption each, and their pictures [n,3,64,64]."""
    draw = Draw.at_step(11, name)
    source = world.training_pairs(draw.python, MIX)
    scenes, prompts = zip(*(next(source) for _ in range(n)), strict=True)
    return scenes, prompts, rendering.render_scenes(scenes, draw.torch)


def share_right(x, prompts) -> float:
    return ImageOracle()(media=Media(x, "image"), prompts=prompts).mean().item()


@pytest.fixture(scope="module")
def sample():
    return drawn(400, "tests")


def test_the_oracle_reads_fresh_renders_exactly(sample):
    scenes, prompts, x = sample
    assert share_right(x, prompts) == 1.0
    for scene, picture in zip(scenes[:200], x, strict=False):
        seen = Counter((t.shape, t.colour, t.size) for t in read_picture(picture))
        assert seen == Counter((t.shape, t.colour, t.size) for t in scene)


def test_held_out_prompts_are_drawn_and_read_exactly():
    draw = Draw.at_step(12, "held")
    prompts = measure.held_out_prompts(15)
    x = rendering.render_scenes([world.scene_for(p, draw.python) for p in prompts], draw.torch)
    assert share_right(x, prompts) == 1.0


def test_blur_noise_and_dimming_do_not_fool_the_oracle(sample):
    _, prompts, x = sample
    for name, harmed in measure.harmed_copies(x, Draw.at_step(13, "stress")).items():
        assert share_right(harmed, prompts) >= 0.995, name


def test_a_hidden_object_is_missed(sample):
    scenes, prompts, x = sample
    assert share_right(measure.occlude_first(x, scenes), prompts) == 0.0


def test_prompts_of_other_pictures_score_near_zero(sample):
    scenes, prompts, x = sample
    shuffled = prompts[1:] + prompts[:1]
    told = ImageOracle()(media=Media(x, "image"), prompts=shuffled)
    truth = torch.tensor([p in world.true_captions(s) for p, s in zip(shuffled, scenes, strict=True)]).float()
    assert (told == truth).all() and told.mean() < 0.06


def test_near_misses_are_read_as_wrong_and_most_malformed_pictures_are(sample):
    scenes, prompts, _ = sample
    draw = Draw.at_step(14, "near misses")
    wrong = [negatives.wrong_picture(s, p, draw.python) for s, p in zip(scenes, prompts, strict=True)]
    told = ImageOracle()(media=Media(negatives.render_pictures(wrong, draw.torch), "image"), prompts=prompts)
    malformed = torch.tensor([picture.malformed for picture in wrong])
    assert told[~malformed].mean() < 0.01 and told[malformed].mean() < 0.4


def test_an_extra_object_breaks_an_otherwise_right_picture():
    need = world.parse_prompt("a red circle")
    circle = world.Thing("circle", "red", "small", 20, 20, 8)
    assert compare_with_prompt([circle], need).exact
    assert not compare_with_prompt([circle, None], need).exact and not compare_with_prompt([], need).exact
    assert compare_with_prompt([circle, None], need).soft == pytest.approx(2 / 3)


def test_relations_follow_the_picture_and_not_the_order_of_words():
    left, right = world.Thing("circle", "red", "small", 16, 30, 8), world.Thing("cross", "blue", "small", 48, 34, 8)
    said = world.true_captions((left, right))
    assert "a red circle left of a blue cross" in said and "a blue cross right of a red circle" in said
    assert "a red circle right of a blue cross" not in said and "a red circle above a blue cross" not in said


def test_the_soft_oracle_is_one_only_where_the_exact_one_is(sample):
    _, prompts, x = sample
    x, shuffled = x[:200], prompts[1:201]
    hard, soft = (o()(media=Media(x, "image"), prompts=shuffled) for o in (ImageOracle, ImageOracleSoft))
    assert ((soft == 1) == (hard == 1)).all() and soft[hard == 0].max() <= 0.95 and soft[hard == 0].max() > 0


def test_what_can_not_be_judged_is_not_a_number():
    x = torch.zeros(3, 3, 64, 64)
    x[2, 0, 0, 0] = float("nan")
    told = ImageOracle()(media=Media(x, "image"), prompts=["a photo of a cat", "a circle", "a circle"])
    assert told.isnan().tolist() == [True, False, True]
    assert ImageOracle().categories(["a red circle", "a photo of a cat"]) == ["color", "other"]
    with pytest.raises(BadInput, match="64"):
        ImageOracle()(media=Media(torch.zeros(1, 3, 32, 32), "image"), prompts=["a circle"])
    assert isinstance(ImageOracleSoft(), Reward)


def test_every_prompt_parses_back_and_has_its_category():
    for prompt in world.all_prompts():
        assert world.write_prompt(world.parse_prompt(prompt)) == prompt
    assert {world.prompt_category(p) for p in world.all_prompts()} == set(world.CATEGORIES)
    for other in ("", "a red", "circle", "two circle", "three crosss", "a red circle and", "a  red dog"):
        assert world.parse_prompt(other) is None, other


def test_the_hold_out_leaks_neither_through_scenes_nor_captions_nor_near_misses():
    held = [p for p in world.all_prompts() if world.is_held_out(p)]
    for k in range(6):
        pictures, _, texts = draw_batch(32, Draw.at_step(15, k))
        assert not any(world.is_held_out(t) for t in texts)
        assert not any(world.is_held_out(c) for p in pictures for c in p.true_captions())
        assert not any((t.colour, t.shape) in world.UNSEEN_PAIRS for p in pictures for t in p.scene)
    rng = random.Random(0)
    assert all(world.is_scene_held_out(world.scene_for(p, rng)) for p in held[::25])
    seen = {word for p in world.all_prompts() if not world.is_held_out(p) for word in p.split()}
    assert seen == set(vocabulary_words())


def test_the_lesson_on_sides_keeps_the_hold_out_and_shows_what_it_says():
    rng = random.Random(1)
    for scene, prompt in itertools.islice(world.training_pairs(rng, {"sides": 1.0}), 200):
        assert world.prompt_category(prompt) == "position" and prompt in world.true_captions(scene)
        assert not world.is_scene_held_out(scene)
        assert max(abs(scene[0].x - scene[1].x), abs(scene[0].y - scene[1].y)) > 18


def test_latents_are_standardised_without_changing_a_picture():
    torch.manual_seed(0)
    vae, draw = autoencoder.new_autoencoder(), Draw.at_step(16, "latents")
    x = autoencoder.draw_pictures(32, draw)[0]
    with torch.no_grad():
        before = vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample
        autoencoder.standardise_latents(vae, x)
        z = autoencoder.encode_pictures(vae, x)
        after = vae.decode(z).sample
    assert z.mean((0, 2, 3)).abs().max() < 1e-3 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert torch.allclose(before, after, atol=1e-4) and vae.config.scaling_factor == 1.0


def test_the_prompt_lists_are_what_the_world_says_they_are():
    train, test = (prompts.read_prompts(f"starter-image-{name}") for name in ("train", "test"))
    assert not any(world.is_held_out(p) for p in train)
    kinds = Counter(world.prompt_category(p) for p in test)
    assert set(kinds) == set(world.CATEGORIES) and sum(map(world.is_held_out, test)) >= 70
    assert all(world.is_held_out(p) or world.prompt_category(p) == "single" for p in test) and not set(train) & {
        p for p in test if world.prompt_category(p) != "single"
    }
    for n in (7, 14, 28, 42):  # any prefix is balanced while no category is used up
        assert set(Counter(world.prompt_category(p) for p in test[:n]).values()) == {n // 7}
    assert list(test) == measure.held_out_prompts(15)


def test_each_word_is_one_token():
    tokenizer = new_tokenizer(vocabulary_words())
    for word in vocabulary_words():
        assert len(tokenizer(word).input_ids) == 3, word
    assert len({tokenizer(p)["input_ids"].__str__() for p in world.all_prompts()}) == len(world.all_prompts())


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Killed right after a checkpoint in the middle of several stages; the weights are those of a build left alone."""
    builds = KilledBuilds(monkeypatch, build.build, autoencoder, clip, generator, distil)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert [builds.run(killed, "save", saves=n) for n in (2, 4, 3, 5)] == [False] * 4
    assert builds.run(killed, "save") and builds.run(whole, "save")
    assert len(find_equal_weights(killed, whole)) == 7
    assert (killed / "pack" / "LICENSE.txt").read_text() == pack_builder.LICENCE.read_text()


def test_an_unknown_stage_is_named():
    with pytest.raises(BadInput, match="'dream'"):
        build.build("unused", "unused", stages=["dream"])


def test_the_weights_of_each_pack_lie_beside_their_licence():
    text = pack_builder.LICENCE.read_text()
    assert "SPDX-License-Identifier: Apache-2.0" in text and text.endswith((ROOT / "LICENSE").read_text())
    packs = {path.relative_to(STARTER).parts[0] for path in STARTER.rglob("*.safetensors")}
    assert packs == {"edit", "image", "image-to-video", "music", "video"}
    assert all((STARTER / pack / "LICENSE.txt").read_text() == text for pack in packs)


def test_no_config_of_a_pack_says_where_it_was_built():
    configs = [path for path in STARTER.rglob("*.json") if path.name != "report.json"]
    assert len(configs) > 20 and not [path for path in configs if "_name_or_path" in json.loads(path.read_text())]
