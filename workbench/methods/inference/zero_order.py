"""Zero-order search over initial noises. Ma et al. 2025, arXiv:2501.09732, section 3.2.

A hill climber that asks the reward for values only: around the pivot noise, candidates are drawn at a fixed distance;
the one that the reward likes best becomes the next pivot. The paper leaves the distance open. Here a candidate is the
pivot turned by a fixed angle towards a random direction, so its norm, and with it its plausibility as Gaussian noise,
is kept exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Natural, NonNegative, Policy, Reward, derive_seed
from workbench.methods.common.best_sample import BestSample
from workbench.methods.common.method import MethodDefaults


@dataclass(frozen=True)
class ZeroOrder(MethodDefaults):
    """Zero-order search (arXiv:2501.09732): hill climbing over noises of one norm, for any reward."""

    iterations: Natural = 12  # moves of the pivot; a pivot that no neighbour beats stays
    neighbours: Count = 4  # candidates around the pivot in each iteration
    angle: NonNegative = 18.0  # degrees between the pivot and a neighbour; 90 makes them independent

    needs = frozenset({"latents", "reward"})
    scales = "iterations"
    scales_in_turns = True
    paper = "arXiv:2501.09732"
    measured = "no difference from best_of_n shown at equal calls on a one-step model, worse on eight steps"

    def calls(self, steps: int) -> int:
        return (1 + self.iterations * self.neighbours) * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            pivot, best, last = policy.noise(batch.seeds), BestSample(batch), self.iterations * self.neighbours
            for step in range(last + 1):
                z = pivot  # [B,*latent]; the first candidate is the base sample itself
                if step:
                    towards = policy.noise([derive_seed(s, "neighbour", step) for s in batch.seeds])
                    z = rotate_towards(pivot, towards, self.angle)
                media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z).media
                best.take(media, reward(media=media, prompts=batch.prompts), z)
                if step % self.neighbours == 0 and best.latents is not None:
                    pivot = best.latents
                yield best.event(step, final=step == last)


def rotate_towards(z: Tensor, towards: Tensor, angle: float) -> Tensor:
    """[B,*latent]: each row of z turned by `angle` degrees into the plane that it spans with the row of `towards`."""
    row, w = z.flatten(1), towards.flatten(1)
    norm = row.norm(dim=1, keepdim=True)  # [B,1]
    w = w - (w * row).sum(1, keepdim=True) / norm.square() * row
    w = w / w.norm(dim=1, keepdim=True)
    turn = math.radians(angle)
    return (math.cos(turn) * row + math.sin(turn) * norm * w).view_as(z)
