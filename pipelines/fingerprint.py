"""Fingerprints of networks: which weights are these, whatever precision they are loaded in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json
from workbench.core.paths import STARTER

SAMPLES = 1024  # values of each tensor that are read
SCALE_STEP = 1.05  # the size of all values is compared in steps of 5 %
LETTERS = 16  # of the hexadecimal digest
RECORD = "fingerprints.json"  # in each kind's folder of the starter pack: {"teacher/unet": fingerprint, ...}


def fingerprint_network(module: nn.Module) -> str:
    """16 hexadecimal letters (sha256) of a network's own weights; "" where they can't be read (meta or packed weights).

    Adapters are left out: a network has the same fingerprint with and without LoRA on, as long as no adapter is merged
    into its weights. So have its copies in fp32, bf16 and fp16, and under the names that other versions of a library
    give its layers, since what is hashed does not change with them: of each tensor its shape and the signs of up to
    1,024 values, and of all of these values the root mean square in steps of 5 % (rounding moves it over a step's edge
    in less than one of 1,000 networks). Weights that were trained differ in the signs of small values. A changed value
    that is not among those read, or keeps its sign, is not seen: the fingerprint tells other weights, it does not prove
    that no bit has changed.
    """
    return fingerprint_tensors(tensor for _, tensor in own_tensors(module))


def fingerprint_tensors(weights: Iterable[Tensor]) -> str:
    """The fingerprint of a network with these own weights, in any order."""
    rows, total, count = [], 0.0, 0
    for tensor in weights:
        if tensor.is_meta or not tensor.is_floating_point():
            return ""
        values = sample_values(tensor)
        rows.append(f"{list(tensor.shape)} ".encode() + torch.signbit(values).to(torch.uint8).numpy().tobytes())
        finite = values[values.isfinite()].double()
        total, count = total + finite.square().sum().item(), count + len(finite)
    size = math.sqrt(total / count) if count else 0.0
    rows.append(str(round(math.log(size, SCALE_STEP)) if size else 0).encode())
    return hashlib.sha256(b"\n".join(sorted(rows))).hexdigest()[:LETTERS] if count else ""


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name -> parameter of a network, and its floating-point buffers that are saved (running means, ...), under the
    names that they have without adapters; the adapters' own tensors are left out."""
    adapted = tuple(
        f"{name}." if name else "" for name, part in module.named_modules() if _wraps(part, "base_layer")
    )  # layers of peft: the layer itself is `base_layer`, all else is the adapter's
    saved = module.state_dict().keys()
    buffers = ((name, b) for name, b in module.named_buffers() if b.is_floating_point() and name in saved)
    for name, tensor in (*module.named_parameters(), *buffers):
        if ".modules_to_save." in name:
            continue
        if any(name.startswith(prefix) and not name.startswith(f"{prefix}base_layer.") for prefix in adapted):
            continue
        yield ".".join(p for p in name.split(".") if p not in ("base_layer", "original_module", "_orig_mod")), tensor


@torch.no_grad()
def sample_values(tensor: Tensor) -> Tensor:
    """Up to SAMPLES values of a tensor, spread over all of it, as float32 on the CPU."""
    flat = tensor.detach().reshape(-1)
    step = max(-(-len(flat) // SAMPLES), 1) | 1  # odd, so that it does not run down the columns of a matrix
    return flat[::step].cpu().float()


def _wraps(part: nn.Module, name: str) -> bool:
    return isinstance(getattr(part, name, None), nn.Module)


def check_pack_fingerprints(folder: Path, networks: Mapping[str, nn.Module]) -> int:
    """How many networks of a pipeline in the starter pack have the fingerprints that were recorded when it was built.
    Raises BadInput where one has another."""
    kind = folder.parent
    path = kind / RECORD
    recorded = read_json(path) if path.is_file() else {}
    known = {name: recorded[key] for name in networks if (key := f"{folder.name}/{name}") in recorded}
    for name, fingerprint in known.items():
        if (actual := fingerprint_network(networks[name])) != fingerprint:
            raise BadInput(
                f"{name} of the starter pack came with other weights than it was built with (fingerprint "
                f"{actual or 'of empty tensors'}, not {fingerprint}): the installed versions of transformers and "
                f"diffusers can't read {folder.relative_to(STARTER)}, or its files have changed"
            )
    return len(known)
