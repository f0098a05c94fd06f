"""Small models of the true classes, on disk as the published ones are, so that they load through the same path."""

from __future__ import annotations

import functools
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rewards import REWARDS, build
from workbench.core.inputs import MediaInput, input_needs, stack_sources
from workbench.core.types import Media, Prompt, Reward, RewardSpec, derive_seed

_FOLDER = tempfile.TemporaryDirectory()  # lives as long as the tests do

PROMPTS = ("a red circle", "two blue squares", "a cat")
SET = 8  # samples that make a set
WORDS = ["a", "red", "circle", "two", "blue", "squares", "cat", "dog"]


def clip_folder(folder: Path, projection: int = 32, seed: int = 0) -> str:
    """A transformers CLIPModel on 32x32 pictures with its own CLIPTokenizer of 16 tokens."""
    import transformers as t

    torch.manual_seed(seed)
    letters = [chr(c) for c in range(33, 127)]
    vocab = {w: i for i, w in enumerate([*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])}
    end = len(vocab) - 1
    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 16, "bos_token_id": end - 1, "eos_token_id": end}
    config = t.CLIPConfig(
        text_config=tower | text | {"pad_token_id": end},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=projection,
    )
    t.CLIPModel(config).save_pretrained(folder)
    t.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16).save_pretrained(folder)
    t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def siglip_folder(folder: Path) -> str:
    """A transformers SiglipModel, which squashes pictures, pads with a token and has a logit bias."""
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(1)
    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocab = {w: i for i, w in enumerate(["<pad>", "<unk>", *WORDS])}
    config = t.SiglipConfig(
        text_config=tower | {"vocab_size": len(vocab), "max_position_embeddings": 8, "projection_size": 64},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
    )
    model = t.SiglipModel(config)
    model.logit_bias.data.fill_(-3.0)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    t.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    t.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def open_clip_file(folder: Path, suffix: str = ".pt") -> str:
    """The model string of an open_clip CLIP, small-test, with its weights in one file, wrapped as HPSv2's are."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    towers = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    (folder / "small-test.json").write_text(json.dumps(towers))
    open_clip.add_model_config(folder / "small-test.json")
    torch.manual_seed(2)
    state = open_clip.create_model("small-test", load_weights=False).state_dict()
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"epoch": 1, "state_dict": state}, path)
    return f"open_clip:small-test/{path}"


def aesthetic_shapes(width: int = 768) -> dict[str, tuple[int, ...]]:
    """Names and shapes in sac+logos+ava1-l14-linearMSE.pth."""
    sizes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    return {f"layers.{i}.{k}": s if k == "weight" else s[:1] for i, s in sizes.items() for k in ("weight", "bias")}


def imagereward_shapes(
    vision: int = 1024, depth: int = 24, text: int = 768, layers: int = 12, vocab: int = 30524, size: int = 224
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in ImageReward.pt: BLIP's pretraining model (ViT-L/16, BERT-base that reads it) and the MLP."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, (size // 16) ** 2 + 1, vision),
    }

    def pair(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    pair("blip.visual_encoder.patch_embed.proj", vision, 3, 16, 16)
    for i in range(depth):
        block = f"blip.visual_encoder.blocks.{i}"
        pair(f"{block}.norm1", vision), pair(f"{block}.norm2", vision)
        pair(f"{block}.attn.qkv", 3 * vision, vision), pair(f"{block}.attn.proj", vision, vision)
        pair(f"{block}.mlp.fc1", 4 * vision, vision), pair(f"{block}.mlp.fc2", vision, 4 * vision)
    pair("blip.visual_encoder.norm", vision)
    words = "blip.text_encoder.embeddings"
    shapes |= {f"{words}.word_embeddings.weight": (vocab, text), f"{words}.position_embeddings.weight": (512, text)}
    shapes[f"{words}.position_ids"] = (1, 512)
    pair(f"{words}.LayerNorm", text)
    for i in range(layers):
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for kind, source in (("attention", text), ("crossattention", vision)):
            pair(f"{layer}.{kind}.self.query", text, text)
            pair(f"{layer}.{kind}.self.key", text, source), pair(f"{layer}.{kind}.self.value", text, source)
            pair(f"{layer}.{kind}.output.dense", text, text), pair(f"{layer}.{kind}.output.LayerNorm", text)
        pair(f"{layer}.intermediate.dense", 4 * text, text), pair(f"{layer}.output.dense", text, 4 * text)
        pair(f"{layer}.output.LayerNorm", text)
    pair("blip.vision_proj", 256, vision), pair("blip.text_proj", 256, text)
    return shapes | {f"mlp.{name}": shape for name, shape in aesthetic_shapes(text).items()}


def clip_shapes(text: int, vision: int, layers: tuple[int, int], patches: int = 257) -> dict[str, tuple[int, ...]]:
    """Names and shapes in transformers' file of an OpenAI-style CLIP with towers of these widths; `text` is its
    space."""
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": (), "vision_model.embeddings.class_embedding": (vision,)}
    shapes["vision_model.embeddings.patch_embedding.weight"] = (vision, 3, 14, 14)
    shapes["vision_model.embeddings.position_embedding.weight"] = (patches, vision)
    shapes["text_model.embeddings.token_embedding.weight"] = (49408, text)
    shapes["text_model.embeddings.position_embedding.weight"] = (77, text)
    norms = {"text_model.final_layer_norm": text, "vision_model.pre_layrnorm": vision}
    for tower, width, depth in (("text_model", text, layers[0]), ("vision_model", vision, layers[1])):
        for block in (f"{tower}.encoder.layers.{i}" for i in range(depth)):
            linears = {f"self_attn.{k}_proj": (width, width) for k in ("q", "k", "v", "out")}
            linears |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for name, shape in linears.items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
            norms |= {f"{block}.layer_norm1": width, f"{block}.layer_norm2": width}
    for name, width in (norms | {"vision_model.post_layernorm": vision}).items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes | {"visual_projection.weight": (text, vision), "text_projection.weight": (text, text)}


def mps_cross_shapes(width: int = 1024, inner: int = 1024, depth: int = 4) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what MPS adds to its CLIP, as the authors' modules save them; heads of 64."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        cross, own = f"cross_model.layers.{i}.0.fn", f"cross_model.layers.{i}.1.fn"
        shapes |= {f"{block}.norm.{kind}": (width,) for block in (cross, own) for kind in ("weight", "bias")}
        shapes |= {f"{cross}.to_q.weight": (inner, width), f"{cross}.to_kv.weight": (128, width)}
        shapes |= {f"{cross}.to_out.weight": (width, inner), f"{cross}.ff.0.weight": (8 * width, width)}
        shapes |= {f"{cross}.ff.2.weight": (width, 4 * width), f"{own}.rotary_emb.inv_freq": (32,)}
        shapes[f"{own}.fused_attn_ff_proj.weight"] = (inner + 128 + 8 * width, width)
        shapes |= {f"{own}.attn_out.weight": (width, inner), f"{own}.ff_out.1.weight": (width, 4 * width)}
    return shapes


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 3) -> dict[str, Tensor]:
    """Weights of a plausible size; norms near 1."""
    g = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(s, generator=g) * (max(s[-1], 1) ** -0.5 if len(s) > 1 else 0.1) for n, s in shapes.items()}
    for name in state:
        if name.endswith(".weight") and "norm" in name.lower():
            state[name] = state[name] + 1
    return state


def imagereward_files(folder: Path) -> dict[str, str]:
    """A small checkpoint under the published names, and a BERT tokenizer."""
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    t.BertTokenizer(vocab=vocab).save_pretrained(folder)
    shapes = imagereward_shapes(vision=128, depth=2, text=64, layers=2, vocab=len(vocab), size=32)
    torch.save(random_state(shapes), folder / "ImageReward.pt")
    return {"weights": str(folder / "ImageReward.pt"), "tokenizer": str(folder)}


def aesthetic_files(folder: Path, clip: str, width: int = 32) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(random_state(aesthetic_shapes(width)), folder / "head.pth")
    return {"weights": str(folder / "head.pth"), "model": clip}


def mps_files(folder: Path) -> dict[str, str]:
    """A small checkpoint under the names of RE-N-Y/mpsv1, two layers of two heads, on a small CLIP."""
    clip = clip_folder(folder / "clip", seed=7)
    state = random_state(mps_cross_shapes(width=32, inner=128, depth=2))
    for name, value in state.items():
        if name.endswith("norm.bias"):
            value.zero_()
        if name.endswith("inv_freq"):
            value.copy_(10000 ** (-torch.arange(32) / 32))
    state |= {f"model.{n}": v for n, v in safetensors.torch.load_file(folder / "clip" / "model.safetensors").items()}
    state["model.text_model.embeddings.position_ids"] = torch.arange(16)[None]  # as old transformers saved it
    safetensors.torch.save_file({f"mps.{n}": v for n, v in state.items()}, folder / "model.safetensors")
    return {"weights": str(folder / "model.safetensors"), "backbone": clip}


def serving(app, **settings: Any) -> str:
    """The address of a web application that uvicorn serves on loopback until the tests end."""
    import uvicorn

    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **settings))
    threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True).start()
    return f"http://127.0.0.1:{door.getsockname()[1]}"


@functools.cache
def served() -> str:
    """A server of two rewards, and its token in the environment."""
    from rewards.remote import TOKEN
    from workbench.tools import reward_server

    os.environ.setdefault(TOKEN, "token-of-the-tests")
    return serving(
        reward_server.create_app(
            {"contrast": build("contrast"), "starter_clip": small("starter_clip")}, os.environ[TOKEN]
        )
    )


# A reward that loads weights, or can't work without settings, has its small settings here: folder -> settings.
SMALL: dict[str, Callable[[Path], dict[str, Any]]] = {
    "clip": lambda folder: {"model": clip_folder(folder)},
    "starter_clip": lambda folder: {"model": clip_folder(folder)},
    "pickscore": lambda folder: {"model": clip_folder(folder, seed=5)},
    "hps": lambda folder: {"model": open_clip_file(folder)},
    "aesthetic": lambda folder: aesthetic_files(folder, small_settings("clip")["model"]),
    "imagereward": imagereward_files,
    "mps": mps_files,
    "remote": lambda folder: {"url": served(), "names": ("contrast", "starter_clip")},
    "social": lambda folder: {"model": small_settings("clip")["model"]},
}
JUDGES = ("judge", "judge_pairs", "judge_regions", "unifiedreward", "unifiedreward_video", "unifiedreward_think",
          "editscore", "unifiedreward_edit", "unifiedreward_edit_quality", "unifiedreward_edit_pairs", "q_insight",
          "ixc_reward", "video_dimensions")  # fmt: skip
SMALL |= {name: lambda folder: {"url": judge_url(), "model": "judge"} for name in JUDGES}
# Rewards in an embedding of the caller's choice: it is not in their `weights`, and these tests choose a small one.
SMALL |= dict.fromkeys(("frechet", "kid", "kad", "cmmd", "vendi"), SMALL["social"])
SMALL |= {
    "prdc": lambda folder: SMALL["social"](folder) | {"k": 1},
    "exemplar": lambda folder: SMALL["social"](folder) | {"reference": examples(folder)},
    "subject": SMALL["social"],
    "leave_one_out": lambda folder: {"of": {"vendi": SMALL["social"](folder)}},
    "witness": lambda folder: {"of": {"kid": SMALL["social"](folder)}},
    "learned": lambda folder: {"path": taste(folder)},
    "personal": lambda folder: {"path": tastes(folder)},
}
SMALL |= dict.fromkeys(("fad", "audio_kad", "audio_vendi"), lambda folder: {"model": "logmel", "rows": "songs"})
SMALL |= {
    "clap": lambda folder: {"model": heard().clap_folder(folder)},
    "starter_clap": lambda folder: {},  # small as it is
    "starter_video_clip": lambda folder: {},
    "starter_edit_clip": lambda folder: {},
    "audiobox": lambda folder: heard().audiobox_files(folder),
    "gated": lambda folder: {"of": "loudness"},
    "audio_exemplar": lambda folder: {"model": "logmel"},
    "song_set": lambda folder: {"of": {"audio_vendi": {"model": "logmel", "window": 0.2}}},
    "frames": lambda folder: {"of": "brightness"},
    "consistency": lambda folder: SMALL["social"](folder),
    "identity": SMALL["social"],
    "directional_clip": SMALL["social"],
    "audio_identity": lambda folder: {"model": "logmel"},
}


def heard():
    """The small models that hear, which stand on this file."""
    import sound_fixtures

    return sound_fixtures


@functools.cache
def judge_url() -> str:
    """A server on the loopback that answers every judge's questions, alive as long as the tests."""
    from judge_server import JudgeServer

    return JudgeServer().url


