"""How well a clip fits its prompt, by the music pack's own text-audio encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewards.audio.clap import CLAPScore
from rewards.encoders.audio import AudioEncoder
from rewards.encoders.audio_frontend import AUDIO
from rewards.encoders.load_audio import load_starter_clap
from rewards.encoders.starter_clap import MODEL
from workbench.core.types import RewardSpec


@dataclass(frozen=True)
class StarterCLAP(CLAPScore):
    """How well a piece of the starter world fits its prompt, by the embedded CLAP: knows that world's words and sounds
    and no others. It was shown broken pieces too, so its gradient leads away from them."""

    model: str = MODEL

    spec = RewardSpec(
        "starter_clap",
        "1",
        AUDIO,
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(-0.3, 0.9),
        paper="arXiv:2206.04769",
        weights=MODEL,
        licence="Apache-2.0",
        bounds=(-1.0, 1.0),
    )

    def load(self, device: torch.device | str = "cpu") -> AudioEncoder:
        return load_starter_clap(self.model, device, self.dtype)
