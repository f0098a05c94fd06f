"""Backbones load once and from honest files only; the ports agree with their publications."""

from __future__ import annotations

import pickle
import random

import pytest
import reward_fixtures as fixtures
import torch
import torch.nn.functional as F
from reward_fixtures import PROMPTS, media_for, scored, small, small_settings

import rewards
from rewards import REWARDS, build, checkpoints, encoders
from rewards.aesthetic import Head
from rewards.imagereward import BlipScorer, renamed
from rewards.preprocess import View
from workbench.assets import CONFIGS
from workbench.types import BadInput, Media, Reward

# Backbones


def nets(reward: Reward) -> list[torch.nn.Module]:
    loaded = reward.load("cpu")
    parts = loaded if isinstance(loaded, tuple) else (loaded,)
    return [n for n in (getattr(p, "net", p) for p in parts) if isinstance(n, torch.nn.Module)]


@pytest.mark.parametrize("name", ["clip", "hps", "aesthetic", "imagereward"])
def test_loading_leaves_the_global_generator_alone(name):
    """Weights load on first use, in the middle of a run: nothing drawn after may depend on it."""
    small_settings()
    rewards.release()
    before = torch.get_rng_state()
    small(name).load()
    assert torch.equal(torch.get_rng_state(), before)


LEARNED = ["clip", "pickscore", "hps", "aesthetic", "imagereward"]


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
    rewards.release()
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
    rewards.release()
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
    monkeypatch.setattr(encoders, "REMEMBERED", 2)
    encoder = small("clip").load()
    whole = encoder.texts(PROMPTS)
    assert len(encoder._texts) == 2
    torch.testing.assert_close(encoder.texts(PROMPTS), whole)


def test_rewards_on_one_model_share_its_encoder():
    """Whatever the reward, one model on one device in one dtype is in memory once."""
    clip, aesthetic = small("clip"), small("aesthetic")
    assert clip.load() is aesthetic.load()[0]
    assert clip.load() is build("clip", mode="scaled", **small_settings()["clip"]).load()
    assert clip.load() is not small("pickscore").load()
    assert clip.load() is not small("clip", dtype="bfloat16").load()


def test_clip_score_is_transformers_own_cosine():
    """Against CLIPModel's forward with its own processor's tensors, cosine and scaled."""
    from transformers import AutoTokenizer, CLIPModel

    folder = small_settings()["clip"]["model"]
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
    checkpoints.fill(net, checkpoints.read(str(tmp_path / f"weights{suffix}")), "file")
    media = media_for(REWARDS["hps"].spec, 3)
    for reward, fit in ((build("hps", model=name), "pad"), (build("clip", model=name), "crop")):
        with torch.no_grad():
            image = net.encode_image(View((32, 32))(media.data, fit), normalize=True)
            text = net.encode_text(open_clip.get_tokenizer("small-test")(list(PROMPTS)), normalize=True)
        torch.testing.assert_close(scored(reward, media), (image * text).sum(1), rtol=1e-4, atol=1e-5)


def test_contrastive_is_the_log_probability_of_the_own_prompt():
    """Among itself and the negatives; a negative that equals the prompt counts once."""
    media = media_for(REWARDS["clip"].spec, 3)
    reward = small("clip", mode="contrastive", negatives=("a dog", PROMPTS[1]))
    encoder = reward.load()
    with torch.no_grad():
        image, scores = encoder.images(media.data), scored(reward, media)
        for b, captions in enumerate(
            [(PROMPTS[0], "a dog", PROMPTS[1]), (PROMPTS[1], "a dog"), (PROMPTS[2], "a dog", PROMPTS[1])]
        ):
            logits = encoder.scale * encoder.texts(captions) @ image[b]
            assert scores[b].item() == pytest.approx(logits.log_softmax(0)[0].item(), abs=1e-4)


