"""The processes that `accelerate launch` starts together; without it there is one."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# How long they wait for each other: one may write a large checkpoint, or call a slow reward. NCCL's default is 10 min.
PATIENCE = timedelta(hours=3)


def count_processes() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the first process, the one that writes."""
    return process_rank() == 0


def join_processes(device: torch.device) -> Any:
    """Join the process group, an accelerate.PartialState; sets each process's current GPU."""
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
