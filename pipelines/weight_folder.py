"""Checks of a folder of weights before anything is loaded from it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from workbench.core.errors import BadInput

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def read_pipeline_class(folder: Path) -> str:
    """The pipeline class that a folder's model_index.json names. Raises BadInput where there is none."""
    return _read_index(folder)["_class_name"]


def component_class(folder: Path, name: str) -> str | None:
    """The class of one component in model_index.json, or None where it has no such component."""
    entry = _read_index(folder).get(name)
    return entry[1] if isinstance(entry, list) else None


def check_folder(folder: Path, cls: str, replaced: Collection[str] = (), optional: Collection[str] = ()) -> None:
    """Raises BadInput, naming the file, unless `folder` holds a whole pipeline of class `cls` in safetensors.

    Components in `replaced` come from elsewhere and are not checked. If one of them is not in the folder's index, the
    folder may hold a pipeline of another class (AnimateDiff's is Stable Diffusion, plus a motion adapter). Components
    in `optional` may be missing: the class makes them itself.
    """
    index = _read_index(folder)
    if index["_class_name"] != cls and not set(replaced) - set(index):
        raise BadInput(f"{folder}: holds a {index['_class_name']}, but the config says class: {cls}")
    for name, entry in index.items():
        if name in replaced or not isinstance(entry, list) or entry[0] is None:
            continue
        part = folder / name
        if not part.is_dir() and name in optional:
            continue
        if not part.is_dir():
            raise BadInput(f"{folder}: the component folder {name!r} of model_index.json is missing")
        if (part / "config.json").is_file():  # a network; schedulers and tokenizers have config files of other names
            check_weights(part)


def check_weights(part: Path) -> None:
    """Raises BadInput unless the network in folder `part` has all of its weights in intact safetensors files."""
    files = sorted(part.glob("*.safetensors"))
    if not files:
        pickles = [f.name for f in part.iterdir() if f.suffix in PICKLES]
        if pickles:
            raise BadInput(
                f"{part / pickles[0]}: pickled weights are never loaded, because they can run code; "
                "convert them with save_pretrained(..., safe_serialization=True)"
            )
        raise BadInput(f"{part}: no weights (*.safetensors) in this folder")
    for index in part.glob("*.safetensors.index.json"):
        for shard in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (part / shard).is_file():
                raise BadInput(f"{part / shard}: this shard is missing; download the folder again")
    for file in files:
        check_file(file)


def check_file(file: Path) -> None:
    """Raises BadInput unless a safetensors file has an intact header and its full length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 0 < length <= size - 8:
            raise BadInput(f"{file}: not a safetensors file, or cut off in its header; download it again")
        try:
            header = json.loads(stream.read(length))
            end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: its safetensors header is damaged; download it again") from error
    if size != 8 + length + end:
        raise BadInput(f"{file}: {size} bytes where its header promises {8 + length + end}; download it again")


def _read_index(folder: Path) -> dict:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    if not (folder / "model_index.json").is_file():
        raise BadInput(f"{folder}: no model_index.json, so this is not the folder of a diffusers pipeline")
    index = _read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise BadInput(f"{folder / 'model_index.json'}: names no pipeline class (_class_name)")
    return index


def _read_json(file: Path) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{file}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: expected a JSON object")
    return value
