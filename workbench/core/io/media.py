"""Media files: lossless writing with embedded metadata, strict reading, digests, thumbnails and contact sheets.

Pictures are written as PNG (8 bit sRGB), clips as animated PNG, sounds as WAV (float32). What is read, and how much one
file may hold: formats.py and budget.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy.io import wavfile

from workbench.core.errors import BadInput
from workbench.core.io import audio, formats, labels, video
from workbench.core.io import image as pictures
from workbench.core.io.budget import Budget
from workbench.core.io.clips import StoredClip
from workbench.core.paths import write_atomic
from workbench.core.types import Media, Modality

NOUNS = {"picture": "picture", "film": "clip", "sound": "sound"}  # by who reads the file
SUFFIX_BY_MODALITY = {"image": ".png", "video": ".apng", "audio": ".wav"}  # that `write_media` writes


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quantise_media(media: Media) -> Media:
    """The media as a file will hold them: pictures and clips in steps of 1/255, sounds as float32; both clamped.
    Infinite values become NaN: clamped, they would pass for white, or for a loud sound.

    Scores of these, unlike scores of the raw output, can be reproduced from the file.
    """
    data = media.data.float()
    data = data.where(data.isfinite(), torch.nan)
    if media.modality == "audio":
        return replace(media, data=data.clamp(-1, 1))
    return replace(media, data=(data.clamp(0, 1) * 255).round() / 255)


def write_media(media: Media, path: str | Path, *, meta: Mapping | None = None) -> Path:
    """Write one row of media, with `meta` (prompt, seed, scores: any JSON) embedded in the file; returns its path.

    A path without a suffix gets the modality's. The same input gives the same bytes.
    Raises BadInput for a suffix that doesn't fit the modality; ValueError for several rows or values that aren't
    finite.
    """
    path = Path(path)
    suffix = SUFFIX_BY_MODALITY[media.modality]
    if path.suffix.lower() not in ("", suffix):
        raise BadInput(f"{path}: {media.modality} is written as {suffix}; change the file's suffix")
    path = path if path.suffix else path.with_name(path.name + suffix)
    write_atomic(path, {"image": encode_png, "video": encode_apng, "audio": encode_wav}[media.modality](media, meta))
    return path


def _single_row(media: Media, modality: str, dims: int) -> torch.Tensor:
    if media.modality != modality or len(media) != 1 or media.data.ndim != dims:
        raise ValueError(f"expected one row of {modality}, got {media.modality} {tuple(media.data.shape)}")
    row = media.data[0].detach().float().cpu()
    if not row.isfinite().all():
        raise ValueError(f"the {modality} holds values that aren't finite: what made it has diverged")
    return row


def _encode_meta(meta: Mapping) -> str:
    return json.dumps(dict(meta), sort_keys=True, ensure_ascii=False)


def encode_png(media: Media, meta: Mapping | None = None) -> bytes:
    """One picture [1,3,H,W] as PNG bytes. Every entry of `meta` becomes a text chunk that viewers show, and the chunk
    `workbench` has all of them as JSON, for `read_meta`. None embeds nothing (for blind votes).
    """
    return _save_png(_eight_bit(_single_row(media, "image", 4)), meta)


def encode_apng(media: Media, meta: Mapping | None = None) -> bytes:
    """One clip [1,T,3,H,W] as animated PNG bytes, which browsers play; `meta` as in `encode_png`.

    A single frame reads back as a picture.
    """
    if media.rate <= 0:
        raise ValueError("a clip without a frame rate can't be written")
    first, *later_frames = map(_eight_bit, _single_row(media, "video", 5))
    # both blend modes are the same for opaque frames; alternating, PIL doesn't join equal frames
    blend_modes = [k % 2 for k in range(media.data.shape[1])]
    return _save_png(
        first, meta, save_all=True, append_images=later_frames, duration=1000 / media.rate, blend=blend_modes
    )


def _eight_bit(frame: torch.Tensor) -> Image.Image:
    return Image.fromarray((frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _save_png(image: Image.Image, meta: Mapping | None = None, **more) -> bytes:
    info = PngInfo()
    if meta is not None:
        for key, value in meta.items():
            info.add_itxt(str(key), value if isinstance(value, str) else json.dumps(value, sort_keys=True))
        info.add_itxt("workbench", _encode_meta(meta))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info, **more)
    return out.getvalue()


def encode_wav(media: Media, meta: Mapping | None = None) -> bytes:
    """One sound [1,C,L] as float32 WAV bytes, `meta` as JSON in the comment field (RIFF INFO, ICMT)."""
    if media.rate <= 0:
        raise ValueError("a sound without a sample rate can't be written")
    out = io.BytesIO()
    wavfile.write(out, round(media.rate), _single_row(media, "audio", 3).T.contiguous().numpy())
    data = out.getvalue()
    if meta is None:
        return data
    text = _encode_meta(meta).encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    data += b"LIST" + struct.pack("<I", 12 + len(text)) + b"INFOICMT" + struct.pack("<I", len(text)) + text
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


@dataclass(frozen=True)
class MediaFile:
    """The content of one media file."""

    content: Media | StoredClip  # one row
    # the metadata that `write_media` embedded; {} for files from elsewhere, whose "prompt" may be a whole graph
    story: dict
    notes: tuple[str, ...] = ()  # on what reading converted, or what is odd about the file

    @property
    def media(self) -> Media:
        """One row; of a clip, the values of all its frames, which take four times the memory of `content`."""
        return self.content.frames() if isinstance(self.content, StoredClip) else self.content

    @property
    def modality(self) -> Modality:
        return "video" if isinstance(self.content, StoredClip) else self.content.modality

    def describe_size(self) -> str:
        """`640 x 480` of a picture or a clip, `1.5 s` of a sound."""
        if isinstance(self.content, StoredClip):
            return "{} x {}".format(*self.content.size)
        x = self.content.data
        return f"{x.shape[-1]} x {x.shape[-2]}" if x.dim() == 4 else f"{x.shape[-1] / self.content.rate:.1f} s"

    def is_finite(self) -> bool:
        """Whether there is no NaN and no infinite value."""
        return isinstance(self.content, StoredClip) or bool(self.content.data.isfinite().all())


def read_media(path: str | Path) -> Media:
    """One media file as one row: a picture [1,3,H,W] or a clip [1,T,3,H,W] in [0,1], a sound [1,C,L] in [-1,1].

    Raises BadInput, as `inspect_media` does.
    """
    return inspect_media(path).media


def read_meta(path: str | Path) -> dict:
    """The metadata that `write_media` embedded in a file. Raises BadInput for a file that can't be read."""
    return inspect_media(path).story


