"""The picture world: a few plain shapes on a dark ground, a small grammar that describes them, and nothing else.

Everything is exact: a scene is a tuple of things, `true_captions` lists every prompt of the grammar that is true of
it, and `parse_prompt` reads a prompt back into what it requires. Lengths are pixels of a 64 x 64 picture, y grows
downwards.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

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
    """What a prompt asks of one object; None where it does not care. Which prompts are held out hangs on its repr."""

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

_NOUN = (
    rf"(?:(?P<size{{i}}>{'|'.join(SIZES)}) )?"
    rf"(?:(?P<colour{{i}}>{'|'.join(COLOURS)}) )?"
    rf"(?P<shape{{i}}>{'|'.join(SHAPES)})"
)
_JOINT = rf"(?P<joint>and|{'|'.join(RELATIONS)})"
_PROMPT = re.compile(rf"a {_NOUN.format(i=1)}(?: {_JOINT} a {_NOUN.format(i=2)})?")
_COUNT = re.compile(rf"(?P<n>two|three|four) (?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<shape>{'|'.join(SHAPES)})(?:e?s)")


def pluralise(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def write_noun(need: Wanted) -> str:
    return " ".join(word for word in (need.size, need.colour, need.shape) if word)


def write_prompt(need: Requirements) -> str:
    """The prompt that asks for `need`: the inverse of `parse_prompt`."""
    if need.category == "count":
        first = need.things[0]
        words = (COUNTS[len(need.things)], first.colour, pluralise(first.shape))
        return " ".join(word for word in words if word)
    return f" {need.relation or 'and'} ".join("a " + write_noun(noun) for noun in need.things)


@cache
def parse_prompt(prompt: str) -> Requirements | None:
    """What a prompt of the grammar requires; None for any other text."""
    text = " ".join(prompt.lower().split())
    if match := _COUNT.fullmatch(text):
        n = next(number for number, word in COUNTS.items() if word == match["n"])
        need = Requirements("count", (Wanted(match["shape"], match["colour"]),) * n)
        return need if write_prompt(need) == text else None
    if not (match := _PROMPT.fullmatch(text)):
        return None
    first = Wanted(match["shape1"], match["colour1"], match["size1"])
    if not match["joint"]:
        category = "single" if not first.colour else "size" if first.size else "color"
        return Requirements(category, (first,))
    pair = (first, Wanted(match["shape2"], match["colour2"], match["size2"]))
    if match["joint"] != "and":
        return Requirements("position", pair, match["joint"])
    return Requirements("attr" if any(w.colour for w in pair) else "two", pair)


def require_prompt(prompt: str) -> Requirements:
    """What a prompt of the grammar requires. Raises ValueError for any other text."""
    need = parse_prompt(prompt)
    if need is None:
        raise ValueError(f"{prompt!r} is not a prompt of the picture world")
    return need


def prompt_category(prompt: str) -> str:
    """The prompt's category, or "other" for text outside the grammar."""
    need = parse_prompt(prompt)
    return need.category if need else "other"


@cache
def all_prompts() -> tuple[str, ...]:
    """Every prompt that the world itself writes (the parser also reads a few mixtures that are never written)."""
    noun = [Wanted(s, c) for c in COLOURS for s in SHAPES]
    needs = [Requirements("single", (Wanted(s, None, z),)) for z in (None, *SIZES) for s in SHAPES]
    needs += [Requirements("color", (w,)) for w in noun]
    needs += [Requirements("size", (replace(w, size=z),)) for z in SIZES for w in noun]
    plain, sized = (
        [Wanted(s) for s in SHAPES],
        [Wanted(s, None, z) for z in SIZES for s in SHAPES],
    )
    needs += [Requirements("two", p) for p in itertools.permutations(plain, 2)]
    needs += [Requirements("two", p) for p in itertools.permutations(sized, 2) if p[0].shape != p[1].shape]
    needs += [Requirements("count", (w,) * n) for n in COUNTS for w in plain + noun]
    needs += [Requirements("position", p, k) for p in itertools.permutations(plain + noun, 2) for k in RELATIONS
              if (p[0].colour is None) == (p[1].colour is None)]  # fmt: skip
    needs += [Requirements("attr", p) for p in itertools.permutations(noun, 2)]
    return tuple(dict.fromkeys(map(write_prompt, needs)))


# --- hold-out --------------------------------------------------------------------------------------------------------


def _hash_share(*key: object) -> float:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def shuffle_key(prompt: str) -> float:
    """A prompt's place in a shuffled order that is the same for ever."""
    return _hash_share("lot", prompt)


