"""From media to the input of an audio encoder: one channel, its rate, its windows, a log-mel picture;
all differentiable."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

AUDIO = frozenset({"audio"})


def audio_samples(spec: RewardSpec, media: Media, prompts: Sequence[str]) -> Tensor:
    """float32 [B,C,L] of a sound batch, graph attached.

    Raises BadInput for another modality, no samples or no sample rate, and ValueError unless there is one prompt a
    sample.
    """
    if media.modality != "audio":
        raise BadInput(f"{spec.name} judges audio, not {media.modality}")
    if media.data.dim() != 3 or not media.data.shape[1]:
        raise ValueError(f"{spec.name} needs audio data [B,C,L], got {list(media.data.shape)}")
    if not media.data.shape[2]:
        raise BadInput(f"{spec.name}: the sound has no samples; make it longer")
    if not media.rate > 0:
        raise BadInput(f"{spec.name}: the sound does not say its sample rate; set Media.rate")
    if "prompt" in spec.needs and len(prompts) != len(media):
        raise ValueError(f"{spec.name} needs one prompt a sample: {len(prompts)} prompts for {len(media)} samples")
    return media.data.float()


def mono_samples(spec: RewardSpec, media: Media, prompts: Sequence[str]) -> Tensor:
    """float32 [B,L]: the mean of the channels. Raises as `samples` does."""
    return audio_samples(spec, media, prompts).mean(1)


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Where windows of a sound of `length` begin: every `hop`, and one that ends where the sound does;
    0 if it is shorter."""
    if length <= window:
        return [0]
    positions = list(range(0, length - window + 1, hop))
    return positions if positions[-1] == length - window else [*positions, length - window]


def cut_windows(x: Tensor, window: int, hop: int) -> Tensor:
    """[B,L] -> [B,W,window], or [B,1,L] of a shorter sound."""
    return torch.stack([x[:, s : s + window] for s in window_starts(x.shape[1], window, hop)], 1)


def fit_length(x: Tensor, length: int, how: Literal["repeatpad", "repeat", "pad"]) -> Tensor:
    """[N,L], L <= length -> [N,length]: silence after, or after as many whole repeats as fit, or repeated and cut."""
    if how != "pad":
        x = x.repeat(1, length // x.shape[1] + (how == "repeat"))[:, :length]
    return F.pad(x, (0, length - x.shape[1]))


@dataclass(frozen=True)
class LogMel:
    """A log-mel picture as transformers' feature extractors make it, in torch."""

    rate: int
    fft: int
    hop: int
    bins: int
    low: float
    high: float
    scale: Literal["slaney", "htk", "kaldi"] = "slaney"
    slaney_norm: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """[N,L] -> decibels [N,T,bins], T = L // hop + 1, at least -100."""
        return 10 * (self.power_spectrum(x) @ mel_filters(self).to(x)).clamp(min=1e-10).log10()

    def power_spectrum(self, x: Tensor) -> Tensor:
        """[N,L] -> [N,T,fft//2+1]; frames are centred, the ends mirrored (silent if a sound is too short for that)."""
        window = torch.hann_window(self.fft, device=x.device, dtype=x.dtype)
        mode = "reflect" if x.shape[1] > self.fft // 2 else "constant"
        spectrum = torch.stft(x, self.fft, self.hop, window=window, center=True, pad_mode=mode, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)


@functools.lru_cache(32)
def mel_filters(m: LogMel) -> Tensor:
    """float32 [fft//2+1,bins]."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=m.fft // 2 + 1,
        num_mel_filters=m.bins,
        min_frequency=m.low,
        max_frequency=m.high,
        sampling_rate=m.rate,
        norm="slaney" if m.slaney_norm else None,
        mel_scale=m.scale,
        triangularize_in_mel_space=m.scale == "kaldi",
    )
    return torch.from_numpy(bank).float()
