"""Frozen audio encoders: what all of them share, and one that needs no weights. load_audio.py loads them by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from rewards.encoders import image_text
from rewards.encoders.audio_frontend import LogMel, cut_windows, mel_filters
from workbench.core.errors import BadInput
from workbench.core.io.resampling import resample_audio


@dataclass(eq=False)
class AudioEncoder:
    """A frozen audio encoder: sounds, and prompts where it has a text tower, as points of one space.

    The graph leads to the wave.
    """

    name: str
    net: nn.Module
    rate: int  # samples a second that it takes
    seconds: float  # of its window
    hop: float  # seconds from one window of a long sound to the next
    embed: Callable[[Tensor], Tensor]  # [N,L] at `rate`, L at most a window -> [N,D]
    width: int  # D
    unit: bool = False  # points are directions: of norm 1
    text: Callable[[str], Tensor] | None = None  # prompt -> [D]
    view: str = ""  # how it looks at sounds, besides its weights
    text_cache: image_text.TextCache | None = field(init=False, default=None)

    def __post_init__(self):
        self.text_cache = image_text.TextCache(self._encode_prompt)

    def embed_windows(
        self, x: Tensor, rate: float, window: float = 0.0, hop: float = 0.0, checkpoint: bool = False
    ) -> Tensor:
        """float32 [B,W,D] of [B,L] at `rate`. Windows last `window` seconds (0, and at most: the model's own) and begin
        every `hop` (0: the model's own, scaled); the last ends with the sound. A sound shorter than a window is one."""
        x = resample_audio(x, rate, self.rate)
        window = min(window, self.seconds) or self.seconds
        hop = hop or self.hop * window / self.seconds
        cut = cut_windows(x, max(round(window * self.rate), 1), max(round(hop * self.rate), 1))  # [B,W,l]
        flat = cut.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            features = recompute(self.embed, flat, use_reentrant=False) if checkpoint else self.embed(flat)
        features = features.float().view(*cut.shape[:2], -1)
        return F.normalize(features, dim=2) if self.unit else features

    def __call__(
        self, x: Tensor, rate: float, window: float = 0.0, hop: float = 0.0, checkpoint: bool = False
    ) -> Tensor:
        """float32 [B,D]: the mean over windows, of norm 1 where points are directions."""
        return self.pool_windows(self.embed_windows(x, rate, window, hop, checkpoint))

    def pool_windows(self, features: Tensor) -> Tensor:
        """[B,W,D] -> [B,D]."""
        return F.normalize(features.mean(1), dim=1) if self.unit else features.mean(1)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """float32 [B,D], without gradient; each prompt is encoded once. Raises BadInput if the model can't read."""
        if self.text is None:
            raise BadInput(f"{self.name} hears and doesn't read: give sounds as examples, or take a CLAP model")
        return self.text_cache(prompts)

    @torch.no_grad()
    def _encode_prompt(self, prompt: str) -> Tensor:
        features = self.text(prompt).float()
        return F.normalize(features, dim=0) if self.unit else features


class LogMelStatistics(nn.Module):
    """[N,L] at 16 kHz -> [N,128]: mean and standard deviation over time of each of 64 log-mel bands, in bels."""

    front = LogMel(rate=16000, fft=512, hop=160, bins=64, low=50.0, high=7600.0)

    def __init__(self):
        super().__init__()
        self.register_buffer("floor", torch.tensor(1e-6))  # power: what is quieter than -60 dB counts as silence

    def forward(self, x: Tensor) -> Tensor:
        level = (self.front.power_spectrum(x) @ mel_filters(self.front).to(x) + self.floor).log10()  # [N,T,64]
        return torch.cat([level.mean(1), (level.var(1, correction=0) + 1e-6).sqrt()], 1)


def log_mel_encoder() -> AudioEncoder:
    net = LogMelStatistics()
    return AudioEncoder("logmel", net, 16000, 1.0, 0.5, lambda x: net(x.to(net.floor.dtype)), 128, view=repr(net.front))
