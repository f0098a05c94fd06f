"""One reward pushed far: its own score rises, what it stood for is lost, and the alarm says when. And what holds it.

    python benchmarks/overoptimisation.py                      # four trainings, the table, docs/overoptimisation.svg

The same training (DRaFT-1 on the starter base) is paid by colourfulness alone; by the sum of log-sigmoids of
colourfulness and the starter CLIP, each against what the base scores (arXiv:2402.00742); by the lower of the two
(arXiv:2310.02743); and by colourfulness up to 0.3 beside the CLIP. The oracle is optimised by none of them. Every few
rounds the watched prompts are judged. Runs are kept in --runs: begun again it goes on, and what is finished is read.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from alignment import LORA
from kept import kept

from workbench.core.paths import write_atomic
from workbench.runs import (
    config,
    store,
)

PUSHED = "colourfulness"
ARMS = {  # the reward, and what is written beside the line
    "alone": ("{colourfulness: 1}", "colourfulness alone"),
    "log-sigmoid": (
        "{colourfulness: 1, starter_clip: 1, shape: {how: log_sigmoid, base: BASE, pooled: true}}",
        "sum of log-sigmoids, with the CLIP",
    ),
    "worst": ("{colourfulness: 1, starter_clip: 1, combine: worst}", "the lower of it and the CLIP"),
    "within": ("{colourfulness: {within: [null, 0.3]}, starter_clip: 1}", "up to 0.3, beside the CLIP"),
}
RECIPE = [
    "train.prompts_per_round=16",
    "train.warmup=4",
    "train.max_grad_norm=0.3",
    "train.ema=0",
    "train.eval_prompts=24",
    "train.best=last",
    LORA,
]
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b7791f")


def common(seed: int, name: str) -> list[str]:
    return [
        "pipeline=starter-image-base",
        "train.policy={}",
        "watch=[oracle, starter_clip]",
        f"seed={seed}",
        f"name={name}",
    ]


def base(runs: Path, seed: int) -> store.RunFolder:
    """What the base scores on the training prompts, the yardstick of the log-sigmoid."""
    asked = [
        "contestants={base: sample}",
        "method=null",
        "reward={colourfulness: 1, starter_clip: 1}",
        "watch=[oracle]",
    ]
    asked += ["prompts=starter-image-train", "test=null", "train=null", "limit=48", "samples_per_prompt=4", "batch=48"]
    told = ["pipeline=starter-image-base", f"seed={seed}", f"name=pushed-base-{seed}", *asked]
    return kept(runs, config.read_run_config("train-nft", told))


def arm(runs: Path, name: str, seed: int, updates: int) -> store.RunFolder:
    reward = ARMS[name][0].replace("BASE", f"'{base(runs, seed).path.resolve()}'" if "BASE" in ARMS[name][0] else "")
    told = [*common(seed, f"pushed-{name}-{seed}"), *RECIPE, f"reward={reward}", "method={name: draft, lr: 1.0e-3}"]
    watch = [] if "starter_clip" not in reward else ["watch=[oracle]"]
    told += [f"train.rounds={updates}", "train.eval_every=6", "limit=44", "samples_per_prompt=1", "batch=44", *watch]
    return kept(runs, config.read_run_config("train-nft", told))


def looks(folder: store.RunFolder) -> list[dict]:
    """[{"step", "reward", "oracle", "clip", "diversity"}] of the watched prompts."""
    found = []
    for e in folder.events():
        if e.get("phase") == "watch":
            m = e["metrics"]
            found.append(
                {
                    "step": e["step"],
                    "reward": m[f"held {PUSHED}"],
                    "oracle": m["held oracle"],
                    "clip": m["held starter_clip"],
                }
            )
    return found


def alarm(folder: store.RunFolder) -> int | None:
    """The round at which the alarm was raised first."""
    return next((e["step"] for e in folder.events() if e.get("alarm")), None)


def figure(found: dict[str, tuple[list[dict], int | None]]) -> str:
    """Two panels: the oracle by rounds, and by the reward that is pushed. A ring marks the first alarm."""
    width, height, pad = 380, 260, 46
    most = max(p["step"] for points, _ in found.values() for p in points)
    low = min(p["reward"] for points, _ in found.values() for p in points)
    high = max(p["reward"] for points, _ in found.values() for p in points)
    top = max(0.8, *(p["oracle"] for points, _ in found.values() for p in points))
    panels = (("step", 0, most, "rounds of training"), ("reward", low, high, "colourfulness, optimised"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height + 26 * 2 + 14}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for n, (key, first, last, label) in enumerate(panels):
        left = n * width + pad

        def at(
            p: dict, key: str = key, first: float = first, last: float = last, left: int = left
        ) -> tuple[float, float]:
            x = left + (p[key] - first) / (last - first) * (width - pad - 20)
            return x, height - pad - p["oracle"] / top * (height - pad - 24)

        parts += [f'<path d="M{left} 20V{height - pad}H{left + width - pad - 20}" fill="none" stroke="#888"/>']
        for tick in range(0, 9, 2):
            y = at({key: first, "oracle": tick / 10})[1]
            parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" fill="#444">{tick / 10:.1f}</text>')
        for share in (0, 0.5, 1):
            value = first + share * (last - first)
            shown = f"{value:.0f}" if key == "step" else f"{value:.2f}"
            x = at({key: value, "oracle": 0})[0]
            parts.append(f'<text x="{x:.0f}" y="{height - pad + 16}" text-anchor="middle" fill="#444">{shown}</text>')
        parts.append(f'<text x="{left + (width - pad - 20) / 2}" y="{height - 10}" text-anchor="middle">{label}</text>')
        parts.append(f'<text x="{left}" y="14">oracle, never optimised</text>')
        for colour, (points, fired) in zip(COLOURS, found.values(), strict=False):
            line = " ".join("{:.1f},{:.1f}".format(*at(p)) for p in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for p in (p for p in points if p["step"] == fired):
                x, y = at(p)
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{colour}" stroke-width="2"/>'
                )
    for n, (colour, name) in enumerate(zip(COLOURS, found, strict=False)):
        x, y = pad + n % 2 * width, height + 14 + 22 * (n // 2)
        parts.append(
            f'<path d="M{x} {y}h22" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{x + 30}" y="{y + 4}">{escape(ARMS[name][1])}</text>'
        )
    parts.append(f'<text x="{pad}" y="{height + 60}" fill="#444">ring: the alarm is raised</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "overoptimisation.svg")
    parser.add_argument("--updates", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    for name in ARMS:
        folder = arm(options.runs, name, options.seed, options.updates)
        found[name] = (looks(folder), alarm(folder))
    print("| reward | colourfulness | starter_clip | oracle | alarm |\n|---|---|---|---|---|")
    for name, (points, fired) in found.items():
        ends = [f"{points[0][key]:.2f} → {points[-1][key]:.2f}" for key in ("reward", "clip", "oracle")]
        print(f"| {ARMS[name][1]} | {' | '.join(ends)} | {f'round {fired}' if fired else 'none'} |")
    print(
        "\nAt the highest colourfulness that each guarded reward comes to, the oracle says, and where only "
        "colourfulness is paid:"
    )
    alone = sorted(found["alone"][0], key=lambda p: p["reward"])
    for name, (points, _) in list(found.items())[1:]:
        best = max(points, key=lambda p: p["reward"])
        same = np.interp(best["reward"], [p["reward"] for p in alone], [p["oracle"] for p in alone])
        print(f"  {best['reward']:.2f}  {ARMS[name][1]:36} {best['oracle']:.2f}   alone {same:.2f}")
    write_atomic(options.out, figure(found).encode())


if __name__ == "__main__":
    main()
