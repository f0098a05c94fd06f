"""Small models of the true classes, on disk as the published ones are, so that they load through the same path."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from rewards import build
from workbench.types import Media, Reward, RewardSpec

_FOLDER = tempfile.TemporaryDirectory()  # lives as long as the tests do

PROMPTS = ("a red circle", "two blue squares", "a cat")
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
    torch.save(random_state(aesthetic_shapes(width)), folder / "head.pth")
    return {"weights": str(folder / "head.pth"), "model": clip}


@functools.cache
def small_settings() -> dict[str, dict[str, str]]:
    """Settings by reward name with which every reward that needs published weights runs on small ones."""
    folder = Path(_FOLDER.name)
    clip = clip_folder(folder / "clip")
    return {
        "clip": {"model": clip},
        "starter_clip": {"model": clip},
        "pickscore": {"model": clip_folder(folder / "pickscore", seed=5)},
        "hps": {"model": open_clip_file(folder / "hps")},
        "aesthetic": aesthetic_files(folder, clip),
        "imagereward": imagereward_files(folder / "imagereward"),
    }


def small(name: str, **more) -> Reward:
    """The reward `name` on small weights, where it needs any."""
    return build(name, **(small_settings().get(name, {}) | more))


def scored(reward: Reward, media: Media, prompts: Sequence[str] = PROMPTS) -> Tensor:
    references = media_for(reward.spec, len(media), seed=9) if "reference" in reward.spec.needs else None
    return reward(media=media, prompts=prompts[: len(media)], references=references)


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
    return Media(torch.rand(n, 1, 8000, generator=g) - 0.5, "audio", rate=8000.0)
