"""Do exports load whole in plain diffusers, and does ComfyUI know every name in its file? Counted for each family.

    .venv/bin/python benchmarks/exports.py

Trains nothing: tiny pipelines of the true classes get a random LoRA on all linear and convolutional layers, which is
exported and loaded back. COMFYUI holds the names that ComfyUI has, as comfy/lora.py (model_lora_keys_unet),
comfy/utils.py (…_to_diffusers) and the modules in comfy/ldm give them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

N = r"\d+"
QKV_OUT = r"(to_q|to_k|to_v|to_out\.0)"
JOINT = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
FF = r"ff(_context)?\.net\.(0\.proj|2)"
TIME = r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]"
BLOCK = rf"transformer_blocks\.{N}\."
SINGLE = rf"single_transformer_blocks\.{N}\."
UNET = (
    r"conv_in", r"conv_out", r"(time|add|class)_embedding\.linear_[12]",
    rf"(down|up)_blocks\.{N}\.(down|up)samplers\.0\.conv",
    rf"((down|up)_blocks\.{N}|mid_block)\.resnets\.{N}\.(conv1|conv2|time_emb_proj|conv_shortcut)",
    rf"((down|up)_blocks\.{N}|mid_block)\.attentions\.{N}\.(proj_in|proj_out)",
    rf"((down|up)_blocks\.{N}|mid_block)\.attentions\.{N}\.{BLOCK}(attn[12]\.{QKV_OUT}|ff\.net\.(0\.proj|2))",
)  # fmt: skip
# The names of layers under each prefix that ComfyUI takes; those of U-Nets with underscores for dots.
COMFYUI: dict[str, dict[str, tuple[str, ...]]] = {
    "UNet2DConditionModel": {"lora_unet_": UNET},
    "SD3Transformer2DModel": {"transformer.": (
        r"context_embedder", TIME, r"pos_embed\.proj", r"norm_out\.linear", r"proj_out",
        rf"{BLOCK}({JOINT}|attn2\.{QKV_OUT}|{FF}|norm1(_context)?\.linear)")},
    "FluxTransformer2DModel": {"transformer.": (
        r"context_embedder", r"x_embedder", TIME, r"norm_out\.linear", r"proj_out",
        rf"{BLOCK}({JOINT}|{FF}|norm1(_context)?\.linear)",
        rf"{SINGLE}(attn\.to_[qkv]|norm\.linear|proj_out|proj_mlp)")},
    "Flux2Transformer2DModel": {
        "transformer.": (
            r"context_embedder", r"x_embedder", TIME, r"norm_out\.linear", r"proj_out",
            rf"{BLOCK}({JOINT}|ff(_context)?\.linear_(in|out))", rf"{SINGLE}attn\.(to_qkv_mlp_proj|to_out)"),
        "diffusion_model.": (r"double_stream_modulation_(img|txt)\.lin", r"single_stream_modulation\.lin")},
    "QwenImageTransformer2DModel": {"transformer.": (
        r"img_in", r"txt_in", r"time_text_embed\.timestep_embedder\.linear_[12]", r"norm_out\.linear", r"proj_out",
        rf"{BLOCK}({JOINT}|(img|txt)_mod\.1|(img|txt)_mlp\.net\.(0\.proj|2))")},
    "PixArtTransformer2DModel": {"transformer.": (
        r"pos_embed\.proj", r"caption_projection\.linear_[12]", r"proj_out", r"adaln_single\.linear",
        r"adaln_single\.emb\.(timestep|resolution|aspect_ratio)_embedder\.linear_[12]",
        rf"{BLOCK}(attn[12]\.{QKV_OUT}|ff\.net\.(0\.proj|2))")},
    "ZImageTransformer2DModel": {"transformer.": (
        r"all_x_embedder\.2-1", r"all_final_layer\.2-1\.(linear|adaLN_modulation\.1)", r"cap_embedder\.1",
        r"t_embedder\.mlp\.[02]",
        rf"(layers|context_refiner|noise_refiner)\.{N}\."
        rf"(attention\.{QKV_OUT}|feed_forward\.w[123]|adaLN_modulation\.0)")},
    "LTXVideoTransformer3DModel": {"diffusion_model.": (
        r"patchify_proj", r"adaln_single\.(linear|emb\.timestep_embedder\.linear_[12])", r"proj_out",
        r"caption_projection\.linear_[12]", rf"{BLOCK}(attn[12]\.{QKV_OUT}|ff\.net\.(0\.proj|2))")},
    "WanTransformer3DModel": {"diffusion_model.": (
        r"patch_embedding", r"(text|time)_embedding\.[02]", r"time_projection\.1", r"head\.head",
        r"img_emb\.proj\.[13]",
        rf"blocks\.{N}\.((self|cross)_attn\.([qkvo]|[kv]_img)|ffn\.[02])")},
}  # fmt: skip


def unknown_names(denoiser: str, keys: Iterable[str], layers: Iterable[str]) -> list[str]:
    """Those layers in the keys of a ComfyUI file that ComfyUI's model has not; `denoiser` is diffusers' class. `layers`
    are diffusers' names, by which the underscores of a U-Net's keys are read."""
    dotted = {layer.replace(".", "_"): layer for layer in layers}
    unknown = []
    for name in sorted(key.removesuffix(".alpha") for key in keys if key.endswith(".alpha")):
        prefix = next((p for p in COMFYUI[denoiser] if name.startswith(p)), None)
        layer = name.removeprefix(prefix or "")
        layer = dotted.get(layer, layer) if prefix and prefix.endswith("_") else layer
        if prefix is None or not any(re.fullmatch(pattern, layer) for pattern in COMFYUI[denoiser][prefix]):
            unknown.append(name)
    return unknown


def export_row(pipeline: str, folder: Path) -> dict[str, Any]:
    """One family: layers trained, loaded back by diffusers (or peft) and known to ComfyUI, and the notes."""
    from safetensors.torch import load_file
    from tiny_trained import nudge, trainable

    from pipelines import Lora, export_policy
    from pipelines.adapters import lora_layers

    policy = trainable(pipeline, kernel=None, lora=Lora(rank=2, alpha=3.0, targets="all"))
    nudge(policy)
    exported = export_policy(policy, folder)  # raises ExportMismatch unless all layers are loaded back as written
    module = next(iter(policy.adapters.denoisers.values()))
    layers, comfy = [*lora_layers(module)], folder / "comfyui.safetensors"
    row = {"family": type(module).__name__, "layers": len(layers), "diffusers": len(layers), "comfyui": None}
    if comfy.is_file():
        row["unknown"] = unknown_names(type(module).__name__, load_file(comfy), layers)
        row["comfyui"] = sum(key.endswith(".alpha") for key in load_file(comfy)) - len(row["unknown"])
    return row | {"difference": exported.difference, "notes": exported.notes}


def main() -> None:
    import tiny

    seen: set[str] = set()
    print("| denoiser | layers | loaded in plain diffusers | names that ComfyUI has |\n|---|---|---|---|")
    for pipeline in tiny.TINY:
        kind = str(sorted(type(part).__name__ for part in tiny.build(pipeline).components.values()))
        if ":" in pipeline or kind in seen:
            continue
        seen.add(kind)
        with tempfile.TemporaryDirectory() as home:
            row = export_row(pipeline, Path(home) / "out")
        said = "; ".join(row["notes"])
        known = "" if row["comfyui"] is None else f"{row['comfyui']}/{row['comfyui'] + len(row['unknown'])}"
        print(
            f"| {row['family']} | {row['layers']} | {row['diffusers']}/{row['layers']} | {known} {said} |", flush=True
        )


if __name__ == "__main__":
    main()
