"""Every family of fine-tuning on the starter pack, from one base, with the same number of samples: who raises what?

    python benchmarks/alignment.py rules                      # paid by the soft oracle; the starter CLIP is held out
    python benchmarks/alignment.py learned                    # paid by the starter CLIP; the oracle is held out
    python benchmarks/alignment.py grpo --seeds 0             # the settings of Flow-GRPO of which the best is in the others
    python benchmarks/alignment.py rules --only nft,grpo --seeds 0
    python benchmarks/alignment.py rules --tables             # the table of what is finished, trained nothing

Each cell is a run of its own (`workbench run` would make the same): trained on one set of prompts, judged on combinations
that training never saw, beside the base and with its noises. What is finished in --runs is read, what was broken off goes on.
Intervals are 95 % bootstraps over the held-out prompts within their categories, the samples of all seeds of training together; the lowest and the highest
seed are told too. `-nft` is the control: the same method paid to lower the reward must lower the oracle.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from kept import all_kept, asked_for, finished, known  # noqa: E402

from workbench import config, evaluate, store  # noqa: E402

LORA = "train.lora={rank: 32, alpha: 64, targets: all}"
COMMON = [
    "pipeline=starter-image-base",
    "train.policy={}",
    "seeds=2",
    "batch=43",
    "train.held=24",
    "train.best=last",
    LORA,
]
GROUPS = ["train.updates=16", "train.prompts=8", "train.evaluate=16"]  # x 12 samples: 1,536
SINGLE = ["train.updates=48", "train.prompts=32", "train.evaluate=48", "train.warmup=4", "train.clip=0.3"]  # 1,536 too
NOISY = ["train.policy={kernel: {name: flow-sde}}"]
HELD = {"oracle_soft": "starter_clip", "starter_clip": "oracle_soft"}  # what is paid: what is watched beside the oracle


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method is trained in a table: its family, its settings, and what differs from COMMON."""

    family: str
    method: str  # a YAML mapping
    train: tuple[str, ...] = ()

    def overrides(self) -> list[str]:
        return [f"method={self.method}", *self.train]


def group(family: str, method: str, *more: str) -> Recipe:
    return Recipe(family, method, (*GROUPS, *more))


FORWARD, CHAIN, PAIRS, RANKS, GRADIENT = (
    "forward process",
    "denoising chain",
    "preference",
    "ranking",
    "reward gradient",
)
SHARED = {
    "nft": group(FORWARD, "{name: nft, group: 12, times: 1, updates: 2, lr: 1.5e-3, kl: 0}"),
    "awm": group(FORWARD, "{name: awm, group: 12, times: 2, lr: 1.5e-3}"),
    "crd": group(FORWARD, "{name: crd, group: 12, times: 1, updates: 2, lr: 1.5e-3}"),
    "dgpo": group(FORWARD, "{name: dgpo, group: 12, times: 2, lr: 1.5e-3}"),
    "grpo": group(CHAIN, "{name: grpo, group: 12, window: fast, width: 2, lr: 6.0e-4}", *NOISY),
    "gdpo": group(
        CHAIN,
        "{name: grpo, group: 12, window: fast, width: 2, lr: 6.0e-4, advantage: gdpo}",
        *NOISY,
        "reward={PAID: 1, sharpness: 0.1}",
    ),
    "pref_grpo": group(
        CHAIN,
        "{name: grpo, group: 12, window: fast, width: 2, lr: 6.0e-4}",
        *NOISY,
        "reward={PAID: 1, shape: win_rate}",
    ),
    "ddpo": group(CHAIN, "{name: ddpo, group: 12, window: fast, width: 2, lr: 6.0e-4}", *NOISY),
    "dpo": group(PAIRS, "{name: dpo, group: 12, times: 4, updates: 2, lr: 1.0e-3}"),
    "kto": group(PAIRS, "{name: kto, group: 12, beta: 100, times: 2, updates: 2, lr: 5.0e-4}"),
    "d3po": group(PAIRS, "{name: d3po, group: 12, lr: 3.0e-4}", *NOISY),
    "raft": group(RANKS, "{name: raft, group: 12, keep: 2, times: 4, lr: 6.0e-4, samples: reference}"),
    "rwr": group(RANKS, "{name: rwr, group: 12, temperature: 0.5, times: 2, lr: 6.0e-4, samples: reference}"),
    "prdp": group(RANKS, "{name: prdp, group: 12, updates: 1, lr: 6.0e-4}", *NOISY),
    "parrot": group(
        RANKS,
        "{name: parrot, group: 12, window: fast, width: 2, lr: 6.0e-4}",
        *NOISY,
        "reward={PAID: 1, sharpness: 0.1}",
    ),
    "-nft": group(FORWARD, "{name: nft, group: 12, times: 1, updates: 2, lr: 1.5e-3, kl: 0}", "control=negated"),
}
GRADIENTS = {
    "draft": Recipe(GRADIENT, "{name: draft, lr: 1.0e-3}", (*SINGLE,)),
    "draft_lv": Recipe(GRADIENT, "{name: draft_lv, lr: 1.0e-3}", (*SINGLE,)),
    "align_prop": Recipe(GRADIENT, "{name: align_prop, last: 4, jitter: 2, lr: 1.0e-3}", (*SINGLE,)),
    "refl": Recipe(GRADIENT, "{name: refl, enough: 100, lr: 1.0e-3}", (*SINGLE,)),
    "instruct_video": Recipe(GRADIENT, "{name: instruct_video, lr: 1.0e-3}", (*SINGLE,)),
    "srpo": Recipe(GRADIENT, "{name: srpo, good: '', bad: 'two ', enough: 100, lr: 5.0e-4}", (*SINGLE,)),
}


