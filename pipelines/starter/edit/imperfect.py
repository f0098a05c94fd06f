"""Deliberately imperfect edits with their scores: what a model learns from that is told how good each example is.

Of each instruction and source several results: a third of them right, the others right in part. Three axes, 0 to 5:
*done*, how far the instruction was carried out; *kept*, how far the other things are as they were; *ground*, how near
the ground is to the source's. A result between two levels is a blend of two pictures, or a ground that is off by so
much. A few are near misses of negatives.py, scored by the oracle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from pipelines.starter.edit import negatives, world
from pipelines.starter.edit.oracle import judge_edit, understand_instruction
from pipelines.starter.edit.training_set import random_family
from pipelines.starter.resumable_training import Draw
from workbench.core.errors import BadInput
from workbench.core.io.media import write_media
from workbench.core.paths import write_atomic
from workbench.core.types import Media

BEST = 5
EDITS, RESULTS = 1750, 4  # results: of each edit
AXES = ("done", "kept", "ground")
RIGHT, MISSES = 0.35, 0.1  # shares of results that are right in all, and that are near misses
FAULTY = (1, 1, 1, 2, 2, 3)  # how many axes the others are wrong in
GROUND_STEP = 0.04  # mean change of the ground a level; the oracle's tolerance is 0.022
DRIFT = torch.tensor([1.0, 1.0, -1.0])[:, None, None]  # of a ground: to yellow
OTHERS = ("moved", "other")  # near misses that are no blend
PART = 64  # edits that are rendered together


@dataclass(frozen=True)
class ImperfectEdit:
    """A result of an edit: its level on each axis, or the near miss that it is; `extra` is the target with one thing
    more changed."""

    edit: world.Edit
    levels: tuple[int, int, int]
    extra: negatives.Result
    miss: negatives.Result | None = None


def write_imperfect_edits(folder: Path, *, edits: int = EDITS, results: int = RESULTS, seed: int = 0) -> int:
    """Write a folder of sources and results with their metadata.jsonl (file_name, text, source, scores); returns how
    many results. None of the edits is held out. Raises BadInput for a folder that has metadata already."""
    if (folder / "metadata.jsonl").exists():
        raise BadInput(f"{folder}: has a metadata.jsonl already, and nothing is written over; name another folder")
    for name in ("sources", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for first in track(range(0, edits, PART), description="imperfect edits"):
        draw = Draw.at_step(seed, "imperfect edits", first)
        drawn = [draw.python.choice(random_family(draw.python)) for _ in range(min(PART, edits - first))]
        texts = [draw.python.choice(world.instruction_wordings(edit)) for edit in drawn]
        ground = draw.torch.get_state()
        for n in range(results):
            draw.torch.set_state(ground)  # all results of a source are on its ground
            spoilt = [spoil_edit(edit, draw.python) for edit in drawn]
            sources, pictures = render_imperfect(spoilt, draw.torch)
            for k, (text, result) in enumerate(zip(texts, spoilt, strict=True)):
                source, name = f"sources/{first + k:05d}.png", f"results/{first + k:05d}-{n}.png"
                if not n:
                    write_media(Media(sources[k : k + 1], "image"), folder / source)
                write_media(Media(pictures[k : k + 1], "image"), folder / name)
                scores = score_result(text, result, sources[k], pictures[k])
                rows.append({"file_name": name, "text": text, "source": source, "scores": scores})
    write_atomic(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def spoil_edit(edit: world.Edit, rng: random.Random) -> ImperfectEdit:
    """A random result of an edit: right, right in part, or a near miss."""
    share, extra = rng.random(), None
    while extra is None:
        extra = negatives.near_miss(edit, "extra", rng)
    if share < RIGHT:
        return ImperfectEdit(edit, (BEST, BEST, BEST), extra)
    if share < RIGHT + MISSES:
        miss = negatives.near_miss(edit, rng.choice(OTHERS), rng)
        if miss is not None:
            return ImperfectEdit(edit, (BEST, BEST, BEST), extra, miss)
    faulty = rng.sample(AXES, rng.choice(FAULTY))
    done, kept, ground = (rng.randrange(BEST) if axis in faulty else BEST for axis in AXES)
    return ImperfectEdit(edit, (done, kept, ground), extra)


def render_imperfect(results: Sequence[ImperfectEdit], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sources and results [B,3,64,64], each pair on one ground."""
    scenes = [
        [r.edit.before for r in results],
        [r.edit.after for r in results],
        [r.extra.scene for r in results],
        [r.miss.scene if r.miss else r.edit.after for r in results],
    ]
    source, target, extra, miss = world.render_on_one_ground(scenes, generator)
    done, kept, ground = torch.tensor([r.levels for r in results]).T[:, :, None, None, None] / BEST  # [B,1,1,1] each
    shift = DRIFT * GROUND_STEP * BEST * (1 - ground)
    picture = source + done * (target - source) + (1 - kept) * (extra - target) + shift
    is_miss = torch.tensor([r.miss is not None for r in results])[:, None, None, None]
    return source, torch.where(is_miss, miss, picture).clamp(0, 1)


def score_result(text: str, result: ImperfectEdit, source: Tensor, picture: Tensor) -> dict[str, int]:
    """Axis -> level: as it was made, or by the oracle for a near miss."""
    if result.miss is None:
        return dict(zip(AXES, result.levels, strict=True))
    task = understand_instruction(text, source)
    assert task is not None  # the instruction was made for this source
    verdict = judge_edit(task, source, picture)
    return {axis: BEST * int(getattr(verdict, axis)) for axis in AXES}
