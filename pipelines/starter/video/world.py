"""The video world: one or two plain shapes of the picture world that move, grow, shrink, change colour or pass each
other.

A clip is nine frames of 64 x 64 (one and two times four: what Wan's causal autoencoder takes). Everything is exact: a
clip is a tuple of actors, `true_captions` lists every prompt that is true of it, `parse_prompt` reads a prompt back
into what it requires.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pipelines.starter.image.rendering import draw_grounds, signed_distance
from pipelines.starter.image.world import COLOURS, EXTENT, PALETTE, SHAPES, SIZE, _hash_share, random_tint, shuffle_key

__all__ = ["COLOURS", "SHAPES", "SIZE", "shuffle_key"]

FRAMES, RATE = 9, 8.0  # a clip, and its frames per second
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": (13.0, 17.0), "quickly": (30.0, 36.0)}  # pixels from the first frame to the last
CHANGES = ("growing", "shrinking")
RADII = {"still": (8.5, 13.0), "move": (8.5, 11.0), "turn": (8.5, 12.5), "pass": (8.5, 10.0)}
GROWTH = ((8.0, 9.0), (12.8, 14.2))
CATEGORIES = ("still", "move", "speed", "grow", "turn", "pass")
TURN = tuple(min(max((k - 2) / 4, 0.0), 1.0) for k in range(FRAMES))  # how much of the second colour each frame has


@dataclass(frozen=True)
class Actor:
    """One thing: centre and radius in the first and the last frame, straight and steady between; `turns` is the colour
    that it changes to, `tint` is added to its palette colour."""

    shape: str
    colour: str
    start: tuple[float, float]
    end: tuple[float, float]
    radii: tuple[float, float]
    turns: str | None = None
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


Clip = tuple[Actor, ...]


@dataclass(frozen=True)
class Requirements:
    """Exactly these (colour, shape) and nothing else, doing this: `direction` and `speed` for `move` and `speed`,
    `change` for `grow`, the second colour for `turn`."""

    category: str
    nouns: tuple[tuple[str, str], ...]
    direction: str | None = None
    speed: str | None = None
    change: str | None = None
    turns: str | None = None


# --- grammar ---------------------------------------------------------------------------------------------------------

_NOUN = rf"a (?P<colour{{i}}>{'|'.join(COLOURS)}) (?P<shape{{i}}>{'|'.join(SHAPES)})"
_DOES = "|".join(
    (
        "(?P<still>staying still)",
        rf"moving (?P<direction>{'|'.join(DIRECTIONS)})(?: (?P<speed>{'|'.join(SPEEDS)}))?",
        rf"(?P<change>{'|'.join(CHANGES)})",
        rf"turning (?P<turns>{'|'.join(COLOURS)})",
        f"passing {_NOUN.format(i=2)}",
    )
)
_PROMPT = re.compile(f"{_NOUN.format(i=1)} (?:{_DOES})")


def write_prompt(need: Requirements) -> str:
    """The prompt that asks for `need`: the inverse of `parse_prompt`."""
    first, *others = (f"a {colour} {shape}" for colour, shape in need.nouns)
    does = {
        "still": "staying still",
        "move": f"moving {need.direction}",
        "speed": f"moving {need.direction} {need.speed}",
        "grow": need.change,
        "turn": f"turning {need.turns}",
        "pass": f"passing {others[0] if others else ''}",
    }
    return f"{first} {does[need.category]}"


@cache
def parse_prompt(prompt: str) -> Requirements | None:
    """What a prompt of the grammar requires; None for any other text."""
    match = _PROMPT.fullmatch(" ".join(prompt.lower().split()))
    if not match:
        return None
    nouns = ((match["colour1"], match["shape1"]),)
    if match["shape2"]:
        return Requirements("pass", (*nouns, (match["colour2"], match["shape2"])))
    if match["direction"]:
        kind = "speed" if match["speed"] else "move"
        return Requirements(kind, nouns, direction=match["direction"], speed=match["speed"])
    if match["turns"]:
        return None if match["turns"] == match["colour1"] else Requirements("turn", nouns, turns=match["turns"])
    return Requirements("grow" if match["change"] else "still", nouns, change=match["change"])


def require_prompt(prompt: str) -> Requirements:
    """What a prompt of the grammar requires. Raises ValueError for any other text."""
    need = parse_prompt(prompt)
    if need is None:
        raise ValueError(f"{prompt!r} is not a prompt of the video world")
    return need


def prompt_category(prompt: str) -> str:
    """The prompt's category, or "other" for text outside the grammar."""
    need = parse_prompt(prompt)
    return need.category if need else "other"


