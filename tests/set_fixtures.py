"""Small sets, an embedder without weights, and pictures to make examples of."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pipelines.starter.image import rendering, world
from rewards.sets.frechet import Frechet
from rewards.sets.mmd import CMMD, KAD, KID
from rewards.sets.prdc import PRDC
from rewards.sets.vendi import Vendi
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward

STARTER = "starter:image/clip"


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x.y/D + 1)^3, KID's kernel as it is published."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def draw(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(colours: str | list[tuple[float, float, float]], size: int = 32, seed: int = 0) -> Media:
    """Grey pictures with a square of each colour at a random place."""
    g = torch.Generator().manual_seed(seed)
    data = torch.full((len(colours), 3, size, size), 0.5)
    for picture, colour in zip(data, colours, strict=True):
        top, left = torch.randint(0, size // 2, (2,), generator=g).tolist()
        picture[:, top : top + size // 2, left : left + size // 2] = torch.tensor(colour)[:, None, None]
    return Media(data, "image")


RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9), (0.1, 0.8, 0.2)


def drawn(prompt: str, n: int, seed: int = 0) -> Media:
    """n pictures of the starter world for one of its prompts, as its encoder knows them."""
    draw = random.Random(seed)
    scenes = [world.scene_for(prompt, draw) for _ in range(n)]
    return Media(rendering.render_scenes(scenes, torch.Generator().manual_seed(seed)), "image")


def save(media: Media, folder) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(media.data):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{n:02}.png")
    return str(folder)


@dataclass(frozen=True)
class Flat:
    """The first values of a sample as its embedding: any modality, no weights. What others plug in looks like this."""

    width: int = 6

    modalities = frozenset({"audio", "image"})
    suffixes = frozenset({".pt"})
    seen = []

    def __call__(self, media):
        self.seen.append(len(media))
        return media.data.flatten(1)[:, : self.width].float()

    def texts(self, lines, device):
        raise BadInput("flat: reads no text")

    def read(self, path):
        return Media(torch.load(path, weights_only=True), "audio", 8000.0)

    def load(self, device):
        pass

    def fingerprint(self, device):
        return "1"

    def check(self):
        pass


def sound(rows: Tensor) -> Media:
    return Media(rows[:, None, :].float(), "audio", 8000.0)


def ask(reward: Reward, x: Tensor, y: Tensor | None = None, prompts=None) -> Tensor:
    references = None if y is None else sound(y)
    return reward(media=sound(x), prompts=prompts or [""] * len(x), references=references)


ALL = {
    "frechet": Frechet(model=Flat()),
    "kid": KID(model=Flat()),
    "kad": KAD(model=Flat()),
    "cmmd": CMMD(model=Flat()),
    "vendi": Vendi(model=Flat()),
    "prdc": PRDC(model=Flat(), k=2),
}
