"""How much a sample resembles what it was made from, by what an encoder sees or hears, whatever the pixels say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.audio.clap import CLAPScore
from rewards.edits.sources import check_sources
from rewards.encoders import image_text
from rewards.encoders.audio_frontend import AUDIO, mono_samples
from rewards.encoders.preprocess import media_pixels
from workbench.core.errors import BadInput
from workbench.core.inputs import stack_inputs
from workbench.core.types import Media, RewardSpec

IMAGE_AND_VIDEO = frozenset({"image", "video"})


@dataclass(frozen=True)
class Identity:
    """CLIP-I: the cosine of a picture and its source in a CLIP or SigLIP model, or the mean of those of a clip's frames
    and the source's (image similarity of InstructPix2Pix). With `to: first`, of a clip's frames and its first picture:
    whether what was there stays.

    An editor that changes nothing is perfect: watch a reward of the instruction beside it. The DINO variant of the
    literature would need an encoder that is not here.
    """

    model: str = "openai/clip-vit-large-patch14"  # see rewards/encoders/image_text.py for the forms
    to: Literal["source", "first", "last"] = "source"  # the input that samples are compared with
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network; scores are float32
    checkpoint: bool = False  # recompute in the backward pass: activations are held for that moment only

    spec = RewardSpec(
        "identity",
        "ViT-L-14",
        IMAGE_AND_VIDEO,
        differentiable=True,
        needs=frozenset({"source"}),
        typical=(0.5, 1.0),
        paper="arXiv:2211.09800",
        weights="openai/clip-vit-large-patch14",
        licence="MIT",
        bounds=(-1.0, 1.0),
    )

    def __post_init__(self):
        changes: dict = {"needs": frozenset({self.to})}
        if self.to != "source":
            changes |= {"modalities": frozenset({"video"}), "version": f"{self.spec.version} to={self.to}"}
        if self.model != type(self).model:
            version = changes.get("version", "").replace(self.spec.version, self.model) or self.model
            changes |= {"version": version, "typical": None, "weights": self.model, "licence": ""}
        object.__setattr__(self, "spec", replace(self.spec, **changes))

    def check(self) -> None:
        image_text.check_encoder(self.model)

    def load(self, device: torch.device | str = "cpu") -> image_text.ImageTextEncoder:
        return image_text.load_encoder(self.model, device, self.dtype)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)
        encoder = self.load(x.device)
        rows = encoder.embed_images(x.flatten(0, -4), checkpoint=self.checkpoint).view(len(x), -1, encoder.width)
        with torch.no_grad():
            target = self._embed_inputs(encoder, media, prompts, references)  # [B,1 or T,D]
        return (rows * target).sum(2).mean(1)

    def _embed_inputs(
        self, encoder: image_text.ImageTextEncoder, media: Media, prompts: Sequence[str], references: Media | None
    ) -> Tensor:
        if self.to == "source":
            pictures = check_sources(self.spec, media, references)
            kind, frames = media.modality, media.data.shape[1] if media.modality == "video" else 1
        else:
            pictures = stack_inputs(prompts, self.to)
            kind, frames = "image", 1
        if pictures.modality != kind:
            raise BadInput(f"{self.to}: {self.spec.name} compares with {kind} here, got {pictures.modality}")
        y = pictures.data.to(media.data.device).float()
        rows = encoder.embed_images(y.flatten(0, -4)).view(len(y), -1, encoder.width)
        if rows.shape[1] != frames:
            raise BadInput(f"source: a clip of {rows.shape[1]} frames can't be compared with one of {frames}")
        return rows


@dataclass(frozen=True)
class AudioIdentity(CLAPScore):
    """The cosine of a sound and its source in an audio encoder, windows of a long sound averaged. It hears what kind of
    sound it is, hardly which melody."""

    spec = RewardSpec(
        "audio_identity",
        "larger_clap_music",
        AUDIO,
        differentiable=True,
        needs=frozenset({"source"}),
        typical=(0.2, 1.0),
        paper="arXiv:2211.06687",
        weights="laion/larger_clap_music",
        licence="Apache-2.0",
        bounds=(-1.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x, sources = mono_samples(self.spec, media, prompts), check_sources(self.spec, media, references)
        encoder = self.load(x.device)
        with torch.no_grad():
            target = encoder(mono_samples(self.spec, sources, prompts), sources.rate, hop=self.hop)
        return F.cosine_similarity(encoder(x, media.rate, hop=self.hop, checkpoint=self.checkpoint), target)
