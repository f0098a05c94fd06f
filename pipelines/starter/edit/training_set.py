"""What the editor learns from: families of one source and three edits of it, encoded once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL
from rich.progress import track
from torch import Tensor

from pipelines.starter.edit import world
from pipelines.starter.image.autoencoder import encode_pictures
from pipelines.starter.resumable_training import Draw, save_atomically

EDITS = 3  # of each source
PART = 500  # families encoded at a time


@dataclass(frozen=True)
class TrainingEdit:
    """Rows of the source's and the target's latents, and every way to say what leads from one to the other."""

    source: int
    target: int
    kind: str
    wordings: tuple[str, ...]


def random_family(rng: random.Random) -> list[world.Edit]:
    """Three edits of one source, none of them held out."""
    while True:
        scene = world.random_scene(rng, things=rng.choice((1, 2, 2, 2, 3)))
        edits: list[world.Edit] = []
        kinds = rng.sample(world.KINDS, len(world.KINDS))
        if rng.random() < 0.6:  # what is added leads no other edit back, so it would be rare
            kinds = ["add", *kinds]
        for kind in kinds:
            asked = world.random_instruction(scene, kind, rng)
            if after := world.edit_scene(scene, asked):
                edit = world.Edit(asked, scene, after)
                edits += [edit] if world.may_train_on(edit) and edit not in edits else []
            if len(edits) == EDITS:
                return edits


def family_edits(family: Sequence[world.Edit], first: int) -> list[TrainingEdit]:
    """The edits of a family and those that lead back, where they may be trained on; its latents are rows `first`, the
    source's, and the three after it, the targets'."""
    there = [(first, first + k, edit) for k, edit in enumerate(family, start=1)]
    back = [(target, source, world.undo_edit(edit)) for source, target, edit in there]
    return [
        TrainingEdit(source, target, edit.instruction.kind, tuple(world.instruction_wordings(edit)))
        for source, target, edit in (*there, *back)
        if edit and world.may_train_on(edit)
    ]


def render_families(families: Sequence[Sequence[world.Edit]], generator: torch.Generator) -> Tensor:
    """[F,1 + EDITS,3,64,64]: each source and its targets, all on one ground."""
    columns = [[family[0].before for family in families]]
    columns += [[family[k].after for family in families] for k in range(EDITS)]
    return torch.stack(world.render_on_one_ground(columns, generator), 1)


def encode_training_set(
    folder: Path, vae: AutoencoderKL, *, seed: int, families: int
) -> tuple[Tensor, list[TrainingEdit]]:
    """Latents [families x 4,4,16,16] in fp16, and the edits between them."""
    path = folder / "edit-latents.pt"
    parts: list[Tensor] = []
    edits: list[TrainingEdit] = []
    saved = torch.load(path, weights_only=True) if path.exists() else []
    for part, first in enumerate(track(range(0, families, PART), description="latents")):
        draw = Draw.at_step(seed, "edit bank", part)
        drawn = [random_family(draw.python) for _ in range(min(PART, families - first))]
        for k, family in enumerate(drawn):
            edits += family_edits(family, (first + k) * (1 + EDITS))
        if part < len(saved):
            parts.append(saved[part])
            continue
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(encode_pictures(vae, render_families(drawn, draw.torch).flatten(0, 1)).half())
        if part % 5 == 4 or first + PART >= families:
            save_atomically(parts, path)
    return torch.cat(parts), edits
