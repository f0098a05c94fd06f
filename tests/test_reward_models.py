"""Backbones load once and from honest files only; the ports agree with their publications."""

from __future__ import annotations

import random

import pytest
import reward_fixtures as fixtures
import torch
from reward_fixtures import PROMPTS, media_for, scored, small, small_settings

import rewards
from rewards import REWARDS, build
from rewards.encoders import checkpoints, image_text
from rewards.encoders.preprocess import View
from workbench.core.paths import CONFIGS
from workbench.core.types import Media, Reward

# Backbones


def nets(reward: Reward) -> list[torch.nn.Module]:
    loaded = reward.load("cpu")
    parts = loaded if isinstance(loaded, tuple) else (loaded,)
    return [n for n in (getattr(p, "net", p) for p in parts) if isinstance(n, torch.nn.Module)]


@pytest.mark.parametrize("name", ["clip", "hps", "aesthetic", "imagereward", "mps"])
def test_loading_leaves_the_global_generator_alone(name):
    """Weights load on first use, in the middle of a run: nothing drawn after may depend on it."""
    small(name)
    rewards.release_weights()
    before = torch.get_rng_state()
    small(name).load()
    assert torch.equal(torch.get_rng_state(), before)


LEARNED = ["clip", "pickscore", "hps", "aesthetic", "imagereward", "mps"]


@pytest.mark.parametrize("name", LEARNED)
def test_weights_are_frozen_and_in_eval_mode(name):
    assert nets(small(name))
    for net in nets(small(name)):
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", LEARNED)
def test_checkpointing_and_inference_mode_change_no_gradient(name):
    """The first score may be taken in inference mode: what is kept from it serves a gradient afterwards."""
    media = media_for(REWARDS[name].spec, 2)
    media.data.requires_grad_()
    (plain,) = torch.autograd.grad(scored(small(name), media).sum(), media.data)
    rewards.release_weights()
    with torch.inference_mode():
        scored(small(name, checkpoint=True), media)
    (again,) = torch.autograd.grad(scored(small(name, checkpoint=True), media).sum(), media.data)
    torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_a_bfloat16_backbone_gives_float32_scores_near_the_exact_ones(name):
    media = media_for(REWARDS[name].spec, 3)
    low, exact = scored(small(name, dtype="bfloat16"), media), scored(small(name), media)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.05)


