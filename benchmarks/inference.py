"""What alignment at inference costs here, each as a ratio of two things measured in this process on the same pipeline.

    python benchmarks/inference.py [reno] [memory] [glue] [--fast] [--threads 1]

reno    an iteration of ReNO, seconds a picture, against the plain loop of benchmarks/reno.py, which works as the
        published code does: one prompt at a time, prompt and reward text encoded again in each iteration. Aim: at most
        0.7.
memory  the most that one gradient step of noise optimisation holds at once, over 16 denoising steps against over 4. It
        is read off the allocator's own record of every allocation and release, so it has neither the weights in it nor
        what Python and its libraries take, which would drown it in a process's resident memory. With checkpointing it
        is the graph of the decoder and the reward, or that of one step, rebuilt in the backward pass, whichever is
        larger, and a latent a step. A chain of one step is not checkpointed. Aim: at most 1.3.
glue    a replayed step (Policy.transition, Policy.predict) against the denoiser call in it alone, for three denoisers.

Contestants take turns in random order, so that a busy machine slows all alike; a ratio is the median of the ratios
within the rounds, and its range is printed beside it. Without names all three are measured; --fast only shows that they
work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the allocator's record comes from the profiler, which talks

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import reno as plain
import seam
import tiny
from diffusers import UNet2DConditionModel
from tiny_parts import UNET

import pipelines
from rewards import build
from workbench.core.types import Batch
from workbench.methods import ReNO
from workbench.runs import prompts as data


def show(ratio: str, seconds: dict[str, list[float]], of: str, to: str, aim: str = "") -> None:
    within = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    print(f"{ratio:44} {statistics.median(within):8.3f} x   (from {min(within):.3f} to {max(within):.3f}){aim}")


def measure_reno(prompts: int, iterations: int, rounds: int) -> None:
    policy, texts = pipelines.load("starter-image"), data.read_prompts("starter-image-test")[:prompts]
    seeds, method = tuple(range(prompts)), ReNO(iterations=iterations)
    reward, score = build("starter_clip"), plain.plain_score()
    work = {
        "plain": lambda: plain.plain_loop(policy, score, texts, seeds, method),
        "ours": lambda: plain.ours(policy, reward, texts, seeds, method),
    }
    reached = {name: statistics.mean(do()) for name, do in work.items()}
    seconds = seam.measure(work, rounds)
    print(f"\nReNO on starter-image: {prompts} prompts, {iterations} iterations, {rounds} rounds")
    for name, values in seconds.items():
        each = 1e3 * statistics.median(values) / prompts / (iterations + 1)
        print(f"{name:10} {each:10.2f} ms an iteration and picture; reward reached {reached[name]:.4f}")
    show("ours / plain loop", seconds, "ours", "plain", "   aim: 0.7")


def measure_memory(lengths: tuple[int, ...], batch: int) -> None:
    reward, texts = build("starter_clip"), data.read_prompts("starter-image-test")[:batch]
    held: dict[tuple[int, bool], float] = {}
    print(f"\nMost memory held in one gradient step on the noise of starter-image-teacher, batch {batch}, MB")
    print(f"{'steps':>5} {'checkpointed':>14} {'all kept':>10}")
    for steps in lengths:
        policy = pipelines.load("starter-image-teacher", steps=steps)
        for checkpoint in (True, False):
            policy.checkpoint = checkpoint
            climb = ascent(policy, reward, texts)
            climb()  # prompts and reward texts are encoded, kernels chosen
            held[steps, checkpoint] = peak(climb)
        print(f"{steps:5} {held[steps, True]:14.2f} {held[steps, False]:10.2f}")
    last, first = lengths[-1], lengths[-2]
    for checkpoint, name in ((True, "checkpointed"), (False, "all kept")):
        aim = "   aim: 1.3" if checkpoint else ""
        print(f"{f'{last} / {first} steps, {name}':44} {held[last, checkpoint] / held[first, checkpoint]:8.3f} x{aim}")
    grows = (held[last, True] - held[first, True]) / (last - first)
    print(
        f"checkpointed, each further step holds {grows:.3f} MB; the whole graph of a 1-step chain is "
        f"{held[1, True]:.2f} MB"
    )


def ascent(policy: pipelines.Policy, reward: Any, texts: list[str]) -> Callable[[], None]:
    """One gradient of the reward with respect to the noise, through the whole chain."""
    batch = Batch(tuple(texts), tuple(range(len(texts))))

    def climb() -> None:
        z = policy.noise(batch.seeds).requires_grad_()
        media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z, grad=policy.steps).media
        torch.autograd.grad(reward(media=media, prompts=batch.prompts).sum(), z)

    return climb


def peak(do: Callable[[], None]) -> float:
    """The most MB that `do` holds at once beyond what is held before it, by every allocation and release that torch
    makes."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        do()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profile:
        do()
    found = [(e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(found))) / 2**20


def measure_glue(widths: tuple[int, ...], batch: int, rounds: int) -> None:
    print(f"\nA replayed step, guidance on, batch {batch}, {rounds} rounds")
    for width in widths:
        pipe = tiny.build("StableDiffusionPipeline")
        unet = {**UNET, "block_out_channels": (width, 2 * width), "sample_size": 32}
        pipe.register_modules(
            unet=UNet2DConditionModel(**unet, cross_attention_dim=16, attention_head_dim=8).requires_grad_(False).eval()
        )
        policy = tiny.policy("StableDiffusionPipeline", pipe, call={"guidance_scale": 5.0, "height": 64, "width": 64})
        seconds = seam.measure(middle_step(policy, tuple(f"a red cat number {b}" for b in range(batch))), rounds)
        size = sum(p.numel() for p in pipe.unet.parameters()) / 1e6
        alone = statistics.median(seconds["denoiser"])
        over = statistics.median(a - b for a, b in zip(seconds["transition"], seconds["denoiser"], strict=True))
        print(f"denoiser of {size:.2f} M parameters: {1e3 * alone:.2f} ms alone; the step adds {1e3 * over:.2f} ms")
        for name in ("transition", "predict"):
            show(f"    {name} / denoiser alone", seconds, name, "denoiser")


def middle_step(policy: pipelines.Policy, prompts: tuple[str, ...]) -> dict[str, Callable[[], Any]]:
    i = policy.steps // 2
    x = policy.sample(prompts, seeds=range(len(prompts))).x[:, i]
    return {
        "denoiser": seam.denoiser(policy, prompts),
        "transition": torch.no_grad()(lambda: policy.transition(x, i, prompts)),
        "predict": torch.no_grad()(lambda: policy.predict(x, i, prompts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="reno, memory, glue; all of them when none is named")
    parser.add_argument("--fast", action="store_true", help="a smoke run: its numbers say nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if unknown := set(options.parts) - {"reno", "memory", "glue"}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are reno, memory and glue")
    torch.set_num_threads(options.threads)
    fast, parts = options.fast, options.parts or ["reno", "memory", "glue"]
    print(f"{options.threads} thread(s), {'cuda' if torch.cuda.is_available() else 'cpu'}, torch {torch.__version__}")
    if "reno" in parts:
        measure_reno(prompts=2 if fast else 16, iterations=1 if fast else 10, rounds=1 if fast else 5)
    if "memory" in parts:
        measure_memory(lengths=(1, 4, 16), batch=1 if fast else 8)
    if "glue" in parts:
        measure_glue(widths=(8, 32, 64) if fast else (32, 96, 192), batch=1 if fast else 4, rounds=2 if fast else 15)


if __name__ == "__main__":
    main()
