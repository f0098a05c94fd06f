"""What the seam costs on a pipeline: against the plain public call, and its replayed step against one denoiser call.

    python benchmarks/seam.py [PIPELINE] [--batch 4] [--rounds 15] [--threads 1] [--json]

PIPELINE is a config, a folder or `tiny:FluxPipeline`. Contestants take turns, so that a busy machine slows all of them
alike; a cell is the median over the rounds, a ratio the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pipelines
from pipelines import seams


def load(name: str, device: str) -> pipelines.Policy:
    if name.startswith("tiny:"):
        import tiny

        return tiny.policy(name.removeprefix("tiny:"))
    return pipelines.load(name, device=device)


def contestants(policy: pipelines.Policy, batch: int) -> dict[str, Callable[[], Any]]:
    prompts, seeds = tuple(f"a red cat number {b}" for b in range(batch)), tuple(range(batch))
    noise = policy.noise(seeds)
    x, last = policy.sample(prompts, seeds=seeds).x, policy.steps - 1

    @torch.no_grad()
    def reencoded():
        policy.forget_prompts()
        return policy.sample(prompts, seeds=seeds)

    def differentiated():
        z = noise.clone().requires_grad_()
        policy.sample(prompts, seeds=seeds, noise=z, grad=policy.steps).media.data.sum().backward()

    found = {
        "plain pipeline call": lambda: policy.pipe(**policy.call_arguments(prompts, seeds)),
        "sample, prompts encoded anew": reencoded,
        "sample, prompts remembered": lambda: policy.sample(prompts, seeds=seeds),
        "sample with gradient to the noise": differentiated,
        "denoiser of one step": denoiser(policy, prompts),
        "first step replayed": torch.no_grad()(lambda: policy._model_output(x[:, 0], 0, prompts)),
        "last step replayed": torch.no_grad()(lambda: policy._model_output(x[:, last], last, prompts)),
        "decode": torch.no_grad()(lambda: policy.decode(x[:, -1], prompts)),
    }
    return found


def denoiser(policy: pipelines.Policy, prompts: tuple[str, ...]) -> Callable[[], Any]:
    """The denoiser calls of one step and nothing else, with the very arguments the pipeline gave them."""
    calls = []

    def on_call(call: seams.ModuleCall, forward: seams.Forward) -> Any:
        if call.step == 0 and call.module in policy.structure.denoisers:
            calls.append((forward, call.args, call.kwargs))
        return forward(*call.args, **call.kwargs)

    def on_step(step: seams.SchedulerStep) -> Any:
        raise seams.LeavePipeline()

    seams.run_pipeline(
        policy.pipe, policy.call_arguments(prompts, range(len(prompts))), on_call=on_call, on_step=on_step
    )

    @torch.no_grad()
    def run():
        for forward, args, kwargs in calls:
            forward(*args, **kwargs)

    return run


def clock() -> float:
    """Wall time where a GPU works, else this process's own CPU time, which other processes don't stretch."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    seconds = {name: [] for name in work}
    for turn in range(rounds + 2):  # the first two rounds warm up
        for name, do in random.sample(list(work.items()), len(work)):  # none always follows the same other
            start = clock()
            do()
            if turn >= 2:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], of: str, to: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", nargs="?", default="starter-image")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = load(options.pipeline, options.device)
    seconds = measure(contestants(policy, options.batch), options.rounds)
    ratios = {
        "sample / plain call": ratio(seconds, "sample, prompts encoded anew", "plain pipeline call"),
        "sample remembering prompts / plain call": ratio(seconds, "sample, prompts remembered", "plain pipeline call"),
        "encoded anew / remembered": ratio(seconds, "sample, prompts encoded anew", "sample, prompts remembered"),
        "with gradient / without": ratio(seconds, "sample with gradient to the noise", "sample, prompts remembered"),
        "first step replayed / its denoiser calls": ratio(seconds, "first step replayed", "denoiser of one step"),
        "last step replayed / its denoiser calls": ratio(seconds, "last step replayed", "denoiser of one step"),
    }
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    if options.json:
        print(
            json.dumps(
                {"pipeline": options.pipeline, "batch": options.batch, "ms": medians, "ratios": ratios}, indent=1
            )
        )
        return
    print(
        f"{options.pipeline}, {policy.steps} step(s), batch {options.batch}, {options.threads} thread(s), "
        f"{policy.device}"
    )
    for name, value in medians.items():
        print(f"{name:42} {value:10.2f} ms")
    for name, value in ratios.items():
        print(f"{name:42} {value:10.3f} x")


if __name__ == "__main__":
    main()
