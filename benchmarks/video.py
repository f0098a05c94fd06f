"""What fine-tuning brings to the starter video model, and what InstructVideo's temporal attenuation does.

    python benchmarks/video.py [instruct instruct-flat ...] [--seeds 0,1,2] [--runs runs/video] [--tables]

Every config of configs/runs/video and every variant below, or those that are named, becomes a run of its own for each
seed: begun again it goes on, and a finished one is read. Base and trained make the held-out prompts from the same
noises; intervals are 95 % bootstraps over prompts within their categories, the samples of all seeds together. Dynamic
degree is the way that things really go, in percent of the picture's side: a still clip pleases every judge of frames.
For the runs that a judge of frames pays, two more tables: how far the things of moving clips go that were right before
and after, so that nothing but the way differs; and the reward of each frame, from the clips themselves: attenuation
pays the middle frames most, and the others must follow by themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from kept import all_kept, asked_for, finished, known
from outcome import Outcome, paired, pooled, shown

from rewards import REWARDS
from workbench.core.io import media
from workbench.core.paths import CONFIGS
from workbench.core.types import Media
from workbench.evaluation import statistics
from workbench.runs import (
    config,
    store,
)

PLACE = CONFIGS / "runs" / "video"
FLAT, GUIDED = (
    "reward.frames.decay=0",
    "pipeline={name: starter-video, steps: 4}",
)  # frames that count alike; the guided model, in four steps
VARIANTS = {  # name: a config, and what is asked of it otherwise
    "instruct-flat": ("instruct", [FLAT]),
    "instruct-guided": ("instruct", [GUIDED]),
    "instruct-guided-flat": ("instruct", [GUIDED, FLAT]),
}
JUDGES = ("oracle", "dynamic_degree", "consistency")
MOVING = ("move", "speed")  # what the world calls the prompts of which a thing goes straight on


def asked(name: str, seed: int) -> config.RunConfig:
    file, changes = VARIANTS.get(name, (name, []))
    return config.read_run_config(PLACE / f"{file}.yaml", [*changes, f"seed={seed}", f"name={name}-{seed}"])


def done(runs: Path, name: str, seeds: Sequence[int]) -> list[store.RunFolder]:
    return [found for seed in seeds if (found := finished(runs, asked(name, seed)))]


def table(runs: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    head = ["run", "paid", "seeds", "reward, base", "trained", "oracle, base", "trained", "gain"]
    head += ["dynamic degree, base", "gain", "consistency, gain", "CPU min"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name in names:
        if not (folders := done(runs, name, seeds)):
            continue
        reward = asked(name, seeds[0]).reward
        paid = reward if isinstance(reward, str) else next(iter(reward))  # what stands first is what the run is about
        found = [Outcome.of(folder) for folder in folders]
        reward, oracle, degree, steady = (pooled(found, judge) for judge in (paid, *JUDGES))
        spent = sum(o.cpu for o in found) / len(found) / 60
        cells = [name, f"`{paid}`", str(len(found)), shown(reward["base"]), shown(reward["after"])]
        cells += [shown(oracle["base"]), shown(oracle["after"]), shown(oracle["gain"], "+")]
        cells += [shown(degree["base"]), shown(degree["gain"], "+"), shown(steady["gain"], "+"), f"{spent:.1f}"]
        print("| " + " | ".join(cells) + " |")


def ways(runs: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    print("\nHow far things go in moving clips that were right before and after.\n")
    print("| run | clips | dynamic degree, base | gain | each seed |\n|---|---|---|---|---|")
    for name in names:
        base, gains, prompts, each = [], [], [], []
        for folder in done(runs, name, seeds):
            both = [
                (before["index"], *(statistics.none_to_nan(s["scores"]["dynamic_degree"]) for s in (before, after)))
                for before, after in paired(folder)
                if before["category"] in MOVING and before["scores"]["oracle"] == after["scores"]["oracle"] == 1
            ]
            mine = [after - before for _, before, after in both]
            base, gains = base + [before for _, before, _ in both], gains + mine
            prompts += [index for index, *_ in both]
            mean = statistics.mean_with_interval(mine, [index for index, *_ in both])["mean"]
            each.append("–" if mean is None else f"{mean:+.2f}")
        if each:
            told = [
                name,
                str(len(base)),
                shown(statistics.mean_with_interval(base, prompts)),
                shown(statistics.mean_with_interval(gains, prompts), "+"),
            ]
            print("| " + " | ".join([*told, ", ".join(each)]) + " |")


@torch.no_grad()
def by_frame(folder: store.RunFolder) -> tuple[torch.Tensor, list[int], list[str]]:
    """[n,T]: what training has added to the picture CLIP's score of each frame of each clip; the prompts' numbers and
    categories."""
    judge, pairs = REWARDS["starter_clip"](), paired(folder)

    def scores(sample: dict) -> torch.Tensor:  # [T]
        clip = media.read_media(folder.path / sample["file"]).data[0]
        return judge(media=Media(clip, "image"), prompts=[sample["prompt"]] * len(clip))

    gains = torch.stack([scores(after) - scores(before) for before, after in pairs])
    return gains, [before["index"] for before, _ in pairs], [before["category"] for before, _ in pairs]


def frames(runs: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    print("\nGain of the picture CLIP in each frame; the last column is the spread of a row's means between frames.\n")
    for n, name in enumerate(names):
        if not (found := [by_frame(folder) for folder in done(runs, name, seeds)]):
            continue
        gains, prompts, kinds = torch.cat([g for g, _, _ in found]), *(sum((f[i] for f in found), []) for i in (1, 2))
        if not n:
            print(
                f"| run | {' | '.join(map(str, range(1, gains.shape[1] + 1)))} | spread |\n|"
                + "---|" * (gains.shape[1] + 2)
            )
        cells = [shown(statistics.mean_with_interval(column.tolist(), prompts, kinds), "+") for column in gains.T]
        print(f"| {name} | {' | '.join(cells)} | {gains.mean(0).std():.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    configs = sorted([*(p.stem for p in PLACE.glob("*.yaml")), *VARIANTS])
    parser.add_argument("names", nargs="*", metavar="RUN", help=f"of {', '.join(configs)} [all]")
    options = asked_for(parser, "runs/video")
    names, seeds = known(parser, options.names, configs), options.seeds
    cells = [(asked(name, seed), [name, "--seeds", str(seed)]) for seed in seeds for name in names]
    if not options.tables and all_kept(__file__, options.runs, options.threads, cells):
        return
    table(options.runs, names, seeds)
    of_frames = [n for n in names if "frames" in asked(n, 0).reward]
    ways(options.runs, of_frames, seeds)
    frames(options.runs, of_frames, seeds)


if __name__ == "__main__":
    main()
