"""The picture world: a few plain shapes on a dark ground, a small grammar that describes them, and nothing else.

Everything is exact: a scene is a tuple of things, `captions` lists every prompt of the grammar that is true of it, and
`parse` reads a prompt back into what it requires. Lengths are pixels of a 64 x 64 picture, y grows downwards.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
PALETTE = {
    "red": (0.90, 0.14, 0.12),
    "green": (0.13, 0.72, 0.24),
    "blue": (0.14, 0.34, 0.95),
    "yellow": (0.96, 0.85, 0.14),
    "purple": (0.62, 0.20, 0.82),
    "white": (0.95, 0.95, 0.95),
}
COLOURS = tuple(PALETTE)
RADII = {"small": (7.4, 8.6), "large": (11.2, 13.2)}
SIZES = tuple(RADII)
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}  # direction first -> second
CATEGORIES = ("single", "color", "size", "two", "count", "position", "attr")
MARGIN = 5.0  # how far apart two centres are along an axis before a relation counts as true
EXTENT = {"circle": 1.0, "square": 0.9, "triangle": 1.12, "cross": 1.0}  # half the bounding box, in radii


@dataclass(frozen=True)
class Thing:
    """One object: centre (x, y) and radius in pixels; `tint` is added to its palette colour."""

    shape: str
    colour: str
    size: str
    x: float = 0.0
    y: float = 0.0
    r: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


Scene = tuple[Thing, ...]


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks of one object; None where it does not care."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def matches(self, thing: Thing) -> bool:
        return (
            thing.shape == self.shape
            and self.colour in (None, thing.colour)
            and (self.size is None or thing.size == self.size)
        )


@dataclass(frozen=True)
class Requirements:
    """Exactly these objects and no others; `relation` holds from the first to the second."""

    category: str
    things: tuple[Wanted, ...]
    relation: str | None = None


# --- grammar ---------------------------------------------------------------------------------------------------------

_NOUN = rf"(?:(?P<size{{i}}>{'|'.join(SIZES)}) )?(?:(?P<colour{{i}}>{'|'.join(COLOURS)}) )?(?P<shape{{i}}>{'|'.join(SHAPES)})"
_JOINT = rf"(?P<joint>and|{'|'.join(RELATIONS)})"
_PROMPT = re.compile(rf"a {_NOUN.format(i=1)}(?: {_JOINT} a {_NOUN.format(i=2)})?")
_COUNT = re.compile(rf"(?P<n>two|three|four) (?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<shape>{'|'.join(SHAPES)})(?:e?s)")


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def phrase(wanted: Wanted) -> str:
    return " ".join(word for word in (wanted.size, wanted.colour, wanted.shape) if word)


def write(need: Requirements) -> str:
    """The prompt that asks for `need`: the inverse of `parse`."""
    if need.category == "count":
        first = need.things[0]
        words = (COUNTS[len(need.things)], first.colour, plural(first.shape))
        return " ".join(word for word in words if word)
    return f" {need.relation or 'and'} ".join("a " + phrase(wanted) for wanted in need.things)


@cache
def parse(prompt: str) -> Requirements | None:
    """What a prompt of the grammar requires; None for any other text."""
    text = " ".join(prompt.lower().split())
    if found := _COUNT.fullmatch(text):
        n = next(number for number, word in COUNTS.items() if word == found["n"])
        need = Requirements("count", (Wanted(found["shape"], found["colour"]),) * n)
        return need if write(need) == text else None
    if not (found := _PROMPT.fullmatch(text)):
        return None
    first = Wanted(found["shape1"], found["colour1"], found["size1"])
    if not found["joint"]:
        category = "single" if not first.colour else "size" if first.size else "color"
        return Requirements(category, (first,))
    pair = (first, Wanted(found["shape2"], found["colour2"], found["size2"]))
    if found["joint"] != "and":
        return Requirements("position", pair, found["joint"])
    return Requirements("attr" if any(w.colour for w in pair) else "two", pair)


def category(prompt: str) -> str:
    """The prompt's category, or "other" for text outside the grammar."""
    need = parse(prompt)
    return need.category if need else "other"


