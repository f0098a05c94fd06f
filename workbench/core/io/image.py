"""Reading picture files: turned upright, on white, in sRGB, grey as three channels, 16 bits preserved; animations."""

from __future__ import annotations

import functools
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io import formats
from workbench.core.io.budget import Budget
from workbench.core.io.clips import BROWSERS_DELAY, PictureStack, StoredClip, time_evenly
from workbench.core.io.parsing import one_line, parse_json

if TYPE_CHECKING:
    from PIL import Image

PILLOW = tuple(decoder for f in formats.FORMATS for decoder in f.pillow if decoder != "HEIF")
STDERR = threading.Lock()
ORIENTATION = 0x0112  # the tag of EXIF
NOT_TO_SEE = 3  # of 255: a profile that changes no colour by more is sRGB under another name


def read_image(path: str | Path) -> Tensor:
    """float32 [3,H,W] in [0,1], the first frame. Raises BadInput, naming the file, for one that is missing or
    broken."""
    with decoding(path, "picture"), open_picture(path, Budget()) as image:
        return image_to_tensor(image)[0]


def decode_image(data: bytes, source: str) -> Tensor:
    """The picture in `data` as `read_image` has it; `source` names it in a BadInput."""
    with decoding(source, "picture"), open_picture(io.BytesIO(data), Budget(), source) as image:
        return image_to_tensor(image)[0]


@contextmanager
def decoding(name: object, kind: str) -> Iterator[None]:
    """Whatever a decoder raises becomes a BadInput that names the file; its warnings are not for a terminal."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadInput:
        raise
    except Image.DecompressionBombError:
        raise BadInput(f"{name}: far more megapixels than a picture may have; scale it down") from None
    except Exception as error:  # a damaged file may break a decoder in any way: IndexError, RuntimeError, MemoryError
        said = re.sub(r" ?<_io.BytesIO object at 0x[0-9a-f]+>", "", str(error)).replace(str(name), "").strip(" :'")
        words = getattr(error, "strerror", None) or said or type(error).__name__
        # no such file, no permission; libav has the same numbers for other things
        is_of_system = isinstance(error, OSError) and error.errno is not None and not hasattr(error, "log")
        why = words if is_of_system else f"broken or cut short: {words}"
        raise BadInput(f"{name}: can't be read as a {kind} ({one_line(why, 150)}); repair or remove it") from error


@contextmanager
def open_picture(file: str | Path | io.BytesIO, budget: Budget, name: object = None) -> Iterator[Image.Image]:
    """The file, known to Pillow by its content and not decoded yet. Raises BadInput for too many pixels, and Pillow's
    exceptions (see `decoding`)."""
    from PIL import Image

    kind = formats.format_of(file.getvalue()) if isinstance(file, io.BytesIO) else formats.detect_format(file)
    if kind is formats.HEIC:
        _register_heic()
    with warnings.catch_warnings(), _silent_libtiff() if kind is formats.TIFF else nullcontext():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=kind.pillow if kind and kind.pillow else PILLOW) as image:
            budget.check_picture(file if name is None else name, *image.size)
            yield image


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """libtiff writes what it finds wrong to the process's standard error, and Pillow raises it as well."""
    with STDERR, open(os.devnull, "wb") as nowhere:
        terminal = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@functools.cache
def _register_heic() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def read_picture(path: Path, kind: formats.Format, budget: Budget) -> tuple[Tensor | StoredClip, dict, tuple[str, ...]]:
    """(picture float32 [3,H,W] or clip, metadata that the workbench embedded, notes on what was converted). Raises
    BadInput, and the exceptions of decoders (see `decoding`)."""
    with open_picture(path, budget) as image:
        notes: dict[str, None] = {}
        count = getattr(image, "n_frames", 1)
        first = 1 if getattr(image, "default_image", False) and count > 1 else 0  # the cover of an APNG is no frame
        if kind.animated and count - first > 1:
            content: Tensor | StoredClip = _read_animation(image, path, range(first, count), budget, notes)
        else:
            if count > 1 and kind in (formats.TIFF, formats.HEIC):
                notes[f"the first of {count} pictures"] = None
            if first:
                image.seek(first)
            content, changes = image_to_tensor(image)
            notes |= dict.fromkeys(changes)
        chunk = getattr(image, "text", {}).get("workbench") if kind is formats.PNG else None
    story = parse_json(chunk, f"{path}: broken metadata") if chunk is not None else {}
    return content, story if isinstance(story, dict) else {}, tuple(notes)


