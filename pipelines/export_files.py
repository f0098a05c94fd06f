"""The files of an export: for diffusers, for peft and for ComfyUI. export.py checks what they do."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.layer_names import comfy_key, find_naming
from pipelines.lora_conversion import without_warnings
from pipelines.lora_file import ADAPTER_METADATA
from pipelines.lora_source import PEFT_WEIGHTS, WEIGHTS
from pipelines.lora_start import Factors

EXPERT = "transformer_2"  # the second expert, of Wan 2.2 for example, has a file of its own
CLIP_LAYERS = "encoder.layers."  # the layers of text encoders that ComfyUI knows by diffusers' names


def load_line(name: str, layout: str) -> str:
    """The Python that loads one network's files of an export in `{folder}` into `pipe`."""
    if layout == "merged":
        place = f'"{{folder}}/merged/{name}", torch_dtype=pipe.{name}.dtype'
        return f"pipe.{name} = type(pipe.{name}).from_pretrained({place})"
    if layout == "peft":
        return f'pipe.{name} = peft.PeftModel.from_pretrained(pipe.{name}, "{{folder}}/{name}").base_model.model'
    if name == EXPERT:
        return f'pipe.load_lora_weights("{{folder}}/{name}", load_into_{name}=True)'
    return 'pipe.load_lora_weights("{folder}")'


def peft_config(weights: Factors) -> dict[str, Any]:
    """peft's settings for a LoRA of scale 1: alpha is the rank of each layer."""
    ranks = {layer: len(a) for layer, (a, _) in weights.items()}
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    settings: dict[str, Any] = {"r": rank, "lora_alpha": rank, "target_modules": sorted(weights)}
    if others := {f"^{layer}": r for layer, r in ranks.items() if r != rank}:
        settings |= {"rank_pattern": others, "alpha_pattern": others}
    return settings


def name_tensors(weights: Factors, prefix: str) -> dict[str, Tensor]:
    """A and B under peft's names."""
    return {f"{prefix}{key}.lora_{x}.weight": ab[i] for key, ab in weights.items() for i, x in enumerate("AB")}


def write_for_diffusers(
    pipe: Any, name: str, weights: Factors, encoders: Mapping[str, Factors], folder: Path, about: Mapping[str, str]
) -> str:
    """Write the LoRA of a denoiser, and those of text encoders with it, and load the file into `pipe`; returns the
    Python that does."""
    second, prefix = name == EXPERT, name.removesuffix("_2")
    target = folder / name if second else folder
    target.mkdir(exist_ok=True)
    networks = {prefix: weights} | ({} if second else dict(encoders))
    settings = {f"{net}.{key}": v for net, factors in networks.items() for key, v in peft_config(factors).items()}
    tensors = {k: v for net, factors in networks.items() for k, v in name_tensors(factors, f"{net}.").items()}
    save_file(tensors, target / WEIGHTS, {**about, ADAPTER_METADATA: json.dumps(settings, sort_keys=True)})
    with without_warnings():
        pipe.load_lora_weights(str(target), weight_name=WEIGHTS, **({f"load_into_{EXPERT}": True} if second else {}))
    return load_line(name, "lora")


def write_for_peft(pipe: Any, name: str, weights: Factors, folder: Path, about: Mapping[str, str]) -> str:
    """Write the LoRA of one network in peft's layout and load it into `pipe`; returns the Python that does."""
    from peft import LoraConfig, PeftModel

    target = folder / name
    LoraConfig(**peft_config(weights), inference_mode=True).save_pretrained(str(target))
    save_file(name_tensors(weights, "base_model.model."), target / PEFT_WEIGHTS, dict(about))
    PeftModel.from_pretrained(getattr(pipe, name), target)  # adapts the module in place, too
    return load_line(name, "peft")


def write_for_comfy(
    module: Any, name: str, weights: Factors, encoders: Mapping[str, Factors], folder: Path, about: Mapping[str, str]
) -> list[str]:
    """Write a LoRA for ComfyUI, where it knows the denoiser; returns sentences on what is not in the file."""
    naming = find_naming(module)
    if naming is None:
        return [f"no ComfyUI file: how it calls the layers of {type(module).__name__} is not known"]
    tensors: dict[str, Tensor] = {}
    notes = []
    if left_out := sorted(weights.keys() & {*naming.lacking}):
        notes.append(f"the ComfyUI file lacks {', '.join(left_out)}, which ComfyUI's model has not")
    for layer, factors in weights.items():
        if layer not in left_out:
            tensors |= _comfy_tensors(comfy_key(layer, naming), *factors)
    for network, layers in encoders.items() if name != EXPERT else ():
        known = {layer: factors for layer, factors in layers.items() if CLIP_LAYERS in layer}
        for layer, factors in known.items():
            tensors |= _comfy_tensors(f"{network}.text_model.{layer.removeprefix('text_model.')}", *factors)
        if len(known) < len(layers):
            notes.append(f"the ComfyUI file lacks {len(layers) - len(known)} layers of the {network}: it has no names")
    ranks = {len(a) for a, _ in weights.values()}
    about = {**about, "ss_network_dim": str(max(ranks)), "ss_network_alpha": str(float(max(ranks)))}
    save_file(tensors, folder / f"comfyui{'_2' if name == EXPERT else ''}.safetensors", about)
    return notes


def _comfy_tensors(key: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(float(len(a)))}
