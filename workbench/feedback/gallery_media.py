"""Copies of media for a static page: of kinds that browsers show, and blind ones without anything but the medium."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.io import formats, media, video
from workbench.core.types import Media
from workbench.feedback.blinding import blind_picture
from workbench.runs.sample_modality import read_modality

SOUNDS = (formats.WAV, formats.FLAC, formats.MP3, formats.M4A)
CRF = 14  # of a clip that is encoded for browsers: hardly visible loss
TINY = 128  # pixels up to which a picture is shown in whole pixels
POSTER_SIDE = 512


def copy_medium(path: Path, target: Path, is_blind: bool) -> dict:
    """Write a copy beside `target` with the suffix that fits; returns {"kind", "file": its name, and of a picture
    "tiny", of a clip "poster"}. Raises BadInput for a file that can't be read.

    A picture that browsers know, a film of H.264 that begins with its index, and a sound that they play are copied as
    they are. Others become PNG, MP4 (H.264, yuv420p, its index first) and FLAC. A blind copy is always made anew, or
    loses all but its pixels: PNG, MP4, FLAC.
    """
    kind = read_modality(path)
    if kind == "audio":
        return {"kind": kind, "file": _copy_sound(path, target, is_blind).name}
    if kind == "video":
        copy = _copy_clip(path, target, is_blind)
        poster = target.with_name(f"{target.name}-poster.png")
        poster.write_bytes(media.encode_thumbnail(copy, POSTER_SIDE))
        return {"kind": kind, "file": copy.name, "poster": poster.name}
    copy = _copy_picture(path, target, is_blind)
    with Image.open(copy) as image:
        return {"kind": "image", "file": copy.name, "tiny": max(image.size) <= TINY}


def _copy_picture(path: Path, target: Path, is_blind: bool) -> Path:
    kind = media.known_format(path)
    if not is_blind and kind in formats.BROWSER_PICTURES:
        media.inspect_media(path)  # a broken file is said to be one, and not shown as a broken picture
        return shutil.copyfile(path, target.with_name(target.name + kind.suffixes[0]))
    copy = target.with_name(f"{target.name}.png")
    copy.write_bytes(blind_picture(path, path.read_bytes()))
    return copy


def _copy_clip(path: Path, target: Path, is_blind: bool) -> Path:
    copy = target.with_name(f"{target.name}.mp4")
    if not is_blind and _is_web_film(path):
        return shutil.copyfile(path, copy)
    return video.write_mp4(media.read_media(path), copy, sound=_read_voice(path), crf=CRF)


def _is_web_film(path: Path) -> bool:
    """Whether it is an MP4 of H.264 in yuv420p whose index stands before its frames."""
    if media.known_format(path) is not formats.MP4:
        return False
    with video.open_stream(path, "video") as (_, stream):
        if (stream.codec_context.name, stream.codec_context.pix_fmt) != ("h264", "yuv420p"):
            return False
    data = path.read_bytes()
    return 0 <= data.find(b"moov") < data.find(b"mdat")


def _read_voice(path: Path) -> Media | None:
    """The sound of a film; None where it has none."""
    if media.known_format(path).reader != "film":
        return None
    try:
        data, rate, _ = video.read_sound(path)
    except BadInput:  # most clips have none
        return None
    return Media(data[None], "audio", rate)


def _copy_sound(path: Path, target: Path, is_blind: bool) -> Path:
    kind = media.known_format(path)
    if not is_blind and kind in SOUNDS:
        media.inspect_media(path)
        return shutil.copyfile(path, target.with_name(target.name + kind.suffixes[0]))
    sound = media.read_media(path)
    if sound.data.shape[1] > 2:  # a page plays two: the middle of all stands in for more
        sound = Media(sound.data.mean(1, keepdim=True), "audio", sound.rate)
    return video.write_flac(sound, target.with_name(f"{target.name}.flac"))
