"""Small copies of a run's media, of kinds that browsers show, for pages that carry them with themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch.nn import functional as F

from workbench.core.io import formats, media, video
from workbench.core.io.budget import Budget
from workbench.core.types import Media

SIDE = 256  # pixels, of clips
AS_IT_IS = 400_000  # bytes up to which a clip or a sound that browsers know is shown itself
PLAYABLE = {
    ".apng": "image/apng", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".m4a": "audio/mp4",
    ".ogg": "audio/ogg", ".mp4": "video/mp4", ".webm": "video/webm",
}  # fmt: skip
SECONDS = 10  # of a long sound


def encode_preview(path: Path) -> tuple[bytes, str]:
    """(bytes, media type) of a picture as a thumbnail, of a clip as it is or as a small film, of a sound as it is or as
    the first seconds of it. Raises BadInput for a file that can't be read."""
    kind = formats.format_by_suffix(path)
    is_drawn = kind is not None and kind.reader == "picture" and path.suffix != ".apng"
    if is_drawn and media.measure_media(path, Budget()) == "image":
        return media.encode_thumbnail(path), "image/png"
    if path.suffix in PLAYABLE and path.stat().st_size <= AS_IT_IS:
        return path.read_bytes(), PLAYABLE[path.suffix]
    content = media.read_media(path)
    if content.modality == "video":
        return _encode_film(content), "video/mp4"
    return _encode_sound(content), "audio/flac"


def _encode_film(clip: Media) -> bytes:
    frames = clip.data[0]
    factor = max(frames.shape[-2:]) / SIDE
    if factor > 1:
        size = [max(round(side / factor), 2) for side in frames.shape[-2:]]
        frames = F.interpolate(frames, size, mode="area")
    with tempfile.TemporaryDirectory() as folder:
        return video.write_mp4(Media(frames[None], "video", clip.rate), Path(folder) / "film.mp4", crf=26).read_bytes()


def _encode_sound(sound: Media) -> bytes:
    data = sound.data[:, :2, : round(SECONDS * sound.rate)]
    with tempfile.TemporaryDirectory() as folder:
        return video.write_flac(Media(data, "audio", sound.rate), Path(folder) / "sound.flac").read_bytes()
