"""What a media file is, by its first bytes and never by its name alone; and whether the end of it is missing.

Imports the standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

HEAD = 400  # bytes that tell every format apart: two packets of an MPEG transport stream
PIPE_SIZE = 0x7F000000  # sizes from here on, and 0, are what a program writes that can't go back to correct them


@dataclass(frozen=True)
class Format:
    """A file format and who reads it: Pillow pictures, PyAV films, soundfile or PyAV sounds."""

    name: str
    reader: Literal["picture", "film", "sound"]
    suffixes: tuple[str, ...]  # the usual one first
    pillow: tuple[str, ...] = ()  # names of Pillow's decoders
    animated: bool = False  # several pictures are a clip and not pages


PNG = Format("PNG", "picture", (".png", ".apng"), ("PNG",), animated=True)
JPEG = Format("JPEG", "picture", (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"), ("JPEG",))
GIF = Format("GIF", "picture", (".gif",), ("GIF",), animated=True)
WEBP = Format("WebP", "picture", (".webp",), ("WEBP",), animated=True)
AVIF = Format("AVIF", "picture", (".avif", ".avifs"), ("AVIF",), animated=True)
HEIC = Format("HEIC", "picture", (".heic", ".heif", ".hif"), ("HEIF",))
TIFF = Format("TIFF", "picture", (".tif", ".tiff"), ("TIFF",))
BMP = Format("BMP", "picture", (".bmp", ".dib"), ("BMP", "DIB"))
PNM = Format("PNM", "picture", (".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",))
JPEG2000 = Format("JPEG 2000", "picture", (".jp2", ".j2k", ".jpx"), ("JPEG2000",))
ICO = Format("ICO", "picture", (".ico",), ("ICO",))
QOI = Format("QOI", "picture", (".qoi",), ("QOI",))

MP4 = Format("MP4", "film", (".mp4", ".m4v", ".mov", ".3gp", ".qt"))
MATROSKA = Format("WebM", "film", (".webm", ".mkv", ".mka"))
AVI = Format("AVI", "film", (".avi",))
MPEG = Format("MPEG", "film", (".mpg", ".mpeg", ".m2ts", ".mts"))
ASF = Format("ASF", "film", (".wmv", ".asf", ".wma"))
FLV = Format("FLV", "film", (".flv",))

WAV = Format("WAV", "sound", (".wav", ".wave"))
W64 = Format("W64", "sound", (".w64",))
AIFF = Format("AIFF", "sound", (".aiff", ".aif", ".aifc"))
FLAC = Format("FLAC", "sound", (".flac",))
MP3 = Format("MP3", "sound", (".mp3", ".mp2"))
OGG = Format("Ogg", "film", (".ogg", ".opus", ".oga", ".ogv"))  # sounds, and now and then a film
M4A = Format("M4A", "sound", (".m4a", ".m4b"))
AAC = Format("AAC", "sound", (".aac",))
CAF = Format("CAF", "sound", (".caf",))
AU = Format("AU", "sound", (".au", ".snd"))

FORMATS = (
    PNG, JPEG, GIF, WEBP, AVIF, HEIC, TIFF, BMP, PNM, JPEG2000, ICO, QOI,
    MP4, MATROSKA, AVI, MPEG, ASF, FLV, OGG,
    WAV, W64, AIFF, FLAC, MP3, M4A, AAC, CAF, AU,
)  # fmt: skip
BROWSER_PICTURES = {  # that browsers show -> media type
    PNG: "image/png", JPEG: "image/jpeg", WEBP: "image/webp", GIF: "image/gif", AVIF: "image/avif", BMP: "image/bmp",
}  # fmt: skip
SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff", JPEG), (b"GIF87a", GIF), (b"GIF89a", GIF),
    (b"II*\0", TIFF), (b"MM\0*", TIFF), (b"II+\0", TIFF), (b"MM\0+", TIFF),
    (b"\0\0\0\x0cjP  \r\n\x87\n", JPEG2000), (b"\xffO\xffQ", JPEG2000), (b"qoif", QOI),
    (b"\x1aE\xdf\xa3", MATROSKA), (b"\0\0\1\xba", MPEG), (b"\0\0\1\xb3", MPEG), (b"FLV\1", FLV),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ASF), (b"riff\x2e\x91\xcf\x11", W64),
    (b"fLaC", FLAC), (b"OggS", OGG), (b"ID3", MP3), (b"caff", CAF), (b".snd", AU),
)  # fmt: skip
RIFF = {b"WEBP": WEBP, b"WAVE": WAV, b"AVI ": AVI}
BRANDS = {
    b"avif": AVIF, b"avis": AVIF, b"M4A ": M4A, b"M4B ": M4A,
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIC),
}  # fmt: skip
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def detect_format(path: str | Path) -> Format | None:
    """The format of a file, None for what is no medium. Raises OSError for a file that can't be opened."""
    with open(path, "rb") as f:
        return format_of(f.read(HEAD))


