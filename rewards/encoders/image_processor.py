"""A transformers image processor in torch, so that the gradient leads to the pixels.

What a checkpoint does to a picture is read off its own processor, as transformers resolves it, defaults of its class
included: resize, crop the centre, rescale, normalise, pad. The view is then shown a picture beside the processor. A
processor that does anything else is refused and never approximated.

Of transformers' two backends we follow PIL's: published scores were made with it, and it has all of PIL's kernels. A
view stays within 1.5/255 of it. The torchvision backend lies as near, but puts the odd row of zeros on the other side
where a crop is larger than the picture, and fails at `box` and `hamming`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.encoders import checkpoints
from rewards.encoders.preprocess import PIL_KERNELS, resize_images
from workbench.core.errors import BadInput

TOLERANCE = 2.0  # of 255: how far the check's picture may differ. PIL rounds after each pass, which makes 1.3
Side = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ProcessorView:
    """How a processor looks at pictures, in its order; None for a step that it does not take."""

    resize: tuple[tuple[str, int], ...] | None  # its `size`: (("shortest_edge", 224),) or of height and width, ...
    kernel: str = "bicubic"
    crop: Side | None = None  # the centre; zeros around a picture that is smaller
    gain: float = 1.0  # by which pixels in [0,1] are multiplied
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None
    pad: Side | None = None  # zeros after normalisation, right and below

    def __call__(self, x: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] -> what the backbone takes, [B,3,h,w]."""
        if self.resize is not None:
            x = resize_images(x, resized_side(self.resize, x.shape[-2:]), self.kernel)
        if self.crop is not None:
            x = _crop_centre(x, self.crop)
        x = x if self.gain == 1 else x * self.gain
        if self.channel_mean is not None:
            x = (x - x.new_tensor(self.channel_mean).view(-1, 1, 1)) / x.new_tensor(self.channel_std).view(-1, 1, 1)
        if self.pad is not None:
            x = F.pad(x, (0, self.pad[1] - x.shape[-1], 0, self.pad[0] - x.shape[-2]))
        return x

    @property
    def size(self) -> Side | None:
        """Height and width of all that it makes; None where they depend on the picture."""
        squash = dict(self.resize or ())
        return self.pad or self.crop or ((squash["height"], squash["width"]) if "height" in squash else None)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.channel_mean or (0.0,) * 3

    @property
    def std(self) -> tuple[float, ...]:
        return self.channel_std or (1.0,) * 3


def resized_side(rule: tuple[tuple[str, int], ...], shape: tuple[int, ...]) -> Side:
    """Height and width that `size` of a processor asks for, of a picture of height and width `shape`."""
    (high, wide), size = shape, dict(rule)
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:  # the larger that fits in both
        scale = min(size["max_height"] / high, size["max_width"] / wide)
        return int(high * scale), int(wide * scale)
    short, long, side = min(high, wide), max(high, wide), float(size["shortest_edge"])
    if "longest_edge" in size and long / short * side > size["longest_edge"]:
        side = size["longest_edge"] * short / long
    sides = (round(side), int(side * long / short))
    return sides if high <= wide else (sides[1], sides[0])


