"""Files that somebody hands in. What a file is, its content says and never its name; what it may cost is known before
it is decoded; and no text of a user becomes a path: the copy that is read has a name of our own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io import formats, media
from workbench.core.io.budget import Budget
from workbench.core.types import Modality

MB = 2**20
MAX_BYTES: dict[Modality, int] = {"image": 32 * MB, "video": 64 * MB, "audio": 64 * MB}  # of a file
MAX_PIXELS = 36_000_000  # of a picture
MAX_CLIP_PIXELS = 72_000_000  # of all frames of a clip together, as they are shown
MAX_SOUND_VALUES = 64_000_000  # values of a sound
MAX_TEXT_BYTES = 64 * MB
MAX_FILES = 64  # of one upload
READERS: dict[str, Modality] = {"picture": "image", "film": "video", "sound": "audio"}  # by who reads the file
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([version]) for version in range(2, 6)))  # torch.save writes the first


@dataclass(frozen=True)
class Upload:
    """One file as it was taken in: the private copy, and what to call it."""

    path: Path
    name: str
    modality: Modality
    note: str = ""


def display_name(path: str | Path) -> str:
    """What a person calls the file, for sentences."""
    name = Path(path).name
    return name if len(name) <= 60 else f"{name[:40]}…{name[-16:]}"


def page_budget() -> Budget:
    """What a file may hold that the page takes."""
    return Budget(MAX_PIXELS, MAX_CLIP_PIXELS, sound_values=MAX_SOUND_VALUES)


def detect_format(first_bytes: bytes, name: str) -> formats.Format:
    """What the first bytes are. Raises BadInput for what is no medium, and for pickles by their name."""
    if not first_bytes:
        raise BadInput(f"{name}: the file is empty")
    if kind := formats.format_of(first_bytes):
        return kind
    if first_bytes.startswith(PICKLES):
        raise BadInput(
            f"{name}: is a pickle or an archive, which can run code when it is opened; nothing here opens one"
        )
    raise BadInput(f"{name}: its content is no picture, clip or sound that can be read here, whatever its name says")


def accept_upload(path: str | Path, temp: Path) -> Upload:
    """A private copy in `temp`, looked over and small enough to be decoded. Raises BadInput."""
    source, name = Path(path), display_name(path)
    if not source.is_file():
        raise BadInput(f"{name}: no such file was uploaded")
    with open(source, "rb") as f:
        kind = detect_format(f.read(formats.HEAD), name)
    medium = READERS[kind.reader]
    if (size := source.stat().st_size) > MAX_BYTES[medium]:
        raise BadInput(
            f"{name}: {size / MB:.0f} MB; the page takes {medium} files of up to {MAX_BYTES[medium] // MB} MB"
        )
    folder = temp / f"upload-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    copy = folder / f"file{kind.suffixes[0]}"
    shutil.copyfile(source, copy)
    with _named(copy, name):
        modality = media.measure_media(copy, page_budget())
    is_expected = source.suffix.lower() in kind.suffixes
    note = "" if is_expected else f"its content is {kind.name}, whatever its name says"
    return Upload(copy, name, modality, note)


def accept_uploads(paths: Sequence[str] | None, temp: Path, limit: int = MAX_FILES) -> list[Upload]:
    """Raises BadInput for the first that can't be taken, or for too many."""
    if len(paths or ()) > limit:
        raise BadInput(f"{len(paths)} files; at most {limit} at once")
    return [accept_upload(path, temp) for path in paths or ()]


def read_upload(upload: Upload) -> media.MediaFile:
    """What is in it. Raises BadInput under the name that its owner gave it."""
    with _named(upload.path, upload.name):
        content = media.inspect_media(upload.path, page_budget())
    if not content.is_finite():
        raise BadInput(f"{upload.name}: holds values that are not finite")
    return content


@contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """A BadInput about the private copy is about the file that was handed in."""
    try:
        yield
    except BadInput as error:
        raise BadInput(str(error).replace(str(path), name)) from None


def accept_text(path: str | Path, temp: Path) -> tuple[Path, str]:
    """(private copy, what to call it) of an interaction log: .csv or .jsonl by its content. Raises BadInput."""
    source, name = Path(path), display_name(path)
    if not source.is_file() or not (size := source.stat().st_size):
        raise BadInput(f"{name}: the file is empty")
    if size > MAX_TEXT_BYTES:
        raise BadInput(
            f"{name}: {size / MB:.0f} MB; the page takes logs of up to {MAX_TEXT_BYTES // MB} MB, workbench social any"
        )
    data = source.read_bytes()
    try:
        start = data.decode("utf-8-sig").lstrip()[:1]
    except UnicodeDecodeError:
        start = "\0"
    if b"\0" in data or start == "\0":
        raise BadInput(f"{name}: is no text; give the log as CSV or as JSON lines, in UTF-8")
    folder = temp / f"log-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    copy = folder / ("log.jsonl" if start == "{" else "log.csv")
    copy.write_bytes(data)
    return copy, name
