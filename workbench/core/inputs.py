"""What a sample is made from besides its text: pictures, masks, clips and sounds, that travel with its prompt.

A `Prompt` (types.py) carries inputs by name; here they are read from files or media, and brought to the size in which a
pipeline or a reward takes them. An input is known by the digest of its content: a moved file is the same input, a
changed one is not.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io.resampling import resample_audio
from workbench.core.types import Input, Media, Prompt, Reward, RewardSpec, is_composed

NAMES = ("source", "mask", "reference", "control", "first", "last", "audio")  # of inputs
BEST_LEVEL = 5  # of a dial, and of an example's score; the lowest is 0
CACHE_BYTES = 512 << 20  # of inputs that stay in memory in the sizes in which they were asked for


@dataclass(frozen=True)
class FileInput:
    """A media file, opened when it is needed. Raises BadInput, on reading, for a file that can't be read, or that has
    changed since its digest was taken."""

    path: str
    digest: str

    @staticmethod
    def at(path: str | Path) -> FileInput:
        """The input in a file as it is now. Raises BadInput for a file that can't be read."""
        from workbench.core.io import media  # with PIL, which rewards load only where they are asked

        try:
            return FileInput(str(path), media.file_digest(path))
        except OSError as error:
            raise BadInput(f"{path}: can't be read ({error.strerror or error})") from None

    def read(self) -> Media:
        from workbench.core.io import media

        content = media.read_media(self.path)
        if media.file_digest(self.path) != self.digest:
            raise BadInput(f"{self.path}: changed after it was first read; start again")
        return content


@dataclass(frozen=True)
class MediaInput:
    """One row of media in memory, as a file would hold it."""

    media: Media = field(compare=False, repr=False)
    digest: str

    @staticmethod
    def of(media: Media) -> MediaInput:
        """Raises ValueError for several rows and for values that aren't finite."""
        from workbench.core.io.media import encode_apng, encode_png, encode_wav, quantise_media

        media = quantise_media(media.detach())
        encode = {"image": encode_png, "video": encode_apng, "audio": encode_wav}[media.modality]
        return MediaInput(media, hashlib.sha256(encode(media)).hexdigest())

    def read(self) -> Media:
        return self.media


def prompt_inputs(prompt: str) -> Mapping[str, Input]:
    """Name -> input of a prompt; none of an ordinary string."""
    return prompt.inputs if isinstance(prompt, Prompt) else {}


def prompt_dials(prompt: str) -> Mapping[str, float] | None:
    """Axis -> level of a prompt that has dials of its own; None of any other."""
    return prompt.dials if isinstance(prompt, Prompt) else None


def reword_prompt(prompt: str, text: str) -> str:
    """Another text with the inputs of `prompt`."""
    return prompt.reworded(text) if isinstance(prompt, Prompt) else text


def stack_inputs(prompts: Sequence[str], name: str, shape: Sequence[int] | None = None, rate: float = 0.0) -> Media:
    """The input `name` of each prompt, as Media [B,...].

    shape: (...,H,W) to which pictures and clips are brought: scaled until they cover it and cropped at the middle; a
    mask takes the nearest value and is 0 or 1. Of sounds, (C,L): more channels are averaged, one is repeated, what is
    longer than L is cut and what is shorter is followed by silence; `rate` is what they are resampled to. Without
    `shape` inputs keep their sizes, which must be equal.

    Raises BadInput for a prompt without that input, and for sizes that differ.
    """
    rows = [read_input(prompt, name, shape, rate) for prompt in prompts]
    first = rows[0]
    for row in rows:
        if row.modality != first.modality:
            raise BadInput(f"{name}: {first.modality} and {row.modality} can't be used in one batch")
        if row.data.shape != first.data.shape or row.rate != first.rate:
            sizes = " and ".join("x".join(map(str, r.data.shape[1:])) for r in (first, row))
            raise BadInput(f"{name}: sizes {sizes} can't be used in one batch; bring the files to one size")
    return Media.cat(rows)