@cache
def all_prompts() -> tuple[str, ...]:
    """Every prompt that the world itself writes (the parser also reads a few mixtures that are never written)."""
    noun = [Wanted(s, c) for c in COLOURS for s in SHAPES]
    needs = [Requirements("single", (Wanted(s, None, z),)) for z in (None, *SIZES) for s in SHAPES]
    needs += [Requirements("color", (w,)) for w in noun]
    needs += [Requirements("size", (replace(w, size=z),)) for z in SIZES for w in noun]
    plain, sized = [Wanted(s) for s in SHAPES], [Wanted(s, None, z) for z in SIZES for s in SHAPES]
    needs += [Requirements("two", p) for p in itertools.permutations(plain, 2)]
    needs += [Requirements("two", p) for p in itertools.permutations(sized, 2) if p[0].shape != p[1].shape]
    needs += [Requirements("count", (w,) * n) for n in COUNTS for w in plain + noun]
    needs += [Requirements("position", p, k) for p in itertools.permutations(plain + noun, 2) for k in RELATIONS
              if (p[0].colour is None) == (p[1].colour is None)]  # fmt: skip
    needs += [Requirements("attr", p) for p in itertools.permutations(noun, 2)]
    return tuple(dict.fromkeys(map(write, needs)))


# --- hold-out --------------------------------------------------------------------------------------------------------


def _share(*key: object) -> float:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def lot(prompt: str) -> float:
    """A prompt's place in a shuffled order that is the same for ever."""
    return _share("lot", prompt)


_NOUNS = sorted(itertools.product(COLOURS, SHAPES), key=lambda pair: _share("noun", *pair))
NEVER = frozenset(_NOUNS[:2])  # colour x shape pairs that are in no training picture at all: the hardest prompts
ALONE = frozenset(next(n for n in _NOUNS[2:] if n[0] == c) for c in COLOURS)  # seen beside others, never alone


def _couple(a: object, b: object) -> tuple:
    return tuple(sorted((repr(a), repr(b))))


def held_out(prompt: str) -> bool:
    """Whether the prompt is kept from training: it is never said, and no picture of which it is true is ever shown.

    Held out, whatever the order and the relation: anything of a `NEVER` pair; a single thing of an `ALONE` pair, and 20 %
    of size x colour x shape alone; 25 % of count x colour x shape; 20 % of the couples of coloured and 30 % of sized shapes.
    """
    need = parse(prompt)
    if need is None:
        raise ValueError(f"{prompt!r} is not a prompt of the picture world")
    if any((w.colour, w.shape) in NEVER for w in need.things):
        return True
    first = need.things[0]
    if need.category == "count":
        return bool(first.colour) and _share("count", len(need.things), first.colour, first.shape) < 0.25
    if len(need.things) == 1:
        sized = first.size and first.colour and _share("size", first.size, first.colour, first.shape) < 0.20
        return bool(sized or (first.colour, first.shape) in ALONE)
    share = 0.20 if first.colour else 0.30 if first.size else 0.0
    return _share("couple", *_couple(*need.things)) < share


def unseen_pair(prompt: str) -> bool:
    """Whether the prompt asks for a colour x shape pair that no training picture has anywhere."""
    return any((w.colour, w.shape) in NEVER for w in parse(prompt).things)


def scene_held_out(scene: Scene) -> bool:
    """Whether a held-out prompt is true of the scene: no such scene is ever trained on, not even as a wrong one."""
    return any((t.colour, t.shape) in NEVER for t in scene) or any(map(held_out, captions(scene)))


# --- scenes ----------------------------------------------------------------------------------------------------------


def related(a: Thing, b: Thing, relation: str) -> bool:
    dx, dy = RELATIONS[relation]
    return (b.x - a.x) * dx + (b.y - a.y) * dy > MARGIN


