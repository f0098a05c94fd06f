"""A simulated community: people with a hidden taste look at pictures in a feed that is unfair, and leave a log.

What makes a log misleading is all here, with known size: reach that has nothing to do with quality, a feed that shows
most what is liked most and that few scroll to the end of, reposts, a public that grows more generous, people who like
everything, people who never sleep, and bots for hire. The taste itself is exact, and `HiddenTaste` reads it from pixels:
a reward learned from the log can be held against the truth.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.starter.image import world
from pipelines.starter.image.oracle import ImageOracleSoft
from workbench.core.types import BadInput, Count, Media, RewardSpec, derive

DAY = 86_400
START = 1_700_000_000  # the first day, in Unix seconds
TASTE = {"fit": 0.25, "vivid": 0.35, "warm": 0.25, "crisp": 0.15}  # weights of the parts, each in [0,1]


# --- the taste -------------------------------------------------------------------------------------------------------


def look(x: Tensor) -> dict[str, Tensor]:
    """What the community likes in a picture [B,3,H,W] whatever was asked for, each [B] in [0,1], smooth in the pixels.

    vivid: strong colour, much of it, near the centre. warm: red over blue, strong colours counting most. crisp: how steep
    the edges are, not how many.
    """
    high, wide = x.shape[-2:]
    across = torch.linspace(-2, 2, wide, dtype=x.dtype, device=x.device)
    down = torch.linspace(-2, 2, high, dtype=x.dtype, device=x.device)
    centre = torch.exp(-0.5 * (across**2 + down[:, None] ** 2))  # [H,W]
    chroma = (x.var(1, correction=0) + 1e-6).sqrt()  # [B,H,W]
    vivid = (chroma * centre).flatten(1).sum(1) / centre.sum()
    weight = chroma + 0.05
    warm = ((x[:, 0] - x[:, 2]) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    luma = (x * x.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1)
    steep = (luma[:, 1:, :-1] - luma[:, :-1, :-1]).square() + (
        luma[:, :-1, 1:] - luma[:, :-1, :-1]
    ).square()  # [B,H-1,W-1]
    crisp = steep.flatten(1).sum(1) / (steep + 1e-6).sqrt().flatten(1).sum(1)
    return {
        "vivid": 1 - torch.exp(-vivid / 0.05),
        "warm": 0.5 + 0.5 * torch.tanh(2 * warm),
        "crisp": 1 - torch.exp(-crisp / 0.15),
    }


class HiddenTaste:
    """What the simulated community truly likes, in [0,1]: 0.25 prompt fit (the soft oracle's), 0.35 strong colour near the
    centre, 0.25 warmth, 0.15 crisp edges. NaN where the soft oracle is NaN."""

    spec = RewardSpec(
        name="hidden_taste",
        version="1",
        modalities=frozenset({"image"}),
        differentiable=False,  # prompt fit is read by the oracle
        needs=frozenset({"prompt"}),
        typical=(0.2, 0.9),
        licence="Apache-2.0",
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32. Raises BadInput for pictures that are not 64 x 64 RGB."""
        return sum(TASTE[name] * value for name, value in self.parts(media, prompts).items())

    def parts(self, media: Media, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Each part of the taste, [B] in [0,1]."""
        fit = ImageOracleSoft()(media=media, prompts=prompts)
        return {"fit": fit} | {n: v.cpu() for n, v in look(media.data.detach().float()).items()}

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.category(prompt) for prompt in prompts]


# --- the pictures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Community:
    """How large the simulated community is, and how unfair its feed."""

    prompts: Count = 140
    items: Count = 12  # pictures for each prompt
    users: Count = 600
    days: Count = 60
    views: Count = 240  # pictures looked at in two hours, bots aside
    reach: float = 1.5  # spread of what a picture's author brings along: exposure without quality
    rich: float = 1.0  # how strongly likes lift a picture in the feed
    bots: int = 12
    reposts: float = 0.04  # share of pictures that copy an earlier one of the same prompt
    seed: int = 0


@dataclass(frozen=True)
class Item:
    """One posted picture."""

    name: str
    prompt: str
    posted: float  # days since the start
    copy_of: int = -1


def prompts(n: int, rng: random.Random) -> list[str]:
    """n prompts that are not held out, one of each category in turn."""
    options = [p for p in world.all_prompts() if not world.held_out(p)]
    if n > len(options):
        raise BadInput(f"prompts: the world has {len(options)}, {n} are asked for")
    by_category = {kind: [] for kind in world.CATEGORIES}
    for prompt in rng.sample(options, len(options)):
        by_category[world.category(prompt)].append(prompt)
    turns = itertools.zip_longest(*by_category.values())
    return [p for turn in turns for p in turn if p][:n]


def near_miss(scene: world.Scene, rng: random.Random) -> world.Scene:
    """The scene with the colour, the shape or the size of one thing changed."""
    k = rng.randrange(len(scene))
    name, options = rng.choice([("colour", world.COLOURS), ("shape", world.SHAPES), ("size", world.SIZES)])
    changed = replace(scene[k], **{name: rng.choice([o for o in options if o != getattr(scene[k], name)])})
    if name == "size":
        changed = replace(changed, r=rng.uniform(*world.RADII[changed.size]))
    return (*scene[:k], changed, *scene[k + 1 :])


def dress(x: Tensor, generator: torch.Generator) -> Tensor:
    """[B,3,H,W]: each picture with a saturation, a warmth, a brightness and a sharpness of its own."""
    saturation, warmth, gain, blur = torch.rand(4, len(x), 1, 1, 1, generator=generator)
    grey = x.mean(1, keepdim=True)
    x = grey + (0.3 + saturation) * (x - grey)
    x = x + 0.3 * (warmth - 0.5) * (0.25 + x) * x.new_tensor((1.0, 0.0, -1.0)).view(3, 1, 1)
    soft = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return (torch.lerp(x, soft, (1.5 * blur - 0.5).clamp(0, 1)) * (0.85 + 0.3 * gain)).clamp(0, 1)


def posts(c: Community) -> tuple[list[Item], Tensor]:
    """Everything that is posted, and its pictures [N,3,64,64] in steps of 1/255.

    Prompts are those that the starter models may train on, so the held-out ones stay unseen here too. A prompt is a
    challenge of three days. Six in ten pictures show it, a quarter nearly, the rest something else.
    """
    rng = random.Random(derive(c.seed, "posts"))
    asked = prompts(c.prompts, rng)
    items, scenes = [], []
    for prompt in asked:
        opens = rng.uniform(0, max(c.days - 8, 1))
        first = len(items)
        for k in range(c.items):
            copy = rng.randrange(first, first + k) if k and rng.random() < c.reposts else -1
            lot = rng.random()
            scene = world.scene_for(prompt if lot < 0.85 else rng.choice(asked), rng)
            scenes.append(near_miss(scene, rng) if 0.6 < lot < 0.85 else scene)
            items.append(Item(f"p{len(items):05d}", prompt, opens + rng.uniform(0, 3), copy))
    generator = torch.Generator().manual_seed(derive(c.seed, "pictures"))
    x = dress(world.render(scenes, generator), generator)
    for n, item in enumerate(items):
        if item.copy_of >= 0:
            x[n] = (x[item.copy_of] * 0.995 + 0.001).clamp(0, 1)
    return items, (x * 255).round() / 255


# --- the people ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _People:
    activity: np.ndarray  # [U] share of all looking
    mood: np.ndarray  # [U] log-odds of liking something average
    leaning: np.ndarray  # [U,4] own weight on each part of the taste

    @staticmethod
    def drawn(n: int, rng: np.random.Generator) -> _People:
        activity = rng.pareto(1.3, n) + 0.2  # a few never sleep
        mood = rng.normal(-2.0, 0.7, n)
        everything = rng.random(n) < 0.04
        mood[everything] = 3.5
        activity[everything] *= 2
        return _People(activity / activity.sum(), mood, rng.normal(0, 0.35, (n, len(TASTE))))


def simulate(c: Community, items: Sequence[Item], parts: np.ndarray) -> list[tuple[int, str, str, float]]:
    """The log: (item, user, event, Unix seconds), sorted by time. `parts` [N,4] are the parts of the taste.

    Every two hours the feed ranks what is alive by likes, reach and freshness; a view of rank r is as likely as
    (r + 1)^-0.8. Who looks, likes with log-odds of the mood, the taste (standardised) and the own leaning.
    """
    rng = np.random.default_rng(derive(c.seed, "people"))
    people = _People.drawn(c.users, rng)
    taste = parts @ np.array(list(TASTE.values()))
    appeal = 1.2 * (taste - taste.mean()) / taste.std()  # [N]
    own = (parts - parts.mean(0)) / (parts.std(0) + 1e-9)  # [N,4]
    posted, reach = np.array([i.posted for i in items]), rng.normal(0, c.reach, len(items))
    hired = np.flatnonzero(rng.random(len(items)) < 0.1)
    likes, log = np.zeros(len(items)), []
    for now in np.arange(0, c.days, 1 / 12):
        alive = np.flatnonzero((posted <= now) & (now < posted + 6))
        if not len(alive):
            continue
        push = c.rich * np.log1p(likes[alive]) + reach[alive] - (now - posted[alive]) / 1.5
        rank = (-push - rng.gumbel(0, 0.5, len(alive))).argsort().argsort()
        seen = alive[rng.choice(len(alive), c.views, p=(shown := (rank + 1) ** -0.8) / shown.sum())]
        who = rng.choice(c.users, c.views, p=people.activity)
        odds = people.mood[who] + appeal[seen] + (people.leaning[who] * own[seen]).sum(1) + 0.8 * now / c.days
        liked = rng.random(c.views) < 1 / (1 + np.exp(-odds))
        when = START + DAY * (now + rng.random(c.views) / 12)
        for i, u, yes, t in zip(seen, who, liked, when, strict=True):
            log.append((i, f"u{u:05d}", "view", t))
            if yes:
                log += [(i, f"u{u:05d}", event, t + 5) for event in _engaged(rng)]
        log += _bots(c, hired[(posted[hired] <= now) & (now < posted[hired] + 1)], now, likes, rng)
        np.add.at(likes, seen[liked], 1)
    return sorted(log, key=lambda row: row[3])


def _engaged(rng: np.random.Generator) -> list[str]:
    kinds = [e for e, p in (("like", 0.8), ("remix", 0.25), ("share", 0.1)) if rng.random() < p]
    return kinds or ["like"]


def _bots(c: Community, targets: np.ndarray, now: float, likes: np.ndarray, rng: np.random.Generator) -> list[tuple]:
    """Once in a while a bot likes everything that its clients posted that day, a few seconds apart."""
    log = []
    for bot in range(c.bots):
        if rng.random() < 0.08:
            t = START + DAY * now + rng.uniform(0, 3600)
            for n, i in enumerate(rng.permutation(targets)):
                log += [(i, f"b{bot:05d}", event, t + 3 * n) for event in ("view", "like")]
                likes[i] += 1
    return log


# --- on disk ---------------------------------------------------------------------------------------------------------


def write_pictures(items: Sequence[Item], x: Tensor, folder: Path) -> None:
    """Each picture as folder/NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for item, picture in zip(items, x, strict=True):
        pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{item.name}.png")


def write(c: Community, folder: Path) -> Path:
    """Make the community's pictures, log.csv (item, prompt, topic, path, user, event, time) and truth.json (item -> taste).

    The topic is the prompt's category. Returns the log's path; the same settings give the same files.
    """
    items, x = posts(c)
    write_pictures(items, x, folder / "pictures")
    parts = HiddenTaste().parts(Media(x, "image"), [i.prompt for i in items])
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("item", "prompt", "topic", "path", "user", "event", "time"))
        for i, user, event, when in simulate(c, items, torch.stack([*parts.values()], 1).double().numpy()):
            p, path = items[i], f"pictures/{items[i].name}.png"
            out.writerow((p.name, p.prompt, world.category(p.prompt), path, user, event, f"{when:.0f}"))
    taste = sum(TASTE[name] * value for name, value in parts.items())
    truth = dict(zip((i.name for i in items), taste.tolist(), strict=True))
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder / "log.csv"
