"""Media of which it is known how they compare: what a reward is shown to see whether it works.

Half are exactly what one of two prompts says, half are spoilt beyond any prompt. Pictures, clips and pieces of music are
drawn by the starter worlds. Those of shapes are put in words that any reader of pictures knows; a melody's are known to the
music pack alone, so whoever else hears is given sounds of which anyone would say the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from pipelines.starter.image import world as image_world
from pipelines.starter.music import world as music_world
from pipelines.starter.video import world as video_world
from workbench.core.types import Media, Modality

EACH = 6  # of a prompt: one more than the neighbours that `prdc`, the most demanding of sets, asks for
SHOWN = ("a red circle", "a blue square")
MOVING = ("a red circle moving right quickly", "a blue square staying still")
PLAYED = (
    "major legato rising low flute then zigzag high violin march",
    "minor staccato falling high organ then rising low clarinet solo",
)
HEARD = ("a steady pure tone", "white noise")


@dataclass(frozen=True)
class Specimens:
    """Rows 0, 2, 4, … of `exact` show the first prompt, rows 1, 3, 5, … the second; no row of `spoilt` shows either."""

    prompts: tuple[str, str]
    exact: Media  # 2 EACH
    spoilt: Media  # EACH

    def each(self, n: int) -> tuple[Media, list[str]]:
        """The first n exact and the first n spoilt ones, n even, and the prompt of each: the two in turn throughout."""
        return Media.cat([self.exact[:n], self.spoilt[:n]]), [*self.prompts] * n


@cache
def pictures() -> Specimens:
    g, rng = torch.Generator().manual_seed(0), random.Random(0)
    drawn = image_world.render([image_world.scene_for(prompt, rng) for prompt in SHOWN * EACH], g)
    return Specimens(SHOWN, Media(drawn, "image"), Media(_unseen(drawn, g), "image"))


@cache
def clips() -> Specimens:
    """That one kind moves and the other doesn't is known of the exact ones alone: in most spoilt ones there is nothing that could."""
    g, rng = torch.Generator().manual_seed(0), random.Random(0)
    needs = [video_world.parse(prompt) for prompt in MOVING * EACH]
    drawn = video_world.render([video_world.clip_for(need, rng) for need in needs], g)
    exact = Media(drawn, "video", video_world.RATE)
    return Specimens(MOVING, exact, replace(exact, data=_unseen(drawn, g)))


@cache
def pieces() -> Specimens:
    g, rng = torch.Generator().manual_seed(0), random.Random(0)
    played = music_world.render([music_world.parse(prompt) for prompt in PLAYED * EACH], rng, g)[:, None]
    exact = Media(played.clamp(-1, 1), "audio", music_world.RATE)
    return Specimens(PLAYED, exact, replace(exact, data=_unheard(exact.data, g)))


@cache
def sounds() -> Specimens:
    g = torch.Generator().manual_seed(0)
    t = torch.arange(2 * music_world.RATE) / music_world.RATE
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) / 2 for f in (440.0, 220.0, 880.0, 330.0, 660.0, 550.0)])
    noise = (2 * torch.rand(tones.shape, generator=g) - 1) * torch.linspace(0.9, 0.2, EACH)[:, None]
    exact = Media(torch.stack([tones, noise], 1).flatten(0, 1)[:, None], "audio", music_world.RATE)
    return Specimens(HEARD, exact, replace(exact, data=_unheard(exact.data, g)))


def _unseen(x: Tensor, g: torch.Generator) -> Tensor:
    """[EACH,...] of pictures or clips [N,...]: noise, the dark, two faded, two in one, one in noise."""
    noise = torch.rand(x[:2].shape, generator=g)
    return torch.stack(
        [noise[0], torch.zeros_like(x[0]), *(0.3 * x[:2] + 0.4), (x[0] + x[1]) / 2, (x[0] + 2 * noise[1]) / 3]
    )


def _unheard(x: Tensor, g: torch.Generator) -> Tensor:
    """[EACH,C,L] of sounds [N,C,L]: silence, one clipped, one too faint to hear, half of one, two in one, one in noise."""
    noise = 2 * torch.rand(x[0].shape, generator=g) - 1
    half = x[1] * (torch.arange(x.shape[-1]) < x.shape[-1] // 2)
    wrong = [torch.zeros_like(x[0]), 20 * x[0], x[1] / 1000, half, (x[0] + x[1]) / 2, x[0] / 2 + noise / 2]
    return torch.stack(wrong).clamp(-1, 1)


Makers = Mapping[Modality, Callable[[], Specimens]]
ANYONE: Makers = {"image": pictures, "video": clips, "audio": sounds}
STARTER: Makers = {**ANYONE, "audio": pieces}  # for who knows the starter pack's worlds and no other
