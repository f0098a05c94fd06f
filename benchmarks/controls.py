"""The claim of a method beside the controls that must fail, in one table.

    python benchmarks/controls.py [reno|fk] [--prompts 42] [--seeds 2] [--runs runs]

On the starter reward a method must raise the oracle; paid for the opposite it must lower it; judged against other
prompts it must not gain; with nothing to do it must be the base, bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # `rewards` is the package, not the file beside this one

from workbench.core.paths import CONFIGS
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.runs import config, store

# method -> the run it stands in, the contestant that it is measured against, and what leaves it nothing to do
CLAIMS = {
    "reno": ("demo", "base", "contestants.reno.iterations=0"),
    "fk": ("methods-teacher", "stochastic", "contestants.fk.particles=1"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", choices=CLAIMS, default="reno")
    parser.add_argument("--prompts", type=int, default=0, help="only the first ones [all]")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    name, against, nothing = CLAIMS[args.method]
    arms = {
        "reward": [],
        "negated reward": ["control=negated"],
        "shuffled prompts": ["control=shuffled"],
        "nothing to do": [nothing],
    }
    table = Table("arm", f"oracle, {against}", f"oracle, {args.method}", "difference, paired", "must", "holds")
    fine = True
    for arm, change in arms.items():
        settings = [f"limit={args.prompts}", f"samples_per_prompt={args.seeds}", "name=control", "curve=false", *change]
        values = config.read_run_config(CONFIGS / "runs" / f"{name}.yaml", settings)
        both = {who: values.contestants[who] for who in (against, args.method)}
        plan = plan_run(dataclasses.replace(values, contestants=both))
        folder = store.RunFolder.open(args.runs, "control", dataclasses.asdict(plan.config))
        for _ in run.execute_run(plan, folder):
            pass
        base, aligned = folder.read("summary.json")["contestants"]
        low, high = aligned["versus_base"]["oracle"]["ci95"]
        must, holds = {
            "reward": ("rise", low > 0),
            "negated reward": ("fall", high < 0),
            "shuffled prompts": ("not rise", low <= 0),
            "nothing to do": ("be identical", pictures(folder, against) == pictures(folder, args.method)),
        }[arm]
        fine &= holds
        mean = f"{aligned['versus_base']['oracle']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
        table.add_row(arm, show(base), show(aligned), mean, must, "yes" if holds else "NO")
    Console().print(table)
    raise SystemExit(0 if fine else 1)


def show(part) -> str:
    o = part["oracle"]["overall"]
    return f"{o['mean']:.3f} [{o['ci95'][0]:.3f}, {o['ci95'][1]:.3f}]"


def pictures(folder: store.RunFolder, contestant: str) -> list[str]:
    """Fingerprints of the pixels, without the metadata that names the contestant."""
    from workbench.core.io import media

    paths = sorted((folder.path / "media" / contestant).glob("*.png"))
    return [hashlib.sha256(media.read_media(p).data.numpy().tobytes()).hexdigest() for p in paths]


if __name__ == "__main__":
    main()
