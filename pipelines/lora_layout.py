"""Which layers of a pipeline a LoRA file means, and what becomes of each of its keys.

Names that are the pipeline's own, in whatever spelling, are looked up. Those of other codebases go through diffusers'
converters, which also split fused projections; every tensor is followed through them, so that no key of a file gets
lost unseen, and the size of each layer's change is compared with that in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pipelines.lora_conversion import convert_layers
from pipelines.lora_description import UNKNOWN, find_family
from pipelines.lora_file import LoraFile, LoraPair
from pipelines.lora_layers import PREFIXES, LayerLora, LayerNames, direct_layer
from workbench.core.errors import BadInput
from workbench.core.io.parsing import one_line

ROUNDING = 1e-3  # of the size of a layer's change: half precision


@dataclass(frozen=True)
class LoraPlacement:
    """A LoRA file on a pipeline: what is applied, and which of its keys are not, with the reason."""

    layers: dict[tuple[str, str], LayerLora]  # by (network, layer)
    dropped_keys: dict[str, str]

    def describe(self) -> list[str]:
        """Sentences on what is applied, and on what is not."""
        counts: dict[str, int] = {}
        for network, _ in self.layers:
            counts[network] = counts.get(network, 0) + 1
        lines = ["applied: " + ", ".join(f"{n} layers of the {network}" for network, n in sorted(counts.items()))]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.dropped_keys.items():
            reasons.setdefault(reason, []).append(key)
        for reason, keys in reasons.items():
            names = ", ".join(one_line(key, 80) for key in sorted(keys)[:3]) + (", …" if len(keys) > 3 else "")
            lines.append(f"not applied: {len(keys)} keys, {reason} ({names})")
        return lines


def place_lora(file: LoraFile, label: str, pipe_class: Any, networks: Mapping[str, nn.Module]) -> LoraPlacement:
    """The layers of `networks` (their denoiser first; they may be without weights) that the file changes.

    Raises BadInput where no layer of the file, or less than half of them, is one of the pipeline's, or where the shapes
    are those of another model.
    """
    names = LayerNames(networks)
    tensors = file.read_tensors()
    layers: dict[tuple[str, str], LayerLora] = {}
    foreign_layers: dict[str, LoraPair] = {}
    for layer, pair in file.pairs.items():
        if place := names.find(layer):
            layers[place] = direct_layer(layer, pair, tensors)
        else:
            foreign_layers[layer] = pair
    converted_layers = convert_layers(foreign_layers, tensors, pipe_class, names)
    if twice := sorted(layers.keys() & converted_layers.keys()):
        raise BadInput(f"{label}: has two LoRAs for {'.'.join(twice[0])}, under different names")
    layers |= converted_layers
    dropped_keys = dict.fromkeys(file.others, "which belong to no LoRA")
    used_layers = {source for lora in layers.values() for source in lora.sources}
    for layer in file.pairs.keys() - used_layers:
        reason = _missing_network(layer, networks) or f"for layers that this {pipe_class.__name__} has not"
        dropped_keys |= dict.fromkeys(file.pairs[layer].keys, reason)
    if 2 * len(used_layers) < len(file.pairs):
        missing_layers, (family, _) = file.pairs.keys() - used_layers, find_family(file)
        guess = f"; the names are those of {family}" if family != UNKNOWN else ""
        raise BadInput(
            f"{label}: {len(missing_layers)} of its {len(file.pairs)} layers have names that neither this "
            f"{pipe_class.__name__} nor diffusers' converter for it knows, {one_line(min(missing_layers), 80)} among "
            f"them{guess}"
        )
    fitted_layers = {place: _fit_shapes(label, place, lora, names.modules[place]) for place, lora in layers.items()}
    _check_sizes(label, file, tensors, [fitted_layers[place] for place in converted_layers])
    return LoraPlacement(fitted_layers, dropped_keys)


def _missing_network(layer: str, networks: Mapping[str, nn.Module]) -> str:
    """Why a layer has no place, if its network has none; else ""."""
    for prefix, target in PREFIXES:
        if prefix and layer.startswith(prefix) and target and target not in networks:
            return f"for a {target} on which diffusers loads no LoRA here"
    return ""


def _fit_shapes(label: str, place: tuple[str, str], lora: LayerLora, module: Any) -> LayerLora:
    """With A and B in the form of the layer: kernels of 1 are written as matrices by some programs, and vice versa.
    Raises BadInput for other shapes."""
    (outputs, inputs, *kernel), a, b = module.weight.shape, lora.a, lora.b
    if all(side == 1 for side in (*kernel, *a.shape[2:])):
        a, b = (t.reshape(*t.shape[:2], *[1] * len(kernel)) if t.dim() != 2 + len(kernel) else t for t in (a, b))
    want = ([len(a), inputs, *kernel], [outputs, len(a), *[1] * len(kernel)])
    if [list(a.shape), list(b.shape)] != [*want] or getattr(module, "groups", 1) != 1:
        raise BadInput(
            f"{label}: {'.'.join(place)} has weights of the shape {[*module.weight.shape]} here, and the file changes "
            f"{lora.b.shape[0]} outputs of {lora.a.shape[1]} inputs; it was made for another model"
        )
    return replace(lora, a=a, b=b)


def _check_sizes(label: str, file: LoraFile, tensors: Mapping[str, Tensor], layers: Iterable[LayerLora]) -> None:
    """Raises BadInput where a converted layer changes its weights by more or less than the file says."""
    sizes: dict[frozenset[str], float] = {}
    for lora in layers:
        sizes[lora.sources] = sizes.get(lora.sources, 0.0) + _squared_size(lora.a, lora.b, lora.scale)
    for sources, size in sizes.items():
        want = sum(
            _squared_size(tensors[file.pairs[s].down], tensors[file.pairs[s].up], file.pairs[s].scale) for s in sources
        )
        if abs(size - want) > ROUNDING * want:
            raise BadInput(
                f"{label}: diffusers' converter would apply {(size / want) ** 0.5 if want else 0:.2g} times of "
                f"{one_line(min(sources), 80)}, so the effect would not be the file's; convert it to diffusers' names"
            )


def _squared_size(a: Tensor, b: Tensor, scale: float) -> float:
    """|scale B A|^2, by the small products B'B and AA'."""
    a, b = a.float().flatten(1), b.float().flatten(1)
    return scale**2 * float(((b.T @ b).double() * (a @ a.T).double()).sum())
