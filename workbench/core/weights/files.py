"""The weight files of one network's folder: which are loaded, whether they are whole, what their headers say. Without
torch."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json, read_json

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
NO_PICKLES = "pickled weights are never loaded, because they can run code"
MAX_HEADER = 100_000_000  # bytes, as in safetensors itself
NAMES = ("diffusion_pytorch_model", "model")  # of weight files, in diffusers and transformers
WEIGHT_FILE = re.compile(
    rf"({'|'.join(NAMES)})(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.safetensors(\.index(\.(?P<last>[\w-]+))?\.json)?"
)


def is_network(part: Path) -> bool:
    """Whether the folder of a component is of a network; schedulers and tokenizers have config files of other names."""
    return (part / "config.json").is_file()


def list_variants(part: Path) -> set[str]:
    """The variants of which a network's folder holds weights; "" are plain ones."""
    hits = (WEIGHT_FILE.fullmatch(file.name) for file in part.iterdir())
    return {hit["variant"] or hit["last"] or "" for hit in hits if hit}


def check_weights(part: Path, variant: str = "") -> None:
    """Raises BadInput unless the network in folder `part` has all of its weights in intact safetensors files."""
    for file in select_weights(part, variant):
        check_file(file)


def select_weights(part: Path, variant: str = "") -> list[Path]:
    """The safetensors files of a network: those of that variant, or the plain ones where it has none. Raises
    BadInput."""
    variant = variant if variant in list_variants(part) else ""
    ending = f".safetensors.index.{variant}.json" if variant else ".safetensors.index.json"
    if indices := [file for name in NAMES if (file := part / f"{name}{ending}").is_file()]:
        shards = sorted(set(map(str, read_json_object(indices[0]).get("weight_map", {}).values())))
        for shard in shards:
            if Path(shard).name != shard:
                raise BadInput(f"{indices[0]}: names a shard outside of its folder, {shard!r:.80}")
            if not (part / shard).is_file():
                raise BadInput(f"{part / shard}: this shard is missing; download the folder again")
        return [part / shard for shard in shards]
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    if files := [file for name in NAMES if (file := part / f"{name}{ending}").is_file()]:
        return files[:1]
    if pickles := [file.name for file in sorted(part.iterdir()) if file.suffix in PICKLES]:
        raise BadInput(
            f"{part / pickles[0]}: {NO_PICKLES}; convert them with save_pretrained(..., safe_serialization=True)"
        )
    others = [file.name for file in sorted(part.glob("*.safetensors"))]
    instead = f" under the name {NAMES[0]} or {NAMES[1]}; there is {others[0]}" if others else ""
    raise BadInput(f"{part}: no weights (*.safetensors) in this folder{instead}")


def check_file(file: Path) -> None:
    """Raises BadInput unless a safetensors file has an intact header and its full length."""
    from safetensors import SafetensorError, safe_open

    size = file.stat().st_size
    header, start = _read_header(file)
    try:
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        is_whole = size == start + end
    except (KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{file}: its safetensors header is damaged; download it again") from error
    if not is_whole:
        raise BadInput(f"{file}: {size} bytes where its header promises {start + end}; download it again")
    try:
        with safe_open(file, "np"):  # names, types, shapes and places that fit one another
            pass
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: its safetensors header is damaged ({str(error)[:80]}); download it again") from error


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file, by its header. Raises BadInput."""
    header, _ = _read_header(file)
    try:
        return {name: tuple(map(int, t["shape"])) for name, t in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file}: its safetensors header is damaged; download it again") from error


def _read_header(file: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and where its tensors begin. Raises BadInput."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file, or a folder of this name; download it again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER):
            raise BadInput(f"{file}: not a safetensors file, or cut off in its header; download it again")
        try:
            header = parse_json(stream.read(length), str(file), max_bytes=MAX_HEADER)
        except BadInput as error:
            raise BadInput(f"{file}: its safetensors header is damaged; download it again") from error
    if not isinstance(header, dict):
        raise BadInput(f"{file}: its safetensors header is damaged; download it again")
    return header, 8 + length


def read_json_object(file: Path) -> dict:
    """The object in a JSON file. Raises BadInput."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise BadInput(f"{file}: expected a JSON object")
    return value