def examples(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.txt").write_text("\n".join(PROMPTS))
    return str(folder / "examples.txt")


def report():
    """Of votes enough to be better than chance."""
    from rewards.people.votes import HeldOutReport

    return HeldOutReport(200, 0, 0, 20, "prompts", accuracy=0.8, low=0.7, high=0.9, design=1.0)


def taste(folder: Path) -> str:
    """The folder of a fitted head on the small encoder."""
    from rewards.people.learned import TasteHead

    weights = torch.randn(32, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    TasteHead(weights, small_settings("clip")["model"], 1e-3, report()).save(folder)
    return str(folder)


def tastes(folder: Path) -> str:
    """The folder of a mixture of two tastes."""
    from rewards.people.personal import TasteMixture

    prototypes = torch.randn(2, 32, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    even = torch.full((2,), 0.5, dtype=torch.float64)
    TasteMixture(prototypes, {}, even, 4.0, small_settings("clip")["model"], report(), report()).save(folder)
    return str(folder)


@functools.cache
def small_settings(name: str) -> dict[str, Any]:
    """Settings with which the reward `name` runs on small weights of its true class; {} when it has no weights."""
    if name in SMALL:
        return SMALL[name](Path(_FOLDER.name) / name)
    if REWARDS[name].spec.weights:
        raise LookupError(f"reward {name} loads weights: give it small ones in SMALL of tests/reward_fixtures.py")
    return {}


def modalities_of(name: str) -> frozenset[str]:
    """What the reward `small(name)` judges: a taste what its head was learnt from, which here are pictures."""
    return frozenset({"image"}) if name in ("learned", "personal") else REWARDS[name].spec.modalities


def small(name: str, **more) -> Reward:
    """The reward `name` on small weights, where it needs any."""
    return build(name, **(small_settings(name) | more))


def scored(reward: Reward, media: Media, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """One prompt a sample, one for all of a group, any for a set, with what the reward needs; references do not depend
    on the batch: a set has SET, a sample that of its prompt."""
    chosen = prompts[: len(media)] if reward.spec.scope == "sample" else [prompts[0]] * len(media)
    own = [with_inputs(reward.spec, prompt, media) for prompt in chosen]
    examples = media_for(reward.spec, SET, seed=9) if "reference" in reward.spec.needs else None
    return reward(media=media, prompts=own, references=examples or stack_sources(reward, media, own))


def with_inputs(spec: RewardSpec, prompt: str, media: Media) -> str:
    """The prompt with the inputs that a reward of such media needs: always the same for a prompt."""
    names = input_needs(spec)
    return Prompt(prompt, {name: input_for(name, str(prompt), media) for name in names}) if names else prompt


def input_for(name: str, prompt: str, media: Media) -> MediaInput:
    """A source of the kind and size of one of the media; a picture under any other name, half black and half white as a
    mask."""
    g = torch.Generator().manual_seed(derive_seed(9, name, prompt))
    data = torch.rand(1, *[max(side, 1) for side in media.data.shape[1:]], generator=g)
    if media.modality == "audio":
        return MediaInput.of(Media(data - 0.5, "audio", media.rate or 8000.0))
    if name == "source":
        return MediaInput.of(Media(data, media.modality, media.rate))
    data = data.flatten(0, -4)[:1]
    if name == "mask":
        data = torch.zeros_like(data)
        data[..., data.shape[-1] // 2 :] = 1
    return MediaInput.of(Media(data, "image"))


def batch_for(spec: RewardSpec, n: int) -> Media:
    """n samples, or a set, of which there is none of one sample."""
    return media_for(spec, SET if spec.scope == "set" else n)


def media_for(spec: RewardSpec, n: int, seed: int = 0) -> Media:
    """n samples of a modality that `spec` judges: smooth, no two alike, sample b with b clipped pixels."""
    g = torch.Generator().manual_seed(seed)
    if "image" in spec.modalities:
        coarse = torch.rand(n, 3, 6, 8, generator=g) * 0.9 + 0.05
        data = torch.nn.functional.interpolate(coarse, (36, 48), mode="bilinear")
        for b in range(n):
            data[b, :, 0, :b] = 0
        return Media(data, "image")
    if "video" in spec.modalities:
        return Media(torch.rand(n, 4, 3, 24, 32, generator=g) * 0.9 + 0.05, "video", rate=8.0)
    data = torch.rand(n, 1, 8000, generator=g) - 0.5
    for b in range(n):
        data[b, :, :b], data[b, :, 4000 : 4000 + 400 * b] = 1.0, 0.0
    return Media(data, "audio", rate=8000.0)
