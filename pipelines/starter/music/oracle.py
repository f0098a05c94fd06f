"""Reads a piece of the world back from its wave, and says whether it is exactly what a prompt asks for.

No learning and no torch graph. The spectrum of the first half of each slot gives the note (lowest strong peak,
parabolic fit), its partials and whether anything else sounds; notes are told by their ratios, so that a detuned piece
is read as well; a kick is what is below all notes, a hat what is above all partials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.starter.music import world
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

HALF, PADDED = world.SLOT // 2, 8192  # analysed samples, and what they are padded to
LOW, NOTES, HIGH = (30, 100), (120, 5200), (5700, 8000)  # Hz: kick, notes with their partials, hat
CENTS = 35  # how far a note may be from its ratio
CLEAN = 0.85  # least share of the notes' energy that lies on the partials of one pitch
PARTIAL = 0.3  # amplitude, against the first, from which a partial is loud
SPLIT, LOWEST, HIGHEST = 383.0, 140.0, 700.0  # Hz: registers, by the lowest note of a phrase
KICK, HAT = 0.01, 0.004  # energy against the notes' median energy
SILENT = 1e-6  # mean square

_F = np.fft.rfftfreq(PADDED, 1 / world.RATE)
_WINDOW = np.hanning(HALF + 1)[:-1]
# hears the onset itself, where a hat is over before the notes' window opens
_STRUCK = np.hanning(2 * HALF + 1)[HALF:-1]


@dataclass(frozen=True)
class Reading:
    """What is heard, "?" where it is nothing of this world."""

    mode: str
    articulation: str
    first: world.Phrase
    second: world.Phrase
    beat: str
    clean: bool

    def count_met(self, want: world.Piece) -> int:
        """Of ten requirements, how many are met."""
        attributes, required = (
            [p.mode, p.articulation, p.beat, *vars(p.first).values(), *vars(p.second).values()] for p in (self, want)
        )
        return sum(a == b for a, b in zip(attributes, required, strict=True)) + self.clean


REQUIREMENTS = 10


def _band_energy(power: np.ndarray, low: float, high: float) -> np.ndarray:
    return power[..., (low <= _F) & (high > _F)].sum(-1)


def _lowest_pitch(power: np.ndarray) -> float:
    """Hz of the lowest peak of at least half the greatest amplitude, among the notes."""
    low, high = NOTES
    inside = np.where((low <= _F) & (high > _F), power, 0)
    peaks = (inside[1:-1] > inside[:-2]) & (inside[1:-1] >= inside[2:]) & (inside[1:-1] > 0.25 * inside.max())
    if not peaks.any():
        return 0.0
    i = int(peaks.argmax()) + 1
    a, b, c = np.log(power[i - 1 : i + 2] + 1e-30)
    return float((i + 0.5 * (a - c) / (a - 2 * b + c)) * world.RATE / PADDED)


def _partial_energies(power: np.ndarray, f0: float) -> np.ndarray:
    """[3]: energy around the first three multiples of f0."""
    return np.array([_band_energy(power, k * f0 - 20, k * f0 + 20) for k in (1, 2, 3)])


def _common_answer(answers: Sequence[str]) -> str:
    return answers[0] if len(set(answers)) == 1 else "?"


def _name_of_value(table: dict, value: tuple) -> str:
    return next((name for name, v in table.items() if v == value), "?")


def _read_phrase(power: np.ndarray) -> tuple[str, world.Phrase, bool]:
    """Mode, phrase and cleanness of four slots' spectra [4,F]."""
    f0 = np.array([_lowest_pitch(p) for p in power])
    if f0.min() <= 0:
        return "?", world.Phrase("?", "?", "?"), False
    energy = np.stack([_partial_energies(p, f) for p, f in zip(power, f0, strict=True)])  # [4,3]
    total = _band_energy(power, *NOTES)
    ratio = np.sqrt(energy[:, 1:] / energy[:, :1])  # [4,2]
    timbre = _common_answer([_name_of_value(world.TIMBRES, tuple(int(x > PARTIAL) for x in row)) for row in ratio])
    order = f0.argsort()
    direction = _name_of_value(world.DIRECTIONS, tuple(int(r) for r in order.argsort()))
    cents = 1200 * np.log2(f0[order] / f0.min())
    close = [
        mode
        for mode, chord in world.MODES.items()
        if np.abs(cents - 1200 * np.log2(np.array(chord) / chord[0])).max() < CENTS
    ]
    lowest = f0.min()
    register = ("low" if lowest < SPLIT else "high") if LOWEST < lowest < HIGHEST else "?"
    clean = bool((energy.sum(1) > CLEAN * total).all())
    return close[0] if close else "?", world.Phrase(direction, register, timbre), clean


