"""A procedural world of short pieces: two phrases of four notes over a beat, and the prompt that says all of it.

    major legato rising low flute then zigzag high violin march

2.048 s at 16 kHz in 8 slots of 4 frames. Everything is tuned to the frame of 1024 samples: a note's frequency is a
whole multiple of 15.625 Hz and it begins at phase 0 on a slot's edge, so a sustained note is the same in every frame,
and a linear code of frames holds it exactly. Chords are just: 4:5:6:8 for major, 10:12:15:20 for minor.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from workbench.core.types import derive_seed

RATE = 16_000
FRAME = 1024
SLOT = 4 * FRAME
SLOTS = 8
LENGTH = SLOTS * SLOT  # 32,768 samples
UNIT = RATE / FRAME  # 15.625 Hz

MODES = {"major": (4, 5, 6, 8), "minor": (10, 12, 15, 20)}
ARTICULATIONS = ("legato", "staccato")
# which chord note when; all differ everywhere
DIRECTIONS = {"rising": (0, 1, 2, 3), "falling": (3, 2, 1, 0), "zigzag": (1, 3, 0, 2)}
REGISTERS = ("low", "high")
TIMBRES = {"flute": (0, 0), "clarinet": (0, 1), "organ": (1, 0), "violin": (1, 1)}  # are partials 2 and 3 loud?
BEATS = {"solo": (0, 0), "march": (1, 0), "shaker": (0, 1), "disco": (1, 1)}  # kicks on even slots, hats on odd ones
ROOTS = {
    ("major", "low"): (12, 16), ("major", "high"): (32, 36),
    ("minor", "low"): (10, 20), ("minor", "high"): (30, 40),
}  # fmt: skip
LOUD, FAINT = 0.75, 0.08  # amplitude of a partial against the first
CATEGORIES = tuple(BEATS)


@dataclass(frozen=True)
class Phrase:
    direction: str
    register: str
    timbre: str


@dataclass(frozen=True)
class Piece:
    mode: str
    articulation: str
    first: Phrase
    second: Phrase
    beat: str

    @property
    def prompt(self) -> str:
        a, b = self.first, self.second
        return (
            f"{self.mode} {self.articulation} {a.direction} {a.register} {a.timbre} then "
            f"{b.direction} {b.register} {b.timbre} {self.beat}"
        )


@functools.cache
def all_phrases() -> tuple[Phrase, ...]:
    return tuple(itertools.starmap(Phrase, itertools.product(DIRECTIONS, REGISTERS, TIMBRES)))


@functools.cache
def all_pieces() -> dict[str, Piece]:
    """All 9,216, by prompt."""
    parts = itertools.product(MODES, ARTICULATIONS, all_phrases(), all_phrases(), BEATS)
    return {piece.prompt: piece for piece in itertools.starmap(Piece, parts)}


def parse_prompt(prompt: str) -> Piece | None:
    """None for what is no prompt of this world."""
    return all_pieces().get(" ".join(prompt.lower().split()))


def require_prompt(prompt: str) -> Piece:
    """The piece that a prompt asks for. Raises ValueError for what is no prompt of this world."""
    piece = parse_prompt(prompt)
    if piece is None:
        raise ValueError(f"{prompt!r} is not a prompt of the music world")
    return piece


def vocabulary_words() -> list[str]:
    return sorted({word for prompt in all_pieces() for word in prompt.split()})


def prompt_category(prompt: str) -> str:
    """The beat, the one word that can be heard in every slot."""
    piece = parse_prompt(prompt)
    return piece.beat if piece else "?"


@functools.cache
def shuffle_key(text: str) -> int:
    """A fixed order without meaning."""
    return derive_seed(0, "music", text)


@functools.cache
def _is_unseen_pair(first: Phrase, second: Phrase) -> bool:
    return derive_seed(0, "music pair", *vars(first).values(), "then", *vars(second).values()) % 100 < 15


def is_held_out(piece: Piece) -> bool:
    """15 % of the ordered pairs of phrases are together in no piece and no prompt that any part of the pack is told or
    hears, whatever the mode, articulation and beat. Each phrase is seen in both places, in other company."""
    return _is_unseen_pair(piece.first, piece.second)


@functools.cache
def seen_pieces() -> tuple[Piece, ...]:
    return tuple(piece for piece in all_pieces().values() if not is_held_out(piece))


def training_pieces(rng: random.Random) -> Iterator[Piece]:
    """Training pieces without end."""
    while True:
        yield rng.choice(seen_pieces())


def near_miss(piece: Piece, rng: random.Random) -> Piece:
    """A seen piece that differs from `piece` in one word, or in the order of its phrases."""
    while True:
        kind = rng.randrange(6)
        if kind == 0:
            other = replace(piece, mode=rng.choice(list(MODES)))
        elif kind == 1:
            other = replace(piece, articulation=rng.choice(ARTICULATIONS))
        elif kind == 2:
            other = replace(piece, beat=rng.choice(list(BEATS)))
        elif kind == 3:
            other = replace(piece, first=piece.second, second=piece.first)
        elif kind == 4:
            other = replace(piece, first=_change_phrase(piece.first, rng))
        else:
            other = replace(piece, second=_change_phrase(piece.second, rng))
        if other != piece and not is_held_out(other):
            return other


def _change_phrase(phrase: Phrase, rng: random.Random) -> Phrase:
    name, options = rng.choice([("direction", DIRECTIONS), ("register", REGISTERS), ("timbre", TIMBRES)])
    return replace(phrase, **{name: rng.choice(list(options))})


def render_pieces(batch: Sequence[Piece], rng: random.Random, noise: torch.Generator, tuning: float = 0.0) -> Tensor:
    """[B,32768] in [-1,1]. Root, level, attack and the partials' balance are drawn anew for each; `tuning` detunes by
    up to so many semitones, which no training clip is."""
    waves = torch.from_numpy(
        np.stack([_render_piece(piece, rng, 2 ** (rng.uniform(-tuning, tuning) / 12)) for piece in batch])
    )
    return waves + 0.001 * torch.randn(waves.shape, generator=noise)


def _render_piece(piece: Piece, rng: random.Random, bend: float) -> np.ndarray:
    slots = np.zeros((SLOTS, SLOT), np.float32)
    level, attack = rng.uniform(0.6, 1.0), rng.uniform(0.006, 0.020)
    envelope = _note_envelope(attack, piece.articulation)
    chord = MODES[piece.mode]
    for half, phrase in enumerate((piece.first, piece.second)):
        root = rng.choice(ROOTS[piece.mode, phrase.register])
        amps = [1.0, *((LOUD if loud else FAINT) * rng.uniform(0.88, 1.12) for loud in TIMBRES[phrase.timbre])]
        for i, degree in enumerate(DIRECTIONS[phrase.direction]):
            slots[4 * half + i] = 0.45 * level * envelope * _render_tone(root * chord[degree] / chord[0] * bend, amps)
    kicks, hats = BEATS[piece.beat]
    if kicks:
        slots[0::2] += rng.uniform(0.28, 0.36) * _render_kick()
    if hats:
        slots[1::2] += rng.uniform(0.17, 0.23) * _render_hat(rng.randrange(2))
    return slots.reshape(-1)


def _render_tone(units: float, amps: Sequence[float]) -> np.ndarray:
    """[SLOT] of peak 1 from phase 0."""
    t = 2 * np.pi * units / FRAME * np.arange(SLOT if units % 1 else FRAME)
    wave = sum(a * np.sin((k + 1) * t) for k, a in enumerate(amps))
    return np.resize(wave / np.abs(wave).max(), SLOT).astype(np.float32)


def _note_envelope(attack: float, articulation: str) -> np.ndarray:
    t = np.arange(SLOT) / RATE
    end = (SLOT if articulation == "legato" else SLOT // 2) / RATE
    rise, fall = np.clip(t / attack, 0, 1), np.clip((end - t) / 0.008, 0, 1)
    return (np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2).astype(np.float32)


@functools.cache
def _render_kick() -> np.ndarray:
    """A decaying 62.5 Hz, three frames long, below every note."""
    t = np.arange(SLOT) / RATE
    fade = np.clip((3 * FRAME / RATE - t) / 0.02, 0, 1)
    return (np.sin(2 * np.pi * 4 * UNIT * t) * np.clip(t / 0.004, 0, 1) * np.exp(-t / 0.07) * fade).astype(np.float32)


@functools.cache
def _render_hat(kind: int) -> np.ndarray:
    """A burst of noise between 6 and 7.6 kHz, above every partial: one of two recordings, so to say, of peak 1."""
    white = np.random.default_rng(kind).standard_normal(FRAME)
    t = np.arange(FRAME) / RATE
    burst = white * np.clip(t / 0.003, 0, 1) * np.exp(-t / 0.014) * np.clip((FRAME / RATE - t) / 0.01, 0, 1)
    spectrum, f = np.fft.rfft(burst), np.fft.rfftfreq(FRAME, 1 / RATE)
    burst = np.fft.irfft(spectrum * (f > 6000) * (f < 7600)) * np.clip((FRAME / RATE - t) / 0.01, 0, 1)
    return np.pad(burst / np.abs(burst).max(), (0, SLOT - FRAME)).astype(np.float32)
