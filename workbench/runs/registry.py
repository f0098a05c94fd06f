"""The registry of all rewards: the reward library, and the exact oracles of the starter worlds."""

from __future__ import annotations

from typing import Any

from pipelines.starter import ORACLES
from rewards import REWARDS


def all_rewards() -> dict[str, type]:
    """Name -> class."""
    return REWARDS | {oracle().spec.name: oracle for oracle in ORACLES}


def is_starter_reward(cls: Any) -> bool:
    """Whether a reward, given by its class, works on samples of the starter pack's models only."""
    return issubclass(cls, ORACLES) or "starter:" in cls.spec.weights