_NOUNS = sorted(itertools.product(COLOURS, SHAPES), key=lambda pair: _hash_share("noun", *pair))
UNSEEN_PAIRS = frozenset(_NOUNS[:2])  # colour x shape pairs that are in no training picture at all: the hardest prompts
UNSEEN_ALONE = frozenset(next(n for n in _NOUNS[2:] if n[0] == c) for c in COLOURS)  # seen beside others, never alone


def _unordered_pair(a: object, b: object) -> tuple:
    return tuple(sorted((repr(a), repr(b))))


def is_held_out(prompt: str) -> bool:
    """Whether the prompt is kept from training: it is never said, and no picture of which it is true is ever shown.

    Held out, whatever the order and the relation: anything of a pair in `UNSEEN_PAIRS`; a single thing of a pair in
    `UNSEEN_ALONE`, and 20 % of size x colour x shape alone; 25 % of count x colour x shape; 20 % of the couples of
    coloured and 30 % of sized shapes.
    """
    need = require_prompt(prompt)
    if any((w.colour, w.shape) in UNSEEN_PAIRS for w in need.things):
        return True
    first = need.things[0]
    if need.category == "count":
        return bool(first.colour) and _hash_share("count", len(need.things), first.colour, first.shape) < 0.25
    if len(need.things) == 1:
        sized = first.size and first.colour and _hash_share("size", first.size, first.colour, first.shape) < 0.20
        return bool(sized or (first.colour, first.shape) in UNSEEN_ALONE)
    share = 0.20 if first.colour else 0.30 if first.size else 0.0
    return _hash_share("couple", *_unordered_pair(*need.things)) < share


def has_unseen_pair(prompt: str) -> bool:
    """Whether the prompt asks for a colour x shape pair that no training picture has anywhere."""
    return any((w.colour, w.shape) in UNSEEN_PAIRS for w in require_prompt(prompt).things)


def is_scene_held_out(scene: Scene) -> bool:
    """Whether a held-out prompt is true of the scene: no such scene is ever trained on, not even as a wrong one."""
    return any((t.colour, t.shape) in UNSEEN_PAIRS for t in scene) or any(map(is_held_out, true_captions(scene)))


# --- scenes ----------------------------------------------------------------------------------------------------------


def holds_relation(a: Thing, b: Thing, relation: str) -> bool:
    dx, dy = RELATIONS[relation]
    return (b.x - a.x) * dx + (b.y - a.y) * dy > MARGIN


def true_captions(scene: Scene) -> list[str]:
    """Every prompt that `all_prompts` writes and that is true of exactly this scene."""
    if len(scene) == 1:
        (t,) = scene
        kinds = [
            ("single", None, None),
            ("single", None, t.size),
            ("color", t.colour, None),
            ("size", t.colour, t.size),
        ]
        return [write_prompt(Requirements(k, (Wanted(t.shape, c, z),))) for k, c, z in kinds]
    needs: list[Requirements] = []
    shapes, nouns = {t.shape for t in scene}, {(t.shape, t.colour) for t in scene}
    if len(scene) in COUNTS and len(shapes) == 1:
        needs.append(Requirements("count", (Wanted(scene[0].shape),) * len(scene)))
        if len(nouns) == 1:
            needs.append(Requirements("count", (Wanted(scene[0].shape, scene[0].colour),) * len(scene)))
    if len(scene) == 2:
        for a, b in (scene, scene[::-1]):
            true = [k for k in RELATIONS if holds_relation(a, b, k)]
            plain, noun = (
                (Wanted(a.shape), Wanted(b.shape)),
                (Wanted(a.shape, a.colour), Wanted(b.shape, b.colour)),
            )
            if len(shapes) == 2:
                needs += [Requirements("two", plain), *(Requirements("position", plain, k) for k in true)]
                needs.append(Requirements("two", (Wanted(a.shape, None, a.size), Wanted(b.shape, None, b.size))))
            if len(nouns) == 2:
                needs += [Requirements("attr", noun), *(Requirements("position", noun, k) for k in true)]
    return [write_prompt(need) for need in needs]


def with_attribute(thing: Thing, name: str, value: str) -> Thing:
    """The thing with another "shape", "colour" or "size"."""
    return replace(
        thing,
        shape=value if name == "shape" else thing.shape,
        colour=value if name == "colour" else thing.colour,
        size=value if name == "size" else thing.size,
    )


def random_tint(rng: random.Random) -> tuple[float, float, float]:
    return rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)


def _random_thing(
    rng: random.Random, *, shape: str | None = None, colour: str | None = None, size: str | None = None
) -> Thing:
    return Thing(shape or rng.choice(SHAPES), colour or rng.choice(COLOURS), size or rng.choice(SIZES))


