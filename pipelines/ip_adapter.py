"""IP-Adapters (arXiv:2308.06721): weights beside a denoiser's attention, by which it reads a reference picture.

`ip_adapter: {repo: h94/IP-Adapter, file: models/ip-adapter_sd15.safetensors, encoder: models/image_encoder}` in a
pipeline's config adds one, and `inputs: {reference: ip_adapter_image}` gives it the picture of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pipelines.component_sources import adapter_sources, download_file, explain_error
from pipelines.components import LIBRARY_ERRORS, find_pipeline_class, load_component
from pipelines.config import IPAdapterConfig, PipelineConfig
from workbench.core.errors import BadInput
from workbench.core.weights import files as weight_files

ARGUMENT = "ip_adapter_image"
PARTS = ("image_proj", "ip_adapter")  # of the tensors in an adapter's file: before the denoiser, and in its attention
ENCODER = ["transformers", "CLIPVisionModelWithProjection"]


def check_ip_adapter(config: PipelineConfig) -> None:
    """Raises BadInput for a class that takes no IP-Adapter, a config that gives it no picture, and local files that are
    missing, pickled, cut off or of something else."""
    if not config.ip_adapter:
        return
    adapter = IPAdapterConfig(**config.ip_adapter)
    if not (hasattr(find_pipeline_class(config.pipeline), "load_ip_adapter") and _has_unet(config)):
        raise BadInput(
            f"ip_adapter: {config.pipeline} can't be given one here; pipelines of the Stable Diffusion and SDXL "
            "families can"
        )
    if ARGUMENT not in config.inputs.values():
        raise BadInput(f"ip_adapter: nothing gives it a picture; say inputs: {{reference: {ARGUMENT}}}")
    if not adapter.file.endswith(".safetensors"):
        raise BadInput(f"ip_adapter.file: {adapter.file} is not a .safetensors file; {weight_files.NO_PICKLES}")
    weights, encoder = adapter_sources(adapter)
    if path := weights.path:
        weight_files.check_file(path)
        if {name.partition(".")[0] for name in weight_files.read_shapes(path)} != set(PARTS):
            raise BadInput(
                f"ip_adapter.file: {path} holds no IP-Adapter, whose tensors begin with {' and '.join(PARTS)}"
            )
    if encoder is not None and encoder.folder is not None:
        weight_files.check_weights(encoder.folder)
    elif encoder is not None and replace(encoder, subfolder="").folder is not None:
        raise BadInput(f"ip_adapter.encoder: there is no folder {adapter.encoder} in {adapter.repo}")


def install_ip_adapter(pipe: Any, config: PipelineConfig, dtype: torch.dtype, shared: Mapping[str, Any]) -> None:
    """Load the config's IP-Adapter into the pipeline, whose `shared` components are those of another one. Raises
    BadInput for weights that don't fit the denoiser."""
    import safetensors.torch

    adapter = IPAdapterConfig(**config.ip_adapter)
    weights, encoder = adapter_sources(adapter)
    if "image_encoder" in shared:
        pipe.register_modules(image_encoder=shared["image_encoder"])
    elif encoder is not None:
        pipe.register_modules(image_encoder=load_component(encoder, ENCODER, dtype, ""))
    if "unet" in shared:
        return
    path = weights.path or download_file(weights)
    tensors = safetensors.torch.load_file(path)
    state = {
        part: {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        for part in PARTS
    }
    try:
        pipe.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
    except LIBRARY_ERRORS as error:
        raise BadInput(f"ip_adapter: {path} doesn't fit this {config.pipeline}: {explain_error(error)}") from error
    if pipe.image_encoder is None:
        raise BadInput(
            f"ip_adapter: {config.repo} has no image_encoder; say encoder: the folder of one in {adapter.repo}"
        )
    pipe.set_ip_adapter_scale(adapter.scale)


def _has_unet(config: PipelineConfig) -> bool:
    return "unet" in find_pipeline_class(config.pipeline)._get_signature_types()
