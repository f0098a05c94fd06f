"""The processes that `accelerate launch` starts together; one is all there are without it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# For each other: one may write a large checkpoint, or wait for a judge. NCCL's own patience is 10 minutes.
PATIENCE = timedelta(hours=3)


def count_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return process_rank() == 0


def join_processes(device: torch.device) -> Any:
    """All of them, an accelerate.PartialState; each one's current GPU becomes its own."""
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
