"""The edit world: a scene of the picture world, an instruction in plain words, and the scene that it asks for.

Everything is exact: an instruction names one thing of the source (two, to swap them), `edit_scene` gives the scene that
carrying it out leads to, and `parse_instruction` reads the words back. Lengths are pixels of a 64 x 64 picture, y grows
downwards.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from pipelines.starter.image import rendering
from pipelines.starter.image.world import (
    COLOURS,
    EXTENT,
    RADII,
    SHAPES,
    SIZE,
    SIZES,
    UNSEEN_PAIRS,
    Scene,
    Thing,
    Wanted,
    _hash_share,
    place_things,
    write_noun,
)

KINDS = ("recolour", "resize", "reshape", "remove", "add", "move", "swap")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STEP = 14.0  # how far a thing is moved
PLACES = {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
ANCHOR = 17.0  # a new thing is put as near as it can to a point that far from the centre
GAP = 3.0  # least distance of two bounding boxes after an edit
HELD_OUT = {"instruction": 0.15, "cast": 0.20}  # shares


@dataclass(frozen=True)
class Instruction:
    """One edit: of the only thing that `noun` matches, or, to add one, of the thing that `noun` describes.

    `to` is a colour, size, shape, direction or place, as the kind has it; `other` is the second thing of a swap.
    """

    kind: str
    noun: Wanted
    to: str = ""
    other: Wanted | None = None


@dataclass(frozen=True)
class Edit:
    """An instruction, and the scene before and after it was carried out."""

    instruction: Instruction
    before: Scene
    after: Scene


# --- grammar ---------------------------------------------------------------------------------------------------------

_COLOUR, _SHAPE, _SIZE = ("|".join(options) for options in (COLOURS, SHAPES, SIZES))
_NOUN = rf"(?:(?P<colour{{i}}>{_COLOUR}) )?(?P<shape{{i}}>{_SHAPE})"
_FORMS = {
    "recolour": rf"make the {_NOUN.format(i=1)} (?P<to>{_COLOUR})",
    "resize": rf"make the {_NOUN.format(i=1)} (?P<to>{_SIZE})",
    "reshape": rf"turn the {_NOUN.format(i=1)} into a (?P<to>{_SHAPE})",
    "remove": rf"remove the {_NOUN.format(i=1)}",
    "add": rf"add a (?P<size>{_SIZE}) (?P<colour1>{_COLOUR}) (?P<shape1>{_SHAPE}) (?P<to>{'|'.join(PLACES)})",
    "move": rf"move the {_NOUN.format(i=1)} (?P<to>{'|'.join(DIRECTIONS)})",
    "swap": rf"swap the {_NOUN.format(i=1)} and the {_NOUN.format(i=2)}",
}
_PATTERNS = {kind: re.compile(form) for kind, form in _FORMS.items()}
WORDS = ("make", "the", "turn", "into", "remove", "add", "on", "at", "top", "bottom", "move", "up", "down", "swap")


def write_instruction(asked: Instruction) -> str:
    """The words of an instruction: the inverse of `parse_instruction`."""
    noun = write_noun(asked.noun)
    return {
        "recolour": f"make the {noun} {asked.to}",
        "resize": f"make the {noun} {asked.to}",
        "reshape": f"turn the {noun} into a {asked.to}",
        "remove": f"remove the {noun}",
        "add": f"add a {noun} {asked.to}",
        "move": f"move the {noun} {asked.to}",
        "swap": f"swap the {noun} and the {write_noun(asked.other) if asked.other else ''}",
    }[asked.kind]


@cache
def parse_instruction(text: str) -> Instruction | None:
    """The instruction that a text gives; None for a text that is none of the grammar's."""
    text = " ".join(text.lower().split())
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(text):
            part = match.groupdict()
            noun = Wanted(part["shape1"], part["colour1"], part.get("size"))
            other = Wanted(part["shape2"], part["colour2"]) if kind == "swap" else None
            return Instruction(kind, noun, part.get("to") or "", other)
    return None


def require_instruction(text: str) -> Instruction:
    """The instruction that a text gives. Raises ValueError for a text that is none of the grammar's."""
    asked = parse_instruction(text)
    if asked is None:
        raise ValueError(f"{text!r} is not an instruction of the edit world")
    return asked


def instruction_kind(text: str) -> str:
    """The kind of edit, or "other" for text outside the grammar."""
    asked = parse_instruction(text)
    return asked.kind if asked else "other"


