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

MOST = 10_000_000  # samples of a window, and any other length in a front end


def load_clap(model: str) -> AudioEncoder:
    """The CLAP model of this name. Raises BadInput."""
    import transformers

    if model.startswith("laion:"):
        net, tokenise = _load_laion(model.removeprefix("laion:"))
        audio = net.config.audio_config
        truncation = "fusion" if audio.enable_fusion else "rand_trunc"
        extractor = transformers.ClapFeatureExtractor(
            feature_size=audio.num_mel_bins, frequency_min=50, truncation=truncation
        )
    else:
        net, tokenise, extractor = _load_transformers(model)
    return _build_encoder(model, net, tokenise, extractor)


def read_front_end(extractor: Any, audio: Any) -> LogMel:
    """The log-mel picture that a ClapFeatureExtractor makes for an audio tower of these settings. Raises BadInput,
    naming the key, for one that does not fit the tower or that does anything else."""
    choices = {
        "truncation": ("fusion" if audio.enable_fusion else "rand_trunc",),
        "feature_size": (audio.num_mel_bins,),
        "padding": ("repeatpad", "repeat", "pad"),
    }
    for key, values in choices.items():
        if (value := getattr(extractor, key)) not in values:
            raise BadInput(f"{key} is {value!r}, and the model takes {' or '.join(map(repr, values))}")
    for key in ("sampling_rate", "fft_window_size", "hop_length", "nb_max_samples"):
        value = getattr(extractor, key)
        if type(value) is not int or not 0 < value <= MOST:
            key = key if key != "nb_max_samples" else "max_length_s times sampling_rate"
            raise BadInput(f"{key} is {value!r:.50}; it needs a whole number from 1 to {MOST:,}")
    filters = ("htk", False) if extractor.truncation == "fusion" else ("slaney", True)
    front = LogMel(
        extractor.sampling_rate, extractor.fft_window_size, extractor.hop_length, extractor.feature_size,
        extractor.frequency_min, extractor.frequency_max, *filters,
    )  # fmt: skip
    length = extractor.nb_max_samples
    x = torch.rand(1, max(length // 3, 1), generator=torch.Generator().manual_seed(0)) - 0.5
    try:
        theirs = torch.from_numpy(extractor(x[0].numpy(), sampling_rate=front.rate)["input_features"][0][0])
        ours = front(fit_length(x, length, extractor.padding))[0]
    except Exception as error:  # of any kind: transformers does not check what is in the file
        raise BadInput(f"ClapFeatureExtractor fails with it: {checkpoints.first_line(error)}") from None
    if ours.shape != theirs.shape or (ours - theirs)[theirs > -80].abs().max() > 0.01:  # decibels
        raise BadInput("ClapFeatureExtractor hears a sound otherwise than rewards do with these settings")
    return front


def _build_encoder(model: str, net: torch.nn.Module, tokenise: Any, extractor: Any) -> AudioEncoder:
    fusion, rate = net.config.audio_config.enable_fusion, extractor.sampling_rate
    try:
        front = read_front_end(extractor, net.config.audio_config)
    except BadInput as error:
        raise BadInput(f"{model}: preprocessor_config.json: {error}") from None
    length, padding = extractor.nb_max_samples, extractor.padding
    seconds = length / rate
    longest = net.config.text_config.max_position_embeddings - net.config.text_config.pad_token_id - 1

    def embed_windows(x: Tensor) -> Tensor:  # [N,l] -> [N,D]
        mel = front(fit_length(x.float(), length, padding))[:, None].to(net.logit_scale_a.dtype)  # [N,1,T,bins]
        longer = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        return net.get_audio_features(mel.expand(-1, 4, -1, -1) if fusion else mel, is_longer=longer).pooler_output

    def embed_text(prompt: str) -> Tensor:  # [D]
        ids = tokenise(prompt, truncation=True, max_length=longest, return_tensors="pt").to(net.logit_scale_a.device)
        if ids["input_ids"].shape[1] == longest:
            image_text.warn_truncated(model, longest, prompt)
        return net.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output[0]

    view = f"{front} {length} {padding}"
    return AudioEncoder(
        model, net, rate, seconds, seconds / 2, embed_windows, net.config.projection_dim, True, embed_text, view
    )


def _load_transformers(model: str) -> tuple[torch.nn.Module, Any, Any]:
    import transformers

    folder = image_text.resolve_model(model)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type != "clap":
            raise BadInput(f"{model} is a {config.model_type} model; sounds are heard through clap models")
        net = checkpoints.load_pretrained(transformers.ClapModel, folder, model)
        tokenise = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BadInput:
        raise
    except (OSError, RuntimeError, ValueError, checkpoints.safetensors.SafetensorError) as error:
        line = checkpoints.first_line(error)
        raise BadInput(f"can't load {model}: {line}; give a CLAP model's folder or a hub id") from None
    try:
        extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    except Exception as error:  # of any kind: transformers does not check what is in the file
        line = checkpoints.first_line(error)
        raise BadInput(f"{model}: its preprocessor_config.json can't be read ({line}); copy the model's own") from None
    return net, tokenise, extractor


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