@cache
def all_prompts() -> tuple[str, ...]:
    """Every prompt of the world."""
    nouns = list(itertools.product(COLOURS, SHAPES))
    needs = [Requirements("still", (n,)) for n in nouns]
    needs += [Requirements("move", (n,), d) for n in nouns for d in DIRECTIONS]
    needs += [Requirements("speed", (n,), d, s) for n in nouns for d in DIRECTIONS for s in SPEEDS]
    needs += [Requirements("grow", (n,), change=c) for n in nouns for c in CHANGES]
    needs += [Requirements("turn", (n,), turns=c) for n in nouns for c in COLOURS if c != n[0]]
    needs += [Requirements("pass", pair) for pair in itertools.permutations(nouns, 2)]
    return tuple(map(write_prompt, needs))


# --- hold-out --------------------------------------------------------------------------------------------------------


def is_held_out(prompt: str) -> bool:
    """Whether the prompt is kept from training: never said, and no clip of which it is true is ever shown.

    20 % of colour x shape x direction with both their speeds, 12 % more of those with a speed, 20 % of colour x shape x
    growing or shrinking, of shape x two colours, of couples (in either order), and 15 % of the still ones. Every part
    of a held-out clip is seen in other company.
    """
    need = require_prompt(prompt)
    first = need.nouns[0]
    if need.direction:
        moves = _hash_share("video move", *first, need.direction) < 0.20
        return moves or bool(need.speed) and _hash_share("video speed", *first, need.direction, need.speed) < 0.12
    if need.category == "still":
        return _hash_share("video still", *first) < 0.15
    key = {"grow": (*first, need.change), "turn": (*first, need.turns), "pass": tuple(sorted(need.nouns))}
    return _hash_share("video", need.category, *key[need.category]) < 0.20


def is_clip_held_out(clip: Clip) -> bool:
    return any(map(is_held_out, true_captions(clip)))


# --- clips -----------------------------------------------------------------------------------------------------------


def true_captions(clip: Clip) -> list[str]:
    """Every prompt that is true of exactly this clip."""
    if len(clip) == 2:
        nouns = tuple((a.colour, a.shape) for a in clip)
        return [write_prompt(Requirements("pass", nouns)), write_prompt(Requirements("pass", nouns[::-1]))]
    (a,) = clip
    noun = ((a.colour, a.shape),)
    if a.turns:
        return [write_prompt(Requirements("turn", noun, turns=a.turns))]
    if a.radii[0] != a.radii[1]:
        return [write_prompt(Requirements("grow", noun, change=CHANGES[a.radii[0] > a.radii[1]]))]
    dx, dy = a.end[0] - a.start[0], a.end[1] - a.start[1]
    if not (dx or dy):
        return [write_prompt(Requirements("still", noun))]
    direction = next(d for d, (x, y) in DIRECTIONS.items() if dx * x + dy * y > 0)
    speed = "quickly" if abs(dx + dy) > 23 else "slowly"
    return [
        write_prompt(Requirements("move", noun, direction)),
        write_prompt(Requirements("speed", noun, direction, speed)),
    ]


def clip_for(need: Requirements, rng: random.Random) -> Clip:
    """A random clip that shows what is needed."""
    tints = [random_tint(rng) for _ in need.nouns]
    if need.category == "pass":
        return _passing_clip(need.nouns, tints, rng)
    colour, shape = need.nouns[0]
    radii = (rng.uniform(*RADII["move" if need.direction else need.category]),) * 2 if need.category != "grow" else None
    if radii is None:
        small, large = (rng.uniform(*bounds) for bounds in GROWTH)
        radii = (small, large) if need.change == "growing" else (large, small)
    margin = max(radii) * EXTENT[shape] + 1
    (dx, dy), way = (0, 0), 0.0
    if need.direction:
        (dx, dy), way = DIRECTIONS[need.direction], rng.uniform(*SPEEDS[need.speed or rng.choice(tuple(SPEEDS))])
    middle = [rng.uniform(margin + abs(d) * way / 2, SIZE - margin - abs(d) * way / 2) for d in (dx, dy)]
    start, end = ((middle[0] + k * dx * way / 2, middle[1] + k * dy * way / 2) for k in (-1, 1))
    if not way:
        end = start
    return (Actor(shape, colour, start, end, radii, need.turns, tints[0]),)


