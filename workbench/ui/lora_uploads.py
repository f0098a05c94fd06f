"""LoRA files from elsewhere: is this one, and nothing but one? Asked before anything loads it; then kept, by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors

from workbench.core.errors import BadInput
from workbench.core.io.media import file_digest
from workbench.core.paths import write_atomic
from workbench.ui.uploads import MB, PICKLES, display_name

FOLDER = "loras"  # in the folder of runs
MAX_BYTES = 2048 * MB
MAX_RANK = 1024
DOWN, UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")
KEY = re.compile(
    r"(?P<layer>[\w.\-/]{1,300}?)[._](?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?P<name>\.\w+)?\.weight"
)
SINGLE_KEY = re.compile(r"[\w.\-/]{1,300}\.(alpha|dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?)")
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class LoRAFile:
    path: Path
    layers: int
    rank: int  # the largest of its layers
    parameters: int


def inspect_lora(path: str | Path) -> LoRAFile:
    """What the LoRA in a safetensors file is. Only its header is read: no tensor is loaded, nothing is executed.

    Raises BadInput for a pickle or an archive whatever its name, a file that is too large, broken or no safetensors,
    and for tensors that are no LoRA: other keys, halves without their partner, ranks that differ or are absurd.
    """
    path, name = Path(path), display_name(path)
    if not path.is_file() or not (size := path.stat().st_size):
        raise BadInput(f"{name}: the file is empty")
    with open(path, "rb") as f:
        first_bytes = f.read(9)
    length = int.from_bytes(first_bytes[:8], "little")
    if first_bytes[8:9] != b"{" or not 2 <= length <= size - 8:
        kind = (
            "a pickle or an archive, which can run code" if first_bytes.startswith(PICKLES) else "no safetensors file"
        )
        raise BadInput(f"{name}: is {kind}; only a LoRA in safetensors is taken")
    if size > MAX_BYTES:
        raise BadInput(f"{name}: {size / MB:,.0f} MB; a LoRA of up to {MAX_BYTES // MB:,} MB is taken")
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
            tensors = {key: (tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
    except (safetensors.SafetensorError, OSError, ValueError):
        raise BadInput(f"{name}: is no readable safetensors file; it is broken or cut short") from None
    return _check_tensors(tensors, path, name)


def keep_lora(path: str | Path, runs: Path) -> str:
    """Check an uploaded file and keep it among the runs: `lora:NAME`, by which a contestant runs on it. Raises
    BadInput."""
    inspect_lora(path)
    slug = re.sub(r"[^a-z0-9]+", "-", Path(display_name(path)).stem.lower()).strip("-")[:40] or "lora"
    name = f"{slug}-{file_digest(path)[:8]}"
    folder = runs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.safetensors", Path(path).read_bytes())
    return f"lora:{name}"


def list_loras(runs: Path) -> dict[str, str]:
    """`lora:NAME` -> its file."""
    return {f"lora:{file.stem}": str(file) for file in sorted((runs / FOLDER).glob("*.safetensors"))}


def _check_tensors(tensors: dict[str, tuple[tuple[int, ...], str]], path: Path, name: str) -> LoRAFile:
    halves: dict[tuple[str, str], dict[bool, int]] = {}
    parameters = 0
    for key, (shape, dtype) in tensors.items():
        if dtype not in FLOATS:
            raise BadInput(f"{name}: {key[:80]!r} is of type {dtype}, and a LoRA is of floating point numbers")
        match = KEY.fullmatch(key)
        if not match and not SINGLE_KEY.fullmatch(key):
            raise BadInput(f"{name}: {key[:80]!r} belongs to no LoRA; give the file of an adapter, not of a model")
        if match:
            down = match["part"] in DOWN
            rank = shape[0 if down else 1] if len(shape) in (2, 4, 5) else 0
            if not 1 <= rank <= MAX_RANK:
                raise BadInput(
                    f"{name}: {key[:80]!r} has the shape {list(shape)}, which no LoRA of rank 1 to {MAX_RANK} has"
                )
            halves.setdefault((match["layer"], match["name"] or ""), {})[down] = rank
            parameters += math.prod(shape)
    if not halves:
        raise BadInput(f"{name}: there is no LoRA in it")
    for (layer, _), ranks in halves.items():
        if len(ranks) != 2 or ranks[True] != ranks[False]:
            raise BadInput(f"{name}: {layer[:80]!r} has only one of its two matrices, or their ranks differ")
    return LoRAFile(path, len(halves), max(r[True] for r in halves.values()), parameters)
