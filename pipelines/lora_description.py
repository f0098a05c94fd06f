"""What a LoRA file says of itself: layout, family of the base with the evidence, ranks, strengths, trigger words."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.lora_file import LoraFile
from pipelines.lora_source import BASE_FINGERPRINT, BASE_MODEL
from workbench.core.errors import BadInput
from workbench.core.io.parsing import one_line, parse_json

# Layout of a file by the first of these that a layer's name matches.
LAYOUTS = (
    (r"lora_(te\d?|unet)_", "kohya"),
    (r"lora_transformer_", "OneTrainer"),
    (r"lycoris_", "LyCORIS"),
    (r"(double|single)_blocks\.\d+\.processor\.", "XLabs"),
    (r".*\.processor\.", "diffusers, old attention processors"),
    (r"(model\.)?diffusion_model\.", "ai-toolkit or ComfyUI"),
    (r"base_model\.model\.", "peft"),
    (r"(unet|transformer|text_encoder)(_\d)?\.", "diffusers"),
)
# Families by the names of their layers; where several have the same names, by the inputs of one of them.
FAMILIES = (
    ("HunyuanVideo", r"\.(img|txt)_attn_qkv|(img|txt)_mlp.fc[12]|token_refiner", None),
    ("FLUX.2", r"double_stream_modulation|single_stream_modulation|to_qkv_mlp_proj", None),
    ("FLUX.2", r"double_blocks.\d+.img_attn.(qkv|proj)", {6144, 4096}),
    ("FLUX.1", r"double_blocks.\d+|single_transformer_blocks.\d+", None),
    ("Qwen-Image", r"transformer_blocks.\d+.(img_mlp|txt_mlp|img_mod|txt_mod)", None),
    ("Qwen-Image", r"transformer_blocks.\d+.attn.add_[qkv]_proj", {3072}),
    ("Stable Diffusion 3", r"transformer_blocks.\d+.attn.add_[qkv]_proj|joint_blocks", None),
    ("Wan", r"blocks.\d+.(self_attn|cross_attn)|(?<!transformer_)blocks.\d+.attn[12].to_", None),
    ("ACE-Step", r"layers.\d+.(self_attn|cross_attn)", None),
    ("Z-Image", r"(noise_refiner|context_refiner)|layers.\d+.attention", None),
    ("Stable Diffusion 1", r"(down|up|mid)_blocks?.*attn2.to_[kv]|(in|out)put_blocks.*attn2.to_[kv]", {768}),
    ("Stable Diffusion 2", r"(down|up|mid)_blocks?.*attn2.to_[kv]|(in|out)put_blocks.*attn2.to_[kv]", {1024}),
    ("Stable Diffusion XL", r"(down|up|mid)_blocks?.*attn2.to_[kv]|(in|out)put_blocks.*attn2.to_[kv]", {2048}),
    ("Stable Diffusion (which one the shapes don't say)", r"(down|up|mid)_blocks?|(input|output|middle)_block", None),
    ("LTX-Video, PixArt or CogVideoX", r"transformer_blocks.\d+.attn[12]", None),
)
BASE_KEYS = (
    BASE_MODEL,
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_v2",
    "base_model_name",
)
WORD_KEYS = ("modelspec.trigger_phrase", "trigger_words", "trigger_word", "instance_prompt", "activation text")
TITLE_KEYS = ("modelspec.title", "ss_output_name", "name", "software", "method", "run")
UNKNOWN = "not known"  # of families and layouts
TAGS, MAX_TAGS = "ss_tag_frequency", 10  # kohya: {folder: {tag: how often it stands in the captions}}


@dataclass(frozen=True)
class LayerGroup:
    """The layers of a file that change one network in one way."""

    network: str  # denoiser, text encoder, text encoder 2, ...
    layers: int
    ranks: dict[str, int]  # rank -> layers
    alphas: dict[str, int]  # alpha, or "not recorded" -> layers
    dora: int  # layers with DoRA's norms
    convolutions: int


@dataclass(frozen=True)
class LoraDescription:
    file: str
    layout: str
    family: str
    evidence: tuple[str, ...]
    title: str
    fingerprint: str  # of the base; "" where it is not recorded
    groups: tuple[LayerGroup, ...]
    parameters: int
    trigger_words: tuple[str, ...]
    others: tuple[str, ...]  # keys that belong to no LoRA

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def describe_lora_file(file: LoraFile) -> LoraDescription:
    """What the file is, by its metadata, the names of its layers and their shapes. All text is one line each."""
    metadata = file.metadata
    family, evidence = find_family(file)
    groups: dict[str, list[str]] = {}
    for layer in file.pairs:
        groups.setdefault(_network_of(layer), []).append(layer)
    return LoraDescription(
        file=one_line(file.path.name, 150),
        layout=_find_layout(file),
        family=family,
        evidence=tuple(evidence),
        title=", ".join(one_line(metadata[key], 80) for key in TITLE_KEYS if metadata.get(key)),
        fingerprint=one_line(metadata.get(BASE_FINGERPRINT, ""), 40),
        groups=tuple(_describe_group(name, layers, file) for name, layers in sorted(groups.items())),
        parameters=file.parameters,
        trigger_words=tuple(_trigger_words(metadata)),
        others=tuple(one_line(key, 100) for key in file.others),
    )


def _find_layout(file: LoraFile) -> str:
    names = collections.Counter(
        next((name for pattern, name in LAYOUTS if re.match(pattern, layer)), UNKNOWN) for layer in file.pairs
    )
    return " and ".join(name for name, _ in names.most_common(2))


def find_family(file: LoraFile) -> tuple[str, list[str]]:
    """The family by names and shapes, and the evidence for it; what the metadata says stands beside it."""
    evidence = [f"{key}: {one_line(file.metadata[key], 80)}" for key in BASE_KEYS if file.metadata.get(key)]
    names = [layer for layer in file.pairs if _network_of(layer) == "denoiser"]
    for family, pattern, widths in FAMILIES:
        hits = [layer for layer in names if re.search(pattern, layer[:200])]
        hits = [layer for layer in hits if widths is None or file.pairs[layer].inputs in widths]
        if hits:
            pair = file.pairs[hits[0]]
            shapes = f" ({pair.inputs:,} inputs, {pair.outputs:,} outputs)"
            return family, [*evidence, f"{len(hits)} layers such as {one_line(hits[0], 90)}{shapes}"]
    return UNKNOWN, evidence


def _network_of(layer: str) -> str:
    if match := re.match(r"lora_te(\d?)_|text_encoder(?:_(\d))?\.", layer):
        number = match[1] or match[2] or "1"
        return "text encoder" if number == "1" else f"text encoder {number}"
    return "denoiser"


def _describe_group(network: str, layers: list[str], file: LoraFile) -> LayerGroup:
    pairs = [file.pairs[layer] for layer in layers]
    return LayerGroup(
        network,
        len(pairs),
        _count(str(pair.rank) for pair in pairs),
        _count("not recorded" if pair.alpha is None else f"{pair.alpha:g}" for pair in pairs),
        sum(bool(pair.magnitude) for pair in pairs),
        sum(len(file.shapes[pair.down]) > 2 and math.prod(file.shapes[pair.down][2:]) > 1 for pair in pairs),
    )


def _count(values: Any) -> dict[str, int]:
    return dict(collections.Counter(values).most_common())


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    words = [one_line(metadata[key], 200) for key in WORD_KEYS if metadata.get(key)]
    counts: collections.Counter[str] = collections.Counter()
    try:
        folders = parse_json(metadata.get(TAGS, "{}"), TAGS)
    except BadInput:
        folders = {}  # a hint, not part of the LoRA
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            counts[tag] += count if isinstance(count, int) else 0
    tags = [f"{one_line(tag.strip(), 80)} ({count:,} captions)" for tag, count in counts.most_common(MAX_TAGS)]
    return [*words, *tags]
