"""Our arithmetic beside the packages that others measure with: are the numbers equal, and who is faster?

    python benchmarks/parity.py [--rounds 5] [--only frechet,vendi]

Needs the extra `parity` (pytorch-fid, vendi-score, choix, pyloudnorm, prdc, torchmetrics); a package that is not
installed is left out and named. Both sides get the same random numbers, ours as float64 tensors, theirs as they ask for
them. A row each: their value, ours, the absolute difference, and the median of (their CPU seconds / ours) within the
rounds, from the lowest to the highest, on one core. Where ours does less or more, the row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# One core for each side: numpy's and torch's thread pools spin for the same cores and would measure each other.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rewards.audio.loudness import integrated_loudness
from rewards.sets.frechet import fit_normal, frechet_distance, normal_from_moments
from rewards.sets.mmd import cosine_cubed, mmd_squared
from rewards.sets.moments import Moments
from rewards.sets.prdc import prdc_metrics
from rewards.sets.vendi import vendi_score
from workbench.feedback.ratings import PRIOR, fit_strengths

warnings.simplefilter("ignore")
Way = Callable[[], float]
Case = tuple[str, Way, Way]  # what is measured, their way, ours


def features(rows: int, width: int, seed: int, decay: float = 0.0) -> np.ndarray:
    """[rows,width] of a correlated normal, the same for every seed but for a small shift; `decay` decades lie between
    the deviations of its widest and narrowest direction."""
    rng, mix = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(width, width)) / width**0.5
    return 0.02 * seed + rng.normal(size=(rows, width)) * np.logspace(0, -decay, width) @ mix


def frechet() -> Iterator[Case]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    for rows, width, decay in ((1000, 512, 0.0), (1000, 512, 6.0), (5000, 128, 0.0), (64, 512, 0.0)):
        x, y = features(rows, width, 1, decay), features(4 * width, width, 2, decay)
        reference = (y.mean(0), np.cov(y, rowvar=False))
        target, tensor = normal_from_moments(Moments.from_rows(torch.from_numpy(y))), torch.from_numpy(x)

        def theirs(x: np.ndarray = x, reference: tuple = reference) -> float:
            with contextlib.redirect_stdout(io.StringIO()):  # it says when it adds 1e-6 to a singular product
                return float(calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), *reference))

        def ours(tensor: torch.Tensor = tensor, target: tuple = target) -> float:
            return frechet_distance(fit_normal(tensor), target).item()

        spread = f", spread over {decay:g} decades" if decay else ""
        yield f"FID, pytorch-fid, n={rows} d={width}{spread}", theirs, ours


def vendi() -> Iterator[Case]:
    from vendi_score import vendi

    for rows, width in ((5000, 128), (500, 512)):
        x = features(rows, width, 3)
        tensor = torch.from_numpy(x)
        way = vendi.score_dual if rows > width else vendi.score_X
        yield (
            f"Vendi, vendi-score {way.__name__}, n={rows} d={width}",
            lambda x=x, way=way: float(way(x)),
            lambda tensor=tensor: vendi_score(tensor).item(),
        )


def prdc() -> Iterator[Case]:
    import prdc as package

    x, y = features(1000, 64, 4) + 0.3, features(1200, 64, 5)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    for name in ("precision", "recall", "density", "coverage"):

        def theirs(name: str = name) -> float:
            with contextlib.redirect_stdout(io.StringIO()):
                return float(package.compute_prdc(real_features=y, fake_features=x, nearest_k=5)[name])

        yield f"{name}, prdc (all four at once)", theirs, lambda name=name: prdc_metrics(*tensors, k=5)[name].item()


def kid() -> Iterator[Case]:
    from torchmetrics.image.kid import poly_mmd

    x, y = (F.normalize(torch.from_numpy(features(1000, 256, seed)), dim=1) for seed in (6, 7))
    yield (
        "KID of one subset, torchmetrics, on norms of sqrt(d)",
        lambda: poly_mmd(16 * y, 16 * x).item(),
        lambda: mmd_squared(x, y, cosine_cubed).item(),
    )


def bradley_terry() -> Iterator[Case]:
    import choix

    rng, n = np.random.default_rng(8), 12
    strength = rng.normal(size=n)
    pairs = rng.integers(n, size=(2000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    is_won = rng.random(len(pairs)) < 1 / (1 + np.exp(strength[pairs[:, 1]] - strength[pairs[:, 0]]))
    games = [tuple(p if won else p[::-1]) for p, won in zip(pairs.tolist(), is_won, strict=True)]
    counts = np.zeros((n, n))
    np.add.at(counts, tuple(np.array(games).T), 1)

    def spread(theta: np.ndarray) -> float:
        return float(np.ptp(theta))

    yield (
        "Bradley-Terry, range of strengths, choix",
        lambda: spread(choix.opt_pairwise(n, games, alpha=PRIOR / 2, tol=1e-12)),
        lambda: spread(fit_strengths(counts)),
    )


def loudness() -> Iterator[Case]:
    import pyloudnorm

    for rate, channels in ((48000, 2), (16000, 1)):
        noise = np.random.default_rng(9).normal(size=(10 * rate, channels))
        sound = (noise * np.linspace(0.001, 0.3, len(noise))[:, None]).clip(-1, 1)
        meter, tensor = pyloudnorm.Meter(rate, filter_class="DeMan"), torch.from_numpy(sound.T.copy())[None]
        yield (
            f"LUFS, pyloudnorm's DeMan filter, 10 s at {rate} Hz, {channels} channel{'s' * (channels > 1)}",
            lambda meter=meter, sound=sound: float(meter.integrated_loudness(sound)),
            lambda tensor=tensor, rate=rate: integrated_loudness(tensor, rate).item(),
        )


PARTS: dict[str, tuple[str, Callable[[], Iterator[Case]]]] = {  # part -> the package that it needs, its cases
    "frechet": ("pytorch_fid", frechet),
    "vendi": ("vendi_score", vendi),
    "prdc": ("prdc", prdc),
    "kid": ("torchmetrics", kid),
    "bradley_terry": ("choix", bradley_terry),
    "loudness": ("pyloudnorm", loudness),
}


def compare(name: str, theirs: Way, ours: Way, rounds: int) -> None:
    seconds: dict[Way, list[float]] = {theirs: [], ours: []}
    value = {way: way() for way in (theirs, ours)}  # the first call of each also warms it up
    for _ in range(rounds):
        for way in (theirs, ours):
            start = time.process_time()
            way()
            seconds[way].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True)]
    off = abs(value[theirs] - value[ours])
    print(
        f"| {name} | {value[theirs]:.6g} | {value[ours]:.6g} | {off:.0e} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side [5]")
    parser.add_argument("--only", default="", help=f"some of {', '.join(PARTS)}, by comma")
    args = parser.parse_args()
    chosen = [name for name in args.only.split(",") if name] or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    print("| quantity, package | theirs | ours | difference | their seconds / ours |\n|---|---|---|---|---|")
    for name in chosen:
        package, cases = PARTS[name]
        try:
            importlib.import_module(package)
        except ImportError as error:
            print(f"| {name} | not measured: {error} |", flush=True)
            continue
        for case in cases():
            compare(*case, args.rounds)


if __name__ == "__main__":
    main()
