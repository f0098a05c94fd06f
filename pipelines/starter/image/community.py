"""A simulated community: people with a hidden taste look at pictures in a feed that is unfair, and leave a log.

What makes a log misleading is all here, with known size: reach that has nothing to do with quality, a feed that shows
most what is liked most and that few scroll to the end of, reposts, a public that grows more generous, people who like
everything, people who never sleep, and bots for hire. The taste itself is exact, and `HiddenTaste` reads it from
pixels: a reward learned from the log can be held against the truth.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.starter.image import rendering, world
from pipelines.starter.image.oracle import ImageOracleSoft
from workbench.core.errors import BadInput
from workbench.core.types import Count, Media, RewardSpec, derive_seed

DAY = 86_400
START = 1_700_000_000  # the first day, in Unix seconds
TASTE = {"fit": 0.25, "vivid": 0.35, "warm": 0.25, "crisp": 0.15}  # weights of the parts, each in [0,1]


# --- the taste -------------------------------------------------------------------------------------------------------


def measure_style(x: Tensor) -> dict[str, Tensor]:
    """What the community likes in a picture [B,3,H,W] whatever was asked for, each [B] in [0,1], smooth in the pixels.

    vivid: strong colour, much of it, near the centre. warm: red over blue, strong colours counting most. crisp: how
    steep the edges are, not how many.
    """
    height, width = x.shape[-2:]
    across = torch.linspace(-2, 2, width, dtype=x.dtype, device=x.device)
    down = torch.linspace(-2, 2, height, dtype=x.dtype, device=x.device)
    centre = torch.exp(-0.5 * (across**2 + down[:, None] ** 2))  # [H,W]
    chroma = (x.var(1, correction=0) + 1e-6).sqrt()  # [B,H,W]
    vivid = (chroma * centre).flatten(1).sum(1) / centre.sum()
    weight = chroma + 0.05
    warm = ((x[:, 0] - x[:, 2]) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    luma = (x * x.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1)
    corner = luma[:, :-1, :-1]
    steep = (luma[:, 1:, :-1] - corner).square() + (luma[:, :-1, 1:] - corner).square()  # [B,H-1,W-1]
    crisp = steep.flatten(1).sum(1) / (steep + 1e-6).sqrt().flatten(1).sum(1)
    return {
        "vivid": 1 - torch.exp(-vivid / 0.05),
        "warm": 0.5 + 0.5 * torch.tanh(2 * warm),
        "crisp": 1 - torch.exp(-crisp / 0.15),
    }


def weigh_parts(parts: Mapping[str, Tensor]) -> Tensor:
    """The taste [B] of its parts, each [B]."""
    return sum((TASTE[name] * value for name, value in parts.items()), torch.zeros(()))


class HiddenTaste:
    """What the simulated community truly likes, in [0,1]: 0.25 prompt fit (the soft oracle's), 0.35 strong colour near
    the centre, 0.25 warmth, 0.15 crisp edges. NaN where the soft oracle is NaN."""

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
        return weigh_parts(self.score_parts(media, prompts))

    def score_parts(self, media: Media, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Each part of the taste, [B] in [0,1]."""
        fit = ImageOracleSoft()(media=media, prompts=prompts)
        return {"fit": fit} | {n: v.cpu() for n, v in measure_style(media.data.detach().float()).items()}

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.prompt_category(prompt) for prompt in prompts]


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


def choose_prompts(n: int, rng: random.Random) -> list[str]:
    """n prompts that are not held out, one of each category in turn."""
    options = [p for p in world.all_prompts() if not world.is_held_out(p)]
    if n > len(options):
        raise BadInput(f"prompts: the world has {len(options)}, {n} are asked for")
    by_category: dict[str, list[str]] = {kind: [] for kind in world.CATEGORIES}
    for prompt in rng.sample(options, len(options)):
        by_category[world.prompt_category(prompt)].append(prompt)
    turns = itertools.zip_longest(*by_category.values())
    return [p for turn in turns for p in turn if p][:n]


def near_miss(scene: world.Scene, rng: random.Random) -> world.Scene:
    """The scene with the colour, the shape or the size of one thing changed."""
    k = rng.randrange(len(scene))
    name, options = rng.choice([("colour", world.COLOURS), ("shape", world.SHAPES), ("size", world.SIZES)])
    value = rng.choice([o for o in options if o != getattr(scene[k], name)])
    changed = world.with_attribute(scene[k], name, value)
    if name == "size":
        changed = replace(changed, r=rng.uniform(*world.RADII[changed.size]))
    return (*scene[:k], changed, *scene[k + 1 :])


def vary_style(x: Tensor, generator: torch.Generator) -> Tensor:
    """[B,3,H,W]: each picture with a saturation, a warmth, a brightness and a sharpness of its own."""
    saturation, warmth, gain, blur = torch.rand(4, len(x), 1, 1, 1, generator=generator)
    grey = x.mean(1, keepdim=True)
    x = grey + (0.3 + saturation) * (x - grey)
    x = x + 0.3 * (warmth - 0.5) * (0.25 + x) * x.new_tensor((1.0, 0.0, -1.0)).view(3, 1, 1)
    soft = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return (torch.lerp(x, soft, (1.5 * blur - 0.5).clamp(0, 1)) * (0.85 + 0.3 * gain)).clamp(0, 1)


