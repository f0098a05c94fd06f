"""How loud a sound is to people (ITU-R BS.1770-4), and what is broken about it: clipping, silence; and a gate on both.

Distances between sounds, CLAP and FAD are gamed by silence and by noise at full scale: `gated` takes that away.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rewards.encoders.audio_frontend import AUDIO, audio_samples
from workbench.core.errors import BadInput
from workbench.core.io.resampling import resample_audio
from workbench.core.types import Media, Reward, RewardSpec

QUIETEST = -70.0  # LUFS: the absolute gate; what lies under it has no loudness


def k_weighting(rate: float) -> tuple[tuple[list[float], list[float]], ...]:
    """BS.1770's two biquads (b, a) at any sample rate, a head's shelf and a high-pass: at 48 kHz the standard's own
    coefficients, elsewhere the same analogue filters through the bilinear transform (as libebur128 takes them)."""
    k, q, gain = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    middle, norm = gain**0.4996667741545416, 1 + k / q + k * k
    high_shelf = [
        (gain + middle * k / q + k * k) / norm,
        2 * (k * k - gain) / norm,
        (gain - middle * k / q + k * k) / norm,
    ]
    poles = [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    norm = 1 + k / q + k * k
    return (high_shelf, poles), ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm])


@functools.lru_cache(16)
def _frequency_response(rate: float, size: int) -> Tensor:
    """complex128 [size//2+1]: the K-weighting's answer to each frequency of an FFT."""
    z = torch.exp(-2j * torch.pi * torch.arange(size // 2 + 1, dtype=torch.float64) / size)
    response = torch.ones_like(z)
    for b, a in k_weighting(rate):
        response = response * (b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2)
    return response


def integrated_loudness(x: Tensor, rate: float) -> Tensor:
    """float64 [B]: integrated loudness of [B,C,L], gated twice, in LUFS; -70, the gate, for what is quieter or silent.

    One or two channels (or three) weigh 1 each, the surrounds of five 1.41. NaN for a sound under 0.4 s, the length of
    one block, at less than 5 samples a second, or that holds NaN. Differentiable but for the choice of blocks.
    """
    length, block, hop = x.shape[-1], round(0.4 * rate), round(0.1 * rate)
    if length < block or hop < 1:
        return x.double().flatten(1).sum(1) * 0 + torch.nan
    power = weigh_frequencies(x.double(), rate).square().unfold(-1, block, hop).mean(-1)  # [B,C,blocks]
    weights = power.new_tensor([1.41 if x.shape[1] == 5 and c > 2 else 1.0 for c in range(x.shape[1])])
    power = (power * weights[:, None]).sum(1)  # [B,blocks]
    is_counted = power.detach() > _lufs_to_power(QUIETEST)
    mean = (power.detach() * is_counted).sum(1) / is_counted.sum(1).clamp(min=1)
    is_counted &= power.detach() > mean[:, None] / 10  # 10 LU under what the first gate leaves
    power = (power * is_counted).sum(1) / is_counted.sum(1).clamp(min=1)
    return _power_to_lufs(power.clamp(min=_lufs_to_power(QUIETEST))) + 0 * x.double().flatten(1).sum(1)  # NaN stays NaN


def weigh_frequencies(x: Tensor, rate: float) -> Tensor:
    """K-weighted float64 [...,L]: by the recursive filters, or, for a gradient or on a GPU, in the frequency domain,
    with a second of silence after the sound, in which the filters ring out. The two differ by rounding."""
    if x.device.type == "cpu" and not x.requires_grad:
        from scipy import signal

        sections = [[*b, *a] for b, a in k_weighting(rate)]
        return torch.from_numpy(signal.sosfilt(sections, x.numpy()))
    size = 1 << (x.shape[-1] + round(rate) - 1).bit_length()
    spectrum = torch.fft.rfft(x, size) * _frequency_response(rate, size).to(x.device)
    return torch.fft.irfft(spectrum, size)[..., : x.shape[-1]]


def _power_to_lufs(power: Tensor) -> Tensor:
    return -0.691 + 10 * power.log10()


def _lufs_to_power(level: float) -> float:
    return 10 ** ((level + 0.691) / 10)


def true_peak(x: Tensor, rate: float) -> Tensor:
    """[B]: the highest absolute value of [B,C,L] between samples too, 1 for full scale: four times oversampled."""
    return resample_audio(x.float(), rate, round(rate) * 4).abs().flatten(1).amax(1)


def clipped_share(x: Tensor) -> Tensor:
    """[B]: the share of values of [B,C,L] at full scale; NaN where there is NaN. No gradient."""
    x = x.detach().flatten(1)
    return (x.abs() >= 0.999).float().mean(1).masked_fill(~x.isfinite().all(1), torch.nan)


def silent_share(x: Tensor, rate: float) -> Tensor:
    """[B]: the share of frames of 50 ms that are under -60 dBFS; NaN where there is NaN. No gradient."""
    x = x.detach()
    frame = min(max(round(0.05 * rate), 1), x.shape[-1])
    quiet = x.unfold(-1, frame, frame).square().mean(-1).amax(1) < 1e-6  # [B,frames]
    return quiet.float().mean(1).masked_fill(~x.flatten(1).isfinite().all(1), torch.nan)


@dataclass(frozen=True)
class Loudness:
    """Minus the distance to a loudness, in LU: streaming services play at -14 or -16 LUFS, broadcast at -23."""

    target: float = -14.0  # LUFS

    spec = RewardSpec("loudness", "1", AUDIO, differentiable=True, typical=(-15.0, 0.0), paper="ITU-R BS.1770-4")

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = audio_samples(self.spec, media, prompts)
        return -(integrated_loudness(x, media.rate) - self.target).abs().float()


@dataclass(frozen=True)
class Clipping:
    """Minus the share of samples at full scale: a watchdog of over-optimisation."""

    spec = RewardSpec("clipping", "1", AUDIO, differentiable=False, typical=(-0.1, 0.0), bounds=(-1.0, 0.0))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return 0.0 - clipped_share(audio_samples(self.spec, media, prompts))


@dataclass(frozen=True)
class Silence:
    """Minus the share of 50 ms frames under -60 dBFS: a watchdog of dead tails and of nothing at all."""

    spec = RewardSpec("silence", "1", AUDIO, differentiable=False, typical=(-0.3, 0.0), bounds=(-1.0, 0.0))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return 0.0 - silent_share(audio_samples(self.spec, media, prompts), media.rate)


@dataclass(frozen=True)
class Gated:
    """A sound's reward, as far as the sound is whole: down to `floor` where it is too quiet or clipped,
    NaN where it is NaN.

    floor + g (r - floor), g from 1 at `quiet` LUFS to 0 at 6 LU less, times 1 at a share `clipped` of values at full
    scale to 0 at twice that. The gradient passes through r and the loudness. A sound too short to have a loudness is
    gated by its clipping alone.
    """

    of: Reward  # a reward of single sounds; in a config its name, or a block as under `reward:`
    floor: float | None = None  # what a silent sound is worth; by default the low end of what `of` declares as typical
    quiet: float = -50.0  # LUFS from which on a sound counts in full
    clipped: float = 0.01  # share of values at full scale up to which it does

    spec = RewardSpec("gated", "1", AUDIO, differentiable=True)
    nested = ("of",)

    def __post_init__(self):
        of = self.of
        if of.spec.scope != "sample" or "audio" not in of.spec.modalities:
            raise BadInput(f"gated.of: {of.spec.name} is no reward of single sounds; gate those that are, one by one")
        if not self.clipped > 0:
            raise BadInput(f"gated.clipped: must be more than 0, got {self.clipped:g}")
        parts = getattr(of, "rewards", None)
        only = next(iter(parts.values())).spec if parts and list(of.weights.values()) == [1.0] else of.spec
        if self.floor is None and only.typical is None:
            raise BadInput(f"gated.floor: {only.name} declares no typical range; say what a silent sound is worth")
        object.__setattr__(self, "floor", only.typical[0] if self.floor is None else self.floor)
        inherited = {"differentiable": of.spec.differentiable, "needs": of.spec.needs, "typical": only.typical}
        version = f"{of!r} {of.spec.version} {self.floor:g} {self.quiet:g} {self.clipped:g}"
        object.__setattr__(self, "spec", replace(self.spec, version=version, **inherited))

    def check(self) -> None:
        if hasattr(self.of, "check"):
            self.of.check()

    def load(self, device: torch.device | str = "cpu") -> None:
        if hasattr(self.of, "load"):
            self.of.load(device)

    def gate(self, x: Tensor, rate: float) -> Tensor:
        """[B] in [0,1] of [B,C,L]; NaN where there is NaN."""
        loud = (
            ((integrated_loudness(x, rate) - self.quiet) / 6 + 1).clamp(0, 1)
            if x.shape[-1] >= round(0.4 * rate)
            else 1.0
        )
        return loud * (2 - clipped_share(x) / self.clipped).clamp(0, 1)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        gate = self.gate(audio_samples(self.spec, media, prompts), media.rate)
        scores = self.of(media=media, prompts=prompts, references=references)
        if not self.spec.differentiable:
            gate = gate.detach()
        return (self.floor + gate * (scores - self.floor)).float()
