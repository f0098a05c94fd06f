"""CLAP models (arXiv:2211.06687) as audio encoders, from transformers' checkpoints or laion_clap's own.

The log-mel front end is transformers' ClapFeatureExtractor in torch, so that the gradient leads to the wave, and
without its dice: of a long sound it takes a random crop, here fixed windows are embedded and averaged; for fusion
models it calls a random sound "longer", here none is, as no window is longer than the model's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.encoders import checkpoints, image_text
from rewards.encoders.audio import AudioEncoder
from rewards.encoders.audio_frontend import LogMel, fit_length
from workbench.core.errors import BadInput


def load_clap(model: str) -> AudioEncoder:
    """The CLAP model of this name. Raises BadInput."""
    if model.startswith("laion:"):
        net, tokenise = _load_laion(model.removeprefix("laion:"))
        settings: dict[str, Any] = {"truncation": "fusion" if net.config.audio_config.enable_fusion else "rand_trunc"}
        settings |= {"frequency_min": 50, "feature_size": net.config.audio_config.num_mel_bins}
    else:
        net, tokenise, settings = _load_transformers(model)
    return _build_encoder(model, net, tokenise, settings)


def _build_encoder(model: str, net: torch.nn.Module, tokenise: Any, settings: Mapping[str, Any]) -> AudioEncoder:
    fusion, rate = net.config.audio_config.enable_fusion, settings.get("sampling_rate", 48000)
    front = LogMel(
        rate,
        settings.get("fft_window_size", 1024),
        settings.get("hop_length", 480),
        settings.get("feature_size", 64),
        settings.get("frequency_min", 0),
        settings.get("frequency_max", 14000),
        *(("htk", False) if settings.get("truncation", "fusion") == "fusion" else ("slaney", True)),
    )
    seconds, padding = settings.get("max_length_s", 10), settings.get("padding", "repeatpad")
    longest = net.config.text_config.max_position_embeddings - net.config.text_config.pad_token_id - 1

    def embed_windows(x: Tensor) -> Tensor:  # [N,l] -> [N,D]
        mel = front(fit_length(x.float(), seconds * rate, padding))[:, None].to(net.logit_scale_a.dtype)  # [N,1,T,bins]
        longer = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        return net.get_audio_features(mel.expand(-1, 4, -1, -1) if fusion else mel, is_longer=longer).pooler_output

    def embed_text(prompt: str) -> Tensor:  # [D]
        ids = tokenise(prompt, truncation=True, max_length=longest, return_tensors="pt").to(net.logit_scale_a.device)
        if ids["input_ids"].shape[1] == longest:
            image_text.warn_truncated(model, longest, prompt)
        return net.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output[0]

    view = f"{front} {seconds} {padding}"
    return AudioEncoder(
        model, net, rate, seconds, seconds / 2, embed_windows, net.config.projection_dim, True, embed_text, view
    )


def _load_transformers(model: str) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    import transformers

    folder = image_text.resolve_model(model)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        if config.model_type != "clap":
            raise BadInput(f"{model} is a {config.model_type} model; sounds are heard through clap models")
        net, report = transformers.ClapModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        tokenise = transformers.AutoTokenizer.from_pretrained(folder)
        settings, _ = transformers.ClapFeatureExtractor.get_feature_extractor_dict(folder)
    except BadInput:
        raise
    except (OSError, RuntimeError, ValueError, checkpoints.safetensors.SafetensorError) as error:
        line = checkpoints.first_line(error)
        raise BadInput(f"can't load {model}: {line}; give a CLAP model's folder or a hub id") from None
    if absent := [k for k in report["missing_keys"] if not k.endswith(_BUFFERS)]:
        raise BadInput(f"{model}: its weights lack {absent[0]}")
    return net, tokenise, settings.get("feature_extractor", settings)


_BUFFERS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
_NAMES = (("attn", "attention.self"), ("self.proj", "output.dense"), ("mlp.fc1", "intermediate.dense"))
_NAMES += (("mlp.fc2", "output.dense"), ("norm1", "layernorm_before"), ("norm2", "layernorm_after"))
_NAMES += (("bn0", "batch_norm"),)
# what laion_clap keeps in its files besides the two towers and their projections
_UNUSED = re.compile(r"(audio|text)_transform|_extractor\.|tscam_conv|audio_branch\.head|attn_mask|position_ids")


def _load_laion(source: str) -> tuple[torch.nn.Module, Any]:
    """A checkpoint of laion_clap as transformers' model, its sizes read from its shapes; and RoBERTa's tokenizer, from
    the file's own folder where that has one."""
    import transformers

    with torch.serialization.safe_globals(_numpy_scalars()):  # these files hold the epoch's metrics as numpy scalars
        state = rename_laion_weights(checkpoints.read_weights(source), source)
    with checkpoints.BlankInit():
        net = transformers.ClapModel(_infer_config(state, source))
    template = net.state_dict()
    state |= {k: v for k, v in template.items() if k.endswith(_BUFFERS) and k not in state}
    checkpoints.fill_weights(net, {k: v for k, v in state.items() if k in template or not k.endswith(_BUFFERS)}, source)
    folder = Path(source).expanduser().parent
    has_tokenizer = (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()
    try:
        return net, transformers.AutoTokenizer.from_pretrained(folder if has_tokenizer else "roberta-base")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"no tokenizer for {source} ({checkpoints.first_line(error)}); put RoBERTa's beside it"
        ) from None


