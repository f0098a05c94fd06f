"""Media files as others make and damage them, at the doors of `workbench score` and of the app's upload.

Seeds are small files of every container that is read, with what else writers put into them. Each input is a seed that
is whole, under another suffix, or damaged in one of ten ways. Answered right is: `score` has a row for it and for the
good file beside it, whose score is the known one; a whole file scores as its seed does; a damaged one has any score or
one sentence; the app's door likewise; within PEAK_MB.
"""

from __future__ import annotations

import functools
import io
import math
import random
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pillow_heif
import soundfile
import torch
from door_bombs import make_bombs
from door_outcomes import Outcome, check_sentence, try_in_process
from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.io import media, video
from workbench.core.types import Media
from workbench.evaluation import scoring
from workbench.ui import uploads
from workbench.ui.widgets import reward_scores

PEAK_MB = 2200  # above what the process has before: docs/rewards.md says as much
REWARDS = ("brightness", "loudness", "motion")
RATE = 8000
EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\1")


@dataclass(frozen=True)
class Seed:
    """A whole file."""

    name: str
    suffix: str
    content: bytes
    reward: str  # what can be said of it

    @property
    def family(self) -> str:
        return {"brightness": "picture", "loudness": "sound", "motion": "clip"}[self.reward]


def make_seeds() -> list[Seed]:
    """A file of each kind; the same bytes each time, but for what encoders write of themselves."""
    _register_heic()
    seeds = [Seed(name, suffix, content, "brightness") for name, suffix, content in _make_pictures()]
    seeds += [Seed(name, suffix, content, "motion") for name, suffix, content in _make_clips()]
    seeds += [Seed(name, suffix, content, "loudness") for name, suffix, content in _make_sounds()]
    return seeds


@functools.cache
def _register_heic() -> None:
    pillow_heif.register_heif_opener()


def _frames(count: int = 6) -> list[Image.Image]:
    """A bright square that moves over a slope."""
    frames = []
    for t in range(count):
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[..., 2] = np.arange(32) * 4
        pixels[6:18, 2 + 3 * t : 12 + 3 * t] = (240, 200, 40)
        frames.append(Image.fromarray(pixels))
    return frames


def _saved(image: Image.Image, kind: str, later: Sequence[Image.Image] = (), **settings) -> bytes:
    out = io.BytesIO()
    image, *later = (i.copy() for i in (image, *later))  # a picture remembers how it was saved last
    image.save(out, kind, **settings, **({"save_all": True, "append_images": later} if later else {}))
    return out.getvalue()


def _make_pictures() -> list[tuple[str, str, bytes]]:
    picture, other, *_ = _frames()
    tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "held on its side"
    rgba = picture.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(picture.size))
    deep = Image.fromarray(np.linspace(0, 65535, 768).astype(np.uint16).reshape(24, 32))
    return [
        ("png", ".png", media.encode_png(Media(tensor, "image"), {"prompt": "a square", "scores": {"oracle": 1.0}})),
        ("png with alpha", ".png", _saved(rgba, "PNG")),
        ("png of 16 bits", ".png", _saved(deep, "PNG")),
        ("png with palette", ".png", _saved(picture.quantize(16), "PNG")),
        ("jpeg", ".jpg", _saved(picture, "JPEG", quality=90, exif=exif)),
        ("jpeg of inks", ".jpg", _saved(picture.convert("CMYK"), "JPEG")),
        ("jpeg of two pictures", ".jpg", _saved(picture, "MPO", later=[other])),
        ("gif", ".gif", _saved(picture, "GIF")),
        ("webp", ".webp", _saved(picture, "WEBP")),
        ("avif", ".avif", _saved(picture, "AVIF", speed=10)),
        ("heic", ".heic", _saved(picture, "HEIF")),
        ("tiff", ".tif", _saved(picture, "TIFF", compression="tiff_lzw", later=[other])),
        ("bmp", ".bmp", _saved(picture, "BMP")),
        ("ppm", ".ppm", _saved(picture, "PPM")),
        ("jpeg 2000", ".jp2", _saved(picture, "JPEG2000")),
        ("ico", ".ico", _saved(picture.resize((32, 32)), "ICO", sizes=[(16, 16), (32, 32)])),
    ]