def instruction_wordings(edit: Edit) -> list[str]:
    """Every way to say the edit: a thing is named by colour and shape, or by shape alone where no other has it."""
    asked, shapes = edit.instruction, [t.shape for t in edit.before]
    if asked.kind == "add":
        return [write_instruction(asked)]
    options = [
        [noun, *([replace(noun, colour=None)] if shapes.count(noun.shape) == 1 else [])]
        for noun in (asked.noun, *([asked.other] if asked.other else []))
    ]
    pairs = [(*nouns, None)[:2] for nouns in itertools.product(*options)]
    both = [replace(asked, noun=noun, other=other) for noun, other in pairs if noun]
    if asked.kind == "swap":
        both += [replace(asked, noun=other, other=noun) for noun, other in pairs if other]
    return list(map(write_instruction, both))


# --- hold-out --------------------------------------------------------------------------------------------------------


def is_instruction_held_out(asked: Instruction) -> bool:
    """Whether what it does to a thing of that colour and shape is kept from training, in whatever words.

    Raises ValueError for an instruction that does not name the colour.
    """
    nouns = [noun for noun in (asked.noun, asked.other) if noun]
    if not all(noun.colour for noun in nouns):
        raise ValueError("only an instruction that names colour and shape can be looked up")
    key = sorted((str(noun.size), str(noun.colour), noun.shape) for noun in nouns)
    return _hash_share("edit", asked.kind, asked.to, *key) < HELD_OUT["instruction"]


def is_cast_held_out(scene: Scene) -> bool:
    """Whether the company of two or three things, by colour and shape, is kept from training, before and after.

    A single thing is in too few kinds to be held out.
    """
    cast = sorted((t.colour, t.shape) for t in scene)
    return len(cast) > 1 and _hash_share("edit cast", *cast) < HELD_OUT["cast"]


def has_unseen_pair(edit: Edit) -> bool:
    """Whether a colour x shape pair that no training picture of the whole pack has is there before or after."""
    return any((t.colour, t.shape) in UNSEEN_PAIRS for t in (*edit.before, *edit.after))


def may_train_on(edit: Edit) -> bool:
    """Whether neither the instruction nor the scene before or after is held out."""
    return not (
        has_unseen_pair(edit)
        or is_instruction_held_out(edit.instruction)
        or is_cast_held_out(edit.before)
        or is_cast_held_out(edit.after)
    )


def is_held_out(edit: Edit) -> bool:
    """Whether both the instruction and, of two things or more, the source are new; no pair that nothing showed."""
    is_new_source = len(edit.before) == 1 or is_cast_held_out(edit.before)
    return is_instruction_held_out(edit.instruction) and is_new_source and not has_unseen_pair(edit)


# --- scenes ----------------------------------------------------------------------------------------------------------


def find_thing(things: Sequence[Thing | None], noun: Wanted) -> int | None:
    """The place of the only thing that `noun` matches; None if there is none, or more than one."""
    places = [i for i, thing in enumerate(things) if thing is not None and noun.matches(thing)]
    return places[0] if len(places) == 1 else None


def _reach(thing: Thing) -> float:
    return thing.r * EXTENT[thing.shape]


def _is_clear(thing: Thing, others: Sequence[Thing]) -> bool:
    """Whether the thing lies inside the picture and apart from the others."""
    reach = _reach(thing) + 0.5
    return all(reach <= at <= SIZE - reach for at in (thing.x, thing.y)) and all(
        max(abs(thing.x - o.x), abs(thing.y - o.y)) > _reach(thing) + _reach(o) + GAP for o in others
    )


def _place_new(thing: Thing, place: str, others: Sequence[Thing]) -> Thing | None:
    """The thing at the free point of a grid next to the place's anchor, on the right side of the centre."""
    dx, dy = PLACES[place]
    x0, y0 = SIZE / 2 + ANCHOR * dx, SIZE / 2 + ANCHOR * dy
    points = [(x, y) for x in range(8, SIZE - 7, 2) for y in range(8, SIZE - 7, 2)]
    points = [(x, y) for x, y in points if (x - SIZE / 2) * dx + (y - SIZE / 2) * dy > 8]
    points.sort(key=lambda p: ((p[0] - x0) ** 2 + (p[1] - y0) ** 2, p))
    placed = (replace(thing, x=float(x), y=float(y)) for x, y in points)
    return next((t for t in placed if _is_clear(t, others)), None)


def middle_radius(size: str) -> float:
    return sum(RADII[size]) / 2


