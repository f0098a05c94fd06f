"""Films and compressed sounds by PyAV: reading them, and writing MP4 and FLAC.

MP4s are h264 and AAC, yuv420p, with the index first (faststart), which browsers, phones and slides play. They are
lossy: the lossless file of a clip is the animated PNG of media.write_media. FLAC has 24 bits.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io.budget import Budget
from workbench.core.io.clips import PictureStack, StoredClip, time_evenly
from workbench.core.io.parsing import parse_json
from workbench.core.paths import write_atomic
from workbench.core.types import Media

AAC = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # rates that AAC knows; others become 48000
HDR = {16: "PQ", 18: "HLG"}  # transfer functions of H.273
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # libav's own leave the alpha of WebM out


def read_video(path: Path, budget: Budget | None = None) -> tuple[StoredClip, dict, tuple[str, ...]]:
    """(clip, metadata by `write_mp4`, notes on what is odd about it), upright and in even steps of time.

    Raises BadInput for a file without pictures or beyond the budget, which is asked before anything is decoded and
    while it is; and PyAV's exceptions for a broken one.
    """
    budget = budget or Budget()
    with open_stream(path, "video") as (file, stream):
        expected = check_length(path, stream, budget)
        turn, stack, notes = None, None, dict[str, None]()
        starts: list[float | None] = []
        length = 0.0  # of the last frame
        for frame in _decode(file, stream):
            if turn is None:
                turn = _Upright(path, frame, stream, notes)
            picture = turn(frame)
            if stack is None:
                height, width = picture.shape[:2]
                stack = PictureStack(path, (width, height), expected, budget)
            stack.add(picture)
            starts.append(frame.time)
            length = float((frame.duration or 0) * (frame.time_base or 0))
            if frame.is_corrupt:
                notes["some pictures are damaged"] = None
        story = decode_story(file.metadata)
        rates = [float(r) for r in (stream.guessed_rate, stream.average_rate) if r]
    if stack is None:
        raise BadInput(f"{path}: holds no frames")
    order, rate = time_evenly(_shown_seconds(starts, length, rates), path, stack.size, budget)
    rate = next((r for r in rates if abs(rate / r - 1) < 5e-4), rate)  # time stamps are rounded
    return StoredClip(stack.pictures(), order, rate), story, tuple(notes)


def check_length(path: Path, stream: Any, budget: Budget) -> int:
    """The number of frames that the header of a film tells, 1 where it doesn't. Raises BadInput for more than the
    budget."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width and height:
        budget.check_clip(path, 1, width, height)
    expected = stream.frames
    if not expected and stream.duration and stream.time_base and stream.guessed_rate:
        expected = int(stream.duration * stream.time_base * stream.guessed_rate)
    expected = max(int(expected), 1)
    budget.check_clip(path, expected, width or 1, height or 1)
    return expected


def _decode(file: Any, stream: Any) -> Iterator[Any]:
    """The frames, with alpha where the file has it."""
    av = import_av()
    decoder = ALPHA_DECODERS.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        yield from file.decode(stream)
        return
    context = av.CodecContext.create(decoder, "r")
    for packet in file.demux(stream):
        yield from context.decode(packet)


