"""Near misses of an edit: what a reward of edits must tell from the edit that was asked.

Not done at all, done wrongly, done to another thing, done with something else changed, painted anew elsewhere, on
another ground, or with a ghost of what was there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.starter.edit import world
from pipelines.starter.image import rendering
from pipelines.starter.image.world import COLOURS, SHAPES, SIZES, Scene, Thing

MISSES = ("undone", "other", "extra", "moved", "ground", "ghost")
GROUND_SHIFT = (0.035, 0.09)  # how far a changed ground is off, in each channel at most


@dataclass(frozen=True)
class Result:
    """What came out of an edit: a scene, how opaque each thing is, how far the ground is off, and the edit of the same
    source of which it is the exact result, if there is one."""

    scene: Scene
    opacity: tuple[float, ...] = ()
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    edit: world.Edit | None = None

    def true_wordings(self) -> list[str]:
        return world.instruction_wordings(self.edit) if self.edit else []


def true_result(edit: world.Edit) -> Result:
    return Result(edit.after, edit=edit)


def near_miss(edit: world.Edit, miss: str, rng: random.Random, *, allow_held_out: bool = False) -> Result | None:
    """A near miss of that sort; None where it happens to be impossible, or would show what is held out."""
    result = {
        "undone": lambda: Result(edit.before),
        "other": lambda: _other_edit(edit, rng),
        "extra": lambda: _change_another(edit, rng),
        "moved": lambda: _paint_anew(edit, rng),
        "ground": lambda: Result(edit.after, shift=_random_shift(rng)),
        "ghost": lambda: _leave_ghost(edit, rng),
    }[miss]()
    if result is None or (miss != "ground" and not result.opacity and _is_same_scene(result.scene, edit.after)):
        return None
    shown = world.Edit(edit.instruction, edit.before, result.scene)
    is_hidden = world.has_unseen_pair(shown) or world.is_cast_held_out(result.scene)
    is_hidden |= result.edit is not None and not world.may_train_on(result.edit)
    return None if is_hidden and not allow_held_out else result


def random_miss(edit: world.Edit, rng: random.Random, *, allow_held_out: bool = False) -> Result:
    while True:
        if result := near_miss(edit, rng.choice(MISSES), rng, allow_held_out=allow_held_out):
            return result


def _is_same_scene(a: Scene, b: Scene) -> bool:
    def key(t: Thing) -> tuple:
        return t.shape, t.colour, t.size, t.x, t.y

    return sorted(map(key, a)) == sorted(map(key, b))


def _other_edit(edit: world.Edit, rng: random.Random) -> Result | None:
    """Another edit of the source: more often than not of the same kind, or of the same thing."""
    kind = edit.instruction.kind if rng.random() < 0.6 else rng.choice(world.KINDS)
    asked = world.random_instruction(edit.before, kind, rng)
    after = world.edit_scene(edit.before, asked)
    return Result(after, edit=world.Edit(asked, edit.before, after)) if after else None


def _change_another(edit: world.Edit, rng: random.Random) -> Result | None:
    """The target with one thing more changed, one that was to stay where there is one; or with a thing too many."""
    places = [i for i, t in enumerate(edit.after) if t in edit.before]
    if not places or rng.random() < 0.2:
        noun = world.Wanted(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES))
        after = world.edit_scene(edit.after, world.Instruction("add", noun, rng.choice(tuple(world.PLACES))))
        return Result(after) if after else None
    thing = edit.after[rng.choice(places)]
    kind = rng.choice(("recolour", "resize", "reshape", "remove", "move"))
    asked = replace(world.random_instruction((thing,), kind, rng), noun=world.Wanted(thing.shape, thing.colour))
    after = world.edit_scene(edit.after, asked)
    return Result(after) if after else None


def _paint_anew(edit: world.Edit, rng: random.Random) -> Result | None:
    """The target with one thing of it, or all, somewhere else."""
    if not edit.after:
        return None
    k = rng.randrange(len(edit.after))
    stay = rng.random() < 0.5
    things = [t if stay and i != k else replace(t, x=0.0, y=0.0, r=0.0) for i, t in enumerate(edit.after)]
    scene = world.place_things(things, rng)
    if scene is None:
        return None
    offsets = [max(abs(a.x - b.x), abs(a.y - b.y)) for a, b in zip(scene, edit.after, strict=True)]
    if edit.instruction.kind in ("add", "move"):  # where exactly the edited thing is was not said
        offsets = [offset for offset, t in zip(offsets, edit.after, strict=True) if t in edit.before]
    return Result(scene) if max(offsets, default=0.0) > 6 else None


def _leave_ghost(edit: world.Edit, rng: random.Random) -> Result | None:
    """The target in which what went away still shines through, or what came is half there."""
    gone = [t for t in edit.before if t not in edit.after]
    clear = [t for t in gone if all(max(abs(t.x - o.x), abs(t.y - o.y)) > t.r + o.r for o in edit.after)]
    if clear:
        return Result((*edit.after, clear[0]), (1.0,) * len(edit.after) + (rng.uniform(0.2, 0.6),))
    new = [i for i, t in enumerate(edit.after) if t not in edit.before]
    if not new:
        return None
    return Result(edit.after, tuple(rng.uniform(0.2, 0.6) if i in new else 1.0 for i in range(len(edit.after))))


def _random_shift(rng: random.Random) -> tuple[float, float, float]:
    size, signs = rng.uniform(*GROUND_SHIFT), [rng.choice((-1, 1))] * 3
    return size * signs[0], size * signs[1] * rng.random(), size * signs[2] * rng.random()


def render_results(
    edits: Sequence[world.Edit], results: Sequence[Result], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sources and results [B,3,64,64], each pair on one ground, less the result's shift."""
    state = generator.get_state()
    before = rendering.render_scenes([e.before for e in edits], generator)
    generator.set_state(state)
    opacity = torch.ones(len(results), max(max(len(r.scene) for r in results), 1))
    for row, result in zip(opacity, results, strict=True):
        row[: len(result.opacity)] = torch.tensor(result.opacity)
    after = rendering.render_scenes([r.scene for r in results], generator, opacity=opacity)
    shift = torch.tensor([r.shift for r in results])[:, :, None, None]
    return before, (after + shift).clamp(0, 1)
