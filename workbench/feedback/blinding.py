"""Blind pairs for voting: copies of two media whose content, names and loudness don't reveal where they come from, and
of what both were made from."""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, prompt_inputs
from workbench.core.io import media
from workbench.core.io.clips import StoredClip
from workbench.core.io.resampling import resample_audio
from workbench.core.paths import write_atomic
from workbench.core.types import Media, Modality
from workbench.feedback.blind_clips import strip_films
from workbench.feedback.damage import damage_media
from workbench.feedback.votes import Pair
from workbench.report import audio_view
from workbench.runs.sample_modality import CERTAIN

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# the chunks that make the picture or the clip
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"IEND")
COLOUR_CHUNKS = (b"iCCP", b"gAMA", b"cHRM", b"eXIf", b"acTL")  # what may change how a browser shows a picture
MAX_AGE = 3600.0  # seconds after which a shown file is removed
SIDE = 1024  # pixels of a picture that both were made from
SECRET = secrets.token_hex(16)  # of this process: nobody can guess where a file is


@dataclass(frozen=True)
class BlindInput:
    """What both media of a pair were made from."""

    name: str  # one of workbench.core.inputs.NAMES
    modality: Modality
    file: Path


@dataclass(frozen=True)
class BlindPair:
    """The files of one battle."""

    left: Path
    right: Path
    seconds: float  # how long the shorter one plays; 0 for pictures
    inputs: tuple[BlindInput, ...] = ()  # what both were made from


def prepare_blind_pair(pair: Pair, runs: Path, temp: Path, damaged: str = "") -> BlindPair | None:
    """Copies in `temp` under random names; None when a file is missing or has changed, or when both are equal.

    damaged: the side ("left", "right") that is shown damaged on purpose. Values of pictures are not changed; both are
    PNG. Clips that the workbench wrote stay as they are; others become MP4, the very frames where both have one codec
    that browsers play. Sounds are converted to equal rate, channels, length (the shorter one) and loudness, as the
    louder one would seem better.
    """
    temp.mkdir(parents=True, exist_ok=True)
    files_read = [_read_original(runs, side.file, side.sha256) for side in (pair.left, pair.right)]
    originals = [original for original in files_read if original is not None]
    if len(originals) < 2:
        return None
    try:
        if damaged:
            at = ("left", "right").index(damaged)
            originals[at] = _damage_file(originals[at][0], temp)
        parts, suffix, seconds = _prepare_parts(pair.modality, originals, temp)
    except BadInput:
        return None
    if parts[0] == parts[1]:
        return None
    if secrets.randbelow(100) == 0:  # rarely: listing thousands of files takes longer than a vote
        _remove_old_files(temp)
    names = [temp / f"{secrets.token_urlsafe(16)}{suffix}" for _ in parts]
    for name, data in zip(names, parts, strict=True):
        name.write_bytes(data)
    return BlindPair(names[0], names[1], seconds, tuple(_show_inputs(pair.prompt, temp)))


def _prepare_parts(modality: str, originals: list, temp: Path) -> tuple[list[bytes], str, float]:
    """(bytes of each copy, their suffix, seconds that the shorter one plays). Raises BadInput for what can't be
    shown."""
    if modality == "audio":
        parts, seconds = _equalise_sounds(*(media.read_media(path) for path, _ in originals))
        return parts, ".wav", seconds
    if modality == "image":
        return [blind_picture(path, data) for path, data in originals], ".png", 0.0
    if all(data.startswith(SIGNATURE) for _, data in originals):
        parts = [strip_png(data, path) for path, data in originals]
        return parts, ".apng", min(map(_play_seconds, parts))
    clips = [media.inspect_media(path).content for path, _ in originals]
    if not all(isinstance(clip, StoredClip) for clip in clips):
        raise BadInput("one of the two is no clip")
    return strip_films([path for path, _ in originals], temp), ".mp4", min(len(c) / c.rate for c in clips)


def blind_picture(path: Path, data: bytes) -> bytes:
    """A picture as PNG without metadata, upright and in sRGB. One that the workbench wrote keeps its bytes."""
    if data.startswith(SIGNATURE) and not any(name in COLOUR_CHUNKS for name, _ in _png_chunks(data, path)):
        return strip_png(data, path)
    return media.encode_png(media.quantise_media(media.read_media(path)))


