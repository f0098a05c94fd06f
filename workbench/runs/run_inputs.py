"""What the samples of a run are made from, in its folder: `inputs/<digest>.<suffix>`, each once, byte for byte as it
was given, so that the report, the app and whoever copies the folder need nothing else."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import FileInput, prompt_inputs
from workbench.core.io import media
from workbench.core.paths import sync_folder, write_atomic
from workbench.core.text import one_line
from workbench.core.types import Input, Prompt

FOLDER = "inputs"
DIGEST = re.compile(r"[0-9a-f]{64}")
ENCODERS = {"image": media.encode_png, "video": media.encode_apng, "audio": media.encode_wav}
CHUNK = 1 << 20  # bytes


def record_inputs(prompt: str) -> dict[str, dict[str, str]]:
    """{"inputs": {name: digest}} of a sample's row in the log; {} for a prompt without inputs."""
    inputs = prompt_inputs(prompt)
    return {"inputs": {name: value.digest for name, value in inputs.items()}} if inputs else {}


def store_inputs(folder: Path, prompts: Iterable[str]) -> dict[str, str]:
    """Write the inputs of these prompts into `folder`/inputs, unless they are there; returns digest -> file, relative
    to `folder`. Raises BadInput for one that has changed since its digest was taken."""
    files: dict[str, str] = {}
    for value in {v.digest: v for prompt in prompts for v in prompt_inputs(prompt).values()}.values():
        path = find_input(folder, value.digest)
        if path is None or media.file_digest(path) != value.digest:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            path = _write_input(folder / FOLDER, value)
        files[value.digest] = path.relative_to(folder).as_posix()
    return files


def _write_input(folder: Path, value: Input) -> Path:
    if isinstance(value, FileInput):
        path = folder / (value.digest + media.known_format(Path(value.path)).suffixes[0])
        copy_file(Path(value.path), path, value.digest)
        return path
    content = value.read()
    path = folder / (value.digest + media.SUFFIX_BY_MODALITY[content.modality])
    write_atomic(path, ENCODERS[content.modality](content))
    return path


def copy_file(source: Path, target: Path, digest: str) -> None:
    """A copy, whole or not at all. Raises BadInput for a file that is not what the digest says."""
    temp, hashed = target.with_name(f".{uuid.uuid4().hex}.tmp"), hashlib.sha256()
    try:
        with source.open("rb") as original, temp.open("xb") as copy:
            while chunk := original.read(CHUNK):
                hashed.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        if hashed.hexdigest() != digest:
            raise BadInput(f"{source}: changed after it was first read; start again")
        os.replace(temp, target)
        sync_folder(target.parent)
    finally:
        temp.unlink(missing_ok=True)


def find_input(folder: Path, digest: str) -> Path | None:
    """The file of an input in a run folder; None where it isn't there."""
    if not DIGEST.fullmatch(digest):  # a log that was edited
        return None
    return next((p for p in (folder / FOLDER).glob(f"{digest}.*") if p.is_file()), None)


def restore_prompt(folder: Path, sample: Mapping[str, Any]) -> str:
    """The prompt of a row in a run's log, with its inputs from the run folder. One that is missing there is still known
    by its digest, and raises BadInput when it is read."""
    inputs = sample.get("inputs") or {}
    if not inputs:
        return sample["prompt"]
    paths = {name: find_input(folder, digest) for name, digest in inputs.items()}
    lost_paths = {name: folder / FOLDER / one_line(digest, 80) for name, digest in inputs.items()}
    return Prompt(sample["prompt"], {n: FileInput(str(paths[n] or lost_paths[n]), d) for n, d in inputs.items()})
