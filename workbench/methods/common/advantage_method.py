"""Methods on the forward process that weigh samples by their advantages."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.common.forward_process import ForwardProcessMethod
from workbench.methods.common.rollout import Advantage


@dataclass(frozen=True)
class AdvantageMethod(ForwardProcessMethod):
    """A ForwardProcessMethod with a setting for how rewards become advantages."""

    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"