def test_a_prompt_is_encoded_once():
    rewards.release_weights()
    reward = small("clip")
    encoder, calls = reward.load(), []
    encoder.net.text_model.register_forward_pre_hook(
        lambda net, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    media = media_for(reward.spec, 3)
    for _ in range(4):
        scored(reward, media)
    scored(reward, media, (PROMPTS[0], "a dog", PROMPTS[0]))
    assert calls == [1, 1, 1, 1]


def test_only_so_many_prompts_are_remembered(monkeypatch):
    monkeypatch.setattr(image_text, "CACHED_PROMPTS", 2)
    encoder = small("clip").load()
    whole = encoder.embed_texts(PROMPTS)
    assert len(encoder.text_cache.rows) == 2
    torch.testing.assert_close(encoder.embed_texts(PROMPTS), whole)


def test_rewards_on_one_model_share_its_encoder():
    """Whatever the reward, one model on one device in one dtype is in memory once."""
    clip, aesthetic = small("clip"), small("aesthetic")
    assert clip.load() is aesthetic.load()[0]
    assert clip.load() is build("clip", mode="scaled", **small_settings("clip")).load()
    assert clip.load() is not small("pickscore").load()
    assert clip.load() is not small("clip", dtype="bfloat16").load()


def test_clip_score_is_transformers_own_cosine():
    """Against CLIPModel's forward with its own processor's tensors, cosine and scaled."""
    from transformers import AutoTokenizer, CLIPModel

    folder = small_settings("clip")["model"]
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    media = media_for(REWARDS["clip"].spec, 3)
    tokens = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=View((32, 32))(media.data))
    torch.testing.assert_close(
        scored(small("clip", mode="scaled"), media), out.logits_per_image.diagonal(), rtol=1e-4, atol=1e-4
    )
    cosine = (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(scored(small("clip"), media), cosine, rtol=1e-4, atol=1e-5)


def test_scores_of_another_model_or_mode_bear_another_version():
    spec = REWARDS["clip"].spec
    assert build("clip").spec is spec and build("clip", dtype="bfloat16").spec is spec
    scaled = build("clip", mode="scaled").spec
    assert scaled.version == "openai/clip-vit-large-patch14 scaled" and scaled.typical is None
    assert build("clip", model="a/b").spec.version == "a/b cosine"


def test_siglip_scores_with_its_bias_and_its_own_fit(tmp_path):
    from transformers import AutoTokenizer, SiglipModel

    folder = fixtures.siglip_folder(tmp_path)
    model, tokenizer = SiglipModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    media = media_for(REWARDS["clip"].spec, 3)
    tokens = tokenizer(list(PROMPTS), padding="max_length", max_length=8, return_tensors="pt")
    view = View((32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, fit="squash")
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], pixel_values=view(media.data))
    ours = scored(build("clip", model=folder, mode="scaled"), media)
    torch.testing.assert_close(ours, out.logits_per_image.diagonal(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_open_clip_file_scores_as_open_clip_does(tmp_path, suffix):
    import open_clip

    name = fixtures.open_clip_file(tmp_path, suffix)
    net = open_clip.create_model("small-test", load_weights=False).eval()
    checkpoints.fill_weights(net, checkpoints.read_weights(str(tmp_path / f"weights{suffix}")), "file")
    media = media_for(REWARDS["hps"].spec, 3)
    padded = View((32, 32), fit="pad", as_pil=False)
    for reward, view in ((build("hps", model=name), padded), (build("clip", model=name), View((32, 32)))):
        with torch.no_grad():
            image = net.encode_image(view(media.data), normalize=True)
            text = net.encode_text(open_clip.get_tokenizer("small-test")(list(PROMPTS)), normalize=True)
        torch.testing.assert_close(scored(reward, media), (image * text).sum(1), rtol=1e-4, atol=1e-5)


def test_contrastive_is_the_log_probability_of_the_own_prompt():
    """Among itself and the negatives; a negative that equals the prompt counts once."""
    media = media_for(REWARDS["clip"].spec, 3)
    reward = small("clip", mode="contrastive", negatives=("a dog", PROMPTS[1]))
    encoder = reward.load()
    with torch.no_grad():
        image, scores = encoder.embed_images(media.data), scored(reward, media)
        for b, captions in enumerate(
            [(PROMPTS[0], "a dog", PROMPTS[1]), (PROMPTS[1], "a dog"), (PROMPTS[2], "a dog", PROMPTS[1])]
        ):
            logits = encoder.scale * encoder.embed_texts(captions) @ image[b]
            assert scores[b].item() == pytest.approx(logits.log_softmax(0)[0].item(), abs=1e-4)


@pytest.mark.parametrize("name", ["clip", "hps", "imagereward", "mps"])
def test_a_prompt_longer_than_a_model_reads_is_told_once(name, caplog):
    media, long = media_for(REWARDS[name].spec, 1), f"{name} " + "a cat two dog " * 30
    for _ in range(2):
        scored(small(name), media, [long])
        scored(small(name), media, ["a cat"])
    assert [r.args[-1] for r in caplog.records if "may not have read" in r.msg] == [long]


@pytest.mark.parametrize("name", LEARNED)
def test_checkpointing_holds_less_than_half_between_the_passes(name):
    """Bytes that the graph of a score keeps, weights aside; on models this small preprocessing is most of the rest."""

    def held(checkpoint: bool) -> int:
        media = media_for(REWARDS[name].spec, 2)
        media.data.requires_grad_()
        reward, kept = small(name, checkpoint=checkpoint), {}
        weights = {p.untyped_storage().data_ptr() for net in nets(reward) for p in net.parameters()}

        def note(t):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            scored(reward, media)
        return sum(size for storage, size in kept.items() if storage not in weights)

    assert held(True) < held(False) / 2


def test_the_embedded_clip_prefers_a_pictures_own_prompt():
    """On drawn scenes of the starter world; prompts handed on by seven places are the control that must fail."""
    from pipelines.starter.image import rendering, world

    lines = (CONFIGS / "prompts" / "starter-image-test.txt").read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    rng = random.Random(0)
    scenes = [world.scene_for(prompt, rng) for prompt in prompts]
    media = Media(rendering.render_scenes(scenes, torch.Generator().manual_seed(0)), "image")
    reward = build("starter_clip")
    own = reward(media=media, prompts=prompts)
    other = reward(media=media, prompts=prompts[7:] + prompts[:7])
    third = reward(media=media, prompts=prompts[14:] + prompts[:14])
    assert (own > other).float().mean() > 0.85
    assert (third > other).float().mean() < 0.65