@pytest.mark.parametrize("name", ["clip", "hps", "imagereward"])
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
    from pipelines.starter import image_world

    lines = (CONFIGS / "prompts" / "starter-image-test.txt").read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    rng = random.Random(0)
    scenes = [image_world.scene_for(prompt, rng) for prompt in prompts]
    media = Media(image_world.render(scenes, torch.Generator().manual_seed(0)), "image")
    reward = build("starter_clip")
    own = reward(media=media, prompts=prompts)
    other = reward(media=media, prompts=prompts[7:] + prompts[:7])
    third = reward(media=media, prompts=prompts[14:] + prompts[:14])
    assert (own > other).float().mean() > 0.85
    assert (third > other).float().mean() < 0.65


# Files that are not what they should be


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"x": Trap()}, protocol=2))
    torch.save({"state_dict": {"x": Trap()}}, tmp_path / "zipped.pt")
    for name in ("trap.pt", "zipped.pt"):
        with pytest.raises(BadInput, match="no readable weights file"):
            checkpoints.read(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "empty.pt", "empty.safetensors"])
def test_a_broken_file_is_one_clear_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"not weights at all, whatever the name says")
    with pytest.raises(BadInput, match="no readable weights file"):
        checkpoints.read(str(tmp_path / name))


def test_a_broken_transformers_folder_is_one_clear_sentence(tmp_path):
    folder = fixtures.clip_folder(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match="can't load"):
        build("clip", model=folder).load()
    (tmp_path / "clip" / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config\.json"):
        build("clip", model=folder).check()


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = fixtures.clip_folder(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lack visual_projection\.weight"):
        build("clip", model=folder).load()


def test_weights_of_another_shape_or_model_are_refused(tmp_path):
    clip = small_settings()["clip"]["model"]
    wrong = fixtures.aesthetic_files(tmp_path, clip, width=48)
    with pytest.raises(BadInput, match=r"layers\.0\.weight is \[1024, 48\], this model has \[1024, 32\]"):
        build("aesthetic", **wrong).load()
    with pytest.raises(BadInput, match="is no ImageReward checkpoint"):
        build("imagereward", weights=wrong["weights"], tokenizer=small_settings()["imagereward"]["tokenizer"]).load()
    with pytest.raises(BadInput, match="no weights file"):
        build("aesthetic", weights="./nowhere.pth", model=clip).load()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("open_clip:ViT-H-14x/laion2b_s32b_b79k", "did you mean 'ViT-H-14'"),
        ("open_clip:ViT-H-14/laion2b_s32b_b97k", "did you mean 'laion2b_s32b_b79k'"),
        ("open_clip:ViT-H-14/./nowhere.pt", "no weights file './nowhere.pt'"),
        ("./nowhere", r"no config\.json"),
        ("starter:image/clop", "workbench starter build"),
    ],
)
def test_a_model_that_can_not_be_is_refused_before_anything_loads(model, says):
    with pytest.raises(BadInput, match=says):
        build("clip", model=model).check()


# The published checkpoints, at full size on the meta device


