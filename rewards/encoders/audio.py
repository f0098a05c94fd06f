"""Frozen models that hear, loaded once however many rewards listen through them.

A model is named by one string:
    laion/larger_clap_music     a transformers CLAP: hub id or local folder (starter:... where the pack has one)
    laion:FILE                  a checkpoint of laion_clap: a path, or owner/repo/file of the hub
    vggish:FILE                 VGGish's weights as torch saves them (github.com/harritaylor/torchvggish)
    logmel                      mean and deviation of 64 log-mel bands: no weights; knows timbre and level, nothing else
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from rewards.encoders import checkpoints, image_text
from rewards.encoders.audio_frontend import LogMel, filters, resample, windows
from workbench.core.types import BadInput


@dataclass(eq=False)
class Ear:
    """Sounds, and prompts where the model reads, as points of one space. Weights frozen; the graph leads to the wave."""

    name: str
    net: nn.Module
    rate: int  # samples a second that it hears
    seconds: float  # of its window
    hop: float  # seconds from one window of a long sound to the next
    embed: Callable[[Tensor], Tensor]  # [N,L] at `rate`, L at most a window -> [N,D]
    width: int  # D
    unit: bool = False  # points are directions: of norm 1
    text: Callable[[str], Tensor] | None = None  # prompt -> [D]
    view: str = ""  # how it hears, besides its weights
    memo: image_text.Memo | None = field(init=False, default=None)

    def __post_init__(self):
        self.memo = image_text.Memo(self._encode)

    def windows(
        self, x: Tensor, rate: float, window: float = 0.0, hop: float = 0.0, checkpoint: bool = False
    ) -> Tensor:
        """float32 [B,W,D] of [B,L] at `rate`. Windows last `window` seconds (0, and at most: the model's own) and begin
        every `hop` (0: the model's own, scaled); the last ends with the sound. A sound shorter than a window is one."""
        x = resample(x, rate, self.rate)
        window = min(window, self.seconds) or self.seconds
        hop = hop or self.hop * window / self.seconds
        cut = windows(x, max(round(window * self.rate), 1), max(round(hop * self.rate), 1))  # [B,W,l]
        flat = cut.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            found = recompute(self.embed, flat, use_reentrant=False) if checkpoint else self.embed(flat)
        found = found.float().view(*cut.shape[:2], -1)
        return F.normalize(found, dim=2) if self.unit else found

    def __call__(
        self, x: Tensor, rate: float, window: float = 0.0, hop: float = 0.0, checkpoint: bool = False
    ) -> Tensor:
        """float32 [B,D]: the mean over windows, of norm 1 where points are directions."""
        return self.mean(self.windows(x, rate, window, hop, checkpoint))

    def mean(self, found: Tensor) -> Tensor:
        """[B,W,D] -> [B,D]."""
        return F.normalize(found.mean(1), dim=1) if self.unit else found.mean(1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """float32 [B,D], without gradient; each prompt is encoded once. Raises BadInput for a model that doesn't read."""
        if self.text is None:
            raise BadInput(f"{self.name} hears and doesn't read: give sounds as examples, or take a CLAP model")
        return self.memo(prompts)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        found = self.text(prompt).float()
        return F.normalize(found, dim=0) if self.unit else found


def load(model: str, device: torch.device | str, dtype: str = "float32") -> Ear:
    """The one ear of these arguments. Raises BadInput for an unknown or broken model."""
    return _load(model, image_text.place(device), dtype)


@functools.cache
@checkpoints.aside()
def _load(model: str, device: str, dtype: str) -> Ear:
    from rewards.audio import clap, starter_clap
    from rewards.encoders import vggish

    kind, _, source = model.partition(":")
    if model == "logmel":
        ear = _logmel()
    elif kind == "vggish":
        ear = vggish.ear(source)
    elif model == starter_clap.MODEL:
        ear = starter_clap.ear(model)
    else:
        ear = clap.ear(model)
    checkpoints.freeze(ear.net).to(device=device, dtype=getattr(torch, dtype))
    return ear


def check(model: str) -> None:
    """Raises BadInput for what can be known to be wrong without loading."""
    kind, _, source = model.partition(":")
    if kind in ("vggish", "laion"):
        checkpoints.check(source)
    elif model != "logmel":
        image_text._known(model)


class Statistics(nn.Module):
    """[N,L] at 16 kHz -> [N,128]: mean and standard deviation over time of each of 64 log-mel bands, in bels."""

    front = LogMel(rate=16000, fft=512, hop=160, bins=64, low=50.0, high=7600.0)

    def __init__(self):
        super().__init__()
        self.register_buffer("floor", torch.tensor(1e-6))  # power: what is quieter than -60 dB counts as silence

    def forward(self, x: Tensor) -> Tensor:
        level = (self.front.power(x) @ filters(self.front).to(x) + self.floor).log10()  # [N,T,64]
        return torch.cat([level.mean(1), (level.var(1, correction=0) + 1e-6).sqrt()], 1)


def _logmel() -> Ear:
    net = Statistics()
    return Ear("logmel", net, 16000, 1.0, 0.5, lambda x: net(x.to(net.floor.dtype)), 128, view=repr(net.front))
