"""What methods share that climb a reward by its gradient: the update, and what an event says of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Event, Media, NonNegative, Reward, TrainablePolicy
from workbench.methods.common.method import MethodDefaults

NEEDS = frozenset({"trainable", "latents", "reward", "differentiable"})


@dataclass(frozen=True)
class GradientMethod(MethodDefaults):
    """One that sends the reward's gradient into the weights."""

    lr: NonNegative = 1e-5  # step size of AdamW

    needs = NEEDS


def ascend_reward(
    policy: TrainablePolicy,
    reward: Reward,
    media: Media,
    batch: Batch,
    threshold: float = torch.inf,
    share: float = 1.0,
) -> Tensor:
    """[B], detached: the rewards of media, whose mean, up to `threshold`, has been sent backward. NaN takes no part."""
    r = reward(media=media, prompts=batch.prompts)
    finite = r.detach().isfinite()
    if (rows := finite & (r.detach() < threshold)).any():
        policy.backward(-r[rows].sum() * share / finite.sum())
    return r.detach().where(finite, torch.nan)


def update_event(policy: TrainablePolicy, k: int, batch: Batch, media: Media, r: Tensor, **metrics: float) -> Event:
    """The update, and the event of batch k."""
    metrics = {"reward": r.nanmean().item(), "grad_norm": policy.update(), **metrics}
    return Event(k, metrics, media.detach(), batch.prompts, batch.seeds, {"reward": r})