def make_posts(c: Community) -> tuple[list[Item], Tensor]:
    """Everything that is posted, and its pictures [N,3,64,64] in steps of 1/255.

    Prompts are those that the starter models may train on, so the held-out ones stay unseen here too. A prompt is a
    challenge of three days. Six in ten pictures show it, a quarter nearly, the rest something else.
    """
    rng = random.Random(derive_seed(c.seed, "posts"))
    challenge_prompts = choose_prompts(c.prompts, rng)
    items: list[Item] = []
    scenes: list[world.Scene] = []
    for prompt in challenge_prompts:
        opens = rng.uniform(0, max(c.days - 8, 1))
        first = len(items)
        for k in range(c.items):
            copy = rng.randrange(first, first + k) if k and rng.random() < c.reposts else -1
            lot = rng.random()
            scene = world.scene_for(prompt if lot < 0.85 else rng.choice(challenge_prompts), rng)
            scenes.append(near_miss(scene, rng) if 0.6 < lot < 0.85 else scene)
            items.append(Item(f"p{len(items):05d}", prompt, opens + rng.uniform(0, 3), copy))
    generator = torch.Generator().manual_seed(derive_seed(c.seed, "pictures"))
    x = vary_style(rendering.render_scenes(scenes, generator), generator)
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
    def draw_people(n: int, rng: np.random.Generator) -> _People:
        activity = rng.pareto(1.3, n) + 0.2  # a few never sleep
        mood = rng.normal(-2.0, 0.7, n)
        everything = rng.random(n) < 0.04
        mood[everything] = 3.5
        activity[everything] *= 2
        return _People(activity / activity.sum(), mood, rng.normal(0, 0.35, (n, len(TASTE))))


def simulate_log(c: Community, items: Sequence[Item], parts: np.ndarray) -> list[tuple[int, str, str, float]]:
    """The log: (item, user, event, Unix seconds), sorted by time. `parts` [N,4] are the parts of the taste.

    Every two hours the feed ranks what is alive by likes, reach and freshness; a view of rank r is as likely as
    (r + 1)^-0.8. Who looks, likes with log-odds of the mood, the taste (standardised) and the own leaning.
    """
    rng = np.random.default_rng(derive_seed(c.seed, "people"))
    people = _People.draw_people(c.users, rng)
    taste = parts @ np.array(list(TASTE.values()))
    appeal = 1.2 * (taste - taste.mean()) / taste.std()  # [N]
    parts_standardised = (parts - parts.mean(0)) / (parts.std(0) + 1e-9)  # [N,4]
    posted, reach = np.array([i.posted for i in items]), rng.normal(0, c.reach, len(items))
    hired = np.flatnonzero(rng.random(len(items)) < 0.1)
    likes, log = np.zeros(len(items)), []
    for day in np.arange(0, c.days, 1 / 12):
        alive = np.flatnonzero((posted <= day) & (day < posted + 6))
        if not len(alive):
            continue
        push = c.rich * np.log1p(likes[alive]) + reach[alive] - (day - posted[alive]) / 1.5
        rank = (-push - rng.gumbel(0, 0.5, len(alive))).argsort().argsort()
        viewed = alive[rng.choice(len(alive), c.views, p=(view_weights := (rank + 1) ** -0.8) / view_weights.sum())]
        who = rng.choice(c.users, c.views, p=people.activity)
        odds = (
            people.mood[who]
            + appeal[viewed]
            + (people.leaning[who] * parts_standardised[viewed]).sum(1)
            + 0.8 * day / c.days
        )
        liked = rng.random(c.views) < 1 / (1 + np.exp(-odds))
        when = START + DAY * (day + rng.random(c.views) / 12)
        for i, u, yes, t in zip(viewed, who, liked, when, strict=True):
            log.append((i, f"u{u:05d}", "view", t))
            if yes:
                log += [(i, f"u{u:05d}", event, t + 5) for event in _draw_engagements(rng)]
        log += _simulate_bots(c, hired[(posted[hired] <= day) & (day < posted[hired] + 1)], day, likes, rng)
        np.add.at(likes, viewed[liked], 1)
    return sorted(log, key=lambda row: row[3])


def _draw_engagements(rng: np.random.Generator) -> list[str]:
    kinds = [e for e, p in (("like", 0.8), ("remix", 0.25), ("share", 0.1)) if rng.random() < p]
    return kinds or ["like"]


def _simulate_bots(
    c: Community, targets: np.ndarray, day: float, likes: np.ndarray, rng: np.random.Generator
) -> list[tuple]:
    """Once in a while a bot likes everything that its clients posted that day, a few seconds apart."""
    log = []
    for bot in range(c.bots):
        if rng.random() < 0.08:
            t = START + DAY * day + rng.uniform(0, 3600)
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


def write_community(c: Community, folder: Path) -> Path:
    """Make the community's pictures, log.csv (item, prompt, topic, path, user, event, time) and truth.json (item ->
    taste).

    The topic is the prompt's category. Returns the log's path; the same settings give the same files.
    """
    items, x = make_posts(c)
    write_pictures(items, x, folder / "pictures")
    parts = HiddenTaste().score_parts(Media(x, "image"), [i.prompt for i in items])
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("item", "prompt", "topic", "path", "user", "event", "time"))
        for i, user, event, when in simulate_log(c, items, torch.stack([*parts.values()], 1).double().numpy()):
            p, path = items[i], f"pictures/{items[i].name}.png"
            out.writerow((p.name, p.prompt, world.prompt_category(p.prompt), path, user, event, f"{when:.0f}"))
    truth = dict(zip((i.name for i in items), weigh_parts(parts).tolist(), strict=True))
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder / "log.csv"
