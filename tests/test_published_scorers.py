"""The ports are the published models: their checkpoints fit at full size, and they compute what the papers' code
does."""

from __future__ import annotations

import reward_fixtures as fixtures
import torch
import torch.nn.functional as F
from reward_fixtures import PROMPTS, media_for, scored, small, small_settings

from rewards import REWARDS
from rewards.encoders import checkpoints
from rewards.encoders.preprocess import View
from rewards.image.aesthetic import AestheticHead
from rewards.image.imagereward import BlipScorer, rename_weights
from rewards.image.mps import MPS, OVERALL, MPSScorer, unwrap_weights


def meta_state(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_published_aesthetic_head_fits():
    with torch.device("meta"):
        head = checkpoints.fill_weights(AestheticHead(768), meta_state(fixtures.aesthetic_shapes()), "published")
    assert sum(p.numel() for p in head.parameters()) == 927_969  # x 4 bytes: the published file of 3.71 MB


def test_the_published_imagereward_fits_without_a_name_left_over():
    state = rename_weights(meta_state(fixtures.imagereward_shapes()))
    with torch.device("meta"):
        net = checkpoints.fill_weights(BlipScorer(state), state, "published")
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

    state = torch.load(small_settings("imagereward")["weights"], weights_only=True)
    media = media_for(REWARDS["imagereward"].spec, 3)
    tokens = AutoTokenizer.from_pretrained(small_settings("imagereward")["tokenizer"])(
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
        expected = encoder.embed_images(media.data) @ (unit - zero) + zero
    torch.testing.assert_close(scored(reward, media), expected, rtol=1e-4, atol=1e-5)


def test_the_published_mps_fits_without_a_name_left_over():
    """CLIP ViT-H/14 under `model.` and 118,505,600 values of cross-attention; wrapped as RE-N-Y/mpsv1 is."""
    from transformers import CLIPConfig

    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    config = CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 14}, projection_dim=1024)
    clip, cross = fixtures.clip_shapes(1024, 1280, (24, 32)), fixtures.mps_cross_shapes()
    published = {f"mps.model.{n}": s for n, s in clip.items()} | {f"mps.{n}": s for n, s in cross.items()}
    state = unwrap_weights(meta_state(published | {"mps.model.text_model.embeddings.position_ids": (1, 77)}))
    with torch.device("meta"):
        net = checkpoints.fill_weights(MPSScorer(config, state), state, "published")
    sizes = [sum(v.numel() for v in part.state_dict().values()) for part in (net.model, net.cross_model)]
    assert sizes == [986_109_441, 118_505_600]


def test_mps_computes_what_its_authors_publish():
    """Against the cross-attention written out over the published names, prompt by prompt as their benchmark does;
    the threshold hides some words, and hiding none is the control that must differ."""
    from transformers import AutoTokenizer

    settings = small_settings("mps")
    net, _ = MPS(**settings).load()
    tokens = AutoTokenizer.from_pretrained(settings["backbone"])
    state, media = unwrap_weights(checkpoints.read_weights(settings["weights"])), media_for(MPS.spec, 3)

    def features(text):
        ids = tokens(text, max_length=16, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        out = net.model.text_model(input_ids=ids)
        return net.model.text_projection(out.last_hidden_state), net.model.text_projection(out.pooler_output)

    def expected(b, threshold):
        every, end = features(PROMPTS[b])
        alike = torch.einsum("bid,bjd->bji", every, features(OVERALL)[0]).amax(1)  # [1,L]
        mask = torch.where(alike / alike.max() > threshold, 0.0, -torch.inf)
        x = net.model.vision_model(pixel_values=View((32, 32))(media.data[b : b + 1])).last_hidden_state
        read = crossed(state, net.model.visual_projection(x), every, mask)
        return net.model.logit_scale.exp() * F.cosine_similarity(end, read[:, 0])[0], mask.isinf().sum()

    with torch.no_grad():
        for threshold in (0.3, 0.95):
            scores, hidden = zip(*(expected(b, threshold) for b in range(3)), strict=True)
            ours = scored(small("mps", threshold=threshold), media)
            torch.testing.assert_close(ours, torch.stack(scores), rtol=1e-4, atol=1e-4)
        assert all(0 < n < 16 for n in hidden)
        assert (ours - scored(small("mps", threshold=-1e9), media)).abs().max() > 1e-3


def crossed(state, x, words, mask):
    """MPS's cross-attention from its state dict alone: a pre-norm reader, then a parallel block with rotary angles."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.norm.weight"])

    def heads(q, k, v, mask=0.0):  # one key and value head for all
        q = q.unflatten(-1, (-1, 64)).transpose(1, 2) / 8
        return ((q @ k[:, None].mT + mask).softmax(-1) @ v[:, None]).transpose(1, 2).flatten(2)

    def glu(x):
        value, gate = x.chunk(2, -1)
        return F.silu(gate) * value

    def turn(x):
        angle = torch.outer(torch.arange(x.shape[1]).float(), 10000 ** (-torch.arange(32) / 32))
        pair = torch.complex(x[..., :32], x[..., 32:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pair.real, pair.imag], -1)

    for i in range(2):
        n = f"cross_model.layers.{i}.0.fn"
        y = norm(x, n)
        k, v = F.linear(words, state[f"{n}.to_kv.weight"]).chunk(2, -1)
        read = F.linear(heads(F.linear(y, state[f"{n}.to_q.weight"]), k, v, mask), state[f"{n}.to_out.weight"])
        x = x + read + F.linear(glu(F.linear(y, state[f"{n}.ff.0.weight"])), state[f"{n}.ff.2.weight"])
        n = f"cross_model.layers.{i}.1.fn"
        q, k, v, wide = F.linear(norm(x, n), state[f"{n}.fused_attn_ff_proj.weight"]).split((128, 64, 64, 256), -1)
        q = torch.cat([turn(part) for part in q.split(64, -1)], -1)
        own = F.linear(heads(q, turn(k), v), state[f"{n}.attn_out.weight"])
        x = x + own + F.linear(glu(wide), state[f"{n}.ff_out.1.weight"])
    return x
