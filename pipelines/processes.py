"""The processes that `accelerate launch` starts together; one is all there are without it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# For each other: one may write a large checkpoint, or wait for a judge. NCCL's own patience is 10 minutes.
PATIENCE = timedelta(hours=3)


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def leads() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def world(device: torch.device) -> Any:
    """All of them, an accelerate.PartialState; each one's current GPU becomes its own."""
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
