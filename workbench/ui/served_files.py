"""Copies of files that a page may serve, under names that nobody can guess; of a run folder as one zip file too."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from workbench.runs.store import RunFolder  # torch comes with it

SECRET = secrets.token_hex(16)  # of this app: nobody can guess where a file is served


def serve_copy(temp: Path, file: Path, name: str = "") -> Path:
    """A copy of a file where the page may serve from, under a name that nobody can guess. Old ones are removed in
    time."""

    def write(partial: Path) -> None:
        shutil.copyfile(file, partial)

    return _publish(temp, f"{file}{file.stat().st_mtime_ns}", name or file.name, write)


def serve_made(temp: Path, key: str, name: str, make: Callable[[], bytes]) -> Path:
    """A file of what `make` returns, made once for a key and served as copies are."""
    return _publish(temp, key, name, lambda partial: partial.write_bytes(make()))


def _publish(temp: Path, key: str, name: str, write: Callable[[Path], object]) -> Path:
    token = hashlib.sha256(f"{SECRET}{key}".encode()).hexdigest()[:32]
    copy = temp / "studio" / token / name
    if copy.is_file():
        os.utime(copy)
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{secrets.token_hex(8)}")
    write(partial)
    os.replace(partial, copy)
    return copy


def file_url(file: Path) -> str:
    return f"gradio_api/file={quote(str(file))}"


def sweep_copies(temp: Path, max_age: float = 6 * 3600.0) -> None:
    """Remove served copies that nobody has asked for for `max_age` seconds."""
    for folder in (temp / "studio").glob("*"):
        newest = max((f.stat().st_mtime for f in folder.glob("*")), default=folder.stat().st_mtime)
        if time.time() - newest > max_age:
            shutil.rmtree(folder, ignore_errors=True)


def zip_folder(folder: RunFolder, temp: Path) -> Path:
    """The whole run folder as one zip file."""
    folder_path = temp / "studio" / secrets.token_hex(16)
    folder_path.mkdir(parents=True)
    staged = shutil.make_archive(str(folder_path / folder.path.name), "zip", folder.path.parent, folder.path.name)
    return Path(staged)
