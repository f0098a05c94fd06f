"""Every judge there is: the reward library, and the exact oracles of the starter worlds."""

from __future__ import annotations

from pipelines.starter import ORACLES
from rewards import REWARDS


def judges() -> dict[str, type]:
    return {**REWARDS, **{oracle.spec.name: oracle for oracle in ORACLES}}


def own(cls: type) -> bool:
    """Whether a reward knows the starter pack's worlds and no other."""
    return issubclass(cls, ORACLES) or "starter:" in cls.spec.weights
