"""What other programs call a denoiser's layers: the names of original checkpoints, which ComfyUI keeps.

Sources: comfy/lora.py (model_lora_keys_unet) and the modules in comfy/ldm of ComfyUI; diffusers'
scripts/convert_*_to_diffusers.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Naming(NamedTuple):
    """How ComfyUI names the layers of a denoiser in a LoRA file."""

    prefix: str
    dot: str  # in place of the dots
    renamed: dict[str, str]  # parts of diffusers' names, in this order -> the original's
    generic: tuple[str, ...] = ()  # how layers begin that are known by their original names alone, under GENERIC
    lacking: tuple[str, ...] = ()  # layers of diffusers that ComfyUI's model has not


WAN = {"attn1.": "self_attn.", "attn2.": "cross_attn.", "to_out.0": "o", "to_q": "q", "to_k": "k", "to_v": "v"} | {
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "proj_out": "head.head",
}
LTX = {"proj_in": "patchify_proj", "time_embed.": "adaln_single."}
FLUX2 = {"time_guidance_embed.": "time_text_embed.", "_modulation_img.linear": "_modulation_img.lin"} | {
    "_modulation_txt.linear": "_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}
GENERIC = "diffusion_model."  # ComfyUI takes every layer's own name under it
NAMINGS: dict[str, Naming] = {
    "UNet2DConditionModel": Naming("lora_unet_", "_", {}, lacking=("time_embedding.cond_proj",)),  # of LCM
    **{
        name: Naming("transformer.", ".", {})
        for name in [
            "SD3Transformer2DModel",
            "FluxTransformer2DModel",
            "QwenImageTransformer2DModel",
            "PixArtTransformer2DModel",
            "AuraFlowTransformer2DModel",
            "ZImageTransformer2DModel",
        ]
    },
    "Flux2Transformer2DModel": Naming(
        "transformer.", ".", FLUX2, ("double_stream_modulation", "single_stream_modulation")
    ),
    "LTXVideoTransformer3DModel": Naming(GENERIC, ".", LTX),
    "WanTransformer3DModel": Naming(GENERIC, ".", WAN),
}


def find_naming(module: nn.Module | Any) -> Naming | None:
    """How ComfyUI names the layers of this denoiser; None where that is not known, and for MusicLDM's U-Net, which
    ComfyUI has not."""
    of_sound = getattr(getattr(module, "config", None), "class_embed_type", None) == "simple_projection"
    return None if of_sound else NAMINGS.get(type(module).__name__)


def original_name(layer: str, naming: Naming) -> str:
    """A layer's name in the original checkpoint, with dots."""
    for ours, theirs in naming.renamed.items():
        layer = layer.replace(ours, theirs)
    return layer


def comfy_key(layer: str, naming: Naming) -> str:
    """The beginning of a layer's keys in a file for ComfyUI."""
    name = original_name(layer, naming)
    prefix = GENERIC if naming.generic and name.startswith(naming.generic) else naming.prefix
    return prefix + name.replace(".", naming.dot)
