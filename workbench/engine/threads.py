"""How many threads torch works with. The starters' networks are tiny: two threads are half again as fast as one on two
free cores, but wait for each other after each of thousands of short operations, so that they are two to three times as
slow as one where another process takes one of the cores."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from workbench.runs.plan import Plan

CHOSEN_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
ROUNDS = 5
PATIENCE = 1.5  # seconds of measuring, after which one round has to do: where it takes longer, the cores are taken
SPIN = 0.02  # seconds after which a thread without work rests; until then it keeps a core busy
WORTH_IT = 0.9  # of one thread's time: more threads must stay below, or they gain nothing


def works_on_starters(plan: Plan) -> bool:
    """Whether all that a run samples and trains is of the starter packs, on the CPU."""
    on_cpu = plan.config.device == "cpu" or (plan.config.device == "auto" and not torch.cuda.is_available())
    return on_cpu and all(pipeline.repo.startswith("starter:") for pipeline in plan.pipelines.values())


def choose_threads(is_tiny: bool, recorded: int | None = None, measure: Callable | None = None) -> str:
    """Set torch's threads for the work that begins, and say why in one sentence; "" where they stay as they are.

    `is_tiny`: all its networks are of a starter on the CPU; for larger ones many threads are right whatever else the
    machine does. `recorded`: the number that this work began with, which it keeps, since the last digits of a result
    depend on it. Where the user chose a number in the environment, that one stays.
    """
    many = torch.get_num_threads()
    if not is_tiny or many == 1 or any(name in os.environ for name in CHOSEN_BY_USER):
        return ""
    if type(recorded) is int and 0 < recorded <= (os.cpu_count() or 1):
        torch.set_num_threads(recorded)
        return f"{recorded} thread{'s'[: recorded != 1]}, as this run began with" if recorded != many else ""
    seconds = (measure or time_in_turn)((1, many))
    ratio = seconds[many] / seconds[1]
    torch.set_num_threads(pick_count(many, ratio))
    if pick_count(many, ratio) == many:
        return ""
    return (
        f"one thread: beside what else works on this machine, {many} threads take {ratio:.1f} times as long as one; "
        "set OMP_NUM_THREADS to choose yourself"
    )


def describe_threads() -> str:
    """For `workbench doctor`: how many threads a starter would work with now, and why."""
    many = torch.get_num_threads()
    if name := next((name for name in CHOSEN_BY_USER if name in os.environ), ""):
        return f"{many}, as {name} says"
    if many == 1:
        return "1, for torch sees one core"
    seconds = time_in_turn((1, many))
    torch.set_num_threads(many)
    ratio = seconds[many] / seconds[1]
    return (
        f"{many} take {ratio:.2f} times as long as 1 at this moment, so a starter works with {pick_count(many, ratio)}"
    )


def pick_count(many: int, ratio: float) -> int:
    return many if ratio <= WORTH_IT else 1


def time_in_turn(counts: Sequence[int]) -> dict[int, float]:
    """Median seconds of a small network's forward and backward pass with each number of threads, measured in turn, so
    that a moment's disturbance reaches all. Takes about half a second; draws no random numbers."""
    network = nn.Sequential(*(m for _ in range(6) for m in (_convolution(32), nn.GroupNorm(8, 32), nn.SiLU())))
    x = torch.linspace(-1, 1, 8 * 32 * 16 * 16).view(8, 32, 16, 16)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    began = time.perf_counter()
    for _ in range(1 + ROUNDS):
        for count in counts:
            torch.set_num_threads(count)
            time.sleep(SPIN)
            started = time.perf_counter()
            for _ in range(3):
                network(x).sum().backward()
            seconds[count].append(time.perf_counter() - started)
        if time.perf_counter() - began > PATIENCE:
            break
    # the first round starts the threads, and counts only where it is the only one
    seconds = {count: values[1:] or values for count, values in seconds.items()}
    return {count: statistics.median(values) for count, values in seconds.items()}


def _convolution(width: int) -> nn.Module:
    layer = nn.utils.skip_init(nn.Conv2d, width, width, 3, padding=1)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.01)
    return layer
