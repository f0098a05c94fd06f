"""Where trained adapters are: an export of a training, a LoRA file from elsewhere, or a folder of peft or diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.lora_file import PEFT_CONFIG, read_lora_file
from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json
from workbench.core.weights.files import check_file

# next to the weights: {"pipeline": PipelineConfig, "parts": {denoiser: lora | peft | merged}, "dials": [axis]}
RECORD = "export.json"
LAYOUTS = ("lora", "peft", "merged")
WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
BASE_FINGERPRINT, BASE_MODEL = "base_fingerprint", "base_model"  # of the metadata of exports


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an export (RECORD). Raises BadInput."""
    record = read_json(folder / RECORD)
    are_complete = isinstance(record, dict) and isinstance(record.get("pipeline"), dict)
    if not (are_complete and _are_parts(record.get("parts")) and _are_axes(record.get("dials", []))):
        raise BadInput(f"{folder / RECORD}: does not say which pipeline it is for; export again")
    return record


def _are_parts(parts: Any) -> bool:
    """Whether these are network -> layout; names become folders, so they must be plain."""
    return isinstance(parts, dict) and all(name.isidentifier() and parts[name] in LAYOUTS for name in parts)


def _are_axes(axes: Any) -> bool:
    return isinstance(axes, list) and all(isinstance(axis, str) and axis for axis in axes)


def find_lora(source: str) -> Path:
    """The path of a LoRA file or an export folder; in the folder of a run, of its export; in one of peft or diffusers,
    of the file in it. Raises BadInput unless it is intact and holds trained weights."""
    path = Path(source).expanduser()
    if (path / "export" / RECORD).is_file():  # a run
        path = path / "export"
    if path.is_dir() and (path / RECORD).is_file():
        for file in path.rglob("*.safetensors"):
            if not file.name.startswith("comfyui"):
                check_file(file)
        return path
    if path.is_dir():
        named = [path / PEFT_WEIGHTS] if (path / PEFT_CONFIG).is_file() else [path / WEIGHTS]
        if not (files := [file for file in named if file.is_file()]):
            raise BadInput(f"lora: {path} has no {RECORD}, so no training exported it; name a .safetensors file")
        path = files[0]
    if not path.is_file():
        raise BadInput(f"lora: no such file: {path}")
    if path.suffix.lower() != ".safetensors":
        raise BadInput(
            f"lora: {path} is not a .safetensors file; pickled weights are never loaded, because they can run code"
        )
    read_lora_file(path, f"lora: {path}")
    return path


def find_round_export(source: Path) -> Path | None:
    """The export of a round of a training, RUN/checkpoints/NAME/000020; None for another path. Raises BadInput where
    the checkpoint is not exported, as a checkpoint itself is no pipeline: it holds the state of a training."""
    if source.parent.parent.name != "checkpoints" or not source.stem.isdigit() or source.suffix not in ("", ".pt"):
        return None
    run, name, number = source.parent.parent.parent, source.parent.name, int(source.stem)
    exported = run / f"export-{name}-round-{number}"
    if not (exported / RECORD).is_file():
        numbers = sorted(int(path.stem) for path in source.parent.glob("*.pt") if path.stem.isdigit())
        if number not in numbers:
            rounds = f"those of rounds {', '.join(map(str, numbers))} are there" if numbers else "there is none"
            raise BadInput(f"{source}: no such checkpoint; {rounds}")
        raise BadInput(
            f"{source}: a checkpoint is no pipeline before it is exported, by: workbench export {run} "
            f"--contestant {name} --round {number}"
        )
    return exported


def check_scalable(source: str) -> None:
    """Raises BadInput for an export that has no strength to change: one of whole weights, or one with dials."""
    path = find_lora(source)
    if path.is_file():
        return
    record = read_record(path)
    if "merged" in record["parts"].values() or record.get("dials"):
        what = "has dials, which are set instead" if record.get("dials") else "holds whole weights, no LoRA"
        raise BadInput(f"lora_weight: {path} {what}, so it has no strength to change; leave it at 1")


def list_lora_files(source: str) -> list[Path]:
    """The LoRA files that `source` names: itself, or those of an export, ComfyUI's left out. Raises BadInput."""
    path = find_lora(source)
    if path.is_file():
        return [path]
    files = [
        path / name / PEFT_WEIGHTS if layout == "peft" else path / name / WEIGHTS
        for name, layout in read_record(path)["parts"].items()
        if layout != "merged"
    ]
    files = [file if file.is_file() else path / WEIGHTS for file in files]
    if not files:
        raise BadInput(f"{path}: holds whole weights, no LoRA")
    return list(dict.fromkeys(files))
