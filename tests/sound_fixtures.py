"""Small models that hear, of the true classes and on disk as the published ones are; and sounds for them."""

from __future__ import annotations

import json
import math
import re
import wave
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from reward_fixtures import WORDS, random_state
from torch import Tensor

from workbench.core.types import Media

TONE = ["slow", "fast", "flute", "organ", "rising", "falling", "high", "low"]


def words_tokenizer(folder: Path) -> None:
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS, *TONE])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    t.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special).save_pretrained(folder)


def clap_folder(folder: Path, seed: int = 0, fusion: bool = False, seconds: int = 1) -> str:
    """A transformers ClapModel of three narrow stages on windows of `seconds`, at 48 kHz."""
    import transformers as t

    torch.manual_seed(seed)
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 32, "depths": [1, 1, 1], "num_attention_heads": [1, 2, 2]}
    audio |= {"num_mel_bins": 16, "spec_size": 64, "window_size": 2, "enable_fusion": fusion, "projection_dim": 24}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1}
    text |= {"vocab_size": 32, "max_position_embeddings": 34, "projection_dim": 24}
    model = t.ClapModel(t.ClapConfig(audio_config=audio, text_config=text, projection_dim=24))
    bn = model.audio_model.audio_encoder.batch_norm
    bn.running_mean.fill_(-30.0), bn.running_var.fill_(400.0)  # decibels, as trained ones have them
    for net in model.modules():
        if isinstance(net, torch.nn.Linear):
            torch.nn.init.normal_(net.weight, std=1.5 * net.in_features**-0.5)
    model.eval().save_pretrained(folder)
    words_tokenizer(folder)
    truncation = "fusion" if fusion else "rand_trunc"
    t.ClapFeatureExtractor(
        feature_size=16, max_length_s=seconds, frequency_min=50, truncation=truncation
    ).save_pretrained(folder)
    return str(folder)


def laion_file(folder: Path, seed: int = 3) -> str:
    """A checkpoint as laion_clap writes it, of a narrow HTSAT on ten-second windows, and its tokenizer beside it."""
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    audio = {
        "patch_embeds_hidden_size": 4,
        "hidden_size": 32,
        "depths": [1, 1, 1, 2],
        "num_attention_heads": [1, 2, 2, 2],
    }
    text = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1}
    text |= {"vocab_size": 32, "max_position_embeddings": 34, "layer_norm_eps": 1e-5}
    config = t.ClapConfig(
        audio_config=audio | {"projection_dim": 16}, text_config=text | {"projection_dim": 16}, projection_dim=16
    )
    model = t.ClapModel(config).eval()
    model.save_pretrained(folder / "transformers")
    torch.save({"epoch": 1, "acc": np.float64(0.5), "state_dict": _laion_names(model.state_dict())}, folder / "clap.pt")
    words_tokenizer(folder)
    words_tokenizer(folder / "transformers")
    t.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(folder / "transformers")
    return f"laion:{folder / 'clap.pt'}"