def _crop_centre(x: Tensor, side: Side) -> Tensor:
    down, right = max(side[0] - x.shape[-2], 0), max(side[1] - x.shape[-1], 0)
    x = F.pad(x, (right - right // 2, right // 2, down - down // 2, down // 2))
    y0, x0 = (x.shape[-2] - side[0]) // 2, (x.shape[-1] - side[1]) // 2
    return x[..., y0 : y0 + side[0], x0 : x0 + side[1]]


def load_view(folder: str, model: str) -> ProcessorView:
    """The view of the image processor in a model's folder or hub repository.

    Raises BadInput, naming the key, for a processor that can't be followed, and for one that fails by itself.
    """
    import transformers

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except Exception as error:  # of any kind: transformers does not check what is in the file
        line = checkpoints.first_line(error)
        raise BadInput(f"{model}: its preprocessor_config.json can't be read ({line}); copy the model's own") from None
    try:
        view = read_view(processor)
        _check_against(processor, view)
    except BadInput as error:
        raise BadInput(f"{model}: preprocessor_config.json: {error}") from None
    return view


def read_view(processor: Any) -> ProcessorView:
    """The view of a loaded image processor. Raises BadInput, naming the key, for what a view has no step for."""
    takes = {
        key: _read_flag(processor, f"do_{key}") for key in ("resize", "center_crop", "rescale", "normalize", "pad")
    }
    resize, kernel = None, 3
    if takes["resize"]:
        resize, kernel = _read_sides(processor, "size", SIZES), getattr(processor, "resample", None)
        kernel = 2 if kernel is None else kernel  # as transformers does
        if not isinstance(kernel, int) or kernel not in PIL_KERNELS:
            kernels = ", ".join(f"{n} ({name})" for n, name in PIL_KERNELS.items())
            raise BadInput(f"resample is {kernel!r:.50}; there are {kernels}")
    gain = 255 * _read_numbers(processor, "rescale_factor", 1)[0] if takes["rescale"] else 255.0
    crop = _read_sides(processor, "crop_size", SIZES[1:2]) if takes["center_crop"] else None
    pad = _read_sides(processor, "pad_size", SIZES[1:2]) if takes["pad"] and processor.pad_size else None
    return ProcessorView(
        tuple(sorted(resize.items())) if resize else None,
        PIL_KERNELS[int(kernel)],
        (crop["height"], crop["width"]) if crop else None,
        1.0 if abs(gain - 1) < 1e-9 else gain,
        _read_numbers(processor, "image_mean", 3) if takes["normalize"] else None,
        _read_numbers(processor, "image_std", 3) if takes["normalize"] else None,
        (pad["height"], pad["width"]) if pad else None,
    )


SIZES = [{"shortest_edge"}, {"height", "width"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"}]
MAX_SIDE = 1 << 13  # pixels


def _read_flag(processor: Any, key: str) -> bool:
    value = getattr(processor, key, None)
    if value not in (True, False, None):
        raise BadInput(f"{key} is {value!r:.50}; it needs true or false")
    return bool(value)


def _read_sides(processor: Any, key: str, forms: Sequence[set[str]]) -> dict[str, int]:
    """The sizes that are given under a key, which must be those of one of the forms."""
    size = {name: value for name, value in dict(getattr(processor, key, None) or {}).items() if value is not None}
    if set(size) not in forms or not all(type(v) is int and 0 < v <= MAX_SIDE for v in size.values()):
        needed = " or ".join(" and ".join(sorted(form)) for form in forms)
        raise BadInput(f"{key} is {size!r:.100}; it needs {needed}, from 1 to {MAX_SIDE:,} pixels")
    return size


def _read_numbers(processor: Any, key: str, count: int) -> tuple[float, ...]:
    """So many finite numbers under a key; a single one stands for all."""
    value = getattr(processor, key, None)
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,) * count
    sound = all(type(v) in (int, float) and abs(v) < 1e6 for v in numbers)
    if not sound or len(numbers) != count or (key != "image_mean" and min(map(abs, numbers)) < 1e-6):
        what = "a number other than 0" if count == 1 else "one number for each of red, green and blue"
        raise BadInput(f"{key} is {value!r:.100}; it needs {what}")
    return tuple(map(float, numbers))


def _check_against(processor: Any, view: ProcessorView) -> None:
    """Raises BadInput unless processor and view make the same of a picture of noise, to 8-bit rounding."""
    picture = torch.randint(0, 256, (1, 3, 61, 83), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    name = type(processor).__name__
    try:
        theirs = processor(picture[0].numpy(), return_tensors="pt")["pixel_values"]
    except Exception as error:  # whatever transformers raises at settings that it can't follow itself
        raise BadInput(f"{name} fails with it: {checkpoints.first_line(error)}") from None
    ours = view(picture / 255)
    gain = view.gain / 255 / torch.tensor(view.std).view(-1, 1, 1)  # of a level of 255
    if ours.shape != theirs.shape or ((ours - theirs.float()) / gain).abs().max() > TOLERANCE:
        raise BadInput(
            f"image_processor_type {name} does more than resize, crop, rescale, normalise and pad, "
            "and rewards can't follow it; take a model with a processor of CLIP or SigLIP"
        )
