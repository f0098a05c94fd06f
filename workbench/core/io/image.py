"""Reading picture files: turned upright, on white, grey as three channels, 16 bits preserved."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.core.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm"}
)
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what PIL raises, besides its own


def read_image(path: str | Path) -> Tensor:
    """float32 [3,H,W] in [0,1], the first frame. Raises BadInput, naming the file, for one that is missing or
    broken."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image_to_tensor(image)[0]
    except BadInput:
        raise
    except (*BROKEN, Image.DecompressionBombError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadInput(f"{path}: can't be read as a picture ({why}); repair or remove it") from None


def image_to_tensor(image: Image.Image) -> tuple[Tensor, list[str]]:
    """(float32 [3,H,W] in [0,1], notes on what was converted).

    The picture is turned upright (EXIF), transparency is laid on white, and 16-bit greyscale keeps its precision.
    Raises BadInput for pixels without a known range, and the exceptions of PIL (BROKEN) for broken pictures.
    """
    from PIL import Image, ImageOps

    name, notes = getattr(image, "filename", ""), []
    image = ImageOps.exif_transpose(image)
    has_many_bits = image.mode.startswith("I") or image.mode == "F"  # PIL's own conversion would clip these
    if has_many_bits or image.mode in ("1", "L", "LA"):
        notes.append("greyscale, made three equal channels")
    if has_many_bits:
        grey = np.asarray(image).astype(np.float32)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise BadInput(f"{name}: pixels of mode {image.mode} have no known range; save it as PNG first")
        notes.append("16 bits a value")
        return torch.from_numpy(grey / 65535).expand(3, -1, -1).contiguous(), notes
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if np.asarray(rgba.getchannel("A")).min() < 255:
            notes.append("transparency laid on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    rgb = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous(), notes
