"""Social popularity: pairs become a reward, learned, resumed, saved and held against others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from reward_fixtures import clip_folder, media_for
from test_curation import small_community

from rewards.encoders import image_text
from rewards.people import social, social_training
from rewards.people.social import Pair, Social, SocialHead
from rewards.people.social_training import SocialTraining, bradley_terry_loss, triplet_loss
from workbench.core.errors import BadInput
from workbench.core.io import image
from workbench.core.types import Media
from workbench.feedback import social as work

# --- the reward ------------------------------------------------------------------------------------------------------


def test_the_triplet_loss_on_cosines_is_the_paper_s_on_distances():
    a, p, n = torch.nn.functional.normalize(torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    paper = ((a - p).square().sum(1) - (a - n).square().sum(1) + 0.3).relu().mean()
    torch.testing.assert_close(triplet_loss((a * p).sum(1), (a * n).sum(1), 0.3, 1.0), paper)


def test_bradley_terry_is_log_two_for_equals_and_falls_with_the_margin():
    zero, one = torch.zeros(4), torch.ones(4)
    assert bradley_terry_loss(zero, zero, 0.0, 5.0).item() == pytest.approx(np.log(2))
    assert bradley_terry_loss(one, zero, 0.0, 5.0).item() == pytest.approx(np.log1p(np.exp(-5)))


def bright_pairs(folder: Path, n: int, seed: int, shuffled: bool = False) -> list[Pair]:
    """Pairs of smooth pictures of which the brighter one is preferred, or one by lot."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pairs = []
    for k in range(n):
        names = []
        for side, level in (("a", 0.65), ("b", 0.35)):
            coarse = np.clip(level + 0.15 * rng.standard_normal((4, 4, 3)), 0, 1)
            path = folder / f"{seed}-{k}{side}.png"
            Image.fromarray((coarse * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR).save(path)
            names.append(str(path))
        names = names[::-1] if shuffled and rng.random() < 0.5 else names
        pairs.append(Pair(f"a cat {k % 5}", *names, "", *names))
    return pairs


def run(pairs, out, s, val=()) -> list[dict]:
    return [*social_training.train_social(pairs, out, s, val)]


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory) -> str:
    return clip_folder(tmp_path_factory.mktemp("clip"), seed=3)


def test_training_learns_a_plain_taste_and_only_the_upper_blocks_move(tmp_path, small_clip):
    s = SocialTraining(model=small_clip, vision=1, text=1, lr=3e-3, batch=16, epochs=4)
    test = bright_pairs(tmp_path, 60, seed=2)
    record = run(bright_pairs(tmp_path, 64, seed=1), tmp_path / "out", s, test[:20])
    assert [e["epoch"] for e in record] == [1, 2, 3, 4]
    reward = Social(model=str(tmp_path / "out"))
    media = [
        Media(torch.stack([image.read_image(getattr(p, k)) for p in test]), "image") for k in ("pos_path", "neg_path")
    ]
    pos, neg = (reward(media=m, prompts=[p.prompt for p in test]) for m in media)
    assert (pos > neg).float().mean() > 0.9
    before, after = (safetensors.torch.load_file(Path(f) / "model.safetensors") for f in (small_clip, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"visual_projection.weight", "text_projection.weight"} <= changed
    assert any("vision_model.encoder.layers.1" in name for name in changed)
    assert not any("layers.0" in name or "embed" in name or "logit_scale" in name for name in changed)
    assert torch.equal(
        before["text_projection.weight"], image_text.load_encoder(small_clip, "cpu").net.text_projection.weight
    )


def test_labels_by_lot_teach_nothing_and_the_test_sees_it(tmp_path, small_clip):
    """The control: with the preferred side drawn by lot, fresh pairs come out right half of the time, over three
    draws."""
    s = SocialTraining(embeddings=str(tmp_path / "e.npz"), lr=1e-2, batch=32, epochs=5)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1200, 8)).astype(np.float32)
    np.savez(tmp_path / "e.npz", keys=np.array([f"i{n}" for n in range(1200)]), vectors=vectors)
    agreement = {}
    for shuffled in (False, True):
        share = []
        for seed in range(3):
            pairs = liked(vectors, seed, shuffled)
            out = tmp_path / f"{shuffled}{seed}"
            run(pairs[:300], out, dataclasses.replace(s, seed=seed))
            margin = work.head_margins(liked(vectors, seed, False)[300:], s.embeddings, str(out / "head.safetensors"))
            share.append((margin > 0).mean())
        agreement[shuffled] = np.mean(share)
    assert agreement[False] > 0.9
    assert abs(agreement[True] - 0.5) < 0.12


