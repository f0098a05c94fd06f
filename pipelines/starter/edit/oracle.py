"""Reads source and result back into their things and says whether an instruction was carried out, and nothing else.

Three verdicts: *done*, the named thing has the asked change and no other; *kept*, every other thing is as it was and
nothing is new; *ground*, what lies away from all things is as it was, and where a
thing went away is nothing but ground. Source, text and result are all it needs. No
learning: things are read by the picture world's oracle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.starter.edit import world
from pipelines.starter.image.oracle import SPECK, read_picture
from pipelines.starter.image.world import EXTENT, SIZE, Scene, Thing
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

NEAR = 3.0  # how far a thing that stays may drift, in pixels
WIDTH = 1.8  # how much its radius may change
GROUND = 0.022  # mean absolute change of the ground; of 200 reconstructions by the autoencoder one changes more
HALO = 3.0  # pixels around a thing that are not counted as ground
GHOST = 0.05  # mean difference from the ground where a thing went away

Things = Sequence[Thing | None]


@dataclass(frozen=True)
class Verdict:
    done: bool
    kept: bool
    ground: bool

    @property
    def exact(self) -> bool:
        return self.done and self.kept and self.ground

    @property
    def soft(self) -> float:
        """The share that holds; 1 only where all do."""
        return (self.done + self.kept + self.ground) / 3


@dataclass(frozen=True)
class Task:
    """An instruction understood from a source: which of its things are edited, and the scene to compare with."""

    asked: world.Instruction
    before: Scene
    edited: tuple[int, ...]  # places in `before`; none to add a thing

    @property
    def others(self) -> list[Thing]:
        return [thing for i, thing in enumerate(self.before) if i not in self.edited]

    @property
    def results(self) -> int:
        """How many things the edited ones become."""
        return {"remove": 0, "swap": 2}.get(self.asked.kind, 1)


def understand_instruction(text: str, source: Tensor) -> Task | None:
    """What a text asks of a source [3,64,64]. None for text outside the grammar, and where it names no single thing of
    the source."""
    asked, things = world.parse_instruction(text), read_picture(source)
    before = tuple(thing for thing in things if thing is not None)
    if asked is None or len(before) < len(things):
        return None
    if asked.kind == "add":
        return Task(asked, before, ())
    places = [world.find_thing(before, noun) for noun in (asked.noun, asked.other) if noun]
    edited = tuple(place for place in places if place is not None)
    return Task(asked, before, edited) if len(set(edited)) == len(places) else None


def judge_edit(task: Task, source: Tensor, image: Tensor) -> Verdict:
    """Verdict on a result, both [3,64,64] in [0,1]. Things are matched so that most of it holds."""
    seen = read_picture(image)
    done, kept = judge_things(task, seen)
    return Verdict(done, kept, judge_ground(task.before, task.edited, source, image, seen))


def judge_ground(before: Scene, edited: Sequence[int], source: Tensor, image: Tensor, seen: Things) -> bool:
    """Whether the ground away from all things is as it was, and nothing shines through where an edited thing was;
    seen: the things of the result."""
    covered = [thing for thing in seen if thing is not None]
    away = ~_around([*before, *covered], HALO)
    change = (image - source).abs().mean(0)[away]
    is_same = not len(change) or change.mean().item() < GROUND
    return is_same and not _has_ghost(before, edited, source, image, covered)


def _around(things: Sequence[Thing], halo: float) -> Tensor:
    """[64,64] bool: the bounding boxes of things, wider by `halo`."""
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    axis = torch.arange(SIZE) + 0.5
    for thing in things:
        reach = thing.r * EXTENT[thing.shape] + halo
        inside |= ((axis - thing.x).abs() < reach) & ((axis - thing.y).abs() < reach)[:, None]
    return inside


def _has_ghost(before: Scene, edited: Sequence[int], source: Tensor, image: Tensor, covered: Sequence[Thing]) -> bool:
    """Whether something still shines through where an edited thing was and nothing is now."""
    ground = _continue_ground(source, ~_around(before, HALO))
    free = ~_around(covered, HALO)
    for old in (before[i] for i in edited):
        left = _around([old], 0.0) & free
        if left.sum() > SPECK and (image - ground).abs().mean(0)[left].mean() > GHOST:
            return True
    return False


def _continue_ground(source: Tensor, known: Tensor) -> Tensor:
    """[3,64,64]: the ground of a source behind its things: the plane through the pixels where it is seen."""
    ramp = torch.linspace(-1, 1, SIZE)
    planes = torch.stack([torch.ones(SIZE, SIZE), ramp.expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE)], -1)
    weights = torch.linalg.lstsq(planes[known], source[:, known].T.float()).solution  # [3 of a plane,3 channels]
    return (planes @ weights).permute(2, 0, 1)


def judge_things(task: Task, seen: Things) -> tuple[bool, bool]:
    """(done, kept) of what is seen in a result."""
    others, n = task.others, task.results
    if len(seen) != len(others) + n:
        return n > 0 and any(_is_done(task, things) for things in itertools.permutations(seen, n)), False
    verdicts = []
    for things in itertools.permutations(seen):
        kept = all(map(_is_same, others, things))
        verdicts.append((n == 0 or _is_done(task, things[len(others) :]), kept))
    return max(verdicts, key=lambda pair: (sum(pair), pair), default=(True, True))


def _is_same(old: Thing, new: Thing | None, near: float = NEAR) -> bool:
    return (
        new is not None
        and (new.shape, new.colour, new.size) == (old.shape, old.colour, old.size)
        and max(abs(new.x - old.x), abs(new.y - old.y)) <= near
        and abs(new.r - old.r) <= WIDTH
    )


def _is_done(task: Task, new: Things) -> bool:
    """Whether the things that stand for the edited ones (for the added one) are what was asked."""
    if any(thing is None for thing in new):
        return False
    asked, old = task.asked, [task.before[i] for i in task.edited]
    first = new[0]
    assert first is not None
    if asked.kind == "add":
        dx, dy = world.PLACES[asked.to]
        return asked.noun.matches(first) and (first.x - SIZE / 2) * dx + (first.y - SIZE / 2) * dy > 0
    if asked.kind == "swap":
        places = zip(old, old[::-1], new, strict=True)
        return all(_is_same(replace(t, x=other.x, y=other.y), now, NEAR + 1) for t, other, now in places)
    (thing,) = old
    if asked.kind == "move":
        dx, dy = world.DIRECTIONS[asked.to]
        along = (first.x - thing.x) * dx + (first.y - thing.y) * dy
        across = abs((first.x - thing.x) * dy) + abs((first.y - thing.y) * dx)
        return _is_same(replace(thing, x=first.x, y=first.y), first) and along >= world.STEP / 2 and across <= NEAR + 1
    wanted = {
        "recolour": replace(thing, colour=asked.to),
        "resize": replace(thing, size=asked.to, r=first.r),
        "reshape": replace(thing, shape=asked.to, r=first.r),
    }[asked.kind]
    return _is_same(wanted, first, NEAR + 1)


class EditOracle:
    """1 where the instruction was carried out and all else is as it was, else 0; NaN for a text that is not of this
    world or names no single thing of the source, and for pixels that are not finite."""

    spec = RewardSpec(
        name="edit_oracle",
        version="1",
        modalities=frozenset({"image"}),
        differentiable=False,
        needs=frozenset({"prompt", "source"}),
        typical=(0.0, 1.0),
        licence="Apache-2.0",
        bounds=(0.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32. Raises BadInput without `references`, the sources, and for pictures that are not 64 x 64 RGB."""
        if references is None:
            raise BadInput(f"{self.spec.name} compares with what was edited: give each prompt its source")
        for what in (media, references):
            if what.data.shape[1:] != (3, SIZE, SIZE):
                raise BadInput(f"{self.spec.name} reads pictures of 3 x 64 x 64, not {tuple(what.data.shape[1:])}")
        rows = zip(media.data.detach(), prompts, references.data.detach(), strict=True)
        values = [self._score_edit(image, prompt, source.to(image)) for image, prompt, source in rows]
        return torch.tensor(values, dtype=torch.float32)

    def _score_edit(self, image: Tensor, prompt: str, source: Tensor) -> float:
        if not (torch.isfinite(image).all() and torch.isfinite(source).all()):
            return float("nan")
        task = understand_instruction(prompt, source)
        return self._value_of(judge_edit(task, source, image)) if task else float("nan")

    def _value_of(self, verdict: Verdict) -> float:
        return float(verdict.exact)

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.instruction_kind(prompt) for prompt in prompts]


