"""Trained adapters put on a pipeline that is being loaded: what a training exported, or a LoRA file from elsewhere.

Only safetensors, looked at before any weight loads; afterwards every layer of the file must have found its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import weight_folder
from workbench.core.types import BadInput

RECORD = "export.json"  # beside the weights: {"pipeline": a PipelineConfig, "parts": {denoiser: lora | peft | merged}}
WEIGHTS = "pytorch_lora_weights.safetensors"
ENDS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)


def record(home: Path) -> dict[str, Any]:
    """What an export says of itself. Raises BadInput."""
    try:
        found = json.loads((home / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{home / RECORD}: can't be read ({error}); export again") from None
    if not isinstance(found, dict) or not {"pipeline", "parts"} <= set(found):
        raise BadInput(f"{home / RECORD}: does not say which pipeline it is for; export again")
    return found


def find(source: str) -> Path:
    """The file or export folder. Raises BadInput unless it is intact and holds a LoRA."""
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
    if not pairs(path):
        raise BadInput(f"lora: {path} holds no pair of LoRA matrices (lora_A and lora_B, or lora_down and lora_up)")
    return path


def pairs(file: Path) -> set[str]:
    """Names of the layers that a LoRA file has both matrices of."""
    with file.open("rb") as stream:
        keys = set(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))
    return {k.removesuffix(a) for a, b in ENDS for k in keys if k.endswith(a) and k.removesuffix(a) + b in keys}


def install(pipe: Any, source: str) -> None:
    """Put it on. Raises BadInput where the file's layers are not this pipeline's."""
    path = find(source)
    if path.is_file():
        _lora(pipe, path, None)
        return
    for name, layout in record(path)["parts"].items():
        if not hasattr(pipe, name):
            raise BadInput(f"lora: {path} is for a {name}, which this pipeline has not")
        if layout == "lora":
            _lora(pipe, path / name / WEIGHTS if (path / name / WEIGHTS).is_file() else path / WEIGHTS, name)
        elif layout == "peft":
            from peft import PeftModel

            setattr(pipe, name, PeftModel.from_pretrained(getattr(pipe, name), path / name).base_model.model)
        else:
            old = getattr(pipe, name)
            whole = type(old).from_pretrained(path / "merged" / name, torch_dtype=old.dtype, use_safetensors=True)
            setattr(pipe, name, whole.to(old.device))


def _lora(pipe: Any, file: Path, name: str | None) -> None:
    from pipelines.adapters import layers
    from pipelines.seams import modules

    if not hasattr(pipe, "load_lora_weights"):
        raise BadInput(f"lora: {type(pipe).__name__} does not load LoRA files")
    wanted, before = pairs(file), _adapted(pipe, layers, modules)
    second = {f"load_into_{name}": True} if name and file.parent.name == name else {}
    try:
        with quietly():
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, **second)
    except (ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise BadInput(f"lora: {file} does not fit {type(pipe).__name__}: {_line(error)}") from error
    found = _adapted(pipe, layers, modules) - before
    if found != len(wanted):
        raise BadInput(
            f"lora: {file} has {len(wanted)} layers, of which {found} found a place in {type(pipe).__name__}: it was made for "
            "another model"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of diffusers about parts that a file has nothing for: what was loaded is counted afterwards."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _adapted(pipe: Any, layers: Any, modules: Any) -> int:
    return sum(len(layers(module)) for module in modules(pipe).values())


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
