"""Every reward there is: the reward library, and the exact oracles of the starter worlds."""

from __future__ import annotations

from typing import Any

from pipelines.starter import ORACLES
from rewards import REWARDS


def all_rewards() -> dict[str, type]:
    return REWARDS | {oracle().spec.name: oracle for oracle in ORACLES}


def is_starter_reward(cls: Any) -> bool:
    """Whether a reward, given by its class, knows the starter pack's worlds and no other."""
    return issubclass(cls, ORACLES) or "starter:" in cls.spec.weights