def _make_clips() -> list[tuple[str, str, bytes]]:
    frames = _frames()
    later = frames[1:]
    data = torch.stack([torch.from_numpy(np.asarray(f).copy()).permute(2, 0, 1) for f in frames])[None] / 255
    clip = Media(data, "video", 8.0)
    with tempfile.TemporaryDirectory() as folder:
        film = video.write_mp4(clip, Path(folder) / "a.mp4", sound=_tone(1), meta={"prompt": "a square"}).read_bytes()
    return [
        ("apng", ".png", media.encode_apng(clip, {"prompt": "a square moves"})),
        ("animated gif", ".gif", _saved(frames[0], "GIF", duration=[40, 40, 200, 40, 40, 40], later=later)),
        ("gif without delays", ".gif", _saved(frames[0], "GIF", duration=0, later=later)),
        ("animated webp", ".webp", _saved(frames[0], "WEBP", duration=[50, 50, 300, 50, 50, 50], later=later)),
        ("animated avif", ".avif", _saved(frames[0], "AVIF", duration=100, speed=10, later=later)),
        ("mp4 with sound", ".mp4", film),
        ("mp4 turned, of uneven times", ".mov", _film(frames, "mov", "libx264", "yuv420p", turn=90)),
        ("webm", ".webm", _film(frames, "webm", "libvpx-vp9", "yuv420p", speed="8")),
        ("webm with alpha", ".webm", _film(frames, "webm", "libvpx-vp9", "yuva420p", speed="8")),
        ("mkv", ".mkv", _film(frames, "matroska", "ffv1", "bgr0")),
        ("avi", ".avi", _film(frames, "avi", "mpeg4", "yuv420p", uneven=False)),
    ]


def _film(frames, container, codec, layout, turn=0, uneven=True, **options) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, layout
        if turn:
            stream.set_display_rotation(turn)
        for t, frame in enumerate(frames):
            picture = av.VideoFrame.from_image(frame).reformat(format=layout)
            picture.pts = t + (t > 2) * 10 * uneven
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return out.getvalue()


def _tone(channels: int, seconds: float = 0.5) -> Media:
    t = torch.arange(int(RATE * seconds)) / RATE
    rows = [torch.sin(2 * torch.pi * 220 * (c + 1) * t) * 0.5 for c in range(channels)]
    return Media(torch.stack(rows)[None], "audio", float(RATE))