def _numpy_scalars() -> list[Any]:
    return [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8"))]


def rename_laion_weights(state: Mapping[str, Tensor], source: str = "") -> dict[str, Tensor]:
    """laion_clap's names and shapes -> transformers'."""
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if _UNUSED.search(name):
            continue
        name = re.sub(r"_projection\.(\d)\.", lambda m: f"_projection.linear{1 if m[1] == '0' else 2}.", name)
        name = name.replace("text_branch.", "text_model.")
        if name.startswith("audio_branch."):
            for old, new in _NAMES:
                name = name.replace(old, new)
            name = name.replace("audio_branch.", "audio_model.audio_encoder.")
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            weights |= {name.replace("qkv", part): rows for part, rows in parts}
        else:
            weights[name] = value
    return weights


def _infer_config(state: Mapping[str, Tensor], source: str) -> Any:
    import transformers

    def count_layers(pattern: str) -> int:
        return 1 + max((int(m[1]) for m in (re.search(pattern, k) for k in state) if m), default=-1)

    audio, text = "audio_model.audio_encoder", "text_model.embeddings"
    try:
        width, _, patch, _ = state[f"{audio}.patch_embed.proj.weight"].shape
        blocks = [f"{audio}.layers.{i}.blocks" for i in range(count_layers(rf"{audio}\.layers\.(\d+)\.blocks"))]
        tables = [state[f"{b}.0.attention.self.relative_position_bias_table"].shape for b in blocks]
        words, hidden = state[f"{text}.word_embeddings.weight"].shape
        space = state["audio_projection.linear1.weight"].shape[0]
        settings = {
            "audio_config": {
                "patch_embeds_hidden_size": width,
                "patch_size": patch,
                "patch_stride": [patch, patch],
                "depths": [count_layers(rf"{re.escape(b)}\.(\d+)\.") for b in blocks],
                "num_attention_heads": [heads for _, heads in tables],
                "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
                "num_mel_bins": len(state[f"{audio}.batch_norm.weight"]),
                "hidden_size": width * 2 ** (len(blocks) - 1),
                "enable_fusion": any("fusion_model" in k for k in state),
                "projection_dim": space,
            },
            "text_config": {
                "vocab_size": words,
                "hidden_size": hidden,
                "num_hidden_layers": count_layers(r"text_model\.encoder\.layer\.(\d+)\."),
                "num_attention_heads": max(hidden // 64, 1),
                "intermediate_size": len(state["text_model.encoder.layer.0.intermediate.dense.bias"]),
                "max_position_embeddings": len(state[f"{text}.position_embeddings.weight"]),
                "type_vocab_size": len(state[f"{text}.token_type_embeddings.weight"]),
                "layer_norm_eps": 1e-5,  # RoBERTa's
                "projection_dim": space,
            },
            "projection_dim": space,
        }
    except KeyError as error:
        raise BadInput(f"{source} lacks {error.args[0]}: these are not the weights of a CLAP") from None
    return transformers.ClapConfig(**settings)
