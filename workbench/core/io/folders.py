"""The media files of a folder, by their content, and which files were left out. One rule for scores and references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io import formats, image, video
from workbench.core.io.parsing import one_line
from workbench.core.types import Modality

SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})  # beside hidden ones, which begin with a dot
NAMED = 3  # files that a sentence names


@dataclass(frozen=True)
class Listing:
    """What a folder and its subfolders hold, sorted."""

    files: tuple[Path, ...]
    left_out: tuple[Path, ...]  # neither asked for nor hidden

    def left_out_sentence(self, wanted: str = "media") -> str:
        """What was left out and why, "" for nothing."""
        if not self.left_out:
            return ""
        names = ", ".join(one_line(p.name, 60) for p in self.left_out[:NAMED])
        more = f" and {len(self.left_out) - NAMED} more" if len(self.left_out) > NAMED else ""
        return f"{len(self.left_out)} file(s) left out, which are no {wanted}: {names}{more}"


def list_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, sorted, without hidden ones and those that systems leave behind. Raises
    BadInput for a folder that can't be listed."""
    try:
        inside = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    except OSError as error:
        raise BadInput(f"{one_line(folder)}: can't be listed ({error.strerror})") from None
    return sorted(p for p in inside if p.name.lower() not in SYSTEM_FILES and p.is_file())


def list_media(folder: Path) -> Listing:
    """The media files of a folder. A file whose content is no medium counts as one if its name says so: it is broken,
    and who reads it says that."""
    files = list_files(folder)
    media = [p for p in files if _format(p)]
    return Listing(tuple(media), tuple(sorted(set(files) - set(media))))


def select_modality(files: Sequence[Path], modality: Modality) -> Listing:
    """Those of some files that hold one modality."""
    chosen = [p for p in files if modality_of(p) == modality]
    return Listing(tuple(chosen), tuple(p for p in files if p not in set(chosen)))


def modality_of(path: Path) -> Modality | None:
    """What a file holds, None for no medium; what can't be opened is taken for what its name or first bytes say."""
    if (kind := _format(path)) is None:
        return None
    if kind.reader == "sound":
        return "audio"
    try:
        if kind.reader == "film":
            return "video" if video.has_pictures(path) else "audio"
        if kind is formats.PNG:  # as which the workbench writes clips; of other animations a picture is the first
            return "video" if image.is_animated(path, kind) else "image"
    except Exception:  # broken: who reads it says how
        return "video" if kind.reader == "film" else "image"
    return "image"


def _format(path: Path) -> formats.Format | None:
    try:
        return formats.detect_format(path) or formats.format_by_suffix(path)
    except OSError:  # no permission: who reads it says so
        return formats.format_by_suffix(path)
