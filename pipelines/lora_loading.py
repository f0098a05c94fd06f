"""Loading trained adapters into a pipeline: what a training exported, or a LoRA file from elsewhere.

Only safetensors, which are checked before any weight loads. Every layer of a file must then have been applied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import weight_folder
from pipelines.adapters import lora_layers
from pipelines.seams import named_networks
from workbench.core.errors import BadInput

RECORD = "export.json"  # next to the weights: {"pipeline": PipelineConfig, "parts": {denoiser: lora | peft | merged}}
WEIGHTS = "pytorch_lora_weights.safetensors"
ENDS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an export (RECORD). Raises BadInput."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder / RECORD}: can't be read ({error}); export again") from None
    if not isinstance(record, dict) or not {"pipeline", "parts"} <= set(record):
        raise BadInput(f"{folder / RECORD}: does not say which pipeline it is for; export again")
    return record


def find_lora(source: str) -> Path:
    """The path of a LoRA file or an export folder. Raises BadInput unless it is intact and holds trained weights."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / RECORD).is_file():
            raise BadInput(f"lora: {path} has no {RECORD}, so no training exported it; name a .safetensors file")
        files = [f for f in path.rglob("*.safetensors") if not f.name.startswith("comfyui")]
        for file in files:
            weight_folder.check_file(file)
        return path
    if not path.is_file():
        raise BadInput(f"lora: no such file: {path}")
    if path.suffix != ".safetensors":
        raise BadInput(
            f"lora: {path} is not a .safetensors file; pickled weights are never loaded, because they can run code"
        )
    weight_folder.check_file(path)
    if not list_lora_pairs(path):
        raise BadInput(f"lora: {path} holds no pair of LoRA matrices (lora_A and lora_B, or lora_down and lora_up)")
    return path


def list_lora_pairs(file: Path) -> set[str]:
    """Names of the layers for which a LoRA file has both matrices."""
    with file.open("rb") as stream:
        keys = set(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))
    return {k.removesuffix(a) for a, b in ENDS for k in keys if k.endswith(a) and k.removesuffix(a) + b in keys}


def install_lora(pipe: Any, source: str) -> None:
    """Load a LoRA file or an export into a pipeline. Raises BadInput where its layers are not the pipeline's."""
    path = find_lora(source)
    if path.is_file():
        _load_lora_file(pipe, path, None)
        return
    for name, layout in read_record(path)["parts"].items():
        if not hasattr(pipe, name):
            raise BadInput(f"lora: {path} is for a {name}, which this pipeline has not")
        if layout == "lora":
            _load_lora_file(pipe, path / name / WEIGHTS if (path / name / WEIGHTS).is_file() else path / WEIGHTS, name)
        elif layout == "peft":
            from peft import PeftModel

            setattr(pipe, name, PeftModel.from_pretrained(getattr(pipe, name), path / name).base_model.model)
        else:
            old = getattr(pipe, name)
            denoiser = type(old).from_pretrained(path / "merged" / name, torch_dtype=old.dtype, use_safetensors=True)
            setattr(pipe, name, denoiser.to(old.device))


def _load_lora_file(pipe: Any, file: Path, name: str | None) -> None:
    if not hasattr(pipe, "load_lora_weights"):
        raise BadInput(f"lora: {type(pipe).__name__} does not load LoRA files")
    file_layers, before = list_lora_pairs(file), _count_lora_layers(pipe)
    second = {f"load_into_{name}": True} if name and file.parent.name == name else {}
    try:
        with without_warnings():
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, **second)
    except (ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise BadInput(f"lora: {file} does not fit {type(pipe).__name__}: {_first_line(error)}") from error
    adapted_layers = _count_lora_layers(pipe) - before
    if adapted_layers != len(file_layers):
        raise BadInput(
            f"lora: {file} has {len(file_layers)} layers, of which {adapted_layers} found a place in "
            f"{type(pipe).__name__}: it was made for another model"
        )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside the context, diffusers doesn't warn of networks for which a file has no weights; loaded layers are counted
    afterwards."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _count_lora_layers(pipe: Any) -> int:
    return sum(len(lora_layers(module)) for module in named_networks(pipe).values())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
