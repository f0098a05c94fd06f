"""Checks of a pipeline's folder before anything is loaded from it. Standard library only."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.weights.files import (
    check_weights,
    is_network,
    list_variants,
    read_json_object,
)


def read_pipeline_class(folder: Path) -> str:
    """The pipeline class that a folder's model_index.json names. Raises BadInput where there is none."""
    return _read_index(folder)["_class_name"]


def component_class(folder: Path, name: str) -> str | None:
    """The class of one component in model_index.json, or None where it has no such component."""
    entry = _read_index(folder).get(name)
    return entry[1] if isinstance(entry, list) else None


def check_folder(
    folder: Path, cls: str, replaced: Collection[str] = (), optional: Collection[str] = (), variant: str = ""
) -> None:
    """Raises BadInput, naming the file, unless `folder` holds a whole pipeline of class `cls` in safetensors.

    Components in `replaced` come from elsewhere and are not checked. If one of them is not in the folder's index, the
    folder may hold a pipeline of another class (AnimateDiff's is Stable Diffusion, plus a motion adapter). Components
    in `optional` may be missing: the class makes them itself. `variant` is that of the files, as in `find_variant`.
    """
    index = _read_index(folder)
    if index["_class_name"] != cls and not set(replaced) - set(index):
        raise BadInput(f"{folder}: holds a {index['_class_name']}, but the config says class: {cls}")
    for name in list_components(folder):
        part = folder / name
        if name in replaced or (not part.is_dir() and name in optional):
            continue
        if not part.is_dir():
            raise BadInput(f"{folder}: the component folder {name!r} of model_index.json is missing")
        if is_network(part):
            check_weights(part, variant)


def list_components(folder: Path) -> dict[str, list[str]]:
    """Name -> [library, class] of the components in a folder's model_index.json. Raises BadInput."""
    entries = _read_index(folder).items()
    return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 2 and entry[0]}


def find_variant(folder: Path, variant: str = "", replaced: Collection[str] = ()) -> str:
    """The variant of the files to load: the one asked for, or the only one that there is where a network has no plain
    files (`diffusion_pytorch_model.fp16.safetensors` -> fp16), else "". Raises BadInput for one that no network has,
    and where there are several to choose from."""
    parts = [folder / name for name in list_components(folder) if name not in replaced and is_network(folder / name)]
    names = [list_variants(part) for part in parts]
    known = sorted({name for variants in names for name in variants} - {""})
    if variant and variant not in known:
        raise BadInput(
            f"{folder}: variant: no network has files of the variant {variant!r}; "
            f"there {'are: ' + ', '.join(known) if known else 'is none, so leave it out'}"
        )
    if variant or all("" in variants or not variants for variants in names):
        return variant
    needed = set.intersection(*({*variants} for variants in names if variants and "" not in variants))
    if len(needed) != 1:
        raise BadInput(
            f"{folder}: its files are of the variants {', '.join(known)}; say which, as in variant: {known[0]}"
        )
    return needed.pop()


def _read_index(folder: Path) -> dict:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    if not (folder / "model_index.json").is_file():
        raise BadInput(f"{folder}: no model_index.json, so this is not the folder of a diffusers pipeline")
    index = read_json_object(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise BadInput(f"{folder / 'model_index.json'}: names no pipeline class (_class_name)")
    return index
