"""The layers of a pipeline that can have a LoRA, found by every name that files have for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipelines.adapters import CONVOLUTIONS
from pipelines.layer_names import find_naming, original_name
from pipelines.lora_file import LoraPair
from workbench.core.errors import BadInput
from workbench.core.io.parsing import one_line

# How files call the networks of a pipeline; "" is the denoiser.
PREFIXES = (
    ("base_model.model.", ""),
    ("model.diffusion_model.", ""),
    ("diffusion_model.", ""),
    ("unet.", ""),
    ("transformer.", ""),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"),
    ("lora_unet_", ""),
    ("lora_transformer_", ""),
    ("lycoris_", ""),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("", ""),
)
# Old diffusers: attention processors had layers of their own, and text encoders took the names of U-Nets.
OLD_NAMES = ((".processor.", "."), (".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"))
DENOISERS = ("unet", "transformer", "prior", "decoder")


@dataclass(frozen=True)
class LayerLora:
    """The LoRA of one layer of a pipeline: W + scale B A."""

    a: Tensor  # [rank,in,...]
    b: Tensor  # [out,rank,...]
    scale: float
    magnitude: Tensor | None = None  # [out]: the norms of DoRA
    bias: Tensor | None = None  # [out]
    sources: frozenset[str] = frozenset()  # the layers of the file that it was made of

    @property
    def halves(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        return ("A", self.a), ("B", self.b)


def find_networks(pipe_class: Any, networks: Mapping[str, nn.Module], denoiser: str = "") -> dict[str, nn.Module]:
    """Those networks of a pipeline that a LoRA may change, its denoiser (or the one named) first."""
    first = denoiser or next((name for name in DENOISERS if name in networks), "")
    loadable = getattr(pipe_class, "_lora_loadable_modules", ())
    encoders = [n for n in networks if n.startswith("text_encoder") and n in loadable]
    return {name: networks[name] for name in (first, *encoders) if name in networks}


class LayerNames:
    """The layers of networks that can have a LoRA, by every spelling of their names."""

    def __init__(self, networks: Mapping[str, nn.Module]):
        self.denoiser = next(iter(networks), "")
        self.configs = {name: getattr(module, "config", None) for name, module in networks.items()}
        self.modules: dict[tuple[str, str], nn.Module] = {}
        self._spelt: dict[tuple[str, str], str | None] = {}
        for network, module in networks.items():
            for name, part in module.named_modules():
                if isinstance(part, (nn.Linear, *CONVOLUTIONS)):
                    self.modules[network, name] = part
            naming = find_naming(module)
            for name in [layer for net, layer in self.modules if net == network]:
                original = original_name(name, naming) if naming else name
                for spelling in {name.replace(".", "_"), original, original.replace(".", "_")} - {name}:
                    key = (network, spelling)  # None: two layers are spelt so
                    self._spelt[key] = name if self._spelt.get(key, name) == name else None

    def find(self, name: str) -> tuple[str, str] | None:
        """(network, layer) of a file's name for it, or None where no layer has that name."""
        for prefix, target in PREFIXES:
            if not name.startswith(prefix):
                continue
            network = target or self.denoiser
            for spelling in _spellings(name.removeprefix(prefix)):
                if (network, spelling) in self.modules:
                    return network, spelling
                if layer := self._spelt.get((network, spelling)):
                    return network, layer
        return None


def _spellings(name: str) -> Iterator[str]:
    """A name without its network, as the layer may be called in current versions of the libraries."""
    bare = name.removeprefix("text_model.").removeprefix("text_model_")  # CLIP has this level in some versions only
    for short in (name, bare, f"text_model.{bare}"):
        yield short
        old = short
        for before, after in OLD_NAMES:
            old = old.replace(before, after)
            yield old
        yield re.sub(r"\.to_out$", ".to_out.0", short.replace(".processor.", "."))
        yield re.sub(r"\.to_out$", ".out_proj", short)


def direct_layer(layer: str, pair: LoraPair, tensors: Mapping[str, Tensor]) -> LayerLora:
    magnitude = output_norms(pair, tensors) if pair.magnitude else None
    bias = tensors[pair.bias] if pair.bias else None
    return LayerLora(tensors[pair.down], tensors[pair.up], pair.scale, magnitude, bias, frozenset({layer}))


def output_norms(pair: LoraPair, tensors: Mapping[str, Tensor]) -> Tensor:
    """DoRA's norms [out]. Raises BadInput for norms of inputs, which an early version of LyCORIS trained."""
    norms = tensors[pair.magnitude]
    if norms.numel() != pair.outputs or (pair.magnitude.endswith("dora_scale") and norms.shape[0] != pair.outputs):
        raise BadInput(
            f"lora: {one_line(pair.magnitude, 80)} holds norms of inputs, by an early version of LyCORIS, which can't "
            "be loaded here; merge it into its model with the program that made it"
        )
    return norms.reshape(-1)
