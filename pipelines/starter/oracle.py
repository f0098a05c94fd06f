"""The oracle of all starter worlds: one name, whatever a pipeline makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from pipelines.starter.image import world as image_world
from pipelines.starter.image.oracle import ImageOracle, ImageOracleSoft
from pipelines.starter.music import world as music_world
from pipelines.starter.music.oracle import MusicOracle, MusicOracleSoft
from pipelines.starter.video import world as video_world
from pipelines.starter.video.oracle import VideoOracle, VideoOracleSoft
from workbench.core.errors import BadInput
from workbench.core.types import Media, Modality

WorldOracle = ImageOracle | MusicOracle | VideoOracle


class Oracle:
    """1 where the media show exactly what the prompt asks for, else 0; NaN for a prompt that is not of their world."""

    worlds: ClassVar[dict[Modality, WorldOracle]] = {
        "image": ImageOracle(),
        "audio": MusicOracle(),
        "video": VideoOracle(),
    }
    spec = replace(ImageOracle.spec, modalities=frozenset(worlds))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32. Raises BadInput for media of a size that no starter pipeline makes."""
        if media.modality not in self.worlds:
            raise BadInput(f"{self.spec.name} reads {' and '.join(sorted(self.worlds))}, not {media.modality}")
        return self.worlds[media.modality](media=media, prompts=prompts)

    def categories(self, prompts: Sequence[str]) -> list[str]:
        """Of each prompt in the world that it speaks of."""
        return [self.worlds[_prompt_modality(prompt)].categories([prompt])[0] for prompt in prompts]


def _prompt_modality(prompt: str) -> Modality:
    """Of the world that a prompt is of; no two worlds share one."""
    parsers: dict[Modality, Callable[[str], object]] = {
        "video": video_world.parse_prompt,
        "audio": music_world.parse_prompt,
        "image": image_world.parse_prompt,
    }
    return next((modality for modality, parse in parsers.items() if parse(prompt)), "image")


class OracleSoft(Oracle):
    """The share of a prompt's requirements that the media meet; 1 only where `Oracle` says 1."""

    worlds: ClassVar[dict[Modality, WorldOracle]] = {
        "image": ImageOracleSoft(),
        "audio": MusicOracleSoft(),
        "video": VideoOracleSoft(),
    }
    spec = replace(Oracle.spec, name="oracle_soft")
