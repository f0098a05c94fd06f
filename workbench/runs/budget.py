"""Costs and budgets: denoiser rows, samples scored, seconds, peak memory. Comparisons are made at equal cost."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.core.errors import BadInput
from workbench.core.types import NonNegative


@dataclass
class Cost:
    """What a method used. Costs add up, but for the peak memory, of which the larger one stays."""

    nfe: int = 0  # rows through the denoiser; a CFG pair counts as 2, a backward pass is not counted
    reward_calls: int = 0  # samples that the optimised reward scored for the method
    decodes: int = 0  # rows decoded
    seconds: float = 0.0  # of the method itself: without loading, held-out rewards and writing files
    peak_mb: float = 0.0  # GPU memory allocated, or this process's resident memory where there is no GPU

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.nfe + other.nfe,
            self.reward_calls + other.reward_calls,
            self.decodes + other.decodes,
            self.seconds + other.seconds,
            max(self.peak_mb, other.peak_mb),
        )


@dataclass(frozen=True)
class Budget:
    """The most that a contestant may use per sample. Seconds are those of a batch, divided by its rows."""

    nfe: NonNegative | None = None  # rows through the denoiser, a CFG pair counting as 2
    seconds: NonNegative | None = None

    def check_limits(self) -> Budget:
        """The budget itself. Raises BadInput unless at least one limit is positive."""
        if not (self.nfe or self.seconds):
            raise BadInput("budget: give nfe or seconds, greater than 0")
        return self

    def would_exceed(self, before: Cost, after: Cost, rows: int) -> bool:
        """Whether another step like the last one, from cost `before` to `after`, would exceed the budget of `rows`."""
        return any(
            limit is not None and 2 * getattr(after, unit) - getattr(before, unit) > limit * rows
            for unit, limit in (("nfe", self.nfe), ("seconds", self.seconds))
        )

    def __str__(self) -> str:
        return " and ".join(f"{v:g} {u}" for u, v in (("denoiser rows", self.nfe), ("seconds", self.seconds)) if v)


class Meter:
    """Adds up the cost of the code in its `with` blocks, as counted by a policy and a CountedReward."""

    def __init__(self, policy, reward):
        self.policy, self.reward, self.cost = policy, reward, Cost()
        self.cut = False  # whether the budget ended the method early
        self.gpu = policy.device.type == "cuda"

    def __enter__(self):
        _reset_peak(self.gpu)
        self._start = (self.policy.nfe, self.reward.samples_scored, self.policy.decodes, time.perf_counter())
        return self

    def __exit__(self, *_):
        if self.gpu:
            torch.cuda.synchronize()
        nfe, samples_scored, decodes, start = self._start
        self.cost += Cost(
            self.policy.nfe - nfe,
            self.reward.samples_scored - samples_scored,
            self.policy.decodes - decodes,
            time.perf_counter() - start,
            _peak_mb(self.gpu),
        )


def _reset_peak(gpu: bool) -> None:
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        except OSError:  # a locked-down container: the peak is then that of the whole process so far
            return


def _peak_mb(gpu: bool) -> float:
    if gpu:
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