def _damage_file(path: Path, temp: Path) -> tuple[Path, bytes]:
    damaged = media.quantise_media(damage_media(media.read_media(path)))
    encode = {"image": media.encode_png, "video": media.encode_apng, "audio": media.encode_wav}[damaged.modality]
    file = temp / f"{secrets.token_urlsafe(16)}-damaged{media.SUFFIX_BY_MODALITY[damaged.modality]}"
    file.write_bytes(data := encode(damaged))
    return file, data


def _show_inputs(prompt: str, temp: Path) -> Iterator[BlindInput]:
    """What comes with the prompt, as browsers show it and without metadata. Both sides have it, so it is written once
    for all pairs. One that is gone or was changed is left out."""
    for name, value in sorted(prompt_inputs(prompt).items(), key=lambda item: NAMES.index(item[0])):
        place = temp / hashlib.sha256(f"{SECRET}{value.digest}".encode()).hexdigest()[:32]
        suffixes = media.SUFFIX_BY_MODALITY.values()
        file = next((f for suffix in suffixes if (f := place.with_suffix(suffix)).is_file()), None)
        try:
            file = file or _write_input(value.read(), place)
        except BadInput:
            continue
        os.utime(file)  # it is still in use
        yield BlindInput(name, CERTAIN[file.suffix], file)  # type: ignore[arg-type]


def _write_input(content: Media, place: Path) -> Path:
    if content.modality == "audio":
        ((sound, _),) = audio_view.match_loudness([content])
        data = media.encode_wav(sound)
    else:
        data = media.encode_thumbnail(content, SIDE) if content.modality == "image" else media.encode_apng(content)
    file = place.with_suffix(media.SUFFIX_BY_MODALITY[content.modality])
    write_atomic(file, data)
    return file


def _read_original(runs: Path, file: str, sha256: str) -> tuple[Path, bytes] | None:
    path = (runs / file).resolve()
    if not path.is_relative_to(runs.resolve()) or not path.is_file():
        return None
    data = path.read_bytes()
    return (path, data) if hashlib.sha256(data).hexdigest() == sha256 else None


def strip_png(data: bytes, path: Path | str = "") -> bytes:
    """A PNG or animated PNG without metadata. Raises BadInput for anything else."""
    chunks = [data[:8]]
    for name, chunk in _png_chunks(data, path):
        if name in PIXEL_CHUNKS:
            chunks.append(chunk)
    return b"".join(chunks)


def _png_chunks(data: bytes, path: Path | str) -> Iterator[tuple[bytes, bytes]]:
    """(name, bytes) of each chunk up to IEND; bytes after it are ignored. Raises BadInput for what is no whole PNG."""
    at, name = 8, b""
    while data[:8] == SIGNATURE and name != b"IEND" and at + 12 <= len(data):
        (length,), name = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        yield name, data[at : at + 12 + length]
        at += 12 + length
    if name != b"IEND":
        raise BadInput(f"{path}: not a whole PNG")


def _play_seconds(data: bytes) -> float:
    """The duration of an animated PNG; 0 for a picture."""
    seconds = 0.0
    for name, chunk in _png_chunks(data, ""):
        if name == b"fcTL":
            top, below = struct.unpack(">HH", chunk[28:32])  # 8 of the chunk's head, 20 of its numbers before these
            seconds += top / (below or 100)
    return seconds


def _equalise_sounds(*parts: Media) -> tuple[list[bytes], float]:
    """Two sounds as WAV bytes of equal rate, channels, length and loudness, and their duration in seconds."""
    rate, channels = round(max(p.rate for p in parts)), max(p.data.shape[1] for p in parts)
    if any(p.data.shape[1] not in (1, channels) for p in parts):
        raise BadInput("sounds of so many different channels can't be compared")
    sounds = [resample_audio(p.data, p.rate, rate) for p in parts]
    length = min(x.shape[-1] for x in sounds)
    sounds = [replace(parts[0], data=x[..., :length].expand(1, channels, -1), rate=float(rate)) for x in sounds]
    return [media.encode_wav(sound) for sound, _ in audio_view.match_loudness(sounds)], length / rate


def _remove_old_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and time.time() - path.stat().st_mtime > MAX_AGE:
            path.unlink(missing_ok=True)