class EditOracleSoft(EditOracle):
    """The share of done, kept and ground that holds; 1 only where `EditOracle` says 1."""

    spec = replace(EditOracle.spec, name="edit_oracle_soft")

    def _value_of(self, verdict: Verdict) -> float:
        return verdict.soft


class EditDone(EditOracle):
    """1 where the named thing has the asked change and no other, whatever else happened."""

    spec = replace(EditOracle.spec, name="edit_done")

    def _value_of(self, verdict: Verdict) -> float:
        return float(verdict.done)


class EditKept(EditOracle):
    """1 where every other thing and the ground are as they were, whether or not the instruction was carried out."""

    spec = replace(EditOracle.spec, name="edit_kept")

    def _value_of(self, verdict: Verdict) -> float:
        return float(verdict.kept and verdict.ground)


class EditGround(EditOracle):
    """1 where the ground away from all things is as it was, and nothing shines through where a thing went away as the
    text asked. Any text will do."""

    spec = replace(EditOracle.spec, name="edit_ground", needs=frozenset({"source"}))

    def _score_edit(self, image: Tensor, prompt: str, source: Tensor) -> float:
        if not (torch.isfinite(image).all() and torch.isfinite(source).all()):
            return float("nan")
        task = understand_instruction(prompt, source)
        before = task.before if task else tuple(t for t in read_picture(source) if t is not None)
        return float(judge_ground(before, task.edited if task else (), source, image, read_picture(image)))