def inspect_media(path: str | Path, budget: Budget | None = None) -> MediaFile:
    """A media file, known by its content, with its metadata, and notes on what is odd about it.

    Pictures are turned upright (EXIF), in sRGB, transparency is laid on white, greyscale becomes three equal channels
    and 16-bit greyscale keeps its precision; several frames are a clip, in even steps of time. Raises BadInput, naming
    the file, when it is missing, empty, broken, cut short, beyond the budget or of a kind that can't be read.
    """
    path, budget = Path(path), budget or Budget()
    kind = known_format(path)
    with pictures.decoding(path, NOUNS[kind.reader]):
        if formats.is_cut_short(path, kind):
            raise BadInput(f"{path}: can't be read as a {NOUNS[kind.reader]}; the file is broken or cut short")
        if kind.reader == "picture":
            content, story, notes = pictures.read_picture(path, kind, budget)
            row = content if isinstance(content, StoredClip) else Media(content[None], "image")
            return MediaFile(row, story, _note_suffix(path, kind) + notes)
        if kind.reader == "film" and video.has_pictures(path):
            clip, story, notes = video.read_video(path, budget)
            return MediaFile(clip, story, _note_suffix(path, kind) + notes)
        data, rate, story = audio.read_sound(path, budget)
        return MediaFile(Media(data[None], "audio", rate), story, _note_suffix(path, kind) + _sound_notes(data))