class _Upright:
    """Makes frames of a film what a player shows: turned as the file says, in square pixels, on white."""

    def __init__(self, path: Path, frame: Any, stream: Any, notes: dict[str, None]):
        side_data = frame.side_data.get("DISPLAYMATRIX")
        matrix = np.frombuffer(bytes(side_data), np.int32)[[0, 1, 3, 4]] if side_data else np.array([1, 0, 0, 1])
        self.a, self.b, self.c, self.d = np.sign(matrix).tolist()
        if abs(self.a) + abs(self.b) != 1 or abs(self.c) + abs(self.d) != 1 or abs(self.a) != abs(self.d):
            notes["turned by an angle that is no right one: not turned"] = None
            self.a, self.b, self.c, self.d = 1, 0, 0, 1
        self.width, self.height = frame.width, frame.height
        if (aspect := stream.sample_aspect_ratio or 1) != 1:
            if 0.25 <= aspect <= 4:
                self.width = max(round(self.width * aspect), 1)
                notes[f"pixels of {aspect.numerator}:{aspect.denominator}, made square"] = None
            else:
                notes[f"pixels of {aspect.numerator}:{aspect.denominator}, taken for square"] = None
        self.alpha = any(c.is_alpha for c in frame.format.components)
        is_large = frame.width >= 1280 or frame.height > 576
        # a film that doesn't say its matrix: players take a large one for BT.709, others for BT.601
        self.matrix = None if frame.colorspace != 2 else "ITU709" if is_large else "ITU601"
        if frame.color_trc in HDR:
            notes[f"high dynamic range ({HDR[frame.color_trc]}), not tone-mapped: its colours look dull"] = None
        if frame.interlaced_frame:
            notes["interlaced: lines of two moments in one frame"] = None

    def __call__(self, frame: Any) -> np.ndarray:
        """uint8 [H,W,3]"""
        how = {"width": self.width, "height": self.height, "src_colorspace": self.matrix}
        picture = frame.reformat(format="rgba" if self.alpha else "rgb24", **how).to_ndarray()
        if self.alpha:
            alpha = picture[..., 3:].astype(np.uint16)
            picture = ((picture[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        if not self.a:  # the columns of the file are the rows of the picture
            picture, flip_x, flip_y = picture.swapaxes(0, 1), self.c, self.b
        else:
            flip_x, flip_y = self.a, self.d
        return np.ascontiguousarray(picture[::flip_y, ::flip_x])


def _shown_seconds(starts: list[float | None], last: float, rates: list[float]) -> list[float]:
    """How long each picture is shown, from when it begins and how long the last one lasts; at an even rate where a file
    doesn't say."""
    even = 1 / rates[0] if rates and rates[0] > 0 else 0.0
    if None in starts:
        return [even] * len(starts)
    gaps = np.diff(np.array(starts, np.float64)).clip(min=0).tolist()
    return [*gaps, last or even or (float(np.median(gaps)) if gaps else 0.0)]


def read_sound(path: Path, budget: Budget | None = None) -> tuple[Tensor, float, dict]:
    """(all samples [C,L] as float32, sample rate in Hz, metadata by `write_flac` or `write_mp4`). Raises BadInput for a
    file without a sound or beyond the budget, and PyAV's exceptions for a broken one."""
    av = import_av()
    budget = budget or Budget()
    with open_stream(path, "audio") as (file, stream):
        rate, channels = stream.rate or 0, 1
        _check_duration(path, stream, budget)
        planes = av.AudioResampler(format="fltp")
        parts, length = [], 0
        for frame in file.decode(stream):
            for part in planes.resample(frame):
                parts.append(part.to_ndarray())
                rate = part.sample_rate  # that of the codec may be half of it
                channels, length = len(parts[-1]), length + parts[-1].shape[1]
            budget.check_sound(path, length, channels, rate)
        story = decode_story(file.metadata | stream.metadata)
    data, at = torch.empty(channels, length), 0
    for n, block in enumerate(parts):
        if len(block) != channels:
            raise BadInput(f"{path}: the number of channels changes within the sound; save it as WAV")
        data[:, at : at + block.shape[1]] = torch.from_numpy(block)
        at += block.shape[1]
        parts[n] = None  # so that memory holds the samples once
    return data, float(rate), story


def read_film_header(path: Path) -> tuple[int, int, int, float, str]:
    """(frames, height, width, frames per second, codec) of a film as its header says; 0 frames where it doesn't. Raises
    BadInput where there is none."""
    with open_stream(path, "video") as (_, stream):
        context, rate = stream.codec_context, float(stream.average_rate or stream.guessed_rate or 0)
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        return stream.frames or round(seconds * rate), context.height, context.width, rate, context.name


def measure_video(path: Path, budget: Budget) -> None:
    """Raises BadInput for a film whose header says more than the budget, and PyAV's exceptions."""
    with open_stream(path, "video") as (_, stream):
        check_length(path, stream, budget)


def measure_sound(path: Path, budget: Budget) -> None:
    """Raises BadInput for a sound whose header says more than the budget, and PyAV's exceptions."""
    with open_stream(path, "audio") as (_, stream):
        _check_duration(path, stream, budget)


def _check_duration(path: Path, stream: Any, budget: Budget) -> None:
    seconds, rate = max(float((stream.duration or 0) * (stream.time_base or 0)), 0), stream.rate or 0
    budget.check_sound(path, int(seconds * rate), stream.codec_context.channels or 1, rate)


def has_pictures(path: Path) -> bool:
    """Whether a film has moving pictures; those of a sound are its cover. Raises PyAV's exceptions."""
    with open_file(path) as file:
        return bool(_moving_streams(file))


def _moving_streams(file: Any) -> list[Any]:
    from av.stream import Disposition

    return [s for s in file.streams.video if not s.disposition & Disposition.attached_pic]


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """The container. Raises PyAV's exceptions."""
    with import_av().open(str(path), metadata_errors="replace") as file:
        yield file


@contextmanager
def open_stream(path: Path, kind: str) -> Iterator[tuple]:
    """(container, its first stream of this kind). Raises BadInput where there is none."""
    with open_file(path) as file:
        if not (streams := _moving_streams(file) if kind == "video" else file.streams.audio):
            raise BadInput(f"{path}: holds no {kind}")
        if streams[0].codec_context is None:
            raise BadInput(f"{path}: its {kind} has a codec that is not known here; save it in another format")
        yield file, streams[0]


@functools.cache
def import_av() -> Any:
    """PyAV, on first use, with libav's messages muted: what it finds wrong about a file is in its exceptions, too."""
    import av

    av.logging.set_level(av.logging.PANIC)
    return av


def read_story(path: Path) -> dict:
    """The metadata that `write_flac`, `write_mp4` or `media.encode_wav` left in a sound."""
    av = import_av()
    try:
        with open_stream(path, "audio") as (file, stream):
            return decode_story(file.metadata | stream.metadata)
    except (BadInput, av.FFmpegError):  # a sound that libsndfile alone reads
        return {}


def decode_story(metadata: Mapping[str, str]) -> dict:
    """The metadata in a file's comment; {} for a comment that is not ours."""
    words = next((value for key, value in metadata.items() if key.lower() == "comment"), "")
    if not words.startswith("{"):
        return {}
    try:
        story = parse_json(words, "comment")
    except BadInput:
        return {}
    return story if isinstance(story, dict) else {}


def write_mp4(
    clip: Media, path: str | Path, *, sound: Media | None = None, meta: Mapping | None = None, crf: int = 18
) -> Path:
    """Write one clip [1,T,3,H,W] as MP4, with one sound [1,C,L] if given, and `meta` in the comment.

    Odd sides are made even, as yuv420p needs, by repeating the last line. crf: 0 is best, 18 hardly visibly worse.
    The file is written atomically. Raises BadInput for another suffix, and ValueError for several rows, no
    rate, no frames or values that aren't finite.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise BadInput(f"{path}: films are written as .mp4; change the file's suffix")
    av, frames = import_av(), _single_row(clip, "video")
    frames = F.pad(frames, (0, frames.shape[-1] % 2, 0, frames.shape[-2] % 2), mode="replicate")
    with tempfile.TemporaryDirectory() as folder:  # faststart needs a second pass over a file of its own
        draft = Path(folder) / "draft.mp4"
        with av.open(str(draft), "w", options={"movflags": "faststart"}) as file:
            if meta is not None:
                file.metadata["comment"] = json.dumps(dict(meta), sort_keys=True, ensure_ascii=False)
            picture = _add_h264_stream(file, frames, clip.rate, crf)
            if sound is None:
                _encode_frames(file, picture, frames)
            else:
                samples = _single_row(sound, "audio")
                voice = _add_aac_stream(file, samples, sound.rate)
                _encode_frames(file, picture, frames)
                _encode_sound(file, voice, samples, round(sound.rate))
        data = draft.read_bytes()
    write_atomic(path, data)
    return path


def write_flac(sound: Media, path: str | Path, *, meta: Mapping | None = None) -> Path:
    """Write one sound [1,C,L] as FLAC of 24 bits, clipped at full scale, with `meta` in the comment. Raises as
    `write_mp4`."""
    path = Path(path)
    if path.suffix.lower() != ".flac":
        raise BadInput(f"{path}: this writes .flac; change the file's suffix")
    av, data, out = import_av(), _single_row(sound, "audio"), io.BytesIO()
    if len(data) > 2:
        raise BadInput(f"{path}: {len(data)} channels; FLAC is written with one or two here, WAV with any number")
    with av.open(out, "w", format="flac") as file:
        if meta is not None:
            file.metadata["comment"] = json.dumps(dict(meta), sort_keys=True, ensure_ascii=False)
        stream = file.add_stream("flac", rate=round(sound.rate), layout=_channel_layout(data), format="s32")
        stream.codec_context.options = {"bits_per_raw_sample": "24"}
        ints = (data.clamp(-1, 1).double() * (2**23 - 1)).round().to(torch.int32) * 256  # the low byte is not kept
        _encode_samples(file, stream, ints.T.contiguous().numpy().reshape(1, -1), "s32", round(sound.rate))
    write_atomic(path, out.getvalue())
    return path


def _single_row(media: Media, modality: str) -> Tensor:
    if media.modality != modality or len(media) != 1 or media.data.ndim != {"video": 5, "audio": 3}[modality]:
        raise ValueError(f"expected one row of {modality}, got {media.modality} {tuple(media.data.shape)}")
    if media.rate <= 0 or not media.data.numel():
        raise ValueError(f"a {modality} without content or without a rate can't be written")
    row = media.data[0].detach().float().cpu()
    if not row.isfinite().all():
        raise ValueError(f"the {modality} holds values that aren't finite: what made it has diverged")
    return row


def _add_h264_stream(file: Any, frames: Tensor, rate: float, crf: int) -> Any:
    stream = file.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
    stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "yuv420p"
    context = stream.codec_context
    context.options = {"crf": str(crf), "preset": "medium"}
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, which players take HD for anyway
    context.color_range = 1
    return stream


def _encode_frames(file: Any, stream: Any, frames: Tensor) -> None:
    av = import_av()
    for frame in frames:
        eight_bit = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        picture = av.VideoFrame.from_ndarray(eight_bit, format="rgb24")
        file.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")))
    file.mux(stream.encode())


def _channel_layout(data: Tensor) -> str:
    return "mono" if len(data) == 1 else "stereo"


def _add_aac_stream(file: Any, data: Tensor, rate: float) -> Any:
    if len(data) > 2:
        raise ValueError(f"a film's sound has one channel or two, not {len(data)}")
    return file.add_stream("aac", rate=round(rate) if round(rate) in AAC else 48000, layout=_channel_layout(data))


def _encode_sound(file: Any, stream: Any, data: Tensor, rate: int) -> None:
    _encode_samples(file, stream, data.clamp(-1, 1).contiguous().numpy(), "fltp", rate)


def _encode_samples(file: Any, stream: Any, samples: np.ndarray, kind: str, rate: int) -> None:
    """Encode samples in PyAV's layout `kind` into the file, converted to the encoder's format, rate and frame size."""
    av = import_av()
    frame = av.AudioFrame.from_ndarray(samples, format=kind, layout=stream.codec_context.layout.name)
    frame.sample_rate = rate
    context = stream.codec_context
    change = av.AudioResampler(context.format, context.layout, context.rate, frame_size=context.frame_size or 4608)
    for part in [*change.resample(frame), *change.resample(None)]:
        file.mux(stream.encode(part))
    file.mux(stream.encode())