def test_a_head_learns_what_a_prompt_asks_for_where_prompts_have_embeddings(tmp_path):
    """The public reads half of the axes the other way round; the test's prompts and items are new."""
    mirror = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    g = torch.Generator().manual_seed(0)
    embeddings = {f"{kind}{n}": torch.randn(8, generator=g) for kind in ("item", "prompt ") for n in range(1200)}
    safetensors.torch.save_file(embeddings, tmp_path / "e.safetensors")
    pairs = []
    for n in range(0, 1200, 2):
        a, b, prompt = f"item{n}", f"item{n + 1}", f"prompt {n}"
        a, b = (a, b) if (embeddings[a] - embeddings[b]) @ (mirror * embeddings[prompt]) > 0 else (b, a)
        pairs.append(Pair(prompt, a, b, "", a, b))
    s = SocialTraining(embeddings=str(tmp_path / "e.safetensors"), loss="bradley_terry", lr=3e-2, epochs=8)
    run(pairs[:400], tmp_path / "out", s)
    margin = work.head_margins(pairs[400:], s.embeddings, str(tmp_path / "out" / "head.safetensors"))
    assert (margin > 0).mean() > 0.8


def liked(vectors: np.ndarray, seed: int, shuffled: bool) -> list[Pair]:
    """600 pairs of items, the one further along the first axis preferred, or one by lot; test pairs share no item."""
    rng = np.random.default_rng(seed)
    pairs = []
    for a, b in rng.permutation(len(vectors)).reshape(-1, 2):
        a, b = (a, b) if vectors[a, 0] > vectors[b, 0] else (b, a)
        a, b = (b, a) if shuffled and rng.random() < 0.5 else (a, b)
        pairs.append(Pair("any", f"i{a}", f"i{b}", "", f"i{a}", f"i{b}"))
    return pairs


