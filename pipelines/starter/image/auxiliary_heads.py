"""Three auxiliary heads for training the reward model, one of them the generator's text encoder too; thrown away
after it.

Whether "left" is true of a picture depends on which of the two things was named first: a pure interaction, on which
learning from pairs alone sits at chance for thousands of steps (both sides must already hold half of the answer). The
heads ask each side for its half.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.starter.image import world
from pipelines.starter.image.negatives import Picture

SIDES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class AuxiliaryHeads(nn.Module):
    def __init__(self, patch: int, width: int = 128):
        super().__init__()
        self.patch = patch
        self.what = nn.Linear(width, 1 + len(world.SHAPES) * len(world.COLOURS))
        self.where = nn.Linear(width, 2 * (len(world.COLOURS) + len(world.SHAPES)))
        self.roles = nn.ModuleList(nn.Linear(width, n) for n in (len(SIDES), len(world.SHAPES), len(world.COLOURS)))

    def content_loss(self, patches: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """What is there: each patch token [I,64,W] names the shape and colour on which its centre lies."""
        labels = patch_labels(pictures, self.patch)
        return _cross_entropy(self.what(patches).flatten(0, 1), labels.flatten())

    def position_loss(self, pooled: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """Where it is: the pooled token [I,W] tells the centre of the only thing of a colour, of a shape. Squared
        error, in half picture sides."""
        targets = [
            (row, k, t.x * 2 / world.SIZE - 1, t.y * 2 / world.SIZE - 1)
            for row, picture in enumerate(pictures) if not picture.malformed
            for t in picture.scene for k in _unique_kinds(t, picture.scene)
        ]  # fmt: skip
        rows, kinds, x, y = zip(*targets, strict=True)
        predictions = self.where(pooled).unflatten(1, (-1, 2))[list(rows), list(kinds)]
        return (predictions - torch.tensor([x, y]).T).square().mean()

    def relation_loss(self, hidden: Tensor, texts: Sequence[str]) -> Tensor:
        """Who is on which side: in the text's tokens [T,16,W], the relation's word tells the side, shape and colour of
        the first thing, the last word those of the second."""
        roles = [role for row, text in enumerate(texts) for role in _relation_roles(row, text)]
        if not roles:
            return hidden.new_zeros(())
        rows, columns, *answers = map(list, zip(*roles, strict=True))
        at = hidden[rows, columns]
        losses = (
            _cross_entropy(head(at), torch.tensor(answer)) for head, answer in zip(self.roles, answers, strict=True)
        )
        return sum(losses, hidden.new_zeros(()))


def _cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """The mean over answers that are known (not -1); 0 if none is."""
    count = (answers >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, answers, ignore_index=-1, reduction="sum") / count


def _unique_kinds(thing: world.Thing, scene: world.Scene) -> list[int]:
    """Numbers of the thing's colour and of its shape, where no other thing of the scene shares it."""
    kinds = []
    if sum(t.colour == thing.colour for t in scene) == 1:
        kinds.append(world.COLOURS.index(thing.colour))
    if sum(t.shape == thing.shape for t in scene) == 1:
        kinds.append(len(world.COLOURS) + world.SHAPES.index(thing.shape))
    return kinds


def _relation_roles(row: int, text: str) -> list[tuple[int, int, int, int, int]]:
    """(row, token, side, shape, colour or -1) of both things of a text with a relation."""
    need, sides = world.parse_prompt(text), list(SIDES)
    if not (need and need.relation):
        return []
    words = text.split()
    tokens = (words.index(need.relation.split()[0]), len(words) - 1)
    roles = []
    for token, side, w in zip(tokens, (need.relation, SIDES[need.relation]), need.things, strict=True):
        colour = world.COLOURS.index(w.colour) if w.colour else -1
        roles.append((row, 1 + token, sides.index(side), world.SHAPES.index(w.shape), colour))
    return roles


def patch_labels(pictures: Sequence[Picture], patch: int) -> Tensor:
    """[I,64] int64: 0 ground, else 1 + shape x colour of the thing in which the patch centre lies; -1 unknown."""
    labels = torch.zeros(len(pictures), (world.SIZE // patch) ** 2, dtype=torch.long)
    centre = torch.arange(patch / 2, world.SIZE, patch)
    for row, picture in zip(labels, pictures, strict=True):
        for t in picture.scene:
            inside = (centre - t.x).square() + (centre[:, None] - t.y).square() < t.r**2
            kind = world.SHAPES.index(t.shape) * len(world.COLOURS) + world.COLOURS.index(t.colour)
            row[inside.flatten()] = 1 + kind
        if picture.malformed:
            row[:] = -1
    return labels
