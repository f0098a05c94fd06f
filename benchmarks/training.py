"""What fine-tuning costs on the starter pack.

    python benchmarks/training.py [memory] [split] [rollout] [--fast] [--threads 1]

memory   the most that one update of DRaFT-1 holds at once, at 16 steps of sampling against 4, by the allocator's own
         record of every allocation and release. With all steps live and kept, the control, it grows. Aim: at most 1.1.
split    seconds of a GRPO update: the rollout, the reward, the replay of the chain with its backward pass, the
         optimiser's step; and which share of the replay is neither the denoiser nor the backward pass. Aim: at most
         0.1.
rollout  seconds of sampling with adapters beside the weights, with adapters merged for as long as it takes, and
         without any.

Without names all are measured; --fast only shows that they work. What training brings is measured by
benchmarks/alignment.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the allocator's record comes from the profiler, which talks

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import seam
from inference import peak, show

import pipelines
from rewards import build
from workbench.core.types import Batch
from workbench.methods.training.direct import DRaFT
from workbench.methods.training.grpo import GRPO
from workbench.runs import prompts as data

LORA = pipelines.Lora(rank=32, alpha=64.0, targets="all")
FREE = {"guidance_scale": 1.0}


def trainable(steps: int = 8, kernel: bool = False, **train: Any) -> pipelines.TrainablePolicy:
    chosen = {"kernel": {"name": "flow-sde"}} if kernel else {}
    return pipelines.load("starter-image-teacher", steps=steps, call=FREE, train={"lora": LORA, **train}, **chosen)


def batch(prompts: int, seed: int) -> Batch:
    texts = data.read_prompts("starter-image-train")[:prompts]
    return Batch(tuple(texts), tuple(range(seed, seed + prompts)))


# --- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(lengths: tuple[int, int], prompts: int) -> None:
    reward, held = build("starter_clip"), {}
    print(f"\nMost memory held in an update of DRaFT on starter-image-teacher, {prompts} prompts, MB")
    print(f"{'steps':>5} {'last step live':>15} {'all live, kept':>15}")
    for steps in lengths:
        for live in (1, steps):
            policy = trainable(steps)
            policy.checkpoint = False
            updates = DRaFT(grad_steps=live)(policy, reward, [batch(prompts, 100 * k) for k in range(3)])
            next(updates)  # encodings, optimiser state, kernels
            held[steps, live == 1] = peak(lambda updates=updates: next(updates))
        print(f"{steps:5} {held[steps, True]:15.2f} {held[steps, False]:15.2f}")
    for one, name, aim in ((True, "last step live", "   aim: 1.1"), (False, "all live, kept", "")):
        print(
            f"{f'{lengths[1]} / {lengths[0]} steps, {name}':44} "
            f"{held[lengths[1], one] / held[lengths[0], one]:8.3f} x{aim}"
        )


# --- the parts of an update ------------------------------------------------------------------------------------------


class Watch:
    """A policy whose calls are timed: sampling as rollout, transitions, backward and update under their names, and the
    denoiser inside a transition apart."""

    def __init__(self, policy: pipelines.TrainablePolicy):
        self.policy, self.spent, self.inside = policy, Counter(), ""
        self.sample, self.transition = (
            self.timed("rollout", policy.sample),
            self.timed("replay forward", policy.transition),
        )
        self.backward, self.update = self.timed("replay backward", policy.backward), self.timed("step", policy.update)
        (denoiser,) = policy.adapters.denoisers.values()
        denoiser.register_forward_pre_hook(lambda *_: setattr(self, "began", now()))
        denoiser.register_forward_hook(lambda *_: self.note())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def note(self) -> None:
        if self.inside == "replay forward":
            self.spent["denoiser"] += now() - self.began

    def timed(self, name: str, do: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.clock(name):
                return do(*args, **kwargs)

        return call

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        start, self.inside = now(), name
        yield
        self.inside, self.spent[name] = "", self.spent[name] + now() - start


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_split(prompts: int, group: int, updates: int) -> None:
    policy, judge = Watch(trainable(kernel=True)), build("starter_clip")

    class Timed:
        spec = judge.spec

        def __call__(self, **asked: Any) -> torch.Tensor:
            with policy.clock("reward"):
                return judge(**asked)

    events = GRPO(group=group)(policy, Timed(), [batch(prompts, 100 * k) for k in range(updates + 1)])
    next(events)
    each = []
    for _ in range(updates):
        policy.spent.clear()
        start = now()
        next(events)
        each.append(dict(policy.spent) | {"whole": now() - start})
    spent = {part: statistics.median(e[part] for e in each) for part in each[0]}
    named = ("rollout", "reward", "replay forward", "replay backward", "step")
    print(
        f"\nAn update of GRPO on starter-image-teacher, {prompts} x {group} samples of 8 steps, KL on, "
        f"median of {updates}"
    )
    for part in named:
        print(f"{part:20} {spent[part]:8.3f} s {spent[part] / spent['whole']:7.1%}")
    rest = spent["whole"] - sum(spent[part] for part in named)
    replay = spent["replay forward"] + spent["replay backward"]
    print(f"{'losses and the rest':20} {rest:8.3f} s {rest / spent['whole']:7.1%}")
    print(f"{'in all':20} {spent['whole']:8.3f} s")
    glue = spent["replay forward"] - spent["denoiser"]
    print(f"{'glue of the replay':20} {glue:8.3f} s {glue / replay:7.1%} of it   aim: 10 %")


def measure_rollout(samples: int, rounds: int) -> None:
    plain = pipelines.load("starter-image-teacher", call=FREE)
    adapted, texts = trainable(), tuple(data.read_prompts("starter-image-train")[:samples])

    def merged() -> None:
        with adapted.merged():
            adapted.sample(texts, seeds=range(samples))

    work = {
        "plain": lambda: plain.sample(texts, seeds=range(samples)),
        "adapters": lambda: adapted.sample(texts, seeds=range(samples)),
        "merged": merged,
    }
    with torch.no_grad():
        for do in work.values():
            do()
        seconds = seam.measure(work, rounds)
    print(f"\nA rollout of {samples} samples in 8 steps, LoRA of rank {LORA.rank} on all layers, {rounds} rounds")
    for name, values in seconds.items():
        print(f"{name:10} {statistics.median(values):8.3f} s")
    show("adapters / plain", seconds, "adapters", "plain")
    show("merged / plain", seconds, "merged", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="memory, split, rollout; all when none is named")
    parser.add_argument("--fast", action="store_true", help="a smoke run: its numbers say nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    known = ("memory", "split", "rollout")
    if unknown := set(options.parts) - set(known):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(options.threads)
    fast, parts = options.fast, options.parts or known
    print(f"{options.threads} thread(s), {'cuda' if torch.cuda.is_available() else 'cpu'}, torch {torch.__version__}")
    if "memory" in parts:
        measure_memory((4, 16), prompts=1 if fast else 8)
    if "split" in parts:
        measure_split(prompts=1 if fast else 4, group=2 if fast else 12, updates=1 if fast else 5)
    if "rollout" in parts:
        measure_rollout(samples=2 if fast else 48, rounds=1 if fast else 7)


if __name__ == "__main__":
    main()