@pytest.mark.parametrize("loss", ["triplet", "bradley_terry"])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, small_clip, loss):
    s = SocialTraining(model=small_clip, loss=loss, vision=1, text=1, lr=1e-3, batch=4, epochs=3, every=1)
    pairs, val = bright_pairs(tmp_path, 12, seed=1), bright_pairs(tmp_path, 6, seed=2)
    uninterrupted = run(pairs, tmp_path / "whole", s, val)

    class Killed(Exception):
        pass

    def dies(path, state, accelerator):
        keep(path, state, accelerator)
        if state["step"] == 4:  # in the middle of the second epoch
            raise Killed

    keep, social_training._save_checkpoint = social_training._save_checkpoint, dies
    try:
        with pytest.raises(Killed):
            run(pairs, tmp_path / "killed", s, val)
    finally:
        social_training._save_checkpoint = keep
    assert not (tmp_path / "killed" / "config.json").exists()
    remaining = run(pairs, tmp_path / "killed", s, val)
    assert remaining == uninterrupted[1:]
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()
    one, two = (safetensors.torch.load_file(tmp_path / f / "model.safetensors") for f in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert run(pairs, tmp_path / "killed", s, val) == []  # done is done
    with pytest.raises(BadInput, match="other settings or pairs"):
        run(pairs, tmp_path / "killed", dataclasses.replace(s, lr=1.0), val)


def test_the_best_epoch_by_validation_is_the_one_that_is_kept(tmp_path, small_clip):
    s = SocialTraining(model=small_clip, vision=1, text=0, lr=3e-3, batch=8, epochs=3)
    pairs = bright_pairs(tmp_path, 24, seed=1)
    wrong = [
        dataclasses.replace(p, pos_path=p.neg_path, neg_path=p.pos_path) for p in bright_pairs(tmp_path, 16, seed=2)
    ]
    record = run(pairs, tmp_path / "out", s, wrong)  # gets worse at these the longer it learns
    best = max(record, key=lambda e: e["val"])
    run(pairs, tmp_path / "short", dataclasses.replace(s, epochs=best["epoch"]))
    one, two = (safetensors.torch.load_file(tmp_path / f / "model.safetensors") for f in ("out", "short"))
    assert best["epoch"] < 3 and all(torch.equal(one[name], two[name]) for name in one)


def test_a_head_scores_pictures_with_a_gradient(tmp_path, small_clip):
    torch.manual_seed(0)
    head = SocialHead(32)
    safetensors.torch.save_file(head.state_dict(), tmp_path / "head.safetensors")
    reward = Social(model=small_clip, head=str(tmp_path / "head.safetensors"))
    media = media_for(reward.spec, 3)
    media.data.requires_grad_()
    score = reward(media=media, prompts=["a cat"] * 3)
    encoder = image_text.load_encoder(small_clip, "cpu")
    image, text = encoder.embed_images(media.data), encoder.embed_texts(["a cat"] * 3)
    torch.testing.assert_close(score, head(image, text))
    assert torch.autograd.grad(score.sum(), media.data)[0].abs().sum() > 0
    torch.testing.assert_close(Social(model=small_clip)(media=media, prompts=["a cat"] * 3), (image * text).sum(1))
    safetensors.torch.save_file(SocialHead(32, prompted=False).state_dict(), tmp_path / "blind.safetensors")
    blind = Social(model=small_clip, head=str(tmp_path / "blind.safetensors"))
    assert torch.equal(blind(media=media, prompts=["a cat"] * 3), blind(media=media, prompts=["a dog"] * 3))
    with pytest.raises(BadInput, match="is no head"):
        Social(model=small_clip, head=f"{small_clip}/model.safetensors")(media=media, prompts=["a cat"] * 3)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss=tripplet"], "did you mean 'triplet'"),
        (["vision=9"], "vision: the vision tower has 2 blocks, 9 can't be tuned"),
        (["vision=0", "text=0", "projections=false"], "nothing learns"),
        (["model=./nowhere"], "has no config.json"),
        (["model=open_clip:ViT-B-32/openai"], "needs a transformers CLIP"),
        (["embeddings=nowhere.npz"], "nowhere.npz: no such file"),
    ],
)
def test_a_bad_training_is_answered_in_one_sentence(tmp_path, small_clip, overrides, says):
    rows = [{"prompt": p.prompt, "pos_path": p.pos_path, "neg_path": p.neg_path} for p in bright_pairs(tmp_path, 4, 0)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadInput, match=says):
        [*work.train_reward(tmp_path, tmp_path / "out", [f"model={small_clip}", *overrides])]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("", "no pair"),
        ("nonsense", "line 1: not valid JSON"),
        ('{"prompt": "a cat", "pos_path": "a.png"}', "pair 1 lacks 'neg_path'"),
        ('{"prompt": "a cat", "pos_path": "a.png", "neg_path": "b.png"}', "a.png: no such picture"),
    ],
)
def test_bad_pairs_are_answered_in_one_sentence(tmp_path, small_clip, text, says):
    if text is not None:
        (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(BadInput, match=says):
        [*work.train_reward(tmp_path / "train.jsonl", tmp_path / "out", [f"model={small_clip}"])]


def test_exported_votes_are_pairs_without_their_ties(tmp_path, caplog):
    for name, shade in (("light", 250), ("dark", 10)):
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / f"{name}.png")
    light, dark = ("light.png", "dark.png")
    rows = [{"prompt": "p", "a_path": light, "b_path": dark, "winner": "a"}]
    rows += [{"prompt": "q", "a_path": light, "b_path": dark, "winner": w, "voter": "ada"} for w in ("b", "tie")]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = social.read_pairs(tmp_path / "votes.jsonl")
    assert [(Path(p.pos_path).name, Path(p.neg_path).name) for p in pairs] == [(light, dark), (dark, light)]
    assert "ties left out, which prefer nothing: 1" in caplog.text
    (row,) = work.compare_rewards(tmp_path / "votes.jsonl", ["brightness"])
    assert row["accuracy"] == 0.5 and row["pairs"] == 2
    for change, says in (
        ({"a_path": None}, "pair 1 lacks 'pos_path'; a vote has prompt, a_path and b_path"),
        ({"a_path": 5}, "pair 1: pos_path must be a text, got 5"),
        ({"winner": ["a"]}, "`winner` must be a, b or tie"),
        ({"winner": "tie"}, "all of its votes are ties"),
    ):
        (tmp_path / "votes.jsonl").write_text(json.dumps(rows[0] | change))
        with pytest.raises(BadInput, match=says):
            social.read_pairs(tmp_path / "votes.jsonl")


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_agreement_counts_ties_as_halves_and_leaves_out_what_was_not_judged():
    pairs = [Pair(f"p{n}", "a", "b", "even" if n % 2 == 0 else "odd") for n in range(4)]
    agreement = work.measure_agreement(pairs, np.array([1.0, 0.0, np.nan, -1.0]))
    assert agreement["accuracy"] == pytest.approx(0.5) and agreement["pairs"] == 3
    assert agreement["topics"]["even"]["mean"] == 1.0 and agreement["topics"]["odd"]["mean"] == pytest.approx(0.25)


