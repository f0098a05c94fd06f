"""CLAP score: how well a sound fits its prompt (arXiv:2211.06687)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rewards.encoders.audio import AudioEncoder
from rewards.encoders.audio_frontend import AUDIO, mono_samples
from rewards.encoders.load_audio import check_audio_encoder, load_audio_encoder
from workbench.core.types import Media, NonNegative, RewardSpec


@dataclass(frozen=True)
class CLAPScore:
    """How well a sound fits its prompt: the cosine of both in a CLAP model, windows of a long sound averaged.

    Blind to the order of a long piece, and easily pleased by noise: gate it, and hold another family out.
    """

    model: str = "laion/larger_clap_music"  # see rewards/encoders/load_audio.py for the forms
    hop: NonNegative = 0.0  # seconds from one window of a long sound to the next; 0: half a window
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network; scores are float32
    checkpoint: bool = False  # recompute in the backward pass: activations are held for that moment only

    spec = RewardSpec(
        "clap",
        "larger_clap_music",
        AUDIO,
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(0.0, 0.6),
        paper="arXiv:2211.06687",
        weights="laion/larger_clap_music",
        licence="Apache-2.0",
        bounds=(-1.0, 1.0),
    )

    def __post_init__(self):
        if self.model != type(self).model:
            changes = {"version": self.model, "typical": None, "weights": self.model, "licence": ""}
            object.__setattr__(self, "spec", replace(self.spec, **changes))

    def check(self) -> None:
        check_audio_encoder(self.model)

    def load(self, device: torch.device | str = "cpu") -> AudioEncoder:
        return load_audio_encoder(self.model, device, self.dtype)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = mono_samples(self.spec, media, prompts)
        encoder = self.load(x.device)
        return (encoder(x, media.rate, hop=self.hop, checkpoint=self.checkpoint) * encoder.embed_texts(prompts)).sum(1)
