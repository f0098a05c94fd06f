"""Audiobox Aesthetics: four judgements of any sound on a scale of 1 to 10 (arXiv:2502.05139).

CE content enjoyment, CU content usefulness, PC production complexity, PQ production quality. WavLM-base, whose layers
each axis weighs its own way; their mean over time, of norm 1; an MLP per axis. transformers has the WavLM; the
published file's names are brought to its. Run here and not through the published class, which has no gradient outside
training. Sizes are read from the file: model.safetensors beside config.json
(github.com/facebookresearch/audiobox-aesthetics).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from rewards.encoders import checkpoints, image_text
from rewards.encoders.audio_frontend import AUDIO, mono_samples
from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json
from workbench.core.io.resampling import resample_audio
from workbench.core.types import Media, RewardSpec

AXES = ("CE", "CU", "PC", "PQ")
RATE, SECONDS = 16000, 10
STRIDES = (5, 2, 2, 2, 2, 2, 2)


class AestheticsNet(nn.Module):
    """Waves [N,l] of at most 10 s -> standardised scores [N,4]."""

    def __init__(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]):
        super().__init__()
        from transformers import WavLMModel

        self.wavlm = WavLMModel(_infer_config(state))
        heads = {axis: re.compile(rf"proj_layer\.{axis}\.(\d+)\.weight") for axis in AXES}
        self.proj_layer = nn.ModuleDict({axis: _build_head(state, pattern) for axis, pattern in heads.items()})
        layers = len(state["layer_weights.CE"])
        self.layer_weights = nn.ParameterDict({axis: nn.Parameter(torch.zeros(layers)) for axis in AXES})
        self.unit = settings.get("normalize_embed", True)
        transform = settings["target_transform"]
        self.register_buffer("mean", torch.tensor([float(transform[a]["mean"]) for a in AXES]))
        self.register_buffer("std", torch.tensor([float(transform[a]["std"]) for a in AXES]))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        layers, is_audio = self.layers(F.pad(x, (0, SECONDS * RATE - length)), length)  # [N,T,D] each; [T]
        stacked = torch.stack(layers, -1)  # [N,T,D,layers]
        scores = []
        for axis in AXES:
            pooled = (stacked @ self.layer_weights[axis].softmax(0))[:, is_audio].mean(1)  # [N,D]
            scores.append(self.proj_layer[axis](F.normalize(pooled, dim=1) if self.unit else pooled))
        return torch.cat(scores, 1)

    def layers(self, x: Tensor, length: int) -> tuple[list[Tensor], Tensor]:
        """What enters WavLM's first layer and leaves each, and which frames hold any of the first `length` samples: a
        frame is padding when its share of the wave, floor(L/T) samples, all is."""
        conv = self.wavlm.feature_extractor(x).transpose(1, 2)  # [N,T,C]
        share = x.shape[1] // conv.shape[1]
        is_audio = torch.arange(conv.shape[1], device=x.device) * share < length  # [T]
        encoder = self.wavlm.encoder
        hidden = self.wavlm.feature_projection(conv)[0] * is_audio[:, None]
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        mask, bias, states = is_audio.expand(len(x), -1), None, [hidden]
        for layer in encoder.layers:
            hidden, bias = layer(hidden, attention_mask=mask, position_bias=bias)
            states.append(hidden)
        return states[: len(self.layer_weights["CE"])], is_audio


_NAMES = (
    (r"\Awavlm_model\.", "wavlm."),
    (r"\Awavlm\.mask_emb\Z", "wavlm.masked_spec_embed"),
    (r"\Awavlm\.layer_norm\.", "wavlm.feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"conv_layers\.(\d+)\.0\.", r"conv_layers.\1.conv."),
    (r"conv_layers\.0\.2\.", "conv_layers.0.layer_norm."),
    (r"pos_conv\.0\.weight_g\Z", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv\.0\.weight_v\Z", "pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"pos_conv\.0\.bias\Z", "pos_conv_embed.conv.bias"),
    (r"self_attn_layer_norm\.", "layer_norm."),
    (r"self_attn\.grep_linear\.", "attention.gru_rel_pos_linear."),
    (r"self_attn\.grep_a\Z", "attention.gru_rel_pos_const"),
    (r"self_attn\.relative_attention_bias\.", "attention.rel_attn_embed."),
    (r"self_attn\.", "attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


def rename_weight(name: str) -> str:
    """The published file's name of a tensor -> this module's."""
    for old, new in _NAMES:
        name = re.sub(old, new, name)
    return name


def _build_head(state: Mapping[str, Tensor], weights: re.Pattern) -> nn.Sequential:
    """The axis's MLP, layer by layer as the file numbers them; what has no weight is GELU (or a dropout,
    which is idle)."""
    shapes = {int(m[1]): state[name].shape for name in state if (m := weights.fullmatch(name))}
    layers: list[nn.Module] = []
    for i in range(max(shapes) + 1):
        shape = shapes.get(i)
        if shape is None:
            layers.append(nn.GELU() if not layers or not isinstance(layers[-1], nn.GELU) else nn.Identity())
        else:
            layers.append(nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.LayerNorm(shape[0]))
    return nn.Sequential(*layers)


def _infer_config(state: Mapping[str, Tensor]) -> Any:
    from transformers import WavLMConfig

    convs = [state[f"wavlm.feature_extractor.conv_layers.{i}.conv.weight"].shape for i in range(len(STRIDES))]
    layer = "wavlm.encoder.layers.0"
    buckets, heads = state[f"{layer}.attention.rel_attn_embed.weight"].shape
    intermediate, hidden = state[f"{layer}.feed_forward.intermediate_dense.weight"].shape
    positions = state["wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape  # [D,D/groups,K]
    return WavLMConfig(
        hidden_size=hidden,
        num_hidden_layers=1
        + max(int(m[1]) for m in (re.match(r"wavlm\.encoder\.layers\.(\d+)", k) for k in state) if m),
        num_attention_heads=heads,
        intermediate_size=intermediate,
        conv_dim=[c[0] for c in convs],
        conv_kernel=[c[2] for c in convs],
        conv_stride=list(STRIDES),
        num_conv_pos_embeddings=positions[2],
        num_conv_pos_embedding_groups=hidden // positions[1],
        num_buckets=buckets,
        max_bucket_distance=800,
    )


@functools.cache
@checkpoints.isolated_load()
def _load_cached(source: str, device: str) -> AestheticsNet:
    path = checkpoints.locate_file(source)
    config_path = checkpoints.locate_file(source.rsplit("/", 1)[0] + "/config.json")
    state = {rename_weight(name): value for name, value in checkpoints.read_weights(str(path)).items()}
    try:
        settings = read_json(config_path)
        with checkpoints.BlankInit():
            net = AestheticsNet(state, settings)
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(f"{source}: not Audiobox Aesthetics as published: {checkpoints.first_line(error)}") from None
    statistics = {name: value for name, value in net.state_dict().items() if name in ("mean", "std")}
    return checkpoints.fill_weights(net, state | statistics, source).to(device)


@dataclass(frozen=True)
class Audiobox:
    """How good a sound is, 1..10, whatever the prompt: the mean of some of Audiobox Aesthetics' four axes.

    Production complexity is left out by default: more of it is not better. `score_axes` gives all four.
    """

    axes: tuple[Literal["CE", "CU", "PC", "PQ"], ...] = ("CE", "CU", "PQ")
    weights: str = "facebook/audiobox-aesthetics/model.safetensors"  # a file with config.json beside it
    checkpoint: bool = False  # recompute in the backward pass: activations are held for that moment only

    spec = RewardSpec(
        "audiobox",
        "1",
        AUDIO,
        differentiable=True,
        typical=(3.0, 8.5),
        paper="arXiv:2502.05139",
        weights="facebook/audiobox-aesthetics",
        licence="CC-BY-4.0",
    )

    def __post_init__(self):
        if not self.axes:
            raise BadInput(f"audiobox.axes: choose at least one of {', '.join(AXES)}")

    def check(self) -> None:
        checkpoints.check_source(self.weights)

    def load(self, device: torch.device | str = "cpu") -> AestheticsNet:
        return _load_cached(self.weights, image_text.device_key(device))

    def score_axes(self, media: Media, prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        """Every axis [B]. Ten seconds are heard at a time, and weigh by how much of the sound they hold."""
        x = resample_audio(mono_samples(self.spec, media, prompts), media.rate, RATE)
        net, total = self.load(x.device), 0.0
        with torch.autocast(x.device.type, enabled=False):
            for part in x.split(SECONDS * RATE, 1):
                standardised = recompute(net, part, use_reentrant=False) if self.checkpoint else net(part)
                total = total + standardised * (part.shape[1] / x.shape[1])
        return dict(zip(AXES, (total * net.std + net.mean).unbind(1), strict=True))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        scores = self.score_axes(media, prompts)
        return torch.stack([scores[axis] for axis in self.axes]).mean(0)