def place_things(things: Sequence[Thing], rng: random.Random, gap: float = 4.0, tries: int = 60) -> Scene | None:
    """Put things at random, bounding boxes `gap` pixels apart; things that already have a radius stay.

    None if there is no room.
    """
    placed: list[Thing] = []
    for thing in sorted(things, key=lambda t: t.r == 0.0):
        if thing.r:
            placed.append(thing)
            continue
        for _ in range(tries):
            r = rng.uniform(*RADII[thing.size])
            half = r * EXTENT[thing.shape]
            x, y = rng.uniform(half + 1, SIZE - half - 1), rng.uniform(half + 1, SIZE - half - 1)
            is_clear = (max(abs(x - o.x), abs(y - o.y)) > half + o.r * EXTENT[o.shape] + gap for o in placed)
            if all(is_clear):
                placed.append(replace(thing, x=x, y=y, r=r, tint=random_tint(rng)))
                break
        else:
            return None
    order = {id_: i for i, id_ in enumerate(map(_attributes_of, things))}
    return tuple(sorted(placed, key=lambda t: order[_attributes_of(t)]))


def _place_at_edges(things: Sequence[Thing], rng: random.Random) -> Scene | None:
    """Two things at opposite edges of the picture, left and right or above and below; None if they come too close."""
    across, placed = rng.random() < 0.5, []
    for k, thing in enumerate(rng.sample(tuple(things), 2)):
        r = rng.uniform(*RADII[thing.size])
        edge = r * EXTENT[thing.shape] + 1 + rng.uniform(0.0, 6.0)
        edge, along = (SIZE - edge if k else edge), rng.uniform(22.0, SIZE - 22.0)
        x, y = (edge, along) if across else (along, edge)
        placed.append(replace(thing, x=x, y=y, r=r, tint=random_tint(rng)))
    a, b = placed
    reach = a.r * EXTENT[a.shape] + b.r * EXTENT[b.shape] + 4.0
    return (a, b) if max(abs(a.x - b.x), abs(a.y - b.y)) > reach else None


def _attributes_of(t: Thing) -> tuple[str, str, str]:
    return t.shape, t.colour, t.size


def _random_cast(kind: str, rng: random.Random) -> list[Thing]:
    first = _random_thing(rng)
    if kind in ("single", "color", "size"):
        return [first]
    if kind == "count":
        colour = first.colour if rng.random() < 0.6 else None
        size = "small" if rng.random() < 0.5 else None
        return [
            _random_thing(rng, shape=first.shape, colour=colour, size=size) for _ in range(rng.choice(tuple(COUNTS)))
        ]
    return [first, _random_thing(rng)]


def random_scene(kind: str, rng: random.Random, *, allow_held_out: bool = False) -> Scene:
    """A random scene for a category, or for "sides": a position's, the two at opposite edges.

    Draws again until no part of it is held out, unless `allow_held_out`.
    """
    while True:
        things = _random_cast(kind, rng)
        if (
            kind in ("two", "position", "attr", "sides")
            and len({(t.shape, t.colour if kind != "two" else "") for t in things}) < 2
        ):
            continue
        put = _place_at_edges if kind == "sides" else place_things
        scene = None if not allow_held_out and is_scene_held_out(tuple(things)) else put(things, rng)
        # far apart, a relation is learned sooner
        least_distance = rng.choice((2 * MARGIN, 22.0)) if kind == "position" else 0.0
        if scene and (
            not least_distance or max(abs(scene[0].x - scene[1].x), abs(scene[0].y - scene[1].y)) > least_distance
        ):
            return scene


def scene_for(prompt: str, rng: random.Random) -> Scene:
    """A random scene of which `prompt` is true."""
    need = require_prompt(prompt)
    while True:
        scene = place_things(
            [_random_thing(rng, shape=w.shape, colour=w.colour, size=w.size) for w in need.things], rng
        )
        if scene and prompt in true_captions(scene):
            return scene


def random_caption(scene: Scene, kind: str, rng: random.Random) -> str:
    """One true caption of that category (positions prefer the axis along which the two are further apart)."""
    kind = "position" if kind == "sides" else kind
    options = [c for c in true_captions(scene) if prompt_category(c) == kind]
    if kind == "position":
        is_horizontal = abs(scene[0].x - scene[1].x) > abs(scene[0].y - scene[1].y)
        axis = [c for c in options if (require_prompt(c).relation in ("left of", "right of")) == is_horizontal]
        coloured = [c for c in axis if require_prompt(c).things[0].colour]
        options = coloured if coloured and rng.random() < 0.75 else axis
    return rng.choice(options)


def training_pairs(rng: random.Random, weights: dict[str, float]) -> Iterator[tuple[Scene, str]]:
    """Endless training pairs, none of them held out."""
    kinds, shares = list(weights), list(weights.values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        scene = random_scene(kind, rng)
        yield scene, random_caption(scene, kind, rng)
