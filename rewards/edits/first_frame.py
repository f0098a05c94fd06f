"""Whether a clip begins with the picture that it was to begin with: a check of image-to-video pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rewards.encoders.preprocess import media_pixels
from workbench.core.errors import BadInput
from workbench.core.inputs import stack_inputs
from workbench.core.types import Media, RewardSpec

FLOOR = 1e-6  # mean squared difference that counts as none: 60 dB


@dataclass(frozen=True)
class FirstFrame:
    """Peak signal-to-noise ratio, in dB, of a clip's first frame against the picture `first` of its prompt; or of its
    last frame against `last`. 60 at most, for a frame that is the same to less than a grey level."""

    frame: Literal["first", "last"] = "first"  # the frame, and the input that it is compared with

    spec = RewardSpec(
        "first_frame",
        "1",
        frozenset({"video"}),
        differentiable=True,
        needs=frozenset({"first"}),
        typical=(15.0, 45.0),
    )

    def __post_init__(self):
        object.__setattr__(self, "spec", replace(self.spec, needs=frozenset({self.frame})))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)
        if len(prompts) != len(media):
            raise ValueError(f"{self.spec.name} needs one prompt a sample: {len(prompts)} for {len(media)} samples")
        pictures = stack_inputs(prompts, self.frame, x.shape[2:])
        if pictures.modality != "image":
            raise BadInput(f"{self.frame}: {self.spec.name} compares a frame with a picture, got {pictures.modality}")
        frame = x[:, 0 if self.frame == "first" else -1]
        error = (frame - pictures.data.to(x)).square().flatten(1).mean(1)
        ratio = -10 * (error + FLOOR).log10()
        return ratio.masked_fill(~x.detach().flatten(1).isfinite().all(1), torch.nan)
