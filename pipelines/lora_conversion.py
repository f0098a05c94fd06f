"""LoRA layers with the names of other codebases, made into a pipeline's own by diffusers' converters.

They also split fused projections. Every tensor is followed through them, so that it is known what became of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pipelines.lora_file import KEY, LoraPair
from pipelines.lora_layers import PREFIXES, LayerLora, LayerNames, output_norms

KeyForm = Callable[[str, LoraPair], tuple[str, ...]]  # keys of A, B and bias of a layer


def convert_layers(
    pairs: Mapping[str, LoraPair], tensors: Mapping[str, Tensor], pipe_class: Any, names: LayerNames
) -> dict[tuple[str, str], LayerLora]:
    """Layers of the pipeline, made by diffusers' converter from layers with names of another codebase. Those that it
    does not know are left out."""
    if not pairs or not hasattr(pipe_class, "lora_state_dict"):
        return {}
    best: dict[tuple[str, str], LayerLora] = {}
    for form in _key_forms():
        result = _convert_in_form(form, pairs, tensors, pipe_class, names)
        if len(_sources_of(result)) > len(_sources_of(best)):
            best = result
        if len(_sources_of(best)) == len(pairs):
            return best
    if len(pairs) > 1:  # one layer that a converter does not know must not cost the others
        for layer in pairs.keys() - _sources_of(best):
            best |= convert_layers({layer: pairs[layer]}, tensors, pipe_class, names)
    return best


def _convert_in_form(
    form: KeyForm, pairs: Mapping[str, LoraPair], tensors: Mapping[str, Tensor], pipe_class: Any, names: LayerNames
) -> dict[tuple[str, str], LayerLora]:
    one_scale = len({pair.scale for pair in pairs.values()}) == 1  # else it goes into B, as layers may be joined
    scale = next(iter(pairs.values())).scale if one_scale else 1.0
    state, norms = {}, {}
    for layer, pair in pairs.items():
        down, up, bias = form(layer, pair)
        a, b = tensors[pair.down], tensors[pair.up]
        state[down], state[up] = _follow(a, layer), _follow(b if one_scale else b.float() * pair.scale, layer)
        if pair.bias:
            state[bias] = _follow(tensors[pair.bias], layer)
        if pair.magnitude:  # the rows of B are split as the layer's outputs are
            rows = output_norms(pair, tensors).view(-1, *[1] * (b.dim() - 1))
            norms[down], norms[up] = _follow(a, layer), _follow(rows.expand_as(b), layer)
    layers = _read_converted(_run_converter(pipe_class, state, names), names, scale)
    split = _read_converted(_run_converter(pipe_class, norms, names), names, 1.0) if norms else {}
    layers |= {
        place: replace(lora, magnitude=split[place].b.flatten(1)[:, 0].contiguous())
        for place, lora in layers.items()
        if place in split
    }
    return {place: _with_whole_rank(lora, pairs, tensors) for place, lora in layers.items()}


def _sources_of(layers: Mapping[Any, LayerLora]) -> set[str]:
    return {source for lora in layers.values() for source in lora.sources}


def _with_whole_rank(lora: LayerLora, pairs: Mapping[str, LoraPair], tensors: Mapping[str, Tensor]) -> LayerLora:
    """With the file's own A where the converter cut it although B kept all of its columns, as that of HunyuanVideo does
    for the refiner's fused projections."""
    if len(lora.sources) != 1:
        return lora
    (source,) = lora.sources
    a = tensors[pairs[source].down]
    if lora.b.shape[1] != len(lora.a) and lora.b.shape[1] == len(a):
        return replace(lora, a=a)
    return lora


def _key_forms() -> Iterator[KeyForm]:
    """The file's own spelling, then those that converters know: of ai-toolkit, of original checkpoints, and kohya's, as
    some files mix names and endings."""
    dotted = [prefix for prefix, target in PREFIXES if not target and prefix.endswith(".")]

    def bare(layer: str) -> str:
        return next((layer.removeprefix(p) for p in dotted if layer.startswith(p)), layer)

    def spell(start: str, dot: str, ends: tuple[str, ...]) -> KeyForm:
        return lambda layer, pair: tuple(
            f"{start}{bare(layer).removeprefix(start).replace('.', dot)}.{end}" for end in ends
        )

    yield lambda layer, pair: (pair.down, pair.up, pair.bias)
    yield spell("diffusion_model.", ".", ("lora_A.weight", "lora_B.weight", "diff_b"))
    yield spell("transformer.", ".", ("lora_A.weight", "lora_B.weight", "lora_B.bias"))
    yield spell("lora_unet_", "_", ("lora_down.weight", "lora_up.weight", "diff_b"))


class _Provenance(TorchFunctionMode):
    """Inside the context, results of torch functions know the layers of the file that their inputs came from."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sources = frozenset().union(*(_sources(value) for value in tree_leaves((args, kwargs))))
        if sources:
            written = [args[0]] if result is None and args else []  # x[...] = value
            for value in [*tree_leaves(result), *written]:
                if isinstance(value, Tensor):
                    value._lora_sources = sources
        return result


def _follow(value: Tensor, layer: str) -> Tensor:
    value = value.clone()
    value._lora_sources = frozenset({layer})  # type: ignore[attr-defined]
    return value


def _sources(value: Any) -> frozenset[str]:
    return getattr(value, "_lora_sources", frozenset()) if isinstance(value, Tensor) else frozenset()


def _run_converter(pipe_class: Any, state: dict[str, Tensor], names: LayerNames) -> dict[str, Tensor]:
    """The state as diffusers' converter returns it; {} where it does not know the layout."""
    settings = {"unet_config": names.configs["unet"]} if "unet" in names.configs else {}
    try:
        with without_warnings(), _Provenance():
            result = pipe_class.lora_state_dict(dict(state), **settings)
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError, TypeError, AssertionError):
        return {}  # what it can't convert has no place, and is told or refused as such
    return result[0] if isinstance(result, tuple) else result


def _read_converted(state: Mapping[str, Tensor], names: LayerNames, scale: float) -> dict[tuple[str, str], LayerLora]:
    """The layers in a converted state that are the pipeline's."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        match = KEY.fullmatch(key)
        place = names.find(match["layer"]) if match else None
        if match is None or place is None:
            continue
        half = "a" if match["ab"] == "A" or "down" in (match["half"], match["old"]) else "b"
        parts.setdefault(place, {})["bias" if match["kind"] == "bias" or match["bias"] else half] = value
    return {
        place: LayerLora(
            p["a"], p["b"], scale, None, p.get("bias"), frozenset().union(*(_sources(value) for value in p.values()))
        )
        for place, p in parts.items()
        if {"a", "b"} <= set(p)
    }


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside the context, diffusers doesn't warn of keys that it doesn't know: all are accounted for afterwards."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
