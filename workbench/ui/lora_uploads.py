"""LoRA files from elsewhere: is this one, and nothing but one? Asked before anything loads it; then kept, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import safetensors

from workbench.core.io.media import fingerprint
from workbench.core.paths import write_atomic
from workbench.core.types import BadInput
from workbench.ui.uploads import MB, PICKLES, called

HOME = "loras"  # in the folder of runs
LARGEST = 2048 * MB
RANK = 1024
DOWN, UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")
KEY = re.compile(
    r"(?P<layer>[\w.\-/]{1,300}?)[._](?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?P<name>\.\w+)?\.weight"
)
ALONE = re.compile(r"[\w.\-/]{1,300}\.(alpha|dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?)")
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Adapter:
    path: Path
    layers: int
    rank: int  # the largest of its layers
    parameters: int


def lora_file(path: str | Path) -> Adapter:
    """What the LoRA in a safetensors file is. Only its header is read: no tensor is loaded, nothing is executed.

    Raises BadInput for a pickle or an archive whatever its name, a file that is too large, broken or no safetensors, and
    for tensors that are no LoRA: other keys, halves without their partner, ranks that differ or are absurd.
    """
    path, name = Path(path), called(path)
    if not path.is_file() or not (size := path.stat().st_size):
        raise BadInput(f"{name}: the file is empty")
    with open(path, "rb") as f:
        head = f.read(9)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= size - 8:
        what = "a pickle or an archive, which can run code" if head.startswith(PICKLES) else "no safetensors file"
        raise BadInput(f"{name}: is {what}; only a LoRA in safetensors is taken")
    if size > LARGEST:
        raise BadInput(f"{name}: {size / MB:,.0f} MB; a LoRA of up to {LARGEST // MB:,} MB is taken")
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
            found = {key: (tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
    except (safetensors.SafetensorError, OSError, ValueError):
        raise BadInput(f"{name}: is no readable safetensors file; it is broken or cut short") from None
    return _checked(found, path, name)


def keep(path: str | Path, runs: Path) -> str:
    """Check an uploaded file and keep it among the runs: `lora:NAME`, by which a contestant runs on it. Raises BadInput."""
    lora_file(path)
    slug = re.sub(r"[^a-z0-9]+", "-", Path(called(path)).stem.lower()).strip("-")[:40] or "lora"
    name = f"{slug}-{fingerprint(path)[:8]}"
    home = runs / HOME
    home.mkdir(parents=True, exist_ok=True)
    write_atomic(home / f"{name}.safetensors", Path(path).read_bytes())
    return f"lora:{name}"


def kept(runs: Path) -> dict[str, str]:
    """`lora:NAME` -> its file."""
    return {f"lora:{file.stem}": str(file) for file in sorted((runs / HOME).glob("*.safetensors"))}


def _checked(found: dict[str, tuple[tuple[int, ...], str]], path: Path, name: str) -> Adapter:
    halves: dict[tuple[str, str], dict[bool, int]] = {}
    parameters = 0
    for key, (shape, dtype) in found.items():
        if dtype not in FLOATS:
            raise BadInput(f"{name}: {key[:80]!r} is of type {dtype}, and a LoRA is of floating point numbers")
        match = KEY.fullmatch(key)
        if not match and not ALONE.fullmatch(key):
            raise BadInput(f"{name}: {key[:80]!r} belongs to no LoRA; give the file of an adapter, not of a model")
        if match:
            down = match["part"] in DOWN
            rank = shape[0 if down else 1] if len(shape) in (2, 4, 5) else 0
            if not 1 <= rank <= RANK:
                raise BadInput(
                    f"{name}: {key[:80]!r} has the shape {list(shape)}, which no LoRA of rank 1 to {RANK} has"
                )
            halves.setdefault((match["layer"], match["name"] or ""), {})[down] = rank
            parameters += _product(shape)
    if not halves:
        raise BadInput(f"{name}: there is no LoRA in it")
    for (layer, _), ranks in halves.items():
        if len(ranks) != 2 or ranks[True] != ranks[False]:
            raise BadInput(f"{name}: {layer[:80]!r} has only one of its two matrices, or their ranks differ")
    return Adapter(path, len(halves), max(r[True] for r in halves.values()), parameters)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
