"""Does curation matter, and does what is learned steer? A simulated community whose true taste is known.

    python benchmarks/social.py [--seeds 3] [--prompts 90] [--work DIR] [--skip-reno]

For each seed a community leaves an unfair log. The starter CLIP is tuned on pairs from the curated log, on as many
pairs from raw engagement counts, and on the curated pairs with the preferred side drawn by lot. All are judged on
prompts that no training saw, by whether they prefer the picture that the community TRULY likes better. A last section
optimises the starter image model's noise for the learned reward and reads the true taste of what comes out. Exit code 1
when a claim does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # `rewards` is the package, not the file beside this one

from pipelines.starter.image import community, world
from rewards import REWARDS, build_reward
from rewards.people import curation, social, social_training
from workbench.core.types import Media, derive_seed
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.evaluation import statistics
from workbench.feedback import social as work
from workbench.runs import config, store

CURATION = curation.Curation(window=3, shares=(0.85, 0.15, 0.0))
RAW = dataclasses.replace(curation.RAW, window=3, shares=CURATION.shares)
TRAINING = social_training.SocialTraining(
    model="starter:image/clip", loss="triplet", vision=3, text=2, lr=2e-4, batch=32, epochs=2
)
REGISTRY = {**REWARDS, "social": social.Social}
APART = 0.02  # of the true taste: nearer pictures are no pair


def truth_pairs(folder: Path, known: set[str], seed: int, prompts: int = 100) -> tuple[list[social.Pair], np.ndarray]:
    """Pairs of fresh pictures for prompts outside `known`, the truly preferred one as pos."""
    c = community.Community(prompts=prompts + len(known), seed=derive_seed(seed, "truth"), items=8, reposts=0.0)
    items, x = community.make_posts(c)
    fresh = [p for p in dict.fromkeys(i.prompt for i in items) if p not in known][:prompts]
    rows = [n for n, item in enumerate(items) if item.prompt in fresh]
    items, x = [items[n] for n in rows], x[rows]
    community.write_pictures(items, x, folder)
    taste = community.HiddenTaste()(media=Media(x, "image"), prompts=[i.prompt for i in items]).numpy()
    found = []
    for start in range(0, len(items), c.items):
        for a in range(start, start + c.items):
            for b in range(a + 1, start + c.items):
                if abs(taste[a] - taste[b]) >= APART:
                    pos, neg = (items[n] for n in ((a, b) if taste[a] > taste[b] else (b, a)))
                    paths = (str(folder / f"{i.name}.png") for i in (pos, neg))
                    found.append(social.Pair(pos.prompt, *paths, world.prompt_category(pos.prompt), pos.name, neg.name))
    return found


def flipped(pairs: list[social.Pair], seed: int) -> list[social.Pair]:
    """Each pair the right way round or not, by lot."""
    rng = random.Random(seed)
    swap = {"pos_path": "neg_path", "neg_path": "pos_path", "pos_item": "neg_item", "neg_item": "pos_item"}
    turned = [dataclasses.replace(p, **{k: getattr(p, v) for k, v in swap.items()}) for p in pairs]
    return [t if rng.random() < 0.5 else p for p, t in zip(pairs, turned, strict=True)]


def one_seed(seed: int, args) -> tuple[list[social.Pair], dict[str, np.ndarray], dict[str, float], int]:
    """Fresh pairs by the true taste, each arm's margins on them, how many training pairs of each are right, and of how
    many."""
    place = args.work / f"seed{seed}"
    home = place / "community"
    log = curation.read_log(community.write_community(community.Community(prompts=args.prompts, seed=seed), home))
    truth = json.loads((home / "truth.json").read_text())
    pairs = {}
    for name, c in (("curated", CURATION), ("raw counts", RAW)):
        made = curation.curate_log(log, home, c)
        work.write_pairs(made, home, place / name)
        pairs[name] = {s: social.read_pairs(place / name / f"{s}.jsonl") for s in ("train", "val")}
    n = min(len(p["train"]) for p in pairs.values())
    arms = {name: random.Random(seed).sample(p["train"], n) for name, p in pairs.items()}
    right = {name: np.mean([truth[p.pos_item] > truth[p.neg_item] for p in rows]) for name, rows in arms.items()}
    arms["shuffled labels"] = flipped(arms["curated"], seed)
    held = {name: p["val"] for name, p in pairs.items()}  # each arm chooses its epoch by pairs of its own kind
    held["shuffled labels"] = flipped(held["curated"], seed)
    judges = {"starter CLIP": {"reward": "starter_clip"}}
    for name, rows in arms.items():
        out = place / f"reward {name}"
        for _ in social_training.train_social(rows, out, dataclasses.replace(TRAINING, seed=seed), held[name]):
            pass
        judges[name] = {"reward": "social", "model": str(out)}
    test = truth_pairs(place / "truth", set(log["prompt"].cat.categories), seed)
    margins = work.score_margins(test, build_reward(judges, REGISTRY))
    lots = np.random.default_rng(seed).choice([-1, 1], len(test))
    return test, margins | {"curated, judged by shuffled labels": margins["curated"] * lots}, right, n


def lead(seeds: list, better: str, worse: str) -> dict:
    """How much more often `better` is right than `worse` on the same pairs, all seeds together, with its interval."""
    gain, prompts = [], []
    for k, (test, margins, *_) in enumerate(seeds):
        gain += ((np.sign(margins[better]) - np.sign(margins[worse])) / 2).tolist()
        prompts += [f"{k} {p.prompt}" for p in test]
    return statistics.mean_with_interval(gain, prompts)


def show(part: dict) -> str:
    return f"{part['accuracy']:.1%} [{part['ci95'][0]:.1%}, {part['ci95'][1]:.1%}]"


def steer(args) -> list[dict]:
    """ReNO on the learned reward of seed 0, on the starter's held-out prompts, judged by the true taste."""
    values = config.RunConfig(
        pipeline="starter-image",
        reward={
            "social": {"reward": "rewards.people.social:Social", "model": str(args.work / "seed0" / "reward curated")}
        },
        watch=["pipelines.starter.image.community:HiddenTaste", "oracle", "starter_clip"],
        prompts="starter-image-test",
        contestants={"base": "sample", "best_of_n": {"n": 21}, "reno": {"iterations": 20}},
        limit=args.reno_prompts,
        samples_per_prompt=2,
        name="social",
    )
    plan = plan_run(values)
    folder = store.RunFolder.open(args.work / "runs", "social", dataclasses.asdict(plan.config))
    for _ in run.execute_run(plan, folder):
        pass
    return folder.read("summary.json")["contestants"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--work", type=Path, default=Path("social-benchmark"), help="an interrupted benchmark goes on")
    parser.add_argument("--reno-prompts", type=int, default=24)
    parser.add_argument("--skip-reno", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    out, fine = Console(), True
    seeds = []
    for seed in range(args.seeds):
        seeds.append(one_seed(seed, args))
        _, _, right, n = seeds[-1]
        out.print(f"seed {seed}: {n} training pairs, right: {', '.join(f'{a} {v:.1%}' for a, v in right.items())}")
    told = {arm: [work.measure_agreement(test, margins[arm]) for test, margins, *_ in seeds] for arm in seeds[0][1]}
    table = Table(
        "reward", *(f"seed {s}" for s in range(args.seeds)), "mean", "ECE", title="agreement with the true taste"
    )
    for arm, parts in told.items():
        mean, ece = (np.mean([p[k] for p in parts]) for k in ("accuracy", "ece"))
        table.add_row(arm, *map(show, parts), f"{mean:.1%}", f"{ece:.3f}")
    out.print(table)
    claims = {}
    for better, worse in (("curated", "raw counts"), ("raw counts", "starter CLIP"), ("curated", "starter CLIP")):
        gain = lead(seeds, better, worse)
        out.print(
            f"{better} minus {worse}, paired: {gain['mean']:+.1%} [{gain['ci95'][0]:+.1%}, {gain['ci95'][1]:+.1%}]"
        )
        claims[f"{better} beats {worse}"] = gain["ci95"][0] > 0
    claims["training on shuffled labels gains nothing"] = lead(seeds, "shuffled labels", "starter CLIP")["ci95"][0] <= 0
    half = np.mean([p["accuracy"] for p in told["curated, judged by shuffled labels"]])
    claims["judged by shuffled labels, a half is right"] = abs(half - 0.5) < 0.03
    if not args.skip_reno:
        parts = steer(args)
        table = Table(
            "contestant", "social reward", "hidden taste", "taste minus base, paired", "oracle", title="steering"
        )
        for p in parts:
            mean_of = {n: r["mean"] for n, r in p["rewards"].items()}
            gain = p.get("versus_base", {}).get("hidden_taste")
            told = f"{gain['mean']:+.3f} [{gain['ci95'][0]:+.3f}, {gain['ci95'][1]:+.3f}]" if gain else ""
            table.add_row(
                p["name"],
                f"{mean_of['social']:.3f}",
                f"{mean_of['hidden_taste']:.3f}",
                told,
                f"{mean_of['oracle']:.3f}",
            )
        out.print(table)
        claims["ReNO on the learned reward raises the true taste"] = (
            parts[-1]["versus_base"]["hidden_taste"]["ci95"][0] > 0
        )
    for claim, holds in claims.items():
        out.print(f"{'yes' if holds else 'NO '}  {claim}")
        fine &= bool(holds)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