def captions(scene: Scene) -> list[str]:
    """Every prompt that `all_prompts` writes and that is true of exactly this scene."""
    if len(scene) == 1:
        (t,) = scene
        kinds = [
            ("single", None, None),
            ("single", None, t.size),
            ("color", t.colour, None),
            ("size", t.colour, t.size),
        ]
        return [write(Requirements(k, (Wanted(t.shape, c, z),))) for k, c, z in kinds]
    needs: list[Requirements] = []
    shapes, nouns = {t.shape for t in scene}, {(t.shape, t.colour) for t in scene}
    if len(scene) in COUNTS and len(shapes) == 1:
        needs.append(Requirements("count", (Wanted(scene[0].shape),) * len(scene)))
        if len(nouns) == 1:
            needs.append(Requirements("count", (Wanted(scene[0].shape, scene[0].colour),) * len(scene)))
    if len(scene) == 2:
        for a, b in (scene, scene[::-1]):
            true = [k for k in RELATIONS if related(a, b, k)]
            plain, noun = (Wanted(a.shape), Wanted(b.shape)), (Wanted(a.shape, a.colour), Wanted(b.shape, b.colour))
            if len(shapes) == 2:
                needs += [Requirements("two", plain), *(Requirements("position", plain, k) for k in true)]
                needs.append(Requirements("two", (Wanted(a.shape, None, a.size), Wanted(b.shape, None, b.size))))
            if len(nouns) == 2:
                needs += [Requirements("attr", noun), *(Requirements("position", noun, k) for k in true)]
    return [write(need) for need in needs]


def _noun(rng: random.Random, **fixed) -> Thing:
    choices = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
    return Thing(**{name: fixed.get(name) or rng.choice(options) for name, options in choices.items()})


def place(things: Sequence[Thing], rng: random.Random, gap: float = 4.0, tries: int = 60) -> Scene | None:
    """Put things at random, bounding boxes `gap` pixels apart; things that already have a radius stay. None if no room."""
    done: list[Thing] = []
    for thing in sorted(things, key=lambda t: t.r == 0.0):
        if thing.r:
            done.append(thing)
            continue
        for _ in range(tries):
            r = rng.uniform(*RADII[thing.size])
            half = r * EXTENT[thing.shape]
            x, y = rng.uniform(half + 1, SIZE - half - 1), rng.uniform(half + 1, SIZE - half - 1)
            far = (max(abs(x - o.x), abs(y - o.y)) > half + o.r * EXTENT[o.shape] + gap for o in done)
            if all(far):
                tint = tuple(rng.uniform(-0.05, 0.05) for _ in range(3))
                done.append(replace(thing, x=x, y=y, r=r, tint=tint))
                break
        else:
            return None
    order = {id_: i for i, id_ in enumerate(map(_identity, things))}
    return tuple(sorted(done, key=lambda t: order[_identity(t)]))


def _at_edges(things: Sequence[Thing], rng: random.Random) -> Scene | None:
    """Two things at opposite edges of the picture, left and right or above and below; None if they come too close."""
    across, done = rng.random() < 0.5, []
    for k, thing in enumerate(rng.sample(tuple(things), 2)):
        r = rng.uniform(*RADII[thing.size])
        edge = r * EXTENT[thing.shape] + 1 + rng.uniform(0.0, 6.0)
        edge, along = (SIZE - edge if k else edge), rng.uniform(22.0, SIZE - 22.0)
        x, y = (edge, along) if across else (along, edge)
        done.append(replace(thing, x=x, y=y, r=r, tint=tuple(rng.uniform(-0.05, 0.05) for _ in range(3))))
    a, b = done
    reach = a.r * EXTENT[a.shape] + b.r * EXTENT[b.shape] + 4.0
    return (a, b) if max(abs(a.x - b.x), abs(a.y - b.y)) > reach else None


def _identity(t: Thing) -> tuple[str, str, str]:
    return t.shape, t.colour, t.size


def _cast(kind: str, rng: random.Random) -> list[Thing]:
    first = _noun(rng)
    if kind in ("single", "color", "size"):
        return [first]
    if kind == "count":
        colour = first.colour if rng.random() < 0.6 else None
        size = "small" if rng.random() < 0.5 else None
        return [_noun(rng, shape=first.shape, colour=colour, size=size) for _ in range(rng.choice(tuple(COUNTS)))]
    return [first, _noun(rng)]


def scene_of(kind: str, rng: random.Random, *, held: bool = False) -> Scene:
    """A random scene for a category, or for "sides": a position's, the two at opposite edges. `held=False` re-draws until
    no part of it is held out."""
    while True:
        things = _cast(kind, rng)
        if (
            kind in ("two", "position", "attr", "sides")
            and len({(t.shape, t.colour if kind != "two" else "") for t in things}) < 2
        ):
            continue
        put = _at_edges if kind == "sides" else place
        scene = None if not held and scene_held_out(tuple(things)) else put(things, rng)
        apart = rng.choice((2 * MARGIN, 22.0)) if kind == "position" else 0.0  # far apart, a relation is learned sooner
        if scene and (not apart or max(abs(scene[0].x - scene[1].x), abs(scene[0].y - scene[1].y)) > apart):
            return scene