def _passing_clip(
    nouns: Sequence[tuple[str, str]], tints: Sequence[tuple[float, float, float]], rng: random.Random
) -> Clip:
    """Two in lanes of their own, from opposite sides; at the end each is where the other came from."""
    lanes, sign = rng.sample(((13.0, 17.0), (47.0, 51.0)), 2), rng.choice((-1, 1))
    across = rng.random() < 0.5
    actors = []
    for k, ((colour, shape), tint) in enumerate(zip(nouns, tints, strict=True)):
        r, way, y = rng.uniform(*RADII["pass"]), sign * rng.uniform(28.0, 36.0), rng.uniform(*lanes[k])
        ends = ((32 - way / 2, y), (32 + way / 2, y))
        start, end = ends if across else (p[::-1] for p in ends)
        actors.append(Actor(shape, colour, start, end, (r, r), None, tint))
        sign = -sign
    return tuple(actors)


def _random_need(kind: str, rng: random.Random) -> Requirements:
    noun = (rng.choice(COLOURS), rng.choice(SHAPES))
    if kind == "pass":
        other = rng.choice([n for n in itertools.product(COLOURS, SHAPES) if n != noun])
        return Requirements(kind, (noun, other))
    if kind in ("move", "speed"):
        return Requirements("speed", (noun,), rng.choice(tuple(DIRECTIONS)), rng.choice(tuple(SPEEDS)))
    if kind == "turn":
        return Requirements(kind, (noun,), turns=rng.choice([c for c in COLOURS if c != noun[0]]))
    return Requirements(kind, (noun,), change=rng.choice(CHANGES) if kind == "grow" else None)


def random_clip(kind: str, rng: random.Random, *, allow_held_out: bool = False) -> Clip:
    """A random clip of a category; draws again until it is not held out, unless `allow_held_out`."""
    while True:
        clip = clip_for(_random_need(kind, rng), rng)
        if allow_held_out or not is_clip_held_out(clip):
            return clip


def training_clips(rng: random.Random, weights: dict[str, float]) -> Iterator[Clip]:
    """Endless training clips, none of them held out."""
    kinds, shares = list(weights), list(weights.values())
    while True:
        yield random_clip(rng.choices(kinds, shares)[0], rng)


# --- rendering -------------------------------------------------------------------------------------------------------


def _actor_tensors(clips: Sequence[Clip], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the k-th actor of each clip: geometry [B,T,3] (x, y, r), kind [B] (-1 for none), colour [B,T,3]."""
    share, turn = torch.linspace(0, 1, FRAMES)[:, None], torch.tensor(TURN)[:, None]
    geometry, colour = torch.zeros(len(clips), FRAMES, 3), torch.zeros(len(clips), FRAMES, 3)
    kind = torch.full((len(clips),), -1)
    for b, clip in enumerate(clips):
        if k >= len(clip):
            continue
        a = clip[k]
        first, last = torch.tensor([[*a.start, a.radii[0]], [*a.end, a.radii[1]]])
        old, new = torch.tensor([PALETTE[a.colour], PALETTE[a.turns or a.colour]])
        geometry[b], kind[b] = first + share * (last - first), SHAPES.index(a.shape)
        colour[b] = old + turn * (new - old) + torch.tensor(a.tint)
    return geometry, kind, colour


def render_clips(
    clips: Sequence[Clip], generator: torch.Generator, *,
    corners: Sequence[tuple[int, int]] | None = None, side: int = SIZE,
) -> Tensor:  # fmt: skip
    """[B,9,3,64,64] in [0,1], antialiased, each on a still ground.

    With `corners` (x, y) and `side`, only that square of each clip.
    """
    corners = corners or [(0, 0)] * len(clips)
    ground = draw_grounds(len(clips), generator)
    ground = torch.stack([g[:, y : y + side, x : x + side] for g, (x, y) in zip(ground, corners, strict=True)])
    out = ground[:, None].expand(-1, FRAMES, -1, -1, -1)
    axis = torch.tensor(corners)[:, None, :, None] + torch.arange(side) + 0.5  # [B,1,2,side]
    for k in range(max(map(len, clips), default=0)):
        geometry, kind, colour = _actor_tensors(clips, k)
        cover = torch.zeros(len(clips), FRAMES, side, side)
        for index, shape in enumerate(SHAPES):
            rows = kind == index
            x, y, r = (geometry[rows, :, i, None, None] for i in range(3))
            across, down = axis[rows, :, 0, None, :], axis[rows, :, 1, :, None]
            cover[rows] = (0.5 - signed_distance(shape, across - x, down - y, r)).clamp(0, 1)
        out = out + cover[:, :, None] * (colour[..., None, None] - out)
    return out.clamp(0, 1)
