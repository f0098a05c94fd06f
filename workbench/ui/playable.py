"""Media of a run as browsers show and play them: the files themselves, and copies of kinds that browsers don't know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from workbench.core.io import formats, media, video
from workbench.core.types import Media
from workbench.ui.served_files import serve_copy, serve_made

FILMS = {formats.MP4: "video/mp4", formats.MATROSKA: "video/webm"}
CODECS = ("h264", "vp8", "vp9", "av1")
SOUNDS = (formats.WAV, formats.FLAC, formats.MP3, formats.M4A, formats.OGG)


@dataclass(frozen=True)
class Playable:
    """A file that a page can show, and what the page must know of it."""

    file: Path
    type: str  # image/png, video/mp4; "" of a sound
    size: tuple[int, int, int] | None = None  # (frames, height, width)
    rate: float = 0.0  # frames per second of a clip


def serve_playable(temp: Path, file: Path, name: str, modality: str) -> Playable:
    """A copy of a run's file where the page may serve from, or of what it holds as PNG, MP4 or FLAC. Raises BadInput
    for a file that can't be read."""
    kind = media.known_format(file)
    stem = f"{file}{file.stat().st_mtime_ns}"
    if modality == "audio":
        if kind in SOUNDS:
            return Playable(serve_copy(temp, file, name), "")
        return Playable(serve_made(temp, stem, f"{name}.flac", lambda: _as_flac(file)), "")
    if kind in formats.BROWSER_PICTURES:
        with Image.open(file) as image:
            size = (getattr(image, "n_frames", 1), image.height, image.width)
            rate = 1000 / (image.info.get("duration") or 125)
        return Playable(serve_copy(temp, file, name), formats.BROWSER_PICTURES[kind], size, rate)
    if modality == "image":
        copy = serve_made(temp, stem, f"{name}.png", lambda: media.encode_png(media.read_media(file)))
        with Image.open(copy) as image:
            return Playable(copy, "image/png", (1, image.height, image.width))
    frames, height, width, rate, codec = video.read_film_header(file)
    if kind in FILMS and codec in CODECS:
        return Playable(serve_copy(temp, file, name), FILMS[kind], (frames, height, width), rate)
    copy = serve_made(temp, stem, f"{name}.mp4", lambda: _as_mp4(file))
    return Playable(copy, "video/mp4", (frames, height, width), rate)


def _as_mp4(file: Path) -> bytes:
    with TemporaryDirectory() as folder:
        return video.write_mp4(media.read_media(file), Path(folder) / "clip.mp4", crf=14).read_bytes()


def _as_flac(file: Path) -> bytes:
    sound = media.read_media(file)
    with TemporaryDirectory() as folder:
        copy = video.write_flac(Media(sound.data[:, :2], "audio", sound.rate), Path(folder) / "sound.flac")
        return copy.read_bytes()