def _read_animation(image: Any, path: Path, frames: range, budget: Budget, notes: dict[str, None]) -> StoredClip:
    """All pictures of an animation, each once, and when they are shown."""
    budget.check_clip(path, len(frames), *image.size)
    stack, seconds = None, []
    for k in frames:
        image.seek(k)
        image.load()
        picture, changes = _image_to_array(image)
        notes |= dict.fromkeys(changes)
        if picture.ndim == 2:
            picture = np.repeat((picture * 255).round().astype(np.uint8)[..., None], 3, 2)
        if stack is None:  # the first one, turned upright, says the size
            stack = PictureStack(path, (picture.shape[1], picture.shape[0]), len(frames), budget)
        stack.add(picture)
        seconds.append((image.info.get("duration") or 0) / 1000 or BROWSERS_DELAY)
    if stack is None:
        raise BadInput(f"{path}: an animation without pictures")
    order, rate = time_evenly(seconds, path, stack.size, budget)
    return StoredClip(stack.pictures(), order, rate)


def is_animated(path: Path, kind: formats.Format, budget: Budget | None = None) -> bool:
    """Whether a picture file is a clip, by its header. Raises BadInput for more frames than the budget has, and the
    exceptions of decoders."""
    budget = budget or Budget()
    with open_picture(path, budget) as image:
        count = getattr(image, "n_frames", 1) - bool(getattr(image, "default_image", False))
        if kind.animated and count > 1:
            budget.check_clip(path, count, *image.size)
        return kind.animated and count > 1


def image_to_tensor(image: Image.Image) -> tuple[Tensor, list[str]]:
    """(float32 [3,H,W] in [0,1], notes on what was converted).

    The picture is turned upright (EXIF), colours come into sRGB, transparency is laid on white, and 16-bit greyscale
    keeps its precision. Raises BadInput for pixels without a known range, and Pillow's exceptions for broken pictures.
    """
    picture, notes = _image_to_array(image)
    if picture.ndim == 2:
        return torch.from_numpy(picture).expand(3, -1, -1).contiguous(), notes
    out = torch.empty(3, *picture.shape[:2])  # filled in place: a large picture is held once as numbers
    return out.copy_(torch.from_numpy(picture).permute(2, 0, 1)).div_(255), notes


def _image_to_array(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """(uint8 [H,W,3], or float32 [H,W] of grey with more bits; notes)"""
    from PIL import Image, ImageOps

    name, notes = getattr(image, "filename", ""), []
    image.load()
    try:
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except Exception:  # the picture is whole; what the camera says about it is not
        notes.append("EXIF that can't be read, so not turned")
    has_many_bits = image.mode.startswith("I") or image.mode == "F"  # PIL's own conversion would clip these
    if has_many_bits or image.mode in ("1", "L", "LA"):
        notes.append("greyscale, made three equal channels")
    if has_many_bits:
        grey = np.asarray(image).astype(np.float32)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise BadInput(f"{name}: pixels of mode {image.mode} have no known range; save it as PNG first")
        notes.append("16 bits a value")
        return grey / 65535, notes
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P") else None
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if profile:
        rgb = _bring_to_srgb(rgb, profile, notes)
    if alpha is not None and np.asarray(alpha).min() < 255:
        notes.append("transparency laid on white")
        rgb.putalpha(alpha)
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    return np.array(rgb), notes


def _bring_to_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    from PIL import ImageCms

    name, transform = _profile_transform(profile)
    if transform is None:
        notes += [name] if name else []
        return image
    notes.append(f"colours of {name} brought to sRGB")
    return cast("Image.Image", ImageCms.applyTransform(image, transform))


@functools.lru_cache(16)
def _profile_transform(profile: bytes) -> tuple[str, Any]:
    """(the profile's name, the way from it to sRGB); for a profile that is sRGB or no RGB ("", None), for a broken one
    (a note, None)."""
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            return "", None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        levels = np.arange(0, 256, 51, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        changed = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
        if np.abs(changed.astype(int) - colours).max() <= NOT_TO_SEE:
            return "", None
        name = ""
        with suppress(Exception):
            name = one_line(ImageCms.getProfileDescription(source).strip(), 60)
        return name or "an unnamed profile", transform
    except Exception:  # what browsers do with a broken profile
        return "a colour profile that can't be used, taken for sRGB", None
