"""Rewards: what their shortcuts save, each against the plain way, in turn, in this process.

    python benchmarks/rewards.py [--rounds 5] [--items 5000]

Fréchet by a nuclear norm against `scipy.linalg.sqrtm` of the product of covariances (the reference's moments are at
hand for both); Vendi by its D x D dual against the eigenvalues of the n x n kernel; prompts remembered against encoded
at every call; three rewards on one CLIP against three with a CLIP each, seconds until all have scored and bytes of
weights.

Both ways run on one core. Prints a row each: the median milliseconds of CPU time of the plain way and of ours, the
median of their ratios within a round (from the lowest to the highest), and by how much, relatively, the two ways'
numbers differ.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# One core for each way: numpy's and torch's thread pools spin for the same cores and would measure each other.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import scipy.linalg
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `rewards` is the package, not this file

from rewards import build
from rewards.encoders import image_text
from rewards.sets.exemplar import Exemplar
from rewards.sets.frechet import fit_normal, frechet_distance, normal_from_moments
from rewards.sets.moments import Moments
from rewards.sets.vendi import vendi_score
from workbench.core.paths import resolve_repo
from workbench.core.types import Media

PROMPTS = tuple(f"{n} {colour} squares" for n in ("two", "three", "four") for colour in ("red", "blue", "green"))


def clock() -> float:
    """This process's own CPU time, which other processes don't stretch."""
    return time.process_time()


def compare(name: str, plain: Callable[[], float], ours: Callable[[], float], rounds: int, warm: bool = True) -> None:
    seconds: dict[Callable, list[float]] = {plain: [], ours: []}
    value = {}
    for turn in range(rounds + warm):
        for way in (plain, ours):
            gc.collect()
            start = clock()
            value[way] = way()
            if turn >= warm:
                seconds[way].append(clock() - start)
    ratios = [a / b for a, b in zip(seconds[plain], seconds[ours], strict=True)]
    off = abs(value[plain] - value[ours]) / max(abs(value[plain]), 1e-12)
    ms = [1e3 * statistics.median(seconds[way]) for way in (plain, ours)]
    spread = f"({min(ratios):.1f} to {max(ratios):.1f})"
    print(f"{name:46} {ms[0]:11.2f} {ms[1]:11.3f} {statistics.median(ratios):9.1f}x {spread:20} {off:.0e}", flush=True)


def frechet_ways(n: int, d: int, decades: float = 0.0) -> tuple[Callable, Callable]:
    """decades: from the widest to the narrowest direction, of standard deviations: ours is quickest where there are
    none."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    scale = torch.logspace(0, -decades, d, dtype=torch.float64)
    y, x = (torch.randn(rows, d, generator=g, dtype=torch.float64) * scale for rows in (4 * d, n))
    reference = Moments.from_rows(y @ mix)
    target = normal_from_moments(reference)
    mean, covariance = reference.mean.numpy(), reference.covariance.numpy()

    def plain() -> float:
        rows = x.numpy()
        own = np.cov(rows, rowvar=False)
        root = scipy.linalg.sqrtm(own @ covariance).real
        return np.square(rows.mean(0) - mean).sum() + np.trace(own) + np.trace(covariance) - 2 * np.trace(root)

    return plain, lambda: frechet_distance(fit_normal(x), target).item()


def frechet_slope(n: int, d: int) -> tuple[Callable, Callable]:
    """sqrtm gives no gradient; with ours it is still to be cheaper than sqrtm's value."""
    plain, _ = frechet_ways(n, d)
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    y, x = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (4 * d, n))
    target = normal_from_moments(Moments.from_rows(y @ mix))

    def ours() -> float:
        leaf = x.clone().requires_grad_()
        value = frechet_distance(fit_normal(leaf), target)
        value.backward()
        return value.item()

    return plain, ours


def vendi_ways(n: int, d: int) -> tuple[Callable, Callable]:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def plain() -> float:
        unit = torch.nn.functional.normalize(x, dim=1)
        return torch.special.entr(torch.linalg.eigvalsh(unit @ unit.T / n).clamp(min=0)).sum().exp().item()

    return plain, lambda: vendi_score(x).item()


def text_ways(model: str) -> tuple[Callable, Callable]:
    encoder = image_text.load_encoder(model, "cpu")

    def plain() -> float:
        encoder.text_cache.rows.clear()
        return encoder.embed_texts(PROMPTS).sum().item()

    return plain, lambda: encoder.embed_texts(PROMPTS).sum().item()


def family(model: str) -> tuple[Callable, Callable, dict[str, int]]:
    """Three rewards on one CLIP, from nothing loaded to three scores."""
    media = Media(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), "image")
    prompts, used = PROMPTS[:2], {}

    def judge(apart: bool) -> float:
        image_text._load_cached.cache_clear()
        rewards = [
            build("clip", model=model),
            build("clip", model=model, mode="contrastive", negatives=("a blue circle",)),
            Exemplar(model=model),
        ]
        total, nets = 0.0, {}
        for reward in rewards:
            if apart:
                image_text._load_cached.cache_clear()
            total += reward(media=media, prompts=prompts, references=media).sum().item()
            net = image_text.load_encoder(model, "cpu").net
            nets[id(net)] = net  # held, so that no other can take its id
        used["plain" if apart else "ours"] = sum(p.nbytes for net in nets.values() for p in net.parameters())
        return total

    return lambda: judge(True), lambda: judge(False), used


def middling_clip(folder: str) -> str:
    """A random CLIP of 12 + 12 layers with the starter's vocabulary: its speed is that of its size."""
    starter = resolve_repo("starter:image/clip")
    config = transformers.CLIPConfig.from_pretrained(starter)
    for tower in (config.vision_config, config.text_config):
        tower.hidden_size, tower.intermediate_size = 384, 1536
        tower.num_hidden_layers, tower.num_attention_heads = 12, 6
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(starter).save_pretrained(folder)
    transformers.AutoImageProcessor.from_pretrained(starter).save_pretrained(folder)
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way [5]")
    parser.add_argument("--items", type=int, default=5000, help="n of Vendi; its plain way takes n^3 [5000]")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(f"{'':46} {'plain ms':>11} {'ours ms':>11} {'ratio':>10} {'from, to':20} relative difference")
    compare("frechet, n=1000 d=512", *frechet_ways(1000, 512), args.rounds)
    compare("frechet, n=1000 d=512, over 2 decades", *frechet_ways(1000, 512, 2.0), args.rounds)
    compare("frechet, n=1000 d=512, over 4 decades", *frechet_ways(1000, 512, 4.0), args.rounds)
    compare("frechet, n=16 d=512", *frechet_ways(16, 512), args.rounds)
    compare("frechet with gradient, n=1000 d=512", *frechet_slope(1000, 512), args.rounds)
    compare("frechet with gradient, n=16 d=512", *frechet_slope(16, 512), args.rounds)
    compare(f"vendi, n={args.items} d=128", *vendi_ways(args.items, 128), max(1, args.rounds // 2), warm=False)
    with tempfile.TemporaryDirectory() as folder:
        model = middling_clip(folder)
        compare(f"{len(PROMPTS)} prompts, remembered", *text_ways(model), args.rounds)
        plain, ours, used = family(model)
        compare("three rewards on one CLIP, until all scored", plain, ours, args.rounds)
        mb = {way: size / 2**20 for way, size in used.items()}
        print(f"{'  their weights, MiB':46} {mb['plain']:11.1f} {mb['ours']:11.1f} {mb['plain'] / mb['ours']:9.1f}x")


if __name__ == "__main__":
    main()
