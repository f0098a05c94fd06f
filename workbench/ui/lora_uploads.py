"""LoRA files from elsewhere: checked as `workbench lora` does before anything loads them; then kept, by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import BadInput
from workbench.core.io.media import file_digest
from workbench.core.paths import write_atomic
from workbench.ui.uploads import MB, display_name

if TYPE_CHECKING:
    from pipelines.lora_file import LoraFile

FOLDER = "loras"  # in the folder of runs
MAX_BYTES = 2048 * MB


def inspect_lora(path: str | Path) -> LoraFile:
    """What the LoRA in a safetensors file is. Only its header and scalars are read, nothing is executed.

    Raises BadInput for a file that is too large, and for all that `read_lora_file` refuses.
    """
    from pipelines.lora_file import read_lora_file

    path, name = Path(path), display_name(path)
    if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
        raise BadInput(f"{name}: {size / MB:,.0f} MB; a LoRA of up to {MAX_BYTES // MB:,} MB is taken")
    return read_lora_file(path, name)


def keep_lora(path: str | Path, runs: Path) -> str:
    """Check an uploaded file and keep it among the runs: `lora:NAME`, by which a contestant runs on it. Raises
    BadInput."""
    inspect_lora(path).read_tensors()
    slug = re.sub(r"[^a-z0-9]+", "-", Path(display_name(path)).stem.lower()).strip("-")[:40] or "lora"
    name = f"{slug}-{file_digest(path)[:8]}"
    folder = runs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.safetensors", Path(path).read_bytes())
    return f"lora:{name}"


def summarise_lora(path: str | Path) -> str:
    """In a few words: the layout, the family of its base, layers and rank."""
    from pipelines.lora_description import describe_lora_file

    file = inspect_lora(path)
    description, rank = describe_lora_file(file), max(pair.rank for pair in file.pairs.values())
    return f"{description.layout}, for {description.family}, {len(file.pairs)} layers of rank up to {rank}"


def list_loras(runs: Path) -> dict[str, str]:
    """`lora:NAME` -> its file."""
    return {f"lora:{file.stem}": str(file) for file in sorted((runs / FOLDER).glob("*.safetensors"))}