def long(recipe: Recipe, rounds: int = 90) -> Recipe:
    """So many rounds of 144 samples, looked at on the way."""
    more = (f"train.updates={rounds}", "train.prompts=12", "train.evaluate=5", "train.save=10")
    return dataclasses.replace(recipe, train=(*recipe.train, *more))


# held to the base *with* its guidance, as the paper does (section 4.5): it learns from the reward and what guidance does
GUIDED = group(FORWARD, "{name: crd, group: 12, times: 1, updates: 2, lr: 1.5e-3, kl: 0.3, anchor_guidance: 3.0}")


LONG = {"nft-long": long(SHARED["nft"]), "grpo-long": long(SHARED["grpo"]), "crd-guided": long(GUIDED, 50)}
GRPOS = {  # settings of which the best counts as well tuned
    f"grpo-{window}-{lr}": group(CHAIN, f"{{name: grpo, group: 12, window: {window}, width: 2, lr: {lr}}}", *NOISY)
    for window, lr in (("fast", "2.0e-4"), ("fast", "6.0e-4"), ("fast", "1.5e-3"), ("all", "2.0e-4"), ("all", "6.0e-4"))
}
TABLES = {  # what is optimised, and recipes
    "rules": ("oracle_soft", SHARED | LONG),
    "learned": ("starter_clip", SHARED | GRADIENTS),
    "grpo": ("oracle_soft", GRPOS),
}


def asked(table: str, name: str, seed: int) -> config.RunConfig:
    """The run that is a cell of a table."""
    paid, recipes = TABLES[table]
    told = [*COMMON, f"reward={paid}", f"watch=[{', '.join(sorted({'oracle', HELD[paid]}))}]"]
    told += [o.replace("PAID", paid) for o in recipes[name].overrides()]
    return config.read("train-nft", [*told, f"seed={seed}", f"name={slug(table, name)}-{seed}"])


def slug(table: str, name: str) -> str:
    return f"{table}-{name.replace('-', 'negated-', 1) if name.startswith('-') else name}"


# --- the table -------------------------------------------------------------------------------------------------------


def finals(folder: store.RunFolder) -> Iterator[tuple[str, dict]]:
    """(contestant, sample) of what the test prompts were answered with."""
    for event in folder.events():
        if event.get("final"):
            yield from ((event["contestant"], sample) for sample in event["samples"])


def pooled(folders: Sequence[store.RunFolder], judge: str) -> dict:
    """{"base", "after", "gain"} of a judge over all seeds of training, each with an interval over prompts, and the mean of each."""
    values = {"base": [], "after": [], "gain": []}
    prompts, kinds, each = [], [], []
    for folder in folders:
        scores: dict[str, dict] = {"base": {}, "after": {}}
        category: dict[int, str] = {}
        for contestant, s in finals(folder):
            category[s["index"]] = s["category"]
            scores["base" if contestant == "base" else "after"][s["index"], s["k"]] = evaluate.nan(s["scores"][judge])
        keys = sorted(scores["base"])
        before, after = ([scores[who][key] for key in keys] for who in ("base", "after"))
        values["base"] += before
        values["after"] += after
        values["gain"] += [b - a for a, b in zip(before, after, strict=True)]
        prompts += [index for index, _ in keys]
        kinds += [category[index] for index, _ in keys]
        each.append(sum(after) / len(after))
    return {what: evaluate.interval(found, prompts, kinds) for what, found in values.items()} | {"seeds": each}