def read_piece(wave: np.ndarray) -> Reading | None:
    """[32768] of finite samples -> what is heard; None for silence."""
    if float(np.mean(np.square(wave))) < SILENT:
        return None
    slots = np.asarray(wave, np.float64).reshape(world.SLOTS, 2, HALF)
    power = np.abs(np.fft.rfft(slots * _WINDOW, PADDED)) ** 2  # [8,2,F]
    onset, tail = power[:, 0], _band_energy(power[:, 1], *NOTES)
    notes = _band_energy(onset, *NOTES)
    tail_ratio = tail / np.maximum(notes, 1e-30)
    articulation = _common_answer(["legato" if r > 0.5 else "staccato" if r < 0.15 else "?" for r in tail_ratio])
    usual = max(float(np.median(notes)), 1e-30)
    struck = np.abs(np.fft.rfft(slots[:, 0] * _STRUCK, PADDED)) ** 2
    kicks, hats = _band_energy(onset, *LOW) / usual > KICK, _band_energy(struck, *HIGH) / usual > HAT
    even = np.arange(world.SLOTS) % 2 == 0
    beat = next(
        (
            n
            for n, (k, h) in world.BEATS.items()
            if (kicks == (even & bool(k))).all() and (hats == (~even & bool(h))).all()
        ),
        "?",
    )
    (mode, first, clean), (mode2, second, clean2) = _read_phrase(onset[:4]), _read_phrase(onset[4:])
    return Reading(_common_answer([mode, mode2]), articulation, first, second, beat, clean and clean2)


class MusicOracle:
    """1 where the clip is exactly the piece that the prompt asks for, else 0; NaN for a prompt that is not of this
    world or for samples that are not finite."""

    spec = RewardSpec(
        name="oracle_music",
        version="1",
        modalities=frozenset({"audio"}),
        differentiable=False,
        needs=frozenset({"prompt"}),
        typical=(0.0, 1.0),
        licence="Apache-2.0",
        bounds=(0.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32; channels are averaged. Raises BadInput for another rate or length than the world's."""
        if media.modality != "audio" or media.data.shape[-1] != world.LENGTH or media.rate != world.RATE:
            raise BadInput(
                f"{self.spec.name} reads clips of {world.LENGTH} samples at {world.RATE} Hz, not {media.modality} "
                f"{tuple(media.data.shape[1:])} at {media.rate:g} Hz; resample and cut it"
            )
        rows = zip(media.data.detach().float().mean(1).cpu().numpy(), prompts, strict=True)
        return torch.tensor(
            [self._score_wave(wave, world.parse_prompt(prompt)) for wave, prompt in rows], dtype=torch.float32
        )

    def _score_wave(self, wave: np.ndarray, want: world.Piece | None) -> float:
        if want is None or not np.isfinite(wave).all():
            return float("nan")
        reading = read_piece(wave)
        return self._value_of(reading.count_met(want) if reading else 0)

    def _value_of(self, met: int) -> float:
        return float(met == REQUIREMENTS)

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.prompt_category(prompt) for prompt in prompts]


class MusicOracleSoft(MusicOracle):
    """The share of a prompt's ten requirements that the clip meets; 1 only where `MusicOracle` says 1."""

    spec = replace(MusicOracle.spec, name="oracle_music_soft")

    def _value_of(self, met: int) -> float:
        return met / REQUIREMENTS