def test_the_calibration_error_is_small_for_honest_margins_and_large_for_boasting_ones():
    rng = np.random.default_rng(0)
    strength = rng.normal(0, 2, 6000)
    honest = np.where(rng.random(6000) < 1 / (1 + np.exp(-strength)), strength, -strength)
    prompts = [f"p{n % 300}" for n in range(6000)]
    assert work.calibration_error(7.0 * honest, prompts) < 0.03  # whatever the unit
    boasting = np.where(rng.random(6000) < 0.5 + 0.1 * (np.abs(strength) < 0.5), 1, -1) * np.abs(strength) ** 3
    assert work.calibration_error(boasting + 3.0 * (rng.random(6000) < 0.4), prompts) > 0.05


def test_the_interval_resamples_prompts_not_pairs():
    pairs = [Pair(f"p{n // 50}", "a", "b") for n in range(400)]
    margin = np.repeat([1.0, -1.0] * 4, 50)  # eight prompts, each all right or all wrong
    low, high = work.measure_agreement(pairs, margin)["ci95"]
    assert high - low > 0.4


def test_log_to_reward_to_table(tmp_path, small_clip):
    folder, _ = small_community()
    overrides = ["window=2", "shares=[0.6, 0.1, 0.3]", "min_views=5", "confidence=0.8"]
    card = work.curate_log(folder / "log.csv", tmp_path / "pairs", overrides, form="csv")
    assert json.loads((tmp_path / "pairs" / "card.json").read_text())["splits"] == card["splits"]
    assert (tmp_path / "pairs" / "card.md").read_text().startswith("# Data card")
    pairs = social.read_pairs(tmp_path / "pairs" / "train.csv")
    assert len(pairs) == card["splits"]["train"]["pairs"] and all(Path(p.pos_path).is_file() for p in pairs)
    short = [f"model={small_clip}", "vision=1", "text=0", "epochs=1", "lr=1e-3"]
    *_, last = work.train_reward(tmp_path / "pairs", tmp_path / "reward", short)
    assert last["step"] == last["steps"]
    rows = work.compare_rewards(tmp_path / "pairs", ["brightness"], [tmp_path / "reward"])
    assert [r["reward"] for r in rows] == ["brightness", "reward"]
    assert all(0 <= r["accuracy"] <= 1 and r["pairs"] == card["splits"]["test"]["pairs"] for r in rows)