def edit_scene(scene: Scene, asked: Instruction) -> Scene | None:
    """The scene that the instruction leads to; None where it can't be carried out, or there is no room for it.

    Whatever the instruction does not fix is fixed by a rule (a new size has the middle radius, a new thing the free
    point next to the middle of its side): the same source and words always lead to the same scene.
    """
    if asked.kind == "add":
        noun = asked.noun
        assert noun.size and noun.colour  # the grammar always says both
        if any((t.shape, t.colour) == (noun.shape, noun.colour) for t in scene):
            return None
        new = _place_new(Thing(noun.shape, noun.colour, noun.size, r=middle_radius(noun.size)), asked.to, scene)
        return (*scene, new) if new else None
    at = find_thing(scene, asked.noun)
    if at is None:
        return None
    thing, changed = scene[at], dict[int, Thing]()
    if asked.kind == "recolour":
        changed[at] = replace(thing, colour=asked.to)
    elif asked.kind == "resize":
        changed[at] = replace(thing, size=asked.to, r=middle_radius(asked.to))
    elif asked.kind == "reshape":
        changed[at] = replace(thing, shape=asked.to)
    elif asked.kind == "move":
        dx, dy = DIRECTIONS[asked.to]
        changed[at] = replace(thing, x=thing.x + STEP * dx, y=thing.y + STEP * dy)
    elif asked.kind == "swap":
        second = find_thing(scene, asked.other) if asked.other else None
        if second is None or second == at:
            return None
        other = scene[second]
        changed = {at: replace(thing, x=other.x, y=other.y), second: replace(other, x=thing.x, y=thing.y)}
    after = tuple(changed.get(i, t) for i, t in enumerate(scene) if asked.kind != "remove" or i != at)
    is_distinct = len({(t.shape, t.colour) for t in after}) == len(after)
    is_possible = all(_is_clear(t, [o for o in after if o is not t]) for t in after)
    return after if after != scene and is_distinct and is_possible else None


def random_scene(rng: random.Random, *, things: int) -> Scene:
    """That many things, no two alike in colour and shape."""
    nouns = list(itertools.product(SHAPES, COLOURS))
    while True:
        cast = [Thing(shape, colour, rng.choice(SIZES)) for shape, colour in rng.sample(nouns, things)]
        if scene := place_things(cast, rng):
            return scene


def random_instruction(scene: Scene, kind: str, rng: random.Random) -> Instruction:
    """An instruction of that kind about the scene, in full words; it need not be possible."""
    thing, *others = rng.sample(scene, len(scene))
    noun = Wanted(thing.shape, thing.colour)
    if kind == "add":
        new = Wanted(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES))
        return Instruction(kind, new, rng.choice(tuple(PLACES)))
    if kind == "swap":
        return Instruction(kind, noun, other=Wanted(others[0].shape, others[0].colour) if others else None)
    options: dict[str, tuple[str, ...]] = {
        "recolour": COLOURS,
        "resize": SIZES,
        "reshape": SHAPES,
        "move": tuple(DIRECTIONS),
        "remove": ("",),
    }
    now = (thing.colour, thing.size, thing.shape)
    return Instruction(kind, noun, rng.choice([o for o in options[kind] if o not in now]))


def random_edit(rng: random.Random, *, kind: str | None = None, things: int | None = None) -> Edit:
    """A random edit that is possible; nothing is kept out of it."""
    while True:
        chosen = kind or rng.choice(KINDS)
        n = things or rng.choice(
            {"add": (1, 1, 2), "swap": (2, 2, 3), "remove": (1, 2, 2, 3)}.get(chosen, (1, 2, 2, 3))
        )
        scene = random_scene(rng, things=n)
        asked = random_instruction(scene, chosen, rng)
        if after := edit_scene(scene, asked):
            return Edit(asked, scene, after)


def random_addition(rng: random.Random) -> Edit:
    """A random thing that is put into an empty scene; nothing is kept out of it."""
    new = Wanted(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES))
    asked = Instruction("add", new, rng.choice(tuple(PLACES)))
    after = edit_scene((), asked)
    assert after is not None  # there is room for any one thing
    return Edit(asked, (), after)


def undo_edit(edit: Edit) -> Edit | None:
    """The edit that leads back; None where no instruction says exactly that (what was removed could be anywhere)."""
    asked, before, after = edit.instruction, edit.before, edit.after
    if asked.kind == "remove":
        return None
    if asked.kind == "add":
        return Edit(Instruction("remove", Wanted(asked.noun.shape, asked.noun.colour)), after, before)
    if asked.kind == "swap":
        return Edit(asked, after, before)
    at = find_thing(before, asked.noun)
    assert at is not None  # it was carried out
    old, new = before[at], after[at]
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    to = {"recolour": old.colour, "resize": old.size, "reshape": old.shape, "move": opposite.get(asked.to, "")}
    return Edit(Instruction(asked.kind, Wanted(new.shape, new.colour), to[asked.kind]), after, before)


def render_on_one_ground(columns: Sequence[Sequence[Scene]], generator: torch.Generator) -> list[Tensor]:
    """Of each column of B scenes the pictures [B,3,64,64]; row by row, all columns have the same ground."""
    state, pictures = generator.get_state(), []
    for scenes in columns:
        generator.set_state(state)
        pictures.append(rendering.render_scenes(scenes, generator))
    return pictures


def render_edits(edits: Sequence[Edit], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sources and targets [B,3,64,64], each pair on one ground."""
    before, after = render_on_one_ground([[e.before for e in edits], [e.after for e in edits]], generator)
    return before, after
