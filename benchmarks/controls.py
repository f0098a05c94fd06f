"""The claim of the demo beside the controls that must fail, in one table.

    python benchmarks/controls.py [--prompts 42] [--seeds 2] [--runs runs]

ReNO on the starter reward must raise the oracle; paid for the opposite it must lower it; judged against other prompts it
must not gain; with no iteration it must be the base, bit for bit.
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

from workbench import config, run, store
from workbench.assets import CONFIGS

ARMS = {
    "reward": [],
    "negated reward": ["control=negated"],
    "shuffled prompts": ["control=shuffled"],
    "no iteration": ["contestants.reno.iterations=0"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=0, help="only the first ones [all]")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    table = Table("arm", "oracle, base", "oracle, ReNO", "ReNO minus base, paired", "must", "holds")
    fine = True
    for arm, change in ARMS.items():
        settings = [f"limit={args.prompts}", f"seeds={args.seeds}", "name=control", *change]
        values = config.read(CONFIGS / "runs" / "demo.yaml", settings)
        both = {name: block for name, block in values.contestants.items() if name in ("base", "reno")}
        plan = run.plan(dataclasses.replace(values, contestants=both))
        folder = store.RunFolder.open(args.runs, "control", dataclasses.asdict(plan.config))
        for _ in run.execute(plan, folder):
            pass
        base, reno = folder.read("summary.json")["contestants"]
        low, high = reno["versus_base"]["oracle"]["ci95"]
        must, holds = {
            "reward": ("rise", low > 0),
            "negated reward": ("fall", high < 0),
            "shuffled prompts": ("not rise", low <= 0),
            "no iteration": ("be identical", pictures(folder, "base") == pictures(folder, "reno")),
        }[arm]
        fine &= holds
        mean = f"{reno['versus_base']['oracle']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
        table.add_row(arm, show(base), show(reno), mean, must, "yes" if holds else "NO")
    Console().print(table)
    raise SystemExit(0 if fine else 1)


def show(part) -> str:
    o = part["oracle"]["overall"]
    return f"{o['mean']:.3f} [{o['ci95'][0]:.3f}, {o['ci95'][1]:.3f}]"


def pictures(folder: store.RunFolder, contestant: str) -> list[str]:
    """Fingerprints of the pixels, without the metadata that names the contestant."""
    from workbench import media

    paths = sorted((folder.path / "media" / contestant).glob("*.png"))
    return [hashlib.sha256(media.read(p).data.numpy().tobytes()).hexdigest() for p in paths]


if __name__ == "__main__":
    main()