def _laion_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What laion_clap's modules call these tensors, and the further ones that they keep."""
    back = [("attention.self.", "attn."), ("attention.output.dense", "attn.proj"), ("intermediate.dense", "mlp.fc1")]
    back += [("output.dense", "mlp.fc2"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2")]
    back += [("batch_norm", "bn0"), ("audio_model.audio_encoder.", "audio_branch.")]
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("audio_model."):
            for old, new in back:
                name = name.replace(old, new)
        name = name.replace("text_model.", "text_branch.")
        name = name.replace("_projection.linear1.", "_projection.0.").replace("_projection.linear2.", "_projection.2.")
        part = re.search(r"attn\.(query|key|value)\.", name)
        if part:
            name = name.replace(part[1], "qkv")
            value = torch.cat([found[name], value]) if name in found else value
        found[name] = value
    more = {"audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.zeros(3)}
    more |= {"audio_branch.tscam_conv.bias": torch.zeros(3), "text_transform.sequential.0.weight": torch.zeros(2, 2)}
    more |= {"audio_branch.head.bias": torch.zeros(3), "audio_branch.layers.0.blocks.0.attn_mask": torch.zeros(2)}
    return {f"module.{name}": value for name, value in (found | more).items()}


def vggish_file(folder: Path) -> str:
    """VGGish with few channels, under the published names."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = {0: (4, 1), 3: (6, 4), 6: (8, 6), 8: (8, 8), 11: (10, 8), 13: (10, 10)}
    shapes = {f"features.{i}.weight": (*pair, 3, 3) for i, pair in channels.items()}
    shapes |= {f"features.{i}.bias": pair[:1] for i, pair in channels.items()}
    for i, pair in {0: (20, 240), 2: (20, 20), 4: (12, 20)}.items():
        shapes |= {f"embeddings.{i}.weight": pair, f"embeddings.{i}.bias": pair[:1]}
    state = {n: v * (0.3 if v.dim() == 4 else 1.0) for n, v in random_state(shapes).items()}
    torch.save(state, folder / "vggish.pth")
    return f"vggish:{folder / 'vggish.pth'}"


def audiobox_shapes(
    d: int = 768, layers: int = 12, heads: int = 12, conv: int = 512, wide: int = 3072, buckets: int = 320
):
    """Names and shapes in facebook/audiobox-aesthetics' model.safetensors, one linear layer a head."""
    w = "wavlm_model"
    shapes: dict[str, tuple[int, ...]] = {f"{w}.mask_emb": (d,)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        shapes[f"{w}.feature_extractor.conv_layers.{i}.0.weight"] = (conv, conv if i else 1, kernel)
    for name, size in ((f"{w}.feature_extractor.conv_layers.0.2", conv), (f"{w}.layer_norm", conv)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    shapes |= {f"{w}.post_extract_proj.weight": (d, conv), f"{w}.post_extract_proj.bias": (d,)}
    pos = f"{w}.encoder.pos_conv.0"
    shapes |= {f"{pos}.bias": (d,), f"{pos}.weight_g": (1, 1, 128), f"{pos}.weight_v": (d, d // 16, 128)}
    shapes |= {f"{w}.encoder.layer_norm.weight": (d,), f"{w}.encoder.layer_norm.bias": (d,)}
    for i in range(layers):
        layer = f"{w}.encoder.layers.{i}"
        linear = {f"self_attn.{k}_proj": (d, d) for k in "kvq"} | {"self_attn.out_proj": (d, d)}
        linear |= {"self_attn.grep_linear": (8, d // heads), "fc1": (wide, d), "fc2": (d, wide)}
        for name, size in linear.items():
            shapes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}.{name}.weight": (d,), f"{layer}.{name}.bias": (d,)}
        shapes[f"{layer}.self_attn.grep_a"] = (1, heads, 1, 1)
    shapes[f"{w}.encoder.layers.0.self_attn.relative_attention_bias.weight"] = (buckets, heads)
    for axis in ("CE", "CU", "PC", "PQ"):
        shapes |= {f"proj_layer.{axis}.0.weight": (1, d), f"proj_layer.{axis}.0.bias": (1,)}
        shapes[f"layer_weights.{axis}"] = (layers + 1,)
    return shapes


SCALES = {axis: {"mean": 5.0 + i, "std": 1.0 + 0.1 * i} for i, axis in enumerate(("CE", "CU", "PC", "PQ"))}


def audiobox_files(folder: Path) -> dict[str, str]:
    """A narrow Audiobox Aesthetics, as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = random_state(audiobox_shapes(d=32, layers=2, heads=2, conv=16, wide=48))
    for name, value in state.items():
        if name.endswith("conv_layers.0.2.weight"):
            value.add_(1)
        elif "conv_layers" in name and value.dim() == 3:
            torch.nn.init.kaiming_normal_(value, generator=torch.Generator().manual_seed(len(name)))
    safetensors.torch.save_file(state, folder / "model.safetensors")
    settings = {"proj_num_layer": 1, "normalize_embed": True, "nth_layer": 3, "target_transform": SCALES}
    (folder / "config.json").write_text(json.dumps(settings))
    return {"weights": str(folder / "model.safetensors")}


def tone(hertz: float, seconds: float = 1.0, rate: int = 16000, level: float = 0.5) -> Tensor:
    """[L]"""
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (level * torch.sin(2 * math.pi * hertz * t)).float()


def heard(n: int, seconds: float = 1.0, rate: int = 16000, seed: int = 0, channels: int = 1) -> Media:
    """n short pieces, no two alike: three tones each, over a little noise, fading in and out."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        pitches = (80 + 900 * torch.rand(3 * channels, generator=g)).tolist()
        parts = [sum(tone(p, seconds, rate, 0.2) for p in pitches[c::channels]) for c in range(channels)]
        rows.append(torch.stack(parts))
    data = torch.stack(rows)
    data = data + 0.01 * torch.randn(data.shape, generator=g)
    return Media(data * torch.hann_window(data.shape[-1], periodic=False).clamp(min=0.05), "audio", float(rate))


def wav16(path: Path, data: Tensor, rate: int) -> str:
    """A 16-bit WAV of [C,L], written by the standard library."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(data)), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes((data.T.clamp(-1, 1) * 32767).round().to(torch.int16).contiguous().numpy().tobytes())
    return str(path)
