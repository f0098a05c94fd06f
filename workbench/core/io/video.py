"""Video files and compressed sounds by PyAV, where installed (`pip install av`): reading, and writing MP4 and FLAC.

MP4s are h264 and AAC, yuv420p, with the index first (faststart), which browsers, phones and slides play. They are
lossy: the lossless file of a clip is the animated PNG of media.write_media. FLAC has 24 bits.
"""

from __future__ import annotations

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
from workbench.core.paths import write_atomic
from workbench.core.types import Media

AAC = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # rates that AAC knows; others become 48000


def read_video(path: Path) -> tuple[Tensor, float, dict]:
    """(all frames [1,T,3,H,W] in [0,1], frames per second, metadata by `write_mp4`). Raises BadInput."""
    with _open_stream(path, "video") as (file, stream):
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
        rate, story = stream.average_rate, _decode_meta(file.metadata)
    if not frames or not rate:
        raise BadInput(f"{path}: holds no frames, or doesn't say how many a second")
    return torch.stack(frames).permute(0, 3, 1, 2)[None].float() / 255, float(rate), story


def read_sound(path: Path) -> tuple[Tensor, float, dict]:
    """(all samples [C,L] as float32, sample rate in Hz, metadata by `write_flac` or `write_mp4`). Raises BadInput."""
    import av

    with _open_stream(path, "audio") as (file, stream):
        planes = av.AudioResampler(format="fltp")
        parts = [part.to_ndarray() for frame in file.decode(stream) for part in planes.resample(frame)]
        rate, story = stream.rate, _decode_meta(file.metadata | stream.metadata)
    return torch.from_numpy(np.concatenate(parts, 1) if parts else np.zeros((1, 0), np.float32)), float(rate), story


@contextmanager
def _open_stream(path: Path, kind: str) -> Iterator[tuple]:
    av = import_av(path, "reading")
    try:
        with av.open(str(path)) as file:
            if not (streams := getattr(file.streams, kind)):
                raise BadInput(f"{path}: holds no {kind}")
            yield file, streams[0]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(str(error)) from error


def import_av(path: Path, doing: str) -> Any:
    """The module of PyAV. Raises BadInput where it is not installed, naming the file that needs it."""
    try:
        import av
    except ImportError:
        raise BadInput(f"{path}: {doing} {path.suffix} needs PyAV; run: pip install av") from None
    return av


def _decode_meta(metadata: Mapping[str, str]) -> dict:
    """The metadata in a file's comment; {} for a comment that is not ours."""
    words = next((value for key, value in metadata.items() if key.lower() == "comment"), "")
    try:
        story = json.loads(words)
    except ValueError:
        return {}
    return story if isinstance(story, dict) else {}


def write_mp4(
    clip: Media, path: str | Path, *, sound: Media | None = None, meta: Mapping | None = None, crf: int = 18
) -> Path:
    """Write one clip [1,T,3,H,W] as MP4, with one sound [1,C,L] if given, and `meta` in the comment.

    Odd sides are made even, as yuv420p needs, by repeating the last line. crf: 0 is best, 18 hardly visibly worse.
    The file is written atomically. Raises BadInput for another suffix or no PyAV, and ValueError for several rows, no
    rate, no frames or values that aren't finite.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise BadInput(f"{path}: films are written as .mp4; change the file's suffix")
    av, frames = import_av(path, "writing"), _single_row(clip, "video")
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
    av, data, out = import_av(path, "writing"), _single_row(sound, "audio"), io.BytesIO()
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
    import av

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
    import av

    frame = av.AudioFrame.from_ndarray(samples, format=kind, layout=stream.codec_context.layout.name)
    frame.sample_rate = rate
    context = stream.codec_context
    change = av.AudioResampler(context.format, context.layout, context.rate, frame_size=context.frame_size or 4608)
    for part in [*change.resample(frame), *change.resample(None)]:
        file.mux(stream.encode(part))
    file.mux(stream.encode())
