"""Reads a clip of the video world back, frame by frame, and says whether it shows exactly what a prompt asks for.

Each frame is read by the picture oracle; the things of one noun make a track; a track's motion is the straight line
that fits its centres best. No learning and no torch graph.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.starter.image import world as image_world
from pipelines.starter.image.oracle import read_picture
from pipelines.starter.video import world
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec

MOVES = 8.0  # pixels from the first frame to the last from which a thing moves
FAST = 23.0  # and from which it moves quickly
DRIFT = 3.5  # what a thing that should stay may drift; what a straight path may bend
SLANT = 0.3  # how far a moving thing may go sideways, as a share of its way
STEADY = 1.28  # ratio of radii within which a size counts as unchanged
GROWN = 1.32  # and from which it has changed
CROSSED = 16.0  # pixels that each of two must go to have passed the other
ENDS = 2  # frames at either end in which a colour that turns must be the old one, the new one

LAPSES = 2  # frames in which a thing may be no clean shape, or have a speck beside it

Frame = Sequence[image_world.Thing | None]
Track = list[image_world.Thing | None]  # one thing a frame; None where it is not found


@dataclass(frozen=True)
class Judgement:
    exact: bool
    soft: float  # how far the requirements are met, at most 0.95 unless exact


@dataclass(frozen=True)
class Motion:
    """The straight line through a track's centres: way from the first frame to the last, largest distance from the
    line, and the ratio of the last frames' radius to the first ones'."""

    way: tuple[float, float]
    bend: float
    growth: float


def read_clip(clip: Tensor) -> list[Frame]:
    """[T,3,64,64] in [0,1] -> what is seen in each frame. Needs finite pixels."""
    return [read_picture(frame) for frame in clip]


def track_things(frames: Sequence[Frame], nouns: Sequence[tuple[str, str]], turns: str | None = None) -> list[Track]:
    """For each noun its thing in every frame: the assignment that agrees best in shape, then in colour."""
    out: list[Track] = [[] for _ in nouns]
    for frame in frames:
        slots = [*frame, *[None] * len(nouns)]
        best = max(itertools.permutations(slots, len(nouns)), key=lambda pick: _agreement_score(pick, nouns, turns))
        for track, thing, (_, shape) in zip(out, best, nouns, strict=True):
            track.append(thing if thing is not None and thing.shape == shape else None)
    return out


def _agreement_score(
    pick: Sequence[image_world.Thing | None], nouns: Sequence[tuple[str, str]], turns: str | None
) -> float:
    pairs = [(t, n) for t, n in zip(pick, nouns, strict=True) if t is not None]
    return sum((t.shape == shape) + 0.5 * (t.colour in (colour, turns)) for t, (colour, shape) in pairs)


def fit_motion(track: Track) -> Motion | None:
    """None for a track that is found in fewer than three frames."""
    sightings = [(k, t) for k, t in enumerate(track) if t is not None]
    if len(sightings) < 3:
        return None
    time = np.array([k for k, _ in sightings]) / (len(track) - 1)
    centres = np.array([(t.x, t.y) for _, t in sightings])
    slope, start = np.polyfit(time, centres, 1)
    bend = float(np.linalg.norm(centres - start - time[:, None] * slope, axis=1).max())
    radii = np.array([t.r for _, t in sightings])
    growth = float(radii[-ENDS:].mean() / radii[:ENDS].mean())
    return Motion((float(slope[0]), float(slope[1])), bend, growth)


def _closeness(value: float, low: float, high: float, scale: float) -> float:
    """1 within [low, high], falling to 0 at `scale` outside of it."""
    return float(np.clip(1 - max(low - value, value - high) / scale, 0, 1))


def _straightness(m: Motion, direction: tuple[int, int], low: float, high: float = np.inf) -> list[float]:
    """How far a way in that direction, of such a length, is met: direction, length, straightness."""
    along = m.way[0] * direction[0] + m.way[1] * direction[1]
    side = abs(m.way[0] * direction[1]) + abs(m.way[1] * direction[0])
    return [
        _closeness(along, MOVES, np.inf, MOVES) * _closeness(side, 0, max(DRIFT, SLANT * along), 8.0),
        _closeness(along, low, high, 10.0),
        _closeness(m.bend, 0, DRIFT, 8.0),
    ]


def _stillness(m: Motion) -> list[float]:
    return [_closeness(float(np.hypot(*m.way)), 0, DRIFT, 8.0) * _closeness(m.bend, 0, DRIFT, 8.0)]


def _size_change(m: Motion, change: str | None) -> float:
    if change is None:
        return _closeness(abs(np.log(m.growth)), 0, np.log(STEADY), 0.3)
    grown = np.log(m.growth) if change == "growing" else -np.log(m.growth)
    return _closeness(grown, np.log(GROWN), np.inf, np.log(GROWN))


def _passing_scores(a: Motion, b: Motion, first: Track, second: Track) -> list[float]:
    """Each goes its way along one axis, the other way round, and they change order on it."""
    axis = int(abs(a.way[1]) + abs(b.way[1]) > abs(a.way[0]) + abs(b.way[0]))
    sign = 1 if a.way[axis] > b.way[axis] else -1
    direction = (sign, 0) if axis == 0 else (0, sign)
    sightings = [(f, s) for f, s in zip(first, second, strict=True) if f is not None and s is not None]
    gaps = [(s.x - f.x, s.y - f.y)[axis] * sign for f, s in sightings] or [0.0]
    swapped = 0.5 * (gaps[0] > 0) + 0.5 * (gaps[-1] < 0)
    other = (-direction[0], -direction[1])
    return [*_straightness(a, direction, CROSSED), *_straightness(b, other, CROSSED), swapped]


def _motion_scores(need: world.Requirements, tracks: Sequence[Track]) -> list[float]:
    """How far each requirement on the motion is met, in [0,1]; 1 throughout only where all are."""
    moves = [motion for track in tracks if (motion := fit_motion(track)) is not None]
    if len(moves) < len(tracks):
        return [0.0]
    m = moves[0]
    if need.category == "pass":
        return [*_passing_scores(m, moves[1], *tracks), *(_size_change(each, None) for each in moves)]
    if need.direction:
        low, high = {None: (MOVES, np.inf), "slowly": (MOVES, FAST), "quickly": (FAST, np.inf)}[need.speed]
        return [*_straightness(m, world.DIRECTIONS[need.direction], low, high), _size_change(m, None)]
    return [*_stillness(m), _size_change(m, need.change)]


def _flawless_share(flaws: Sequence[bool], excused: Sequence[bool]) -> float:
    """1 where every flaw is excused and at most LAPSES are, else the share of frames without one."""
    if all(e for f, e in zip(flaws, excused, strict=True) if f) and sum(flaws) <= LAPSES:
        return 1.0
    return 1 - sum(flaws) / len(flaws)


def _appearance_scores(track: Track, frames: Sequence[Frame], noun: tuple[str, str], turns: str | None) -> list[float]:
    """Shares of frames in which a thing has its shape and its colour. A frame is excused where the thing is there but
    no clean shape of one colour; on its way from one colour to another it may be so all the time."""
    colour, n = noun[0], len(frames)
    blurred = [t is None and None in frame for t, frame in zip(track, frames, strict=True)]
    is_absent = [t is None for t in track]
    if turns:
        is_absent = [
            m and not (b and ENDS <= k < n - ENDS) for k, (m, b) in enumerate(zip(is_absent, blurred, strict=True))
        ]
    first, last = track[:ENDS], track[-ENDS:]
    required = [(t, colour) for t in (first if turns else track)] + [(t, turns) for t in last if turns]
    colour_hits = [t.colour == c for t, c in required if t is not None]
    return [_flawless_share(is_absent, blurred), sum(colour_hits) / len(colour_hits) if colour_hits else 0.0]


def compare_with_prompt(frames: Sequence[Frame], need: world.Requirements) -> Judgement:
    """Exact: the things asked for and nothing else, in their colours, doing what is asked, in every frame but for
    LAPSES: so many frames may have a thing that is no clean shape, or a speck beside it. None may lack one."""
    tracked = track_things(frames, need.nouns, need.turns)
    miscounted = [len(frame) != len(need.nouns) for frame in frames]
    specked = [
        len(frame) > len(need.nouns) and frame.count(None) >= len(frame) - len(need.nouns) and None not in things
        for frame, things in zip(map(list, frames), zip(*tracked, strict=True), strict=True)
    ]
    units = [_flawless_share(miscounted, specked)]
    for track, noun in zip(tracked, need.nouns, strict=True):
        units += _appearance_scores(track, frames, noun, need.turns)
    units += _motion_scores(need, tracked)
    exact = min(units) == 1.0
    return Judgement(exact, 1.0 if exact else min(sum(units) / len(units), 0.95))


class VideoOracle:
    """1 where the clip shows exactly what the prompt asks for, else 0 (see `compare_with_prompt`); NaN for a prompt
    that is not of the video world or for pixels that are not finite."""

    spec = RewardSpec(
        name="oracle_video",
        version="1",
        modalities=frozenset({"video"}),
        differentiable=False,
        needs=frozenset({"prompt"}),
        typical=(0.0, 1.0),
        licence="Apache-2.0",
        bounds=(0.0, 1.0),
    )

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        """[B] float32. Raises BadInput for anything but clips of 9 frames of 64 x 64 RGB."""
        shape = (world.FRAMES, 3, world.SIZE, world.SIZE)
        if media.modality != "video" or tuple(media.data.shape[1:]) != shape:
            size = tuple(media.data.shape[1:])
            raise BadInput(f"{self.spec.name} reads video of 9 x 3 x 64 x 64, not {media.modality} of {size}")
        if not self.spec.needs:
            prompts = [""] * len(media)
        rows = zip(media.data.detach().float().cpu(), prompts, strict=True)
        return torch.tensor(
            [self._score_clip(clip, world.parse_prompt(prompt)) for clip, prompt in rows], dtype=torch.float32
        )

    def _score_clip(self, clip: Tensor, need: world.Requirements | None) -> float:
        if need is None or not torch.isfinite(clip).all():
            return float("nan")
        return self._value_of(compare_with_prompt(read_clip(clip), need))

    def _value_of(self, judgement: Judgement) -> float:
        return float(judgement.exact)

    def categories(self, prompts: Sequence[str]) -> list[str]:
        return [world.prompt_category(prompt) for prompt in prompts]


class VideoOracleSoft(VideoOracle):
    """How far the clip meets the prompt's requirements, the mean over them: how many things, their shapes and colours
    as shares of frames, and their motion by degrees. 1 only where `VideoOracle` says 1, else at most 0.95."""

    spec = replace(VideoOracle.spec, name="oracle_video_soft")

    def _value_of(self, judgement: Judgement) -> float:
        return judgement.soft


def _centre_distance(a: image_world.Thing, b: image_world.Thing) -> float:
    return float(np.hypot(a.x - b.x, a.y - b.y))


def mean_travel(frames: Sequence[Frame]) -> float:
    """How far the outlines of what is seen go from the first frame to the last, in pixels: a thing's way and its change
    of radius, the mean over things.

    Things are followed from frame to frame by where they were; NaN where none can be.
    """
    sightings = [[t for t in frame if t is not None] for frame in frames]
    if not sightings[0] or not sightings[-1]:
        return float("nan")
    ways = []
    for first in sightings[0]:
        last = first
        for frame in sightings[1:]:
            last = min(frame, key=functools.partial(_centre_distance, last), default=last)
        ways.append(_centre_distance(first, last) + abs(last.r - first.r))
    return sum(ways) / len(ways)


class DynamicDegree(VideoOracle):
    """How much really moves, read back exactly: way and growth of the things from the first frame to the last, in
    percent of the picture's side. Flicker and noise are none of it, unlike in `motion`; NaN where there is nothing to
    follow."""

    spec = replace(VideoOracle.spec, name="dynamic_degree", needs=frozenset(), typical=(0.0, 55.0))

    def _score_clip(self, clip: Tensor, need: world.Requirements | None) -> float:
        return 100 * mean_travel(read_clip(clip)) / world.SIZE if torch.isfinite(clip).all() else float("nan")