def shown(estimate: dict, sign: str = "") -> str:
    if estimate["ci95"] is None:  # a judge that could judge nothing
        return "–"
    low, high = estimate["ci95"]
    return f"{estimate['mean']:{sign}.3f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def row(runs: Path, table: str, name: str, seeds: Sequence[int]) -> tuple[list[str], list[str]] | None:
    """The cells of a method, and those of its base."""
    paid, recipes = TABLES[table]
    folders = [f for seed in seeds if (f := finished(runs, asked(table, name, seed)))]
    if not folders:
        return None
    summed = [f.read("summary.json")["contestants"] for f in folders]
    bases, parts = ([next(c for c in s if (c["name"] == "base") is base) for s in summed] for base in (True, False))
    spent = [part["training"] for part in parts]
    reward, oracle, held = (pooled(folders, judge) for judge in (paid, "oracle", HELD[paid]))
    apart = oracle["after"]["ci95"][0] > oracle["base"]["ci95"][1]
    base = ["base", "", "", shown(reward["base"]), shown(oracle["base"]), "", "", shown(held["base"]), "", "", "", ""]
    return [
        name,
        recipes[name].family,
        str(len(folders)),
        shown(reward["after"]),
        ("**{}**" if apart else "{}").format(shown(oracle["after"])),
        f"{min(oracle['seeds']):.2f} … {max(oracle['seeds']):.2f}",
        shown(oracle["gain"], "+"),
        shown(held["after"]),
        f"{spent[0]['samples']:,}",
        f"{statistics.mean(f.read('took.json')['cpu'] for f in folders) / 60:.1f}",
        f"{max(s['peak_mb'] for s in spent):,.0f}",
        f"{statistics.mean(s['distance'] for s in spent):.3f}",
        f"{statistics.mean(p['diversity'] for p in parts):.3f}",
    ], [*base, f"{statistics.mean(b['diversity'] for b in bases):.3f}"]


def show(runs: Path, table: str, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Bold: the oracle's interval lies above the base's."""
    paid, _ = TABLES[table]
    head = [
        "method",
        "family",
        "seeds",
        f"reward: {paid}",
        "oracle",
        "lowest … highest",
        "gain of the oracle",
        HELD[paid],
    ]
    head += ["samples", "CPU min", "MB", "distance", "diversity"]
    lines = [cells for name in names if (cells := row(runs, table, name, seeds))]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for cells in [lines[0][1], *(mine for mine, _ in lines)] if lines else []:
        print("| " + " | ".join(cells) + " |")


# --- samples to the same reward --------------------------------------------------------------------------------------


def curve(folder: store.RunFolder) -> list[tuple[int, float]]:
    """[(samples drawn, reward on the prompts that are watched)] of a training."""
    done = next(c["training"] for c in folder.read("summary.json")["contestants"] if "training" in c)
    each = done["samples"] // done["updates"]
    looks = [e for e in folder.events() if e.get("phase") == "watch"]
    return [(each * e["step"], e["metrics"]["held reward"]) for e in looks]


def samples(runs: Path, seeds: Sequence[int], rival: str = "grpo-long", mine: str = "nft-long") -> None:
    """How many samples each drew until it had the reward at which the rival's training ends."""
    print(
        f"\n| seed | {rival} ends at | first there after | {mine} is there after | of the rival's whole | of its way there |"
    )
    print("|---|---|---|---|---|---|")
    for seed in seeds:
        found = [finished(runs, asked("rules", name, seed)) for name in (rival, mine)]
        if not all(found):
            continue
        theirs, ours = map(curve, found)
        end = theirs[-1][1]
        least, first = (next((n for n, r in points if r >= end), None) for points in (theirs, ours))
        told = (
            ["never", "", ""]
            if first is None
            else [f"{first:,}", f"{theirs[-1][0] / max(1, first):.1f} x", f"{least / max(1, first):.1f} x"]
        )
        print(f"| {seed} | {end:.3f} | {least:,} | " + " | ".join(told) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--only", help="methods, separated by commas; all when not given")
    options = asked_for(parser, "runs/alignment")
    names = known(parser, options.only.split(",") if options.only else [], list(TABLES[options.table][1]))
    seeds = options.seeds
    cells = [
        (asked(options.table, name, seed), [options.table, f"--only={name}", "--seeds", str(seed)])
        for seed in seeds
        for name in names
    ]
    if not options.tables and all_kept(__file__, options.runs, options.threads, cells):
        return
    show(options.runs, options.table, names, seeds)
    if options.table == "rules":
        samples(options.runs, seeds)


if __name__ == "__main__":
    main()
