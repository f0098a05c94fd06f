"""Small media files that ask for much: headers of huge pictures, pictures held for hours, impossible formats, deep
metadata. Used by door_media.py; they have to get an answer within the same time and memory."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, rows: bytes | None = None) -> bytes:
    """A PNG of 8-bit RGB whose pixels are missing unless `rows` are given."""
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 2000 if rows is None else rows, 9))
    return start + b"".join(chunks) + body + png_chunk(b"IEND", b"")


def apng(delays: list[tuple[int, int]], width: int = 64, height: int = 48) -> bytes:
    """An animated PNG of flat frames that are shown for these fractions of a second."""
    rows = zlib.compress((b"\0" + b"\x80" * 3 * width) * height, 9)
    out = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    out += png_chunk(b"acTL", struct.pack(">II", len(delays), 0))
    sequence = 0
    for n, (share, of) in enumerate(delays):
        out += png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, share, of, 0, 0))
        sequence += 1
        if n == 0:
            out += png_chunk(b"IDAT", rows)
        else:
            out += png_chunk(b"fdAT", struct.pack(">I", sequence) + rows)
            sequence += 1
    return out + png_chunk(b"IEND", b"")


def wav(form: int, channels: int, rate: int, align: int, bits: int, size: int, samples: bytes = b"\0\1" * 800) -> bytes:
    head = b"fmt " + struct.pack("<IHHIIHH", 16, form, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    start = b"RIFF" + struct.pack("<I", 36 + size & 0xFFFFFFFF) + b"WAVE"
    return start + head + b"data" + struct.pack("<I", size) + samples


def animation(kind: str, delays: list[int], size: tuple[int, int] = (96, 72)) -> bytes:
    """Frames of noise, each shown for so many milliseconds."""
    rng, out = np.random.default_rng(0), io.BytesIO()
    frames = [Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8)) for _ in delays]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=delays)
    return out.getvalue()


def make_bombs() -> list[tuple[str, str, bytes]]:
    """(name, suffix, content)"""
    deep = b"workbench\0\0\0\0\0" + b"[" * 50_000
    zipped = zlib.compress(b"[" * 50_000_000, 9)
    flac = b"fLaC\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(6)
    flac += ((44100 << 44) | (1 << 41) | (15 << 36) | (2**36 - 1)).to_bytes(8, "big") + bytes(16)
    line = b"\0" + bytes(3 * 1_000_000)
    plain = wav(1, 1, 8000, 2, 16, 1600)
    icmt = b"INFOICMT" + struct.pack("<I", 60_000) + b'{"a":' * 12_000
    gif = b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 70, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6)
    jpeg = b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65500, 65500) + b"\3\1\x22\0\2\x11\1\3\x11\1\xff\xd9"
    aiff = b"FORM\xff\xff\xff\xffAIFFCOMM\0\0\0\x12\0\1\xff\xff\xff\xff\0\x10\x40\x0e\xac\x44" + bytes(6)
    return [
        ("png of 60,000 x 60,000", ".png", png(60_000, 60_000)),
        ("png of 2^31 x 1", ".png", png(2**31 - 1, 1)),
        ("png of 1,000,000 x 1", ".png", png(1_000_000, 1, rows=line)),
        ("png of 0 x 0", ".png", png(0, 0)),
        ("png of 2^31 frames", ".png", png(4000, 4000, png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))),
        ("png with deep metadata", ".png", png(8, 8, png_chunk(b"iTXt", deep), rows=bytes(25 * 8))),
        ("png with zipped metadata", ".png", png(8, 8, png_chunk(b"zTXt", b"workbench\0\0" + zipped), rows=bytes(200))),
        ("png with a zipped profile", ".png", png(8, 8, png_chunk(b"iCCP", b"p\0\0" + zipped), rows=bytes(200))),
        ("apng, 1 ms beside 65,535 s", ".png", apng([(1, 1000), (65535, 1)])),
        ("apng, 65,535 s each", ".apng", apng([(65535, 1)] * 9)),
        ("apng, delays over 0", ".png", apng([(1, 0), (0, 0), (65535, 0)])),
        ("gif held for 11 minutes", ".gif", animation("GIF", [10] * 5 + [655_350])),
        ("gif of 65,535 x 65,535", ".gif", gif),
        ("webp held for 4 hours", ".webp", animation("WEBP", [1] * 3 + [2**24 - 1])),
        ("avif held for a day", ".avif", animation("AVIF", [1] * 3 + [86_400_000], (32, 32))),
        ("bmp of 2^31 x 2^31", ".bmp", bmp),
        ("ppm of 10^9 x 10^9", ".ppm", b"P6\n1000000000 1000000000\n255\n\0"),
        ("jpeg of 65,500 x 65,500", ".jpg", jpeg),
        ("wav without a format", ".wav", wav(0, 0, 0, 0, 0, 0)),
        ("wav of 65,535 channels", ".wav", wav(1, 65535, 8000, 65534, 16, 1600)),
        ("wav at 4 GHz", ".wav", wav(1, 1, 2**32 - 1, 2, 16, 1600)),
        ("wav at 1 Hz", ".wav", wav(1, 1, 1, 2, 16, 1600)),
        ("wav at 44,099 Hz", ".wav", wav(1, 1, 44_099, 2, 16, 1600)),
        ("wav of 2^31 bytes", ".wav", wav(1, 1, 8000, 2, 16, 2**31 - 2)),
        ("wav of 4 samples", ".wav", wav(1, 1, 8000, 2, 16, 8, b"\0\1" * 4)),
        ("wav without samples", ".wav", wav(1, 1, 8000, 2, 16, 0, b"")),
        ("wav of no bits", ".wav", wav(1, 1, 8000, 0, 0, 1600)),
        ("wav with deep metadata", ".wav", plain + b"LIST" + struct.pack("<I", len(icmt)) + icmt),
        ("flac of 2^36 samples", ".flac", flac),
        ("aiff of 2^32 frames", ".aiff", aiff),
        ("au of 2^32 channels", ".au", b".snd" + struct.pack(">IIIII", 24, 2**32 - 1, 3, 8000, 2**32 - 1) + bytes(64)),
        ("mp4 without an end", ".mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42\0\0\0\1mdat" + b"\xff" * 8),
        ("webm without an end", ".webm", b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1" + b"\x18S\x80g\1" + b"\xff" * 7),
        ("ogg of nothing", ".ogg", b"OggS" + bytes(60)),
        ("mp3 of nothing", ".mp3", b"ID3\4\0\0\x7f\x7f\x7f\x7f"),
        ("one byte", ".png", b"\x89"),
        ("nothing", ".wav", b""),
    ]  # fmt: skip