def meta_state(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_published_aesthetic_head_fits():
    with torch.device("meta"):
        head = checkpoints.fill(Head(768), meta_state(fixtures.aesthetic_shapes()), "published")
    assert sum(p.numel() for p in head.parameters()) == 927_969  # x 4 bytes: the published file of 3.71 MB


def test_the_published_imagereward_fits_without_a_name_left_over():
    state = renamed(meta_state(fixtures.imagereward_shapes()))
    with torch.device("meta"):
        net = checkpoints.fill(BlipScorer(state), state, "published")
    assert net.size == 224
    assert net.vision.config.num_hidden_layers == 24 and net.vision.config.num_attention_heads == 16
    assert net.text.config.num_hidden_layers == 12 and net.text.config.num_attention_heads == 12


def test_the_published_hps_fits_open_clip():
    """HPSv2's checkpoints carry the names of ViT-H-14: 32 + 24 blocks, 986,109,441 parameters in all."""
    import open_clip

    with torch.device("meta"):
        net = open_clip.create_model("ViT-H-14", load_weights=False, device="meta")
    state = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 986_109_441
    for name, shape in {
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "visual.proj": (1280, 1024),
        "transformer.resblocks.23.mlp.c_fc.weight": (4096, 1024),
        "token_embedding.weight": (49408, 1024),
        "text_projection": (1024, 1024),
    }.items():
        assert tuple(state[name].shape) == shape


def test_imagereward_computes_what_blip_publishes():
    """Against BLIP written out over the published names: a pre-norm ViT, a post-norm BERT that reads it, the MLP."""
    from transformers import AutoTokenizer

    state = torch.load(small_settings()["imagereward"]["weights"], weights_only=True)
    media = media_for(REWARDS["imagereward"].spec, 3)
    tokens = AutoTokenizer.from_pretrained(small_settings()["imagereward"]["tokenizer"])(
        list(PROMPTS), padding="max_length", max_length=35, return_tensors="pt"
    )
    expected = blip(state, View((32, 32))(media.data), tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(scored(small("imagereward"), media), expected, rtol=1e-4, atol=1e-4)


def blip(state, x, ids, mask):
    """ImageReward's score from its state dict alone, heads of 64."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q, k, v, mask=None):
        q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in (q, k, v))
        logits = q @ k.transpose(-1, -2) / 8
        if mask is not None:
            logits = logits.masked_fill(mask[:, None, None] == 0, -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    eye = "blip.visual_encoder"
    patches = F.conv2d(x, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], stride=16)
    x = (
        torch.cat([state[f"{eye}.cls_token"].expand(len(x), -1, -1), patches.flatten(2).mT], 1)
        + state[f"{eye}.pos_embed"]
    )
    for i in range(2):
        b = f"{eye}.blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1", 1e-6), f"{b}.attn.qkv")
        x = x + linear(attend(*qkv.chunk(3, -1)), f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    seen = norm(x, f"{eye}.norm", 1e-6)

    reader = "blip.text_encoder"
    y = state[f"{reader}.embeddings.word_embeddings.weight"][ids]
    y = y + state[f"{reader}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm(y, f"{reader}.embeddings.LayerNorm", 1e-12)
    for i in range(2):
        b = f"{reader}.encoder.layer.{i}"
        for kind, source, hidden in (("attention", None, mask), ("crossattention", seen, None)):
            source = y if source is None else source
            q, k = linear(y, f"{b}.{kind}.self.query"), linear(source, f"{b}.{kind}.self.key")
            out = linear(attend(q, k, linear(source, f"{b}.{kind}.self.value"), hidden), f"{b}.{kind}.output.dense")
            y = norm(y + out, f"{b}.{kind}.output.LayerNorm", 1e-12)
        out = linear(F.gelu(linear(y, f"{b}.intermediate.dense")), f"{b}.output.dense")
        y = norm(y + out, f"{b}.output.LayerNorm", 1e-12)
    z = y[:, 0]
    for i in (0, 2, 4, 6, 7):
        z = linear(z, f"mlp.layers.{i}")
    return (z[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_the_aesthetic_head_is_affine():
    """Without activations it is one vector and a bias: the score is linear in the normalised embedding."""
    reward, media = small("aesthetic"), media_for(REWARDS["aesthetic"].spec, 3)
    encoder, head = reward.load()
    zero, unit = head(torch.zeros(1, 32)), head(torch.eye(32))
    with torch.no_grad():
        expected = encoder.images(media.data) @ (unit - zero) + zero
    torch.testing.assert_close(scored(reward, media), expected, rtol=1e-4, atol=1e-5)


def test_blank_initialisation_ends_whatever_lay_in_memory_before():
    """torch's truncated normal draws again until all values fit: left undone, a value that never fits never ends."""
    stale = torch.full((64,), 1e9)
    with checkpoints.Blank():
        torch.nn.init.trunc_normal_(stale, std=0.02)
    assert stale.abs().max() <= 2