def format_by_suffix(path: Path) -> Format | None:
    """What the name of a file says that it is."""
    return next((f for f in FORMATS if path.suffix.lower() in f.suffixes), None)


def format_of(head: bytes) -> Format | None:
    """The format of a file that begins with these bytes (HEAD of them are enough), None for what is no medium."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return RIFF.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return AIFF
    if head[4:8] == b"ftyp":
        return _format_of_brands(head)
    if head[4:8] in (b"moov", b"mdat", b"wide") and head[:1] == b"\0":  # QuickTime before it had brands
        return MP4
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack("<I", head[14:18])[0] in BMP_HEADERS:
        return BMP
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#" and len(head) > 3:
        return PNM
    if head[:4] == b"\0\0\1\0" and len(head) >= 22 and head[4:6] not in (b"\0\0",) and head[9:10] == b"\0":
        return ICO
    if head[:1] == head[188:189] == head[376:377] == b"G":
        return MPEG
    return next((f for start, f in SIGNATURES if head.startswith(start)), None) or _format_of_sync(head)


def _format_of_brands(head: bytes) -> Format:
    """By the major brand; `mif1` says picture and leaves to the other brands which."""
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(struct.unpack(">I", head[:4])[0], 64), 4))]
    if brands[0] in (b"mif1", b"msf1") and {b"avif", b"avis"} & set(brands):
        return AVIF
    return BRANDS.get(brands[0], MP4)


def _format_of_sync(head: bytes) -> Format | None:
    """MP3 and AAC begin with a frame, eleven or twelve bits that are set and then fields of which some can't be."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[:2] == b"\xff\xfe":  # a mark of UTF-16
        return None
    version, layer, bitrate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if layer == 0:
        return AAC if head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13 else None
    return MP3 if version != 1 and bitrate != 15 and rate != 3 else None


def is_cut_short(path: str | Path, kind: Format) -> bool:
    """Whether the container says that it is longer than the file is. Most decoders would read such a file as a shorter
    one. Sizes that a program could not know, since it wrote into a pipe, say nothing."""
    size = Path(path).stat().st_size
    with open(path, "rb") as f:
        if kind in (WAV, AVI):
            return any(end > size for end in _riff_ends(f))
        if kind is AIFF:
            f.seek(4)
            length = struct.unpack(">I", f.read(4))[0]
            return 0 < length < PIPE_SIZE and 8 + length > size + 1  # some forget the byte that fills up
        if kind in (MP4, M4A):
            return any(end > size for end in _box_ends(f, size))
        if kind is MATROSKA:
            return _segment_end(f) > size
    return False


def _riff_ends(f: BinaryIO) -> Iterator[int]:
    """Where the samples of a WAV end, or the lists of an AVI, by their own sizes."""
    start = f.read(12)
    order = ">" if start[:4] == b"RIFX" else "<"
    size_of_all = 0
    while len(chunk := f.read(8)) == 8:
        name, length = chunk[:4], struct.unpack(order + "I", chunk[4:])[0]
        if name == b"ds64":
            size_of_all = struct.unpack("<Q", f.read(16)[8:].ljust(8, b"\0"))[0]
            f.seek(-16, 1)
        if name in (b"data", b"LIST"):
            if name == b"data" and start[:4] in (b"RF64", b"BW64") and length == 0xFFFFFFFF:
                yield f.tell() + size_of_all
                return
            if length >= PIPE_SIZE or (name == b"data" and length == 0):
                return
            if name == b"data" or start[8:12] == b"AVI ":
                yield f.tell() + length
        if name == b"data":
            return
        f.seek(length + length % 2, 1)


def _box_ends(f: BinaryIO, size: int) -> Iterator[int]:
    """Where the boxes of an MP4 end that hold what is shown."""
    at = 0
    while at + 8 <= size:
        f.seek(at)
        head = f.read(16)
        length, name = struct.unpack(">I", head[:4])[0], head[4:8]
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8:  # 0: up to the end of the file
            return
        if name in (b"mdat", b"moov", b"moof"):
            yield at + length
        at += length


def _segment_end(f: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM ends; 0 where it doesn't say."""
    f.seek(4)
    f.seek(_ebml_number(f) or 0, 1)
    if f.read(4) != b"\x18\x53\x80\x67" or (length := _ebml_number(f)) is None:
        return 0
    return f.tell() + length


def _ebml_number(f: BinaryIO) -> int | None:
    """A number of EBML, whose first byte says how many follow; None for "not known", when all bits are set."""
    first = f.read(1)
    if not first or not first[0]:
        return None
    count = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (1 << 7 - count) - 1]) + f.read(count), "big")
    return None if value == (1 << 7 * (count + 1)) - 1 else value
