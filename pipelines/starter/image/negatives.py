"""Near misses, in pictures and in words: what a reward must tell apart from the truth.

Picture side: an extra, missing, recoloured, reshaped, resized or swapped thing, and malformed ones (ghosts, two shapes
or colours in one). Word side: the same swaps in the prompt. Nothing held out is ever shown or said.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.starter.image import rendering, world


@dataclass(frozen=True)
class Picture:
    """A scene to draw, and how opaque each thing is; `malformed` pictures have no true caption."""

    scene: world.Scene
    opacity: tuple[float, ...] = ()
    malformed: bool = False

    def true_captions(self) -> list[str]:
        return [] if self.malformed else world.true_captions(self.scene)


def render_pictures(pictures: Sequence[Picture], generator: torch.Generator) -> Tensor:
    """[B,3,64,64]."""
    opacity = torch.ones(len(pictures), max(len(p.scene) for p in pictures))
    for row, picture in zip(opacity, pictures, strict=True):
        row[: len(picture.opacity)] = torch.tensor(picture.opacity)
    return rendering.render_scenes([p.scene for p in pictures], generator, opacity=opacity)


def _other_option(rng: random.Random, options: Sequence[str], value: str) -> str:
    return rng.choice([o for o in options if o != value])


def _change_attribute(scene: world.Scene, rng: random.Random, name: str, options: Sequence[str]) -> Picture:
    k = rng.randrange(len(scene))
    thing = world.with_attribute(scene[k], name, _other_option(rng, options, getattr(scene[k], name)))
    if name == "size":
        thing = replace(thing, r=rng.uniform(*world.RADII[thing.size]))
    return Picture((*scene[:k], thing, *scene[k + 1 :]))


def _add_thing(scene: world.Scene, rng: random.Random) -> Picture | None:
    thing = world.Thing(rng.choice(world.SHAPES), rng.choice(world.COLOURS), rng.choice(world.SIZES))
    if rng.random() < 0.4:
        thing = replace(thing, shape=scene[0].shape, colour=scene[0].colour)
    placed = world.place_things([*scene, thing], rng)
    return Picture(placed) if placed else None


def _add_ghost(scene: world.Scene, rng: random.Random) -> Picture | None:
    extra = _add_thing(scene, rng)
    if extra is None:
        return None
    k = rng.randrange(len(extra.scene))
    fade = rng.uniform(0.4, 0.75)
    return Picture(extra.scene, tuple(fade if i == k else 1.0 for i in range(len(extra.scene))), malformed=True)


def _blend_things(scene: world.Scene, rng: random.Random) -> Picture:
    """Another shape or another colour drawn over the middle of one thing, a little off its centre."""
    k = rng.randrange(len(scene))
    t = scene[k]
    reach = 0.3 * t.r
    over = replace(
        t, x=t.x + rng.uniform(-reach, reach), y=t.y + rng.uniform(-reach, reach), r=t.r * rng.uniform(0.55, 0.8)
    )
    if rng.random() < 0.5:
        over = replace(over, shape=_other_option(rng, world.SHAPES, t.shape), x=t.x + rng.choice((-0.7, 0.7)) * t.r)
    else:
        over = replace(over, colour=_other_option(rng, world.COLOURS, t.colour))
    return Picture((*scene, over), (1.0,) * len(scene) + (rng.uniform(0.6, 1.0),), malformed=True)


def _swap_things(scene: world.Scene, rng: random.Random) -> Picture | None:
    """Two things trade places, or trade colours."""
    if len(scene) != 2:
        return None
    a, b = scene
    if rng.random() < 0.6:
        return Picture((replace(a, x=b.x, y=b.y, r=a.r), replace(b, x=a.x, y=a.y, r=b.r)))
    return Picture((replace(a, colour=b.colour, tint=b.tint), replace(b, colour=a.colour, tint=a.tint)))


def _move_things(scene: world.Scene, rng: random.Random) -> Picture | None:
    """The same things elsewhere: other relations, same words otherwise."""
    placed = world.place_things([replace(t, r=0.0) for t in scene], rng) if len(scene) == 2 else None
    return Picture(placed) if placed else None


def _remove_thing(scene: world.Scene, rng: random.Random) -> Picture | None:
    k = rng.randrange(len(scene))
    return Picture((*scene[:k], *scene[k + 1 :])) if len(scene) > 1 else None


_WRONGS = (
    (_add_thing, 4), (_remove_thing, 2), (_add_ghost, 2), (_blend_things, 3), (_swap_things, 3), (_move_things, 2),
    (lambda s, rng: _change_attribute(s, rng, "colour", world.COLOURS), 2),
    (lambda s, rng: _change_attribute(s, rng, "shape", world.SHAPES), 3),
    (lambda s, rng: _change_attribute(s, rng, "size", world.SIZES), 2),
)  # fmt: skip


def wrong_picture(scene: world.Scene, prompt: str, rng: random.Random, *, allow_held_out: bool = False) -> Picture:
    """A near miss of the scene for which `prompt` is false; no held-out combination in it, unless `allow_held_out`."""
    ways, weights = zip(*_WRONGS, strict=True)
    while True:
        picture = rng.choices(ways, weights)[0](scene, rng)
        if (
            picture
            and (allow_held_out or not world.is_scene_held_out(picture.scene))
            and prompt not in picture.true_captions()
        ):
            return picture


def _small_changes(need: world.Requirements) -> list[world.Requirements]:
    """Every requirement one small change away."""
    out, things = [], need.things
    same = need.category == "count"
    for k in range(1 if same else len(things)):
        for name, options in (("shape", world.SHAPES), ("colour", world.COLOURS), ("size", world.SIZES)):
            if getattr(things[k], name):
                for value in options:
                    new = replace(things[k], **{name: value})
                    new_things = (new,) * len(things) if same else (*things[:k], new, *things[k + 1 :])
                    out.append(replace(need, things=new_things))
    if need.relation:
        out += [replace(need, relation=k) for k in world.RELATIONS] * 4
        out += [replace(need, things=things[::-1])] * 6
    if same:
        out += [replace(need, things=(things[0],) * n) for n in world.COUNTS] * 4
    if len(things) == 2 and not same:
        a, b = things
        out += [replace(need, things=(replace(a, colour=b.colour), replace(b, colour=a.colour)))] * 6
        out += [replace(need, things=(replace(a, size=b.size), replace(b, size=a.size)))] * 4
    return out


_ALL_PROMPTS = frozenset(world.all_prompts())


def false_prompts(
    prompt: str, true: Collection[str], rng: random.Random, n: int, *, allow_held_out: bool = False
) -> list[str]:
    """Up to n different prompts of the world near `prompt`: none in `true`, none held out unless `allow_held_out`."""
    candidates = [world.write_prompt(need) for need in _small_changes(world.require_prompt(prompt))]
    rng.shuffle(candidates)
    fit = (
        p
        for p in dict.fromkeys(candidates)
        if p in _ALL_PROMPTS and p not in true and (allow_held_out or not world.is_held_out(p))
    )
    return list(itertools.islice(fit, n))
