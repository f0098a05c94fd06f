"""Clips for a blind vote: copies without metadata, and of small ones sheets of frames that a page steps through."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.io import image, media, video
from workbench.core.io.clips import StoredClip

SHEET_PIXELS = 8_000_000  # of all frames together: what phones take as one picture
SHEET_SIDE = 4096
PLAYABLE = ("h264", "vp9", "av1")  # codecs that browsers play
SEI = "filter_units=remove_types=6"  # drops what encoders write about themselves between the pictures of H.264
CRF = 12  # of a clip that must be encoded again: no visible loss


@dataclass(frozen=True)
class ClipSheet:
    """Frames of a clip, tiled in rows, each as it is stored."""

    data: bytes  # PNG
    columns: int
    size: tuple[int, int]  # of a frame: width, height
    order: tuple[int, ...]  # the tile that each frame shows
    rate: float  # frames per second

    def describe(self) -> dict:
        """What a page needs to draw it."""
        return {"columns": self.columns, "size": self.size, "order": self.order, "rate": self.rate}


def draw_sheet(path: Path) -> ClipSheet | None:
    """The sheet of a clip; None for one that is too large for it. Raises BadInput for what can't be read as a clip."""
    clip = media.inspect_media(path).content
    if not isinstance(clip, StoredClip):
        raise BadInput(f"{path}: not a clip")
    count, (width, height) = len(clip.pictures), clip.size
    if count * width * height > SHEET_PIXELS or max(width, height) > SHEET_SIDE:
        return None
    columns = max(min(SHEET_SIDE // width, math.ceil(math.sqrt(count * height / width))), 1)
    rows = math.ceil(count / columns)
    if rows * height > SHEET_SIDE:
        return None
    tiles = np.zeros((rows * height, columns * width, 3), np.uint8)
    for n, picture in enumerate(clip.pictures.permute(0, 2, 3, 1).numpy()):
        top_edge, left_edge = n // columns * height, n % columns * width
        tiles[top_edge : top_edge + height, left_edge : left_edge + width] = picture
    out = io.BytesIO()
    Image.fromarray(tiles).save(out, "PNG", compress_level=3)
    return ClipSheet(out.getvalue(), columns, clip.size, tuple(clip.order.tolist()), clip.rate)


def strip_films(paths: list[Path], folder: Path) -> list[bytes]:
    """MP4 bytes of clips, without metadata, and alike in how they are stored: the very frames where all have one codec
    that browsers play, else each encoded again. Raises BadInput for a file that is no clip."""
    codecs = {_codec(path) for path in paths}
    if len(codecs) == 1 and codecs <= set(PLAYABLE):
        return [_copy_streams(path) for path in paths]
    return [_encode_again(path, folder) for path in paths]


def _codec(path: Path) -> str:
    if media.known_format(path).reader != "film":  # an animation
        return ""
    with image.decoding(path, "clip"), video.open_file(path) as file:
        streams = file.streams.video
        return streams[0].codec_context.name if streams else ""


def _copy_streams(path: Path) -> bytes:
    av, out = video.import_av(), io.BytesIO()
    with image.decoding(path, "clip"), video.open_file(path) as file, av.open(out, "w", format="mp4") as copy:
        streams = [*file.streams.video[:1], *file.streams.audio[:1]]
        targets = {stream.index: copy.add_stream_from_template(stream) for stream in streams}
        pictures = streams[0]
        clean = None
        if pictures.codec_context.name == "h264":
            clean = av.bitstream.BitStreamFilterContext(SEI, pictures, targets[pictures.index])
        for target in targets.values():
            target.metadata.clear()
        for packet in file.demux(streams):
            parts = clean.filter(packet) if clean is not None and packet.stream is pictures else [packet]
            for part in parts:
                if part.dts is not None:
                    part.stream = targets[packet.stream.index]
                    copy.mux(part)
    return out.getvalue()


def _encode_again(path: Path, folder: Path) -> bytes:
    try:
        sound = media.Media(*_read_sound(path))
    except BadInput:  # most clips have none
        sound = None
    file = folder / f".{path.stem}-{id(path):x}.mp4"
    try:
        return video.write_mp4(media.read_media(path), file, sound=sound, crf=CRF).read_bytes()
    finally:
        file.unlink(missing_ok=True)


def _read_sound(path: Path) -> tuple:
    with image.decoding(path, "sound"):
        data, rate, _ = video.read_sound(path)
    return data[None], "audio", rate
