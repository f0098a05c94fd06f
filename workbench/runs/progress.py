"""Progress reports of a run, and the scores of finished media: shared by sampling and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workbench.core.finite import score_finite
from workbench.core.inputs import stack_sources
from workbench.core.types import Event, Media
from workbench.runs.plan import Plan


@dataclass(frozen=True)
class Progress:
    """One report on a run, for the command line, the app and notebooks."""

    contestant: str
    batch: int  # in training: rounds done
    batches: int  # in training: rounds in all
    event: Event | None = None  # None: the batch was finished earlier
    folder: Path | None = None
    failed: str = ""  # why the contestant failed
    phase: str = "sample"  # or "train", "watch" (results of an evaluation in training), "message"
    note: str = ""  # the results or the message


@torch.no_grad()
def score_samples(plan: Plan, samples: Media, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Every reward of the run, optimised and held out, that scores samples, on finished media: name -> [B]. NaN for a
    sample that is not finite. Held-out ones that compare samples of a prompt are not asked here
    (workbench.engine.pairwise_watch)."""
    held_out = {n: r for n, r in plan.watch.rewards.items() if r.spec.scope != "group"} if plan.watch else {}
    everyone = plan.reward.rewards | held_out
    return {
        name: score_finite(r, media=samples, prompts=prompts, references=stack_sources(r, samples, prompts))
        for name, r in everyone.items()
        if r.spec.scope != "set"
    }


def json_number(value: torch.Tensor | float) -> float | None:
    """A number for a JSON file: rounded to 6 decimals; None if it isn't finite."""
    value = float(value)
    return round(value, 6) if np.isfinite(value) else None