def stack_sources(reward: Reward, media: Media, prompts: Sequence[str]) -> Media | None:
    """The `references` with which a reward that needs `source` is called: what each sample was made from, in the size
    and on the device of `media`. None for one that needs none, and for a composed one, which finds them for its parts.

    A source is what the sample is a new version of, and of its modality. The first frame of a clip is no source:
    rewards read it by its own name, `first`. Raises BadInput for a prompt without a source, for one of another
    modality, and for a clip that is shorter than the sample; of a longer one the first frames count.
    """
    if "source" not in reward.spec.needs or is_composed(reward):
        return None

    def check_modality(source: Media) -> None:
        if source.modality != media.modality:
            raise BadInput(
                f"source: {reward.spec.name} compares {media.modality} with what it was made from, and got "
                f"{source.modality}"
            )

    if media.modality == "audio":  # before a picture is brought to the size of a sound
        for prompt in prompts:
            check_modality(read_input(prompt, "source"))
    sources = stack_inputs(prompts, "source", media.data.shape[1:], media.rate)
    check_modality(sources)
    data = sources.data
    if media.modality == "video":
        data = data[:, : media.data.shape[1]]
        if data.shape[1] < media.data.shape[1]:
            raise BadInput(
                f"source: a clip of {data.shape[1]} frames can't be compared with one of {media.data.shape[1]}; give a "
                "longer one"
            )
    return replace(sources, data=data.to(media.data.device))


def input_needs(spec: RewardSpec) -> list[str]:
    """The inputs that a reward needs with every prompt. (`reference` are examples, which belong to no prompt.)"""
    return [name for name in NAMES if name in spec.needs and name != "reference"]


def read_input(prompt: str, name: str, shape: Sequence[int] | None = None, rate: float = 0.0) -> Media:
    """The input `name` of one prompt as one row, in the size that `stack_inputs` says. Raises BadInput."""
    value = prompt_inputs(prompt).get(name)
    if value is None:
        raise BadInput(f"{str(prompt)[:60]!r}: this prompt comes without a {name}; give one with each prompt")
    key = (value.digest, name == "mask", None if shape is None else tuple(shape), rate)
    return _CACHE.recall(key, lambda: fit_media(value.read(), shape, rate, is_mask=name == "mask"))


def fit_media(media: Media, shape: Sequence[int] | None, rate: float = 0.0, *, is_mask: bool = False) -> Media:
    """One row of media in another size, as `stack_inputs` says; unchanged where it has that size."""
    if media.modality == "audio":
        x = media.data
        if rate and media.rate != rate:
            x = resample_audio(x, media.rate, round(rate))
        if shape is not None:
            channels, length = shape[-2:]
            x = x if x.shape[1] == channels else x.mean(1, keepdim=True).expand(-1, channels, -1)
            x = F.pad(x[..., :length], (0, max(length - x.shape[-1], 0)))
        return Media(x, "audio", rate or media.rate)
    x = media.data if shape is None else cover_and_crop(media.data, (shape[-2], shape[-1]), nearest=is_mask)
    x = (x.mean(-3, keepdim=True) >= 0.5).float().expand_as(x) if is_mask else x
    return Media(x, media.modality, media.rate)


def cover_and_crop(x: Tensor, size: tuple[int, int], *, nearest: bool = False) -> Tensor:
    """[...,C,H,W] in [0,1] scaled until it covers `size` and cropped at the middle; `nearest` keeps values."""
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    scale = max(size[0] / height, size[1] / width)
    inner = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    flat = x.reshape(-1, *x.shape[-3:])
    if nearest:
        flat = F.interpolate(flat, inner, mode="nearest-exact")
    elif inner != (height, width):
        flat = F.interpolate(flat, inner, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    return flat[..., top : top + size[0], left : left + size[1]].reshape(*x.shape[:-2], *size)


class _Cache:
    """The inputs that were used last, within CACHE_BYTES: a method asks for the same ones in every iteration."""

    def __init__(self) -> None:
        self.rows: OrderedDict[tuple, Media] = OrderedDict()
        self.lock = threading.Lock()

    def recall(self, key: tuple, compute: Callable[[], Media]) -> Media:
        with self.lock:
            if key in self.rows:
                self.rows.move_to_end(key)
                return self.rows[key]
        with torch.inference_mode(False), torch.no_grad():
            row = compute()
        with self.lock:
            self.rows[key] = row
            while len(self.rows) > 1 and sum(r.data.nbytes for r in self.rows.values()) > CACHE_BYTES:
                self.rows.popitem(last=False)
        return row


_CACHE = _Cache()