def _make_sounds() -> list[tuple[str, str, bytes]]:
    x = _tone(2).data[0].T.numpy()

    def wav(kind="WAV", subtype=None, **how) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, x, RATE, format=kind, subtype=subtype, **how)
        return out.getvalue()

    plain = wav(subtype="PCM_16")
    aac = io.BytesIO()
    with av.open(aac, "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=RATE, layout="stereo")
        video._encode_samples(file, stream, np.ascontiguousarray(x.T, np.float32), "fltp", RATE)
    return [
        ("wav", ".wav", plain),
        ("wav of ours", ".wav", media.encode_wav(_tone(2), {"prompt": "a tone"})),
        ("wav of 24 bits", ".wav", wav(subtype="PCM_24")),
        ("wav of 8 bits", ".wav", wav(subtype="PCM_U8")),
        ("wav of doubles", ".wav", wav(subtype="DOUBLE")),
        ("wav, mu-law", ".wav", wav(subtype="ULAW")),
        ("wav, a-law", ".wav", wav(subtype="ALAW")),
        ("wav, adpcm", ".wav", wav(subtype="IMA_ADPCM")),
        ("wav of an editor", ".wav", add_chunks(plain)),
        ("wav of a pipe", ".wav", plain[:4] + b"\xff" * 4 + plain[8:40] + b"\xff" * 4 + plain[44:]),
        ("wav without sizes", ".wav", plain[:4] + b"\0" * 4 + plain[8:40] + b"\0" * 4 + plain[44:]),
        ("rifx", ".wav", wav(subtype="PCM_16", endian="BIG")),
        ("rf64", ".wav", wav("RF64", "PCM_16")),
        ("w64", ".w64", wav("W64", "PCM_16")),
        ("aiff", ".aiff", wav("AIFF", "PCM_16")),
        ("caf", ".caf", wav("CAF", "PCM_16")),
        ("au", ".au", wav("AU", "PCM_16")),
        ("flac", ".flac", wav("FLAC", "PCM_24")),
        ("mp3", ".mp3", wav("MP3")),
        ("vorbis", ".ogg", wav("OGG", "VORBIS")),
        ("opus", ".opus", wav("OGG", "OPUS")),
        ("aac", ".m4a", aac.getvalue()),
    ]


def add_chunks(wav: bytes) -> bytes:
    """What audio editors put before and after the samples."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    before = chunk(b"bext", b"a reporter".ljust(602, b"\0")) + chunk(b"iXML", b"<BWFXML/>") + chunk(b"acid", bytes(24))
    after = chunk(b"cue ", struct.pack("<I", 0)) + chunk(b"smpl", bytes(36)) + chunk(b"id3 ", b"ID3\3" + bytes(20))
    body = wav[12:36] + before + wav[36:] + after
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def cut(content: bytes, r: random.Random, _: bytes) -> bytes:
    return content[: r.randrange(1, len(content))]


def flip_bits(content: bytes, r: random.Random, _: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(r.choice((1, 3, 20))):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return bytes(data)


def edit_header(content: bytes, r: random.Random, _: bytes) -> bytes:
    """A field of 1, 2, 4 or 8 bytes near the start gets an extreme value."""
    size = r.choice((1, 2, 4, 8))
    at = r.randrange(min(len(content) - size, r.choice((48, 200, 800))))
    return content[:at] + r.choice(EXTREMES) * size + content[at + size :]


def edit_field(content: bytes, r: random.Random, _: bytes) -> bytes:
    """A number anywhere becomes another one."""
    at = r.randrange(max(len(content) - 4, 1))
    value = struct.pack(
        r.choice("<>") + "I", r.choice((0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, r.getrandbits(32)))
    )
    return content[:at] + value + content[at + 4 :]


def swap_parts(content: bytes, r: random.Random, _: bytes) -> bytes:
    a, b, c, d = sorted(r.randrange(len(content)) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def drop_part(content: bytes, r: random.Random, _: bytes) -> bytes:
    a = r.randrange(len(content))
    return content[:a] + content[a + r.choice((1, 7, 64, 500)) :]


def repeat_part(content: bytes, r: random.Random, _: bytes) -> bytes:
    a, b = sorted(r.randrange(len(content)) for _ in range(2))
    return content[:b] + content[a:b] * r.choice((1, 3)) + content[b:]


def blank_part(content: bytes, r: random.Random, _: bytes) -> bytes:
    a, b = sorted(r.randrange(len(content)) for _ in range(2))
    return content[:a] + r.choice(EXTREMES) * (b - a) + content[b:]


def insert_noise(content: bytes, r: random.Random, _: bytes) -> bytes:
    a = r.randrange(len(content) + 1)
    return content[:a] + r.randbytes(r.choice((1, 2, 33, 600))) + content[a:]


def splice(content: bytes, r: random.Random, other: bytes) -> bytes:
    """The start of one file and the end of another."""
    return content[: r.randrange(1, len(content))] + other[r.randrange(len(other)) :]


DAMAGES: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    cut, flip_bits, edit_header, edit_field, swap_parts, drop_part, repeat_part, blank_part, insert_noise, splice,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One input."""

    kind: str
    name: str
    suffix: str
    content: bytes
    reward: str = ""  # of a whole file, what has to be said of it ...
    value: float = math.nan  # ... and what is said


def make_cases(count: int, seed: int) -> list[Case]:
    """Every seed whole and under another suffix, the bombs, then damaged ones in turn."""
    seeds = make_seeds()
    right = {s.name: score_whole(s) for s in seeds}
    cases = [Case(f"{s.family}, whole", s.name, s.suffix, s.content, s.reward, right[s.name]) for s in seeds]
    for n, s in enumerate(seeds):
        other = seeds[(n + 17) % len(seeds)].suffix
        cases.append(
            Case(f"{s.family}, other suffix", f"{s.name} as {other}", other, s.content, s.reward, right[s.name])
        )
    cases += [Case("bomb", name, suffix, content) for name, suffix, content in make_bombs()]
    r = random.Random(seed)
    for n in range(max(count - len(cases), 0)):
        s, damage, other = seeds[n % len(seeds)], DAMAGES[n // len(seeds) % len(DAMAGES)], r.choice(seeds)
        content = damage(s.content, random.Random(f"{seed} {n}"), other.content)
        cases.append(Case(f"{s.family}, {damage.__name__.replace('_', ' ')}", f"{s.name} {n}", s.suffix, content))
    return cases[:count]


def score_whole(s: Seed) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"whole{s.suffix}"
        path.write_bytes(s.content)
        (row,) = scoring.score_files([path], REWARDS, None)
    if row[s.reward] is None:
        raise RuntimeError(f"the seed {s.name} can't be read: {row['error']}")
    return row[s.reward]


def try_doors(case: Case, folder: Path, beside: Path, expected: Mapping[str, float]) -> str:
    """What is wrong with the answers, "" for nothing. Raises BadInput with the sentence of the file's row, if any."""
    path = folder / f"input{case.suffix}"
    path.write_bytes(case.content)
    rows = scoring.score_files([path, beside], REWARDS, None)
    if [Path(row["file"]) for row in rows] != [path, beside]:
        return f"{len(rows)} rows for two files"
    row, good = rows
    if good["error"] or any(good[name] != value for name, value in expected.items()):
        return f"the good file beside it: {good}"
    said = [name for name in REWARDS if row[name] is not None]
    if not said and not row["error"]:
        return "neither a score nor a sentence"
    if case.reward:
        if row["error"] or said != _all_said(case.reward):
            return f"a whole file: {row}"
        if not math.isclose(row[case.reward], case.value, rel_tol=1e-6):
            return f"{case.reward} is {row[case.reward]}, and {case.value} under its own suffix"
    try:
        upload = uploads.accept_upload(path, folder)
        content = uploads.read_upload(upload)
        if "<figure" not in reward_scores.draw_thumbnails([upload], [content], [""]):
            return "the app shows nothing"
        if bool(said) and content.modality == "audio" and "loudness" not in said:
            return "the app's door hears what `score` does not"
    except BadInput as error:
        if case.reward or check_sentence(str(error)) != "sentence":
            return f"the app's door: {error}"
    if row["error"]:
        raise BadInput(row["error"])
    return ""


def _all_said(reward: str) -> list[str]:
    return ["brightness", "motion"] if reward == "motion" else [reward]


def run(count: int, seed: int) -> list[Outcome]:
    outcomes = []
    cases = make_cases(count, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beside = folder / "good.png"
        beside.write_bytes(make_seeds()[0].content)
        (good,) = scoring.score_files([beside], REWARDS, None)
        expected = {"brightness": good["brightness"]}
        for case in cases:  # what is imported here need not be in each process
            if case.name in ("png", "w64", "webm"):
                try_doors(case, folder, beside, expected)
        for case in cases:
            outcome = try_in_process(
                case.kind, case.name, lambda case=case: try_doors(case, folder, beside, expected), limit_s=20
            )
            if outcome.good and outcome.peak_mb > PEAK_MB:
                note = f"{outcome.peak_mb:.0f} MB, and {PEAK_MB} are stated"
                outcome = Outcome(case.kind, case.name, "wrong", note, outcome.seconds, outcome.peak_mb)
            outcomes.append(outcome)
    return outcomes
