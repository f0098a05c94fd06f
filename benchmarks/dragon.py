"""DRAGON's experiment in miniature: one training for each reward, and how often it beats the base by that reward.

    python benchmarks/dragon.py --references data --made-by starter-music-good   # the configs' examples, once
    python benchmarks/dragon.py [fad-clap song-fad-clap ...] [--updates 60] [--seed 0] [--runs runs/dragon] [--tables]

Every config of configs/runs/dragon, or those that are named, becomes a run of its own in --runs: begun again it goes
on, and a finished one is read. Base and trained make the test prompts from the same noises; both tables come from the
sounds that lie in the run folders. Win rate: of samples, a tie counting half, with a 95 % interval over prompts; by
rewards of whole sets, of random halves of the prompts, the same for both. Beside it what no training saw. The second
table asks the paper's main question: does a distance of sets fall further when D+ is built as a set than when songs are
ranked? Its intervals are the delete-half jackknife's.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from kept import finished, kept

import pipelines
from pipelines.starter.music import world
from workbench.core.io import media
from workbench.core.paths import CONFIGS, write_atomic
from workbench.core.types import Media
from workbench.engine.plan import plan_run
from workbench.evaluation import set_rewards, statistics
from workbench.report import pages
from workbench.runs import (
    config,
    store,
)
from workbench.runs.plan import Plan

TRAINED = "dragon"
PAPER = 0.8145  # mean win rate of its twenty rewards


@torch.no_grad()
def references(place: Path, count: int, pipeline: str = "", seed: int = 0) -> None:
    """`count` pieces of the world as waves in place/music, rendered or made by `pipeline`, and as many other captions
    in place/music.txt. What is made has the decoder's own noise floor, which a log-mel distance otherwise is mostly of.
    """
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    pieces = [draw.choice(world.seen_pieces()) for _ in range(2 * count)]
    if pipeline:
        policy, said = pipelines.load(pipeline), [p.prompt for p in pieces[:count]]
        parts = [range(low, min(low + 32, count)) for low in range(0, count, 32)]
        waves = torch.cat([policy.sample([said[n] for n in r], seeds=list(r)).media.data[:, 0].cpu() for r in parts])
    else:
        waves = world.render_pieces(pieces[:count], draw, noise)
    (place / "music").mkdir(parents=True, exist_ok=True)
    for n, wave in enumerate(waves):
        sound = Media(wave.clamp(-1, 1)[None, None], "audio", float(world.RATE))
        media.write_media(sound, place / "music" / f"{n:04d}.wav", meta={"prompt": pieces[n].prompt})
    write_atomic(place / "music.txt", "".join(f"{p.prompt}\n" for p in pieces[count:]))
    print(f"{count} sounds in {place / 'music'}, {count} captions in {place / 'music.txt'}")


# --- trainings -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arm:
    """A finished run of the experiment."""

    name: str
    plan: Plan
    folder: store.RunFolder

    @property
    def of_sets(self) -> bool:
        return self.plan.reward.spec.scope == "set"

    @property
    def parts(self) -> dict[str, Mapping]:
        """contestant -> its part of the summary."""
        return {c["name"]: c for c in self.folder.read("summary.json")["contestants"]}

    def made(self, contestant: str) -> tuple[Media, list[str]]:
        """Its sounds as they lie in the folder, and their prompts."""
        found = pages.collect_samples(self.folder.events())[contestant]
        rows = [found[key] for key in sorted(found)]
        return Media.cat([media.read_media(self.folder.path / s["file"]) for s in rows]), [s["prompt"] for s in rows]


def arm(path: Path, runs: Path, changes: Sequence[str], seed: int, go: bool) -> Arm | None:
    """The run of a config: made, continued, or finished already. None where it is not finished and not to go on."""
    asked = config.read_run_config(path, [*changes, f"seed={seed}", f"name={path.stem}-{seed}"])
    folder = kept(runs, asked) if go else finished(runs, asked)
    return Arm(path.stem, plan_run(asked, ""), folder) if folder else None


# --- tables ----------------------------------------------------------------------------------------------------------


def wins(one: Arm) -> tuple[float, str, float, float]:
    """(win rate, its interval or what it is over, the reward of the base, of the trained)."""
    (base, prompts), (after, _) = one.made("base"), one.made(TRAINED)
    if one.of_sets:
        then, now = (set_rewards.score_set(one.plan.reward, m, prompts) for m in (base, after))
        gaps = np.subtract(now.halves, then.halves)
        return float(np.heaviside(gaps, 0.5).mean()), f"{len(gaps)} halves", then.value, now.value
    with torch.no_grad():
        then, now = (one.plan.reward(media=m, prompts=prompts).double().numpy() for m in (base, after))
    rate = statistics.mean_with_interval(np.heaviside(now - then, 0.5), prompts)
    return rate["mean"], f"[{rate['ci95'][0]:.2f}, {rate['ci95'][1]:.2f}]", np.nanmean(then), np.nanmean(now)


def table(arms: Sequence[Arm]) -> None:
    shown, rates = Table(title="Trained for a reward, against the base, on held-out prompts"), []
    heads = ("reward", "D+", "win rate", "over", "before", "after", "oracle, base", "oracle, trained")
    for head in (*heads, "clap, gain", "variety, gain", "min CPU", "min"):
        shown.add_column(head)
    for one in arms:
        rate, over, then, now = wins(one)
        rates.append(rate)
        base, after = one.parts["base"], one.parts[TRAINED]
        gains = [after["versus_base"].get(judge) for judge in ("starter_clap", "audio_vendi")]
        took = {k: f"{s / 60:.1f}" for k, s in one.folder.read("took.json").items()}
        cells = [
            f"{rate:.2f}",
            over,
            f"{then:.4g}",
            f"{now:.4g}",
            *(show(c["oracle"]["overall"]) for c in (base, after)),
        ]
        cells += [*(show(e, "+") if e else "" for e in gains), took.get("cpu", ""), took.get("wall", "")]
        how = one.plan.methods[TRAINED].build if one.of_sets else "rank"
        shown.add_row(one.name, how, *cells)
    Console(width=190).print(shown)
    print(f"mean win rate of {len(rates)} rewards: {np.mean(rates):.3f}   (the paper's twenty: {PAPER})")


def compared(arms: Sequence[Arm]) -> None:
    """Every distance that sets were built for, of the base and of all that were trained for it: as sets and song by
    song."""
    for measure in (a for a in arms if a.name.startswith("fad-") and a.plan.methods[TRAINED].build == "swap"):
        rank = f"song-{measure.name}"
        rivals = {a.name: a.made(TRAINED) for a in arms if a.name in (measure.name, rank) or a.of_sets}
        made = {"base": measure.made("base")} | rivals
        found = {n: set_rewards.score_set(measure.plan.reward, *some) for n, some in made.items()}
        shown = Table("trained for", "value", "gain over base", "gain over ranking songs", title=measure.name)
        for n, whole in found.items():
            rest = show(whole.estimate(found[rank]), "+") if rank in found and n != rank else ""
            shown.add_row(n, f"{whole.value:.4g}", show(whole.estimate(found["base"]), "+"), rest)
        Console(width=120).print(shown)


def show(e: Mapping, sign: str = "") -> str:
    ends = f" [{e['ci95'][0]:{sign}.3g}, {e['ci95'][1]:{sign}.3g}]" if e["ci95"] else ""
    return f"{e['mean']:{sign}.3g}{ends}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="configs of the set [all]")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "dragon")
    parser.add_argument("--updates", type=int, default=0, help="of each training [as its config says]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides, as limit=8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tables", action="store_true", help="train nothing: the tables of what is finished")
    parser.add_argument("--references", type=Path, help="write the examples into this folder, and end")
    parser.add_argument("--made-by", default="", metavar="PIPELINE", help="makes their sounds [they are rendered]")
    parser.add_argument("--count", type=int, default=256, help="sounds, and captions, of the examples")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.references:
        return references(args.references, args.count, args.made_by)
    known = {p.stem: p for p in sorted((CONFIGS / "runs" / "dragon").glob("*.yaml"))}
    if unknown := set(args.names) - set(known):
        parser.error(f"no config {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    changes = [*args.set, *([f"train.rounds={args.updates}"] if args.updates else [])]
    found = [arm(known[n], args.runs, changes, args.seed, not args.tables) for n in args.names or known]
    if arms := [a for a in found if a]:
        table(arms)
        compared(arms)


if __name__ == "__main__":
    main()