def known_format(path: Path) -> formats.Format:
    """The format of a file by its content, or by its name where the content says nothing. Raises BadInput for what is
    missing, empty or no medium."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a picture, a clip or a sound")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty")
    with pictures.decoding(path, "file"):
        kind = formats.detect_format(path) or formats.format_by_suffix(path)
    if kind is None:
        raise BadInput(f"{path}: its content is no picture, clip or sound that can be read here; see docs/rewards.md")
    return kind


def measure_media(path: Path, budget: Budget) -> Modality:
    """What a file holds, by its header and without decoding it. Raises BadInput, as `inspect_media` does, for what is
    beyond the budget already there."""
    kind = known_format(path)
    with pictures.decoding(path, NOUNS[kind.reader]):
        if kind.reader == "picture":
            return "video" if pictures.is_animated(path, kind, budget) else "image"
        if kind.reader == "film" and video.has_pictures(path):
            video.measure_video(path, budget)
            return "video"
        audio.measure_sound(path, budget)
        return "audio"


def _note_suffix(path: Path, kind: formats.Format) -> tuple[str, ...]:
    by_name = formats.format_by_suffix(path)
    is_other = by_name is not None and by_name is not kind
    return (f"its content is {kind.name}, whatever its name says",) if is_other else ()


def _sound_notes(data: torch.Tensor) -> tuple[str, ...]:
    """What is odd about a sound [C,L]."""
    low, high = map(float, torch.aminmax(data))
    if math.isnan(low + high) or math.isinf(low + high):
        low, high = map(float, torch.aminmax(data.nan_to_num(0.0, 0.0, 0.0)))
    elif low == high:
        return ("silent: every sample is the same",)
    peak = max(-low, high)
    return (f"louder than full scale, peak {peak:.2f}",) if peak > 1 else ()


def encode_thumbnail(source: str | Path | Media, side: int = 256) -> bytes:
    """PNG bytes of a picture or a clip's middle frame, of a file or of one row, without metadata, fitted to a square of
    `side` pixels."""
    content = source if isinstance(source, Media) else inspect_media(source).content
    return _save_png(_fit_square(_middle_frame(content), side))


def _fit_square(image: Image.Image, side: int) -> Image.Image:
    """Scaled to fit a square: small pictures by whole factors, which keeps every pixel; others resampled smoothly."""
    if (factor := side // max(image.size)) > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    wide, high = (max(round(pixels * side / max(image.size)), 1) for pixels in image.size)  # a line stays one
    return image.resize((wide, high), Image.Resampling.LANCZOS)


def _middle_frame(media: Media | StoredClip) -> Image.Image:
    """A picture, or the middle frame of a clip."""
    if isinstance(media, StoredClip):
        return _eight_bit(media.frames([len(media) // 2]).data[0, 0])
    if media.modality == "video":
        media = Media(media.data[:, media.data.shape[1] // 2], "image")
    return Image.open(io.BytesIO(encode_png(media))).convert("RGB")


@dataclass(frozen=True)
class Cell:
    """One picture of a contact sheet; `media` None leaves a labelled gap; `is_right` None: not known."""

    media: Media | None
    is_right: bool | None = None
    note: str = ""


INK, FAINT, RULE, PAPER, GAP = "#1c1e21", "#6b7078", "#e3e5e8", "#ffffff", "#f2f3f5"
VERDICT = {True: "#1a7f4b", False: "#c8372d", None: "#c9ccd1"}  # with a tick or a cross, so that colour is not needed


def draw_contact_sheet(cells: Sequence[Sequence[Cell]], *, rows: Sequence[str], columns: Sequence[str], title: str = "",
         side: int = 160, scale: int = 2) -> bytes:  # fmt: skip
    """A contact sheet as PNG bytes: a row for each prompt, a column for each contestant.

    `cells[r][c]` belongs to `rows[r]` and `columns[c]`; a row's second line, after a newline, is printed small. `side`
    is the width of a picture and `scale` the pixels drawn for each, so that it stays sharp on dense screens.
    """
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells):
        raise ValueError(f"{len(rows)} rows and {len(columns)} columns don't fit the cells given")
    return _save_png(_Sheet(columns, title, side, scale).draw_sheet(cells, rows))


NO_FONT = "A prompt that no font of this machine can draw is numbered. The report has its words."


class _Sheet:
    """Draws a contact sheet; lengths are in units of `scale` pixels."""

    margin, gap, caption, foot = 24, 14, 148, 24

    def __init__(self, columns, title, side, scale):
        self.columns, self.title, self.side, self.scale = columns, title, side, scale
        self.head = self.margin + (34 if title else 0) + 28
        self.width = 2 * self.margin + self.caption + len(columns) * (self.gap + side)

    def draw_text(self, x, y, words, size, fill, anchor="ls"):
        font = labels.choose_font(size * self.scale, words)
        self.pen.text((x * self.scale, y * self.scale), words, font=font, fill=fill, anchor=anchor)

    def wrap_text(self, words, size, width, lines):
        """`words` broken into at most `lines` lines of `width`; longer words are split, and a text that doesn't fit
        ends in an ellipsis."""
        length, max_length, out = labels.choose_font(size * self.scale, words).getlength, width * self.scale, [""]
        for word in words.split():
            if length(trial := f"{out[-1]} {word}".strip()) <= max_length:
                out[-1] = trial
                continue
            out += [""] if out[-1] else []
            for letter in word:
                if length(out[-1] + letter) > max_length:
                    out.append("")
                out[-1] += letter
            if len(out) > lines:
                break
        if len(out) > lines:
            last = out[lines - 1]
            while last and length(last + "…") > max_length:
                last = last[:-1]
            out = [*out[: lines - 1], last.rstrip(" ,.;") + "…"]
        return out

    def shorten_note(self, note, size, width):
        """`note` on one line; if it is too long, its name is shortened and the number at its end stays."""
        length, (name, _, number) = labels.choose_font(size * self.scale, note).getlength, note.rpartition(" ")
        while name and length(note) > width * self.scale:
            name = name[:-1]
            note = f"{name}… {number}"
        return self.wrap_text(note, size, width, 1)[0]

    def draw_sheet(self, cells, rows):
        step, bottom = self.side + self.foot + self.gap, self.margin - self.gap
        captions = [labels.drawable_text(row) for row in rows]
        if None in captions:
            bottom += 2 * self.gap
        size = (self.width * self.scale, (self.head + len(rows) * step + bottom) * self.scale)
        self.canvas = Image.new("RGB", size, PAPER)
        self.pen = ImageDraw.Draw(self.canvas)
        if self.title:
            self.draw_text(self.margin, self.margin + 17, self.title, 17, INK)
        x_cells = self.margin + self.caption + self.gap
        for c, name in enumerate(self.columns):
            name = self.wrap_text(name, 14, self.side, 1)[0]
            self.draw_text(x_cells + c * (self.side + self.gap), self.head - 11, name, 14, INK)
        for r, drawable in enumerate(captions):
            top = self.head + r * step
            prompt = f"prompt {r + 1}" if drawable is None else drawable
            y, (caption, _, small) = top + 14, prompt.partition("\n")
            for line in self.wrap_text(caption, 14, self.caption, 6):
                self.draw_text(self.margin, y, line, 14, INK)
                y += 19
            if small:
                self.draw_text(self.margin, y + 2, self.wrap_text(small, 11, self.caption, 1)[0], 11, FAINT)
            for c, cell in enumerate(cells[r]):
                self.draw_cell(x_cells + c * (self.side + self.gap), top, cell)
        if None in captions:
            note = self.wrap_text(NO_FONT, 11, self.width - 2 * self.margin, 1)[0]
            self.draw_text(self.margin, self.head + len(rows) * step + 6, note, 11, FAINT)
        return self.canvas

    def draw_cell(self, x, y, cell):
        s, side, colour = self.scale, self.side, VERDICT[cell.is_right]
        box = (x * s, y * s, (x + side) * s - 1, (y + side) * s - 1)
        self.pen.rectangle(box, fill=GAP)
        if cell.media is None:
            self.draw_text(x + side / 2, y + side / 2, "no picture", 12, FAINT, "mm")
        else:
            image = _fit_square(_middle_frame(cell.media), side * s)
            self.canvas.paste(image, (x * s + (side * s - image.width) // 2, y * s + (side * s - image.height) // 2))
        self.pen.rectangle(box, outline=colour, width=2 * s if cell.is_right is not None else s)
        line = y + side + 13
        if cell.is_right is not None:
            points = [(0, -4), (3.5, -0.5), (10, -8)] if cell.is_right else [(1, -8), (9, 0), (5, -4), (1, 0), (9, -8)]
            points = [((x + px) * s, (line + py) * s) for px, py in points]
            self.pen.line(points, fill=colour, width=2 * s, joint="curve")
        indent = 16 if cell.is_right is not None else 0
        self.draw_text(x + indent, line, self.shorten_note(cell.note, 12, side - indent), 12, FAINT)
