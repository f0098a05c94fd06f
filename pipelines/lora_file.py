"""What a LoRA file holds: pairs of matrices with their ranks and strengths, by its header and its scalars alone.

The names of the layers are the file's own, in any layout (kohya, peft, ai-toolkit, XLabs, old attention processors);
lora_layout.py finds the layers of a pipeline that they mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors

from workbench.core.errors import BadInput
from workbench.core.io.parsing import one_line, parse_json

MAX_RANK = 4096
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
INTEGERS = frozenset({"I64", "I32", "U8"})  # of alpha alone
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([v]) for v in range(2, 6)))
ADAPTER_METADATA = "lora_adapter_metadata"  # of diffusers: peft's config by component, as JSON
PEFT_CONFIG = "adapter_config.json"  # of peft: beside the file

KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<ab>[AB])(?:\.(?P<adapter>[\w-]+))?\.(?P<kind>weight|bias)"
    r"|[._]lora_(?P<half>down|up)(?:\.(?P<name>[\w-]+))?\.weight"
    r"|(?:[._]lora|\.lora_linear_layer|(?<=_lora[12]))\.(?P<old>down|up)\.weight"
    r"|\.(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.[\w-]+){0,2})"
    r"|(?:[._]lora(?:_down|_A)?)?\.(?P<alpha>alpha)"
    r"|\.(?P<bias>diff_b)"
    r")"
)
# Adaptations of other kinds, by a part of their keys.
OTHER_KINDS = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".lora_mid.": "LoCon with a Tucker core (lora_mid)",
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".b1.weight": "GLoRA",
    ".lora_embedding_": "a LoRA of embeddings",
    ".vera_lambda": "VeRA",
}


@dataclass(frozen=True)
class LoraPair:
    """The LoRA of one layer of a file: W + scale B A, with A [rank,in,...] and B [out,rank,...]."""

    down: str  # the key of A
    up: str  # the key of B
    rank: int
    inputs: int
    outputs: int
    alpha: float | None  # as recorded; None where nothing records it, which means scale 1
    scale: float
    magnitude: str = ""  # the key of the norms of DoRA (arXiv:2402.09353)
    bias: str = ""  # the key of a change of the layer's bias
    alpha_key: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.down, self.up, self.magnitude, self.bias, self.alpha_key)))


@dataclass(frozen=True)
class LoraFile:
    path: Path
    metadata: dict[str, str]
    pairs: dict[str, LoraPair]  # by the file's name of the layer
    others: tuple[str, ...]  # keys that belong to no pair
    shapes: dict[str, tuple[int, ...]] = field(repr=False)

    @cached_property
    def parameters(self) -> int:
        return sum(math.prod(self.shapes[key]) for pair in self.pairs.values() for key in (pair.down, pair.up))

    def read_tensors(self) -> dict[str, Any]:
        """All tensors, on the CPU. Raises BadInput, naming the first, where values are not finite."""
        import safetensors.torch

        tensors = safetensors.torch.load_file(self.path)
        for key, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise BadInput(f"{self.path.name}: {_quote(key)} holds values that are not finite; its training failed")
        return tensors


def read_lora_file(path: str | Path, label: str = "") -> LoraFile:
    """What the LoRA file at `path` holds. `label` names it in messages; by default its path does.

    Raises BadInput for a pickle or an archive whatever its name, a broken file, one that holds no LoRA or several, and
    for layers that are not whole: halves without their partner, ranks that differ, alphas that are no strength.
    """
    path = Path(path)
    label = label or one_line(path, 150)
    _check_beginning(path, label)
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
            headers = {key: (tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
            parts, others = _sort_keys(headers, label)
            alphas = {
                layer: _read_alpha(file.get_tensor(keys["alpha"]), keys["alpha"], label)
                for layer, keys in parts.items()
                if "alpha" in keys
            }
    except BadInput:
        raise
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = one_line(str(error).removeprefix("Error while deserializing header: "), 100)
        raise BadInput(f"{label}: is no readable safetensors file; it is broken or cut short ({reason})") from None
    shapes = {key: shape for key, (shape, _) in headers.items()}
    settings = _read_settings(path, metadata)
    pairs, loose = {}, [*others]
    for layer, keys in parts.items():
        if not {"down", "up"} & set(keys):
            loose += [key for key in keys.values()]
            continue
        pairs[layer] = _make_pair(layer, keys, shapes, alphas.get(layer), settings, label)
    if not pairs:
        if loose and not alphas:
            raise BadInput(
                f"{label}: {_quote(min(loose))} belongs to no LoRA; give the file of an adapter, not of a model"
            )
        raise BadInput(f"{label}: there is no LoRA in it")
    return LoraFile(path, metadata, pairs, tuple(sorted(loose)), shapes)


def _check_beginning(path: Path, label: str) -> None:
    if not path.is_file() or not (size := path.stat().st_size):
        raise BadInput(f"{label}: the file is empty" if path.is_file() else f"{label}: no such file")
    with open(path, "rb") as stream:
        first_bytes = stream.read(9)
    length = int.from_bytes(first_bytes[:8], "little")
    if first_bytes.startswith(PICKLES) and first_bytes[8:9] != b"{":
        raise BadInput(f"{label}: is a pickle or an archive, which can run code; only a LoRA in safetensors is taken")
    if first_bytes[8:9] != b"{" or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise BadInput(f"{label}: is no safetensors file; only a LoRA in safetensors is taken")


def _sort_keys(headers: Mapping[str, tuple], label: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Layer -> {part: key}, and the keys that are no part of a LoRA. Raises BadInput."""
    parts: dict[str, dict[str, str]] = {}
    others, adapters = [], set()
    for key, (_, dtype) in headers.items():
        if kind := next((name for mark, name in OTHER_KINDS.items() if mark in key), None):
            raise BadInput(f"{label}: is {kind}, not LoRA ({_quote(key)}); convert it to LoRA, or merge it elsewhere")
        match = KEY.fullmatch(key) if len(key) <= 500 else None
        if dtype not in FLOATS and not (match and match["alpha"] and dtype in INTEGERS):
            raise BadInput(f"{label}: {_quote(key)} is of type {dtype}, and a LoRA is of floating point numbers")
        if match is None:
            others.append(key)
            continue
        if match["ab"] or match["half"] or match["old"]:
            adapters.add(match["adapter"] or match["name"])
            half = "down" if (match["ab"] == "A" or "down" in (match["half"], match["old"])) else "up"
            part = half if match["kind"] != "bias" else "bias" if half == "up" else ""
        else:
            part = "magnitude" if match["magnitude"] else "alpha" if match["alpha"] else "bias"
        if not part or part in parts.setdefault(match["layer"], {}):
            raise BadInput(f"{label}: {_quote(key)} is a second {part or 'bias'} of its layer; the file is not clear")
        parts[match["layer"]][part] = key
    if len(adapters) > 1:
        names = ", ".join(sorted(one_line(name or "one without a name", 40) for name in adapters))
        raise BadInput(f"{label}: holds several LoRAs ({names}); give each a file of its own")
    return parts, others


