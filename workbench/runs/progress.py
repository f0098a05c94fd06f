"""What whoever watches a run is told, and how finished media are judged: shared by sampling and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workbench.core.types import Event, Media
from workbench.runs.plan import Plan


@dataclass(frozen=True)
class Progress:
    """What just happened, for whoever watches."""

    contestant: str
    batch: int  # or, in training, the updates that are done
    batches: int  # or, in training, the updates that were asked for
    event: Event | None = None  # None: the batch was finished earlier
    folder: Path | None = None
    failed: str = ""
    phase: str = "sample"  # or "train", "watch" (an evaluation under way), "told" (`note` has something to say)
    note: str = ""


@torch.no_grad()
def score_samples(plan: Plan, samples: Media, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Every reward of the run, optimised and held out, that scores samples, on finished media: name -> [B]."""
    everyone = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {n: r(media=samples, prompts=prompts) for n, r in everyone.items() if r.spec.scope != "set"}


def json_number(value: torch.Tensor | float) -> float | None:
    """As a JSON file keeps it."""
    value = float(value)
    return round(value, 6) if np.isfinite(value) else None
