"""Every family of fine-tuning on the starter pack, from one base, with the same number of samples: who raises what?

    python benchmarks/alignment.py rules                      # paid by the soft oracle; the starter CLIP is held out
    python benchmarks/alignment.py learned                    # paid by the starter CLIP; the oracle is held out
    python benchmarks/alignment.py grpo --seeds 0             # settings of Flow-GRPO of which the best is in the others
    python benchmarks/alignment.py rules --only nft,grpo --seeds 0
    python benchmarks/alignment.py rules --tables             # train nothing: the table of what is finished or recorded

Each cell is a run of its own (`workbench run` would make the same): trained on one set of prompts, judged on
combinations that training never saw (74 prompts; the 12 of single things in the list were, and are left out), beside
the base and with its noises. What is finished in --runs is read, what was broken off goes on. The record
(alignment.jsonl, written by --record) keeps the scores of every sample, so that tables can be made without the runs.
Intervals are 95 % bootstraps over the held-out prompts within their categories, the samples of all seeds of training
together; the lowest and the highest seed are told too. `-nft` is the control: the same method paid to lower the reward
must lower the oracle.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import yaml
from kept import all_kept, asked_for, finished, known
from outcome import Outcome, pooled, record, recorded, shown

from workbench.runs import config

SEEN = ("single",)  # of the test prompts, the kind that is in the training list too: there are too few to hold any out
SEEDS = (1, 2, 3)  # settings were chosen by runs of seed 0
RECORD = ROOT / "benchmarks" / "alignment.jsonl"  # the documentation's tables come from it
LORA = "train.lora={rank: 32, alpha: 64, targets: all}"
COMMON = [
    "pipeline=starter-image-base",
    "train.policy={}",
    "samples_per_prompt=2",
    "batch=43",
    "train.eval_prompts=24",
    "train.best=last",
    LORA,
]
GROUPS = ["train.rounds=16", "train.prompts_per_round=8", "train.eval_every=16"]  # x 12 samples: 1,536
SINGLE = [
    "train.rounds=48",
    "train.prompts_per_round=32",
    "train.eval_every=48",
    "train.warmup=4",
    "train.max_grad_norm=0.3",
]  # 1,536 too
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
    "nft": group(FORWARD, "{name: nft, group: 12, levels_per_sample: 1, optimizer_steps: 2, lr: 1.5e-3, kl: 0}"),
    "awm": group(FORWARD, "{name: awm, group: 12, levels_per_sample: 2, lr: 1.5e-3}"),
    "crd": group(FORWARD, "{name: crd, group: 12, levels_per_sample: 1, optimizer_steps: 2, lr: 1.5e-3}"),
    "dgpo": group(FORWARD, "{name: dgpo, group: 12, levels_per_sample: 2, lr: 1.5e-3}"),
    "grpo": group(CHAIN, "{name: grpo, group: 12, window: fast, window_size: 2, lr: 6.0e-4}", *NOISY),
    "gdpo": group(
        CHAIN,
        "{name: grpo, group: 12, window: fast, window_size: 2, lr: 6.0e-4, advantage: gdpo}",
        *NOISY,
        "reward={PAID: 1, sharpness: 0.1}",
    ),
    "pref_grpo": group(
        CHAIN,
        "{name: grpo, group: 12, window: fast, window_size: 2, lr: 6.0e-4}",
        *NOISY,
        "reward={PAID: 1, shape: win_rate}",
    ),
    "ddpo": group(CHAIN, "{name: ddpo, group: 12, window: fast, window_size: 2, lr: 6.0e-4}", *NOISY),
    "dpo": group(PAIRS, "{name: dpo, group: 12, levels_per_sample: 4, optimizer_steps: 2, lr: 1.0e-3}"),
    "kto": group(PAIRS, "{name: kto, group: 12, beta: 100, levels_per_sample: 2, optimizer_steps: 2, lr: 5.0e-4}"),
    "d3po": group(PAIRS, "{name: d3po, group: 12, lr: 3.0e-4}", *NOISY),
    "raft": group(RANKS, "{name: raft, group: 12, keep_best: 2, levels_per_sample: 4, lr: 6.0e-4, samples: reference}"),
    "rwr": group(
        RANKS, "{name: rwr, group: 12, temperature: 0.5, levels_per_sample: 2, lr: 6.0e-4, samples: reference}"
    ),
    "prdp": group(
        RANKS, "{name: prdp, group: 12, window: fast, window_size: 2, optimizer_steps: 1, lr: 1.2e-3}", *NOISY
    ),
    "parrot": group(
        RANKS,
        "{name: parrot, group: 12, window: fast, window_size: 2, lr: 6.0e-4}",
        *NOISY,
        "reward={PAID: 1, sharpness: 0.1}",
    ),
    "-nft": group(
        FORWARD,
        "{name: nft, group: 12, levels_per_sample: 1, optimizer_steps: 2, lr: 1.5e-3, kl: 0}",
        "control=negated",
    ),
}
GRADIENTS = {
    "draft": Recipe(GRADIENT, "{name: draft, lr: 1.0e-3}", (*SINGLE,)),
    "draft_lv": Recipe(GRADIENT, "{name: draft_lv, lr: 1.0e-3}", (*SINGLE,)),
    "align_prop": Recipe(GRADIENT, "{name: align_prop, grad_steps: 4, grad_steps_std: 2, lr: 1.0e-3}", (*SINGLE,)),
    "refl": Recipe(GRADIENT, "{name: refl, reward_threshold: 100, lr: 1.0e-3}", (*SINGLE,)),
    "instruct_video": Recipe(GRADIENT, "{name: instruct_video, samples_per_prompt: 0, lr: 1.0e-3}", (*SINGLE,)),
    "srpo": Recipe(
        GRADIENT,
        "{name: srpo, positive_words: '', negative_words: 'two ', reward_threshold: 100, lr: 5.0e-4}",
        (*SINGLE,),
    ),
    "direct_align": Recipe(  # SRPO without words: its steps back into noise climb down, so both climb the plain reward
        GRADIENT,
        "{name: srpo, positive_words: '', negative_words: '', k: [1, 1], k_inverse: [-1, -1], injected_noise: fresh, "
        "reward_threshold: 100, lr: 1.0e-3}",
        (*SINGLE,),
    ),
}


def long(recipe: Recipe, rounds: int, decay: float = 0.33) -> Recipe:
    """So many rounds of 144 samples, looked at on the way, the last `decay` of them with a falling learning rate."""
    more = (
        f"train.rounds={rounds}",
        f"train.decay={decay}",
        "train.prompts_per_round=12",
        "train.eval_every=5",
        "train.eval_prompts=48",
    )
    return dataclasses.replace(recipe, train=(*recipe.train, *more))


# held to the base *with* its guidance, as the paper does (section 4.5): it learns from the reward and what guidance
# does
GUIDED, HOT = (
    group(
        FORWARD,
        f"{{name: crd, group: 12, levels_per_sample: 1, optimizer_steps: 2, lr: {lr}, kl: 0.3, "
        "reference_guidance: 3.0}",
    )
    for lr in ("1.0e-3", "1.5e-3")
)


LONG = {
    "grpo-long": long(SHARED["grpo"], 60),
    "crd-long": long(SHARED["crd"], 20),
    "crd-guided": long(GUIDED, 50, 0.8),
    "crd-guided-hot": long(HOT, 50),
}
GRPOS = {  # settings of which the best counts as well tuned
    f"grpo-{window}-{lr}": group(
        CHAIN, f"{{name: grpo, group: 12, window: {window}, window_size: 2, lr: {lr}}}", *NOISY
    )
    for window, lr in (("fast", "2.0e-4"), ("fast", "6.0e-4"), ("fast", "1.5e-3"), ("all", "2.0e-4"), ("all", "6.0e-4"))
}
TABLES = {  # what is optimised, and recipes
    "rules": ("oracle_soft", SHARED | LONG),
    "learned": ("starter_clip", SHARED | GRADIENTS),
    "grpo": ("oracle_soft", GRPOS),
}


def told(table: str, name: str, seed: int) -> list[str]:
    """What the cell of a table asks for that differs from `train-nft`."""
    paid, recipes = TABLES[table]
    more = [*COMMON, f"reward={paid}", f"watch=[{', '.join(sorted({'oracle', HELD[paid]}))}]"]
    more += [o.replace("PAID", paid) for o in recipes[name].overrides()]
    return [*more, f"seed={seed}", f"name={slug(table, name)}-{seed}"]


def asked(table: str, name: str, seed: int) -> config.RunConfig:
    """The run that is a cell of a table."""
    return config.read_run_config("train-nft", told(table, name, seed))


def slug(table: str, name: str) -> str:
    return f"{table}-{name.replace('-', 'negated-', 1) if name.startswith('-') else name}"


# --- the table -------------------------------------------------------------------------------------------------------


@cache
def written() -> dict[str, Outcome]:
    """The record, read once: every cell asks."""
    return {settings_key(overrides): outcome for overrides, outcome in recorded(RECORD).items()}


def settings_key(overrides: Sequence[str]) -> str:
    """What overrides set, under the names that settings have now: the record has those of its time."""
    values: dict = {}
    for text in overrides:
        path, _, value = text.partition("=")
        *parents, leaf = path.split(".")
        block = values
        for parent in parents:
            block = block.setdefault(parent, {})
        block[leaf] = yaml.safe_load(value)
    return json.dumps(config.current_config(values, announce=False), sort_keys=True)


def outcomes(runs: Path, table: str, name: str, seeds: Sequence[int]) -> list[Outcome]:
    """Of the seeds that are finished in `runs`, or else in the record."""
    kept = written()
    found = [
        Outcome.of(folder)
        if (folder := finished(runs, asked(table, name, seed)))
        else kept.get(settings_key(told(table, name, seed)))
        for seed in seeds
    ]
    return [outcome for outcome in found if outcome]


def row(runs: Path, table: str, name: str, seeds: Sequence[int]) -> tuple[list[str], list[str]] | None:
    """The cells of a method, and those of its base."""
    paid, recipes = TABLES[table]
    if not (found := outcomes(runs, table, name, seeds)):
        return None
    spent = [o.training for o in found]
    reward, oracle, held = (pooled(found, judge, SEEN) for judge in (paid, "oracle", HELD[paid]))
    varied = [statistics.mean(o.diversity[side] for o in found) for side in (0, 1)]
    apart = oracle["after"]["ci95"][0] > oracle["base"]["ci95"][1]
    base = ["base", "", "", shown(reward["base"]), shown(oracle["base"]), "", "", shown(held["base"]), "", "", "", ""]
    return [
        name,
        recipes[name].family,
        str(len(found)),
        shown(reward["after"]),
        ("**{}**" if apart else "{}").format(shown(oracle["after"])),
        f"{min(oracle['seeds']):.2f} … {max(oracle['seeds']):.2f}",
        shown(oracle["gain"], "+"),
        shown(held["after"]),
        f"{spent[0]['samples']:,}",
        f"{statistics.mean(o.cpu for o in found) / 60:.1f}",
        f"{max(s['peak_mb'] for s in spent):,.0f}",
        f"{statistics.mean(s['distance'] for s in spent):.3f}",
        f"{varied[1]:.3f}",
    ], [*base, f"{varied[0]:.3f}"]


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


def there(outcome: Outcome, level: float) -> int | None:
    """Samples drawn before the first look at which the watched prompts had that reward; None where they never had."""
    return next((n for n, reward in outcome.watched if reward >= level), None)


def samples(runs: Path, seeds: Sequence[int], rival: str = "grpo-long") -> None:
    """What forward-process methods have with fewer samples than the rival's long training: on the test prompts, and
    when, as the watched prompts tell, they had the mean reward of its last three looks (looks of table rows are too few
    for that)."""
    print(f"\n| method | seeds | samples | fewer than {rival} | reward | more than {rival}'s | had its reward after |")
    print("|" + "---|" * 7)
    paid, recipes = TABLES["rules"]
    rivals = {seed: found[0] for seed in seeds if (found := outcomes(runs, "rules", rival, [seed]))}
    for name in [rival, *(n for n, r in recipes.items() if r.family == FORWARD and not n.startswith("-"))]:
        mine = {s: o for s in rivals for o in outcomes(runs, "rules", name, [s])}
        if not mine:
            continue
        pairs = [
            dataclasses.replace(o, before={paid: rivals[seed].after[paid]}, after={paid: o.after[paid]})
            for seed, o in mine.items()
        ]
        drawn, whole = (next(iter(found.values())).training["samples"] for found in (mine, rivals))
        levels = [statistics.mean(reward for _, reward in rivals[seed].watched[-3:]) for seed in mine]
        first = [there(o, level) for o, level in zip(mine.values(), levels, strict=True)]
        when = ", ".join("never" if n is None else f"{n:,}" for n in first) if name in LONG else ""
        reward = pooled(pairs, paid, SEEN)
        more = "" if name == rival else shown(reward["gain"], "+")
        cells = [name, str(len(mine)), f"{drawn:,}", f"{whole / drawn:.1f} x", shown(reward["after"]), more, when]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--only", help="methods, separated by commas; all when not given")
    parser.add_argument("--record", action="store_true", help=f"also keep what is finished in {RECORD.name}")
    options = asked_for(parser, "runs/alignment", SEEDS)
    names = known(parser, options.only.split(",") if options.only else [], list(TABLES[options.table][1]))
    seeds = options.seeds
    cells = [
        (asked(options.table, name, seed), [options.table, f"--only={name}", "--seeds", str(seed)])
        for seed in seeds
        for name in names
    ]
    if not options.tables and all_kept(__file__, options.runs, options.threads, cells):
        return
    if options.record:
        runs = {(n, s): f for n in names for s in seeds if (f := finished(options.runs, asked(options.table, n, s)))}
        record(RECORD, {tuple(told(options.table, *cell)): Outcome.of(folder) for cell, folder in runs.items()})
    show(options.runs, options.table, names, seeds)
    if options.table == "rules":
        samples(options.runs, seeds)


if __name__ == "__main__":
    main()
