"""The base of methods that fine-tune by the reward's gradient: loss, update and event."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Event, Media, NonNegative, Reward, TrainablePolicy
from workbench.methods.common.method import MethodDefaults

NEEDS = frozenset({"trainable", "latents", "reward", "differentiable"})


@dataclass(frozen=True)
class GradientMethod(MethodDefaults):
    """A method that backpropagates the reward into the weights."""

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
    """Backpropagate -`share` times the mean of the finite rewards of media, those of `threshold` or more without
    gradient; returns the rewards [B], detached, NaN where not finite."""
    r = reward(media=media, prompts=batch.prompts)
    finite = r.detach().isfinite()
    if (rows := finite & (r.detach() < threshold)).any():
        policy.backward(-r[rows].sum() * share / finite.sum())
    return r.detach().where(finite, torch.nan)


def update_event(policy: TrainablePolicy, k: int, batch: Batch, media: Media, r: Tensor, **metrics: float) -> Event:
    """Make the optimiser step of batch k; returns its event."""
    metrics = {"reward": r.nanmean().item(), "grad_norm": policy.update(), **metrics}
    return Event(k, metrics, media.detach(), batch.prompts, batch.seeds, {"reward": r})
