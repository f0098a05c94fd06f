"""Files that somebody hands in. What a file is, its content says and never its name; what it may cost is known before
it is decoded; and no text of a user becomes a path: the copy that is read has a name of our own."""

from __future__ import annotations

import shutil
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.io import media, video
from workbench.core.types import Modality

MB = 2**20
MAX_BYTES = {"image": 32 * MB, "video": 64 * MB, "audio": 64 * MB}  # of a file
MAX_PIXELS = 36_000_000  # of a picture
MAX_CLIP_PIXELS = 72_000_000  # of all frames of a clip together
MAX_SOUND_VALUES = 64_000_000  # values of a sound
MAX_TEXT_BYTES = 64 * MB
MAX_FILES = 64  # of one upload
MODALITIES: dict[str, Modality] = {
    **dict.fromkeys((".png", ".jpg", ".gif", ".webp", ".bmp", ".tif", ".avif", ".ppm"), "image"),
    **dict.fromkeys((".mp4", ".webm", ".avi"), "video"),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".m4a"), "audio"),
}
SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF87a", ".gif"), (b"GIF89a", ".gif"),
    (b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"P5\n", ".ppm"), (b"P6\n", ".ppm"), (b"\x1aE\xdf\xa3", ".webm"),
    (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"),
    (b"\xff\xfb", ".mp3"), (b"\xff\xf3", ".mp3"), (b"\xff\xf2", ".mp3"),
)  # fmt: skip
RIFF = {b"WEBP": ".webp", b"WAVE": ".wav", b"AVI ": ".avi"}
FTYP_BRANDS = {b"avif": ".avif", b"avis": ".avif", b"M4A ": ".m4a", b"M4B ": ".m4a"}
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([v]) for v in range(2, 6)))  # torch.save writes the first


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


def detect_suffix(first_bytes: bytes, name: str) -> str:
    """The suffix that the first bytes deserve. Raises BadInput for what is no medium, and for pickles by their name."""
    if not first_bytes:
        raise BadInput(f"{name}: the file is empty")
    if first_bytes[:4] == b"RIFF" and first_bytes[8:12] in RIFF:
        return RIFF[first_bytes[8:12]]
    if first_bytes[4:8] == b"ftyp":
        return FTYP_BRANDS.get(first_bytes[8:12], ".mp4")
    if (
        first_bytes[:2] == b"BM"
        and len(first_bytes) >= 18
        and struct.unpack("<I", first_bytes[14:18])[0] in (12, 40, 52, 56, 64, 108, 124)
    ):
        return ".bmp"
    for start, suffix in SIGNATURES:
        if first_bytes.startswith(start):
            return suffix
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
        suffix = detect_suffix(f.read(32), name)
    modality = MODALITIES[suffix]
    if (size := source.stat().st_size) > MAX_BYTES[modality]:
        raise BadInput(
            f"{name}: {size / MB:.0f} MB; the page takes {modality} files of up to {MAX_BYTES[modality] // MB} MB"
        )
    folder = temp / f"upload-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    copy = folder / f"file{suffix}"
    shutil.copyfile(source, copy)
    modality = _check_cost(copy, modality, name)
    synonyms = {
        ".jpg": {".jpeg"}, ".tif": {".tiff"}, ".mp4": {".m4v", ".mov"}, ".webm": {".mkv"}, ".png": {".apng"},
        ".ogg": {".opus"}, ".ppm": {".pgm"},
    }  # fmt: skip
    expected_suffixes = {suffix, *synonyms.get(suffix, ())}
    is_expected = source.suffix.lower() in expected_suffixes
    note = "" if is_expected else f"its content is {suffix[1:].upper()}, whatever its name says"
    return Upload(copy, name, modality, note)


def accept_uploads(paths: Sequence[str] | None, temp: Path, limit: int = MAX_FILES) -> list[Upload]:
    """Raises BadInput for the first that can't be taken, or for too many."""
    if len(paths or ()) > limit:
        raise BadInput(f"{len(paths)} files; at most {limit} at once")
    return [accept_upload(path, temp) for path in paths or ()]


def read_upload(upload: Upload) -> media.MediaFile:
    """What is in it. Raises BadInput under the name that its owner gave it."""
    try:
        content = media.inspect_media(upload.path)
    except BadInput as error:
        raise BadInput(str(error).replace(str(upload.path), upload.name)) from None
    except Exception as error:  # a hostile file may break a decoder in any way
        raise BadInput(f"{upload.name}: can't be read; the file is broken") from error
    if not content.media.data.isfinite().all():
        raise BadInput(f"{upload.name}: holds values that are not finite")
    return content


def _check_cost(path: Path, modality: Modality, name: str) -> Modality:
    """The modality, moving pictures being clips. Raises BadInput for what decodes into more than the page's limits."""
    try:
        if modality == "image":
            with Image.open(path) as image:
                frames = 1 if path.suffix == ".tif" else getattr(image, "n_frames", 1)
                size = image.width * image.height
            if size > MAX_PIXELS or (frames > 1 and size * frames > MAX_CLIP_PIXELS):
                raise BadInput(
                    f"{name}: {frames} frame(s) of {size / 1e6:,.0f} megapixels; the page takes "
                    f"{MAX_PIXELS // 10**6} megapixels, and {MAX_CLIP_PIXELS // 10**6} over all frames of a clip"
                )
            return "video" if frames > 1 else "image"
        limit = MAX_CLIP_PIXELS if modality == "video" else MAX_SOUND_VALUES
        if path.suffix != ".wav" and (cost := _decoded_size(path, modality, limit)) > limit:
            raise BadInput(f"{name}: more than {cost / 1e6:,.0f} million values when it is decoded; cut it shorter")
    except BadInput as error:
        raise BadInput(str(error).replace(str(path), name)) from None
    except Image.DecompressionBombError:  # beyond what PIL opens at all
        raise BadInput(f"{name}: far more than the {MAX_PIXELS // 10**6} megapixels that the page takes") from None
    except Exception as error:  # as in `read_upload`
        raise BadInput(f"{name}: can't be read; the file is broken") from error
    return modality


def _decoded_size(path: Path, modality: Modality, limit: int) -> int:
    """Pixels of all frames, or samples of all channels; counted until they are beyond the limit, and nothing is
    kept."""
    cost = 0
    with video._open_stream(path, modality) as (file, stream):
        for frame in file.decode(stream):
            cost += frame.width * frame.height if modality == "video" else frame.samples * len(frame.layout.channels)
            if cost > limit:
                break
    return cost


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
