"""ReNO: ours (prompts batched, prompt and reward text encoded once) against a plain loop that does what the published
code does: one prompt at a time, prompt and reward text encoded again at every iteration.

    python benchmarks/reno.py [--prompts 16] [--iterations 10] [--rounds 3]

Both use the same pipeline, reward, step rule and number of iterations, in turn, in this process; the ratio is of
seconds per picture, and that both climb the same reward is printed beside it.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPModel

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # `rewards` is the package, not the file beside this one

import pipelines
from rewards import build
from rewards.encoders import image_text
from workbench.core.paths import resolve_repo
from workbench.core.types import Batch
from workbench.methods import ReNO
from workbench.methods.inference.reno import norm_nll
from workbench.runs import prompts as data


def plain_loop(policy, score, prompts, seeds, method):
    call = inspect.unwrap(type(policy.pipe).__call__)
    best = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        z = policy.noise([seed]).requires_grad_()
        optimizer = torch.optim.SGD([z], lr=method.lr, momentum=method.momentum, nesterov=True)
        top = -torch.inf
        for step in range(method.iterations + 1):
            last = step == method.iterations
            with torch.set_grad_enabled(not last):
                r = score(call(policy.pipe, prompt=prompt, latents=z, **policy.call).images, prompt)
            top = max(top, r.item())
            if last:
                break
            optimizer.zero_grad()
            (method.regularise * norm_nll(z) - r).sum().backward()
            torch.nn.utils.clip_grad_norm_([z], method.clip)
            optimizer.step()
        best.append(top)
    return best


def plain_score():
    """The starter CLIP by transformers alone: pixels and prompt in, both towers run."""
    folder = resolve_repo("starter:image/clip")
    clip = CLIPModel.from_pretrained(folder).requires_grad_(False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    view = image_text.load_encoder("starter:image/clip", "cpu").view

    def score(images, prompt):
        tokens = tokenizer([prompt], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        image = clip.get_image_features(pixel_values=view(images)).pooler_output
        text = clip.get_text_features(**tokens).pooler_output
        return torch.nn.functional.cosine_similarity(image, text)

    return score


def ours(policy, reward, prompts, seeds, method):
    *_, end = method(policy, reward, [Batch(prompts, seeds)])
    return end.scores["reward"].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    policy = pipelines.load("starter-image")
    judges = {plain_loop: plain_score(), ours: build("starter_clip")}
    prompts = data.read_prompts("starter-image-test")[: args.prompts]
    seeds, method = tuple(range(len(prompts))), ReNO(iterations=args.iterations)
    took = {plain_loop: [], ours: []}
    for round in range(args.rounds + 1):  # the first round warms up
        for way, seconds in took.items():
            start = time.perf_counter()
            reached = way(policy, judges[way], prompts, seeds, method)
            seconds += [(time.perf_counter() - start) / len(prompts)] if round else []
            if not round:
                print(f"{way.__name__:<11} reward reached {statistics.mean(reached):.4f}")
    for way, seconds in took.items():
        print(f"{way.__name__:<11} {1e3 * statistics.median(seconds):8.1f} ms a picture (median of {args.rounds})")
    ratios = [a / b for a, b in zip(took[ours], took[plain_loop], strict=True)]
    print(f"ours / plain loop: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