def _read_alpha(value: Any, key: str, label: str) -> float:
    if value.numel() != 1:
        raise BadInput(f"{label}: {_quote(key)} has the shape {list(value.shape)}, and alpha is one number")
    alpha = float(value)
    if not (math.isfinite(alpha) and alpha > 0):
        effect = "so the layer has no effect" if alpha == 0 else "which is no strength"
        raise BadInput(f"{label}: {_quote(key)} is {alpha:g}, {effect}; the file is broken")
    return alpha


def _make_pair(
    layer: str, keys: Mapping[str, str], shapes: Mapping, alpha: float | None, settings: Mapping, label: str
) -> LoraPair:
    ranks = {}
    for part, axis in (("down", 0), ("up", 1)):
        if part not in keys:
            raise BadInput(f"{label}: {_quote(layer)} has only one of its two matrices, so the file is not whole")
        shape = shapes[keys[part]]
        ranks[part] = shape[axis] if len(shape) in (2, 3, 4, 5) else 0
        if not 1 <= ranks[part] <= MAX_RANK or 0 in shape:
            raise BadInput(
                f"{label}: {_quote(keys[part])} has the shape {list(shape)}, which no LoRA of rank 1 to {MAX_RANK} has"
            )
    if ranks["down"] != ranks["up"]:
        raise BadInput(
            f"{label}: {_quote(layer)} has two matrices whose ranks differ: {ranks['down']} and {ranks['up']}"
        )
    rank, outputs, inputs = ranks["down"], shapes[keys["up"]][0], shapes[keys["down"]][1]
    scale = 1.0 if alpha is None else alpha / rank
    if alpha is None and (recorded := _recorded_alpha(settings, layer)) is not None:
        alpha, root = recorded
        scale = alpha / (math.sqrt(rank) if root else rank)
    if "magnitude" in keys and outputs not in shapes[keys["magnitude"]] and inputs not in shapes[keys["magnitude"]]:
        raise BadInput(
            f"{label}: {_quote(keys['magnitude'])} has the shape {list(shapes[keys['magnitude']])}, and the layer has "
            f"{outputs} outputs"
        )
    pair = LoraPair(keys["down"], keys["up"], rank, inputs, outputs, alpha, scale)
    return replace(
        pair,
        magnitude=keys.get("magnitude", ""),
        bias=keys.get("bias", ""),
        alpha_key=keys.get("alpha", ""),
    )


def _read_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, dict]:
    """Prefix of layers -> settings of peft, from the file's metadata or from peft's file beside it. Raises BadInput."""
    if text := metadata.get(ADAPTER_METADATA):
        settings: dict[str, dict] = {}
        for key, value in _mapping(parse_json(text, f"{path.name}: its metadata {ADAPTER_METADATA}")).items():
            prefix, _, name = key.partition(".")
            settings.setdefault(f"{prefix}.", {})[name] = value
        return settings
    beside = path.with_name(PEFT_CONFIG)
    if path.name.startswith("adapter_model") and beside.is_file():
        return {"": _mapping(parse_json(beside.read_bytes(), str(beside)))}
    return {}


def _recorded_alpha(settings: Mapping[str, dict], layer: str) -> tuple[float, bool] | None:
    """(alpha, whether it is divided by the root of the rank) that peft's settings record for a layer."""
    for prefix, values in settings.items():
        if not layer.startswith(prefix):
            continue
        name, alpha = layer.removeprefix(prefix), values.get("lora_alpha")
        for pattern, value in _mapping(values.get("alpha_pattern")).items():
            pattern = pattern.removeprefix("^")
            if name == pattern or name.endswith(f".{pattern}"):
                alpha = value
        if isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0:
            return float(alpha), values.get("use_rslora") is True
    return None


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _quote(key: str) -> str:
    return json.dumps(one_line(key, 80), ensure_ascii=False)