def scene_for(prompt: str, rng: random.Random) -> Scene:
    """A random scene of which `prompt` is true."""
    need = parse(prompt)
    if need is None:
        raise ValueError(f"{prompt!r} is not a prompt of the picture world")
    while True:
        scene = place([_noun(rng, shape=w.shape, colour=w.colour, size=w.size) for w in need.things], rng)
        if scene and prompt in captions(scene):
            return scene


def caption_of(scene: Scene, kind: str, rng: random.Random) -> str:
    """One true caption of that category (positions prefer the axis along which the two are further apart)."""
    kind = "position" if kind == "sides" else kind
    options = [c for c in captions(scene) if category(c) == kind]
    if kind == "position":
        wide = abs(scene[0].x - scene[1].x) > abs(scene[0].y - scene[1].y)
        axis = [c for c in options if (parse(c).relation in ("left of", "right of")) == wide]
        coloured = [c for c in axis if parse(c).things[0].colour]
        options = coloured if coloured and rng.random() < 0.75 else axis
    return rng.choice(options)


def stream(rng: random.Random, weights: dict[str, float]) -> Iterator[tuple[Scene, str]]:
    """Endless training pairs, none of them held out."""
    kinds, shares = list(weights), list(weights.values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        scene = scene_of(kind, rng)
        yield scene, caption_of(scene, kind, rng)


# --- rendering -------------------------------------------------------------------------------------------------------


def sdf(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance in pixels to the outline (negative inside), about exact near it. Shapes broadcast."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9 * r
    if shape == "triangle":  # isosceles, point upwards, centred on its bounding box
        half = 1.12 * r
        slope = 2 / 5**0.5
        side = (x.abs() - (y + half) * 0.5) * slope
        return torch.maximum(side, y - half)
    arm = torch.maximum(x.abs() - r, y.abs() - 0.36 * r)
    return torch.minimum(arm, torch.maximum(y.abs() - r, x.abs() - 0.36 * r))


def _fill(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = max(max(map(len, scenes), default=0), 1)
    geometry, kind = torch.zeros(len(scenes), n, 3), torch.full((len(scenes), n), -1)
    colour = torch.zeros(len(scenes), n, 3)
    for b, scene in enumerate(scenes):
        for k, t in enumerate(scene):
            geometry[b, k] = torch.tensor((t.x, t.y, t.r))
            kind[b, k] = SHAPES.index(t.shape)
            colour[b, k] = torch.tensor([p + d for p, d in zip(PALETTE[t.colour], t.tint, strict=True)])
    return geometry, kind, colour, torch.tensor([len(s) for s in scenes])


def grounds(b: int, generator: torch.Generator) -> Tensor:
    """[B,3,64,64]: dark, slightly tinted grounds with a slight gradient."""
    level = 0.06 + 0.14 * torch.rand(b, 1, 1, 1, generator=generator)
    tint = 0.05 * (torch.rand(b, 3, 1, 1, generator=generator) - 0.5)
    slope = 0.06 * (torch.rand(b, 1, 2, generator=generator) - 0.5)
    ramp = torch.linspace(-1, 1, SIZE)
    return (level + tint + slope[..., :1, None] * ramp[None, None, :, None] + slope[..., 1:, None] * ramp).clamp(0, 1)


def render(scenes: Sequence[Scene], generator: torch.Generator, *, opacity: Tensor | None = None) -> Tensor:
    """[B,3,64,64] in [0,1], antialiased. `opacity` [B,K] fades single things (for wrong examples)."""
    geometry, kind, colour, _ = _fill(scenes)
    out = grounds(len(scenes), generator)
    axis = torch.arange(SIZE) + 0.5
    for k in range(kind.shape[1]):
        cover = torch.zeros(len(scenes), SIZE, SIZE)
        for index, shape in enumerate(SHAPES):
            rows = kind[:, k] == index
            x, y, r = (geometry[rows, k, i, None, None] for i in range(3))
            cover[rows] = (0.5 - sdf(shape, axis - x, axis[:, None] - y, r)).clamp(0, 1)
        if opacity is not None:
            cover = cover * opacity[:, k, None, None]
        out = out + cover[:, None] * (colour[:, k, :, None, None] - out)
    return out.clamp(0, 1)
