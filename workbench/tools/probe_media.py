"""Probe media: samples whose order of quality is known, to test whether a reward works.

Half show exactly one of two prompts, half are spoilt beyond any prompt. Pictures, clips and music are rendered by the
starter worlds. Prompts about shapes are plain English, so any reward can read them; the vocabulary of the music world
is known to the starter pack alone, so other rewards get plain tones and noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from pipelines.starter.edit import world as edit_world
from pipelines.starter.image import rendering
from pipelines.starter.image import world as image_world
from pipelines.starter.music import world as music_world
from pipelines.starter.video import world as video_world
from workbench.core.types import Media, Modality

PER_PROMPT = 6  # one more than the neighbours that `prdc`, the most demanding set reward, needs
PICTURE_PROMPTS = ("a red circle", "a blue square")
CLIP_PROMPTS = ("a red circle moving right quickly", "a blue square staying still")
EDIT_PROMPTS = ("make the circle green", "remove the square")
MUSIC_PROMPTS = (
    "major legato rising low flute then zigzag high violin march",
    "minor staccato falling high organ then rising low clarinet solo",
)
SOUND_PROMPTS = ("a steady pure tone", "white noise")


@dataclass(frozen=True)
class ProbeMedia:
    """Rows 0, 2, 4, … of `exact` show the first prompt, rows 1, 3, 5, … the second; no row of `spoilt` shows either."""

    prompts: tuple[str, str]
    exact: Media  # 2 * PER_PROMPT
    spoilt: Media  # PER_PROMPT
    source: Media | None = None  # [1]: what all of them were made from; None where any medium will do

    def first_pairs(self, n: int) -> tuple[Media, list[str]]:
        """The first n exact and the first n spoilt media, and the prompt of each; n is even and the two prompts
        alternate."""
        return Media.cat([self.exact[:n], self.spoilt[:n]]), [*self.prompts] * n


@cache
def draw_pictures() -> ProbeMedia:
    g, rng = torch.Generator().manual_seed(0), random.Random(0)
    images = rendering.render_scenes([image_world.scene_for(prompt, rng) for prompt in PICTURE_PROMPTS * PER_PROMPT], g)
    return ProbeMedia(PICTURE_PROMPTS, Media(images, "image"), Media(spoil_visual(images, g), "image"))


@cache
def draw_clips() -> ProbeMedia:
    """One prompt moves and the other stands still, but only in the exact clips: most spoilt ones hold nothing that
    could move."""
    g, rng = torch.Generator().manual_seed(0), random.Random(0)
    needs = [video_world.parse_prompt(prompt) for prompt in CLIP_PROMPTS * PER_PROMPT]
    images = video_world.render_clips([video_world.clip_for(need, rng) for need in needs], g)
    exact = Media(images, "video", video_world.RATE)
    return ProbeMedia(CLIP_PROMPTS, exact, replace(exact, data=spoil_visual(images, g)))


@cache
def draw_edits() -> ProbeMedia:
    """Two edits of one source, with a trace of noise that tells the pictures of each apart."""
    g = torch.Generator().manual_seed(0)
    scene = tuple(
        image_world.Thing(shape, colour, "small", x, 32.0, 8.0)
        for shape, colour, x in (("circle", "red", 16.0), ("square", "blue", 46.0))
    )
    targets = [edit_world.edit_scene(scene, edit_world.require_instruction(prompt)) or () for prompt in EDIT_PROMPTS]
    source, *images = edit_world.render_on_one_ground([[scene], *([t] for t in targets * PER_PROMPT)], g)
    exact = torch.cat(images)
    exact = (exact + 0.01 * torch.randn(exact.shape, generator=g)).clamp(0, 1)
    spoilt = Media(spoil_visual(exact, g), "image")
    return ProbeMedia(EDIT_PROMPTS, Media(exact, "image"), spoilt, Media(source, "image"))


@cache
def draw_animations() -> ProbeMedia:
    """The clips, of which one alone begins with the picture that all of them were to begin with."""
    return replace(draw_clips(), source=draw_clips().exact[0])


@cache
def play_music() -> ProbeMedia:
    g, rng = torch.Generator().manual_seed(0), random.Random(0)
    waveforms = music_world.render_pieces(
        [music_world.parse_prompt(prompt) for prompt in MUSIC_PROMPTS * PER_PROMPT], rng, g
    )[:, None]
    exact = Media(waveforms.clamp(-1, 1), "audio", music_world.RATE)
    return ProbeMedia(MUSIC_PROMPTS, exact, replace(exact, data=spoil_audio(exact.data, g)))


@cache
def play_sounds() -> ProbeMedia:
    g = torch.Generator().manual_seed(0)
    t = torch.arange(2 * music_world.RATE) / music_world.RATE
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) / 2 for f in (440.0, 220.0, 880.0, 330.0, 660.0, 550.0)])
    noise = (2 * torch.rand(tones.shape, generator=g) - 1) * torch.linspace(0.9, 0.2, PER_PROMPT)[:, None]
    exact = Media(torch.stack([tones, noise], 1).flatten(0, 1)[:, None], "audio", music_world.RATE)
    return ProbeMedia(SOUND_PROMPTS, exact, replace(exact, data=spoil_audio(exact.data, g)))


def spoil_visual(x: Tensor, g: torch.Generator) -> Tensor:
    """[PER_PROMPT,...] of pictures or clips [N,...]: noise, black, two faded, two blended, one in noise."""
    noise = torch.rand(x[:2].shape, generator=g)
    return torch.stack(
        [noise[0], torch.zeros_like(x[0]), *(0.3 * x[:2] + 0.4), (x[0] + x[1]) / 2, (x[0] + 2 * noise[1]) / 3]
    )


def spoil_audio(x: Tensor, g: torch.Generator) -> Tensor:
    """[PER_PROMPT,C,L] of sounds [N,C,L]: silence, one clipped, one inaudible, half of one, two blended, one in
    noise."""
    noise = 2 * torch.rand(x[0].shape, generator=g) - 1
    half = x[1] * (torch.arange(x.shape[-1]) < x.shape[-1] // 2)
    spoilt = [torch.zeros_like(x[0]), 20 * x[0], x[1] / 1000, half, (x[0] + x[1]) / 2, x[0] / 2 + noise / 2]
    return torch.stack(spoilt).clamp(-1, 1)


Makers = Mapping[Modality, Callable[[], ProbeMedia]]
GENERAL_PROBES: Makers = {"image": draw_pictures, "video": draw_clips, "audio": play_sounds}
STARTER_PROBES: Makers = {
    **GENERAL_PROBES,
    "audio": play_music,
}  # for rewards of the starter pack, which know its vocabulary
EDIT_PROBES: Makers = {"image": draw_edits}  # for those of them that compare with a source
ANIMATION_PROBES: Makers = {"video": draw_animations}  # and with a first frame
