"""Do the lowest versions that pyproject.toml allows give the same table as the newest?

    python benchmarks/floors.py [--folder FOLDER] [--prompts 4]

Makes two virtual environments, one with every dependency at its lowest version and one with the newest, runs the demo's
first prompts in both, and prints both tables. Exits with 1 where the means differ by more than rounding.
Downloads some gigabytes; an environment that is there already is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 5e-3  # kernels of other versions round differently, and ReNO amplifies it


def read_floors() -> list[str]:
    """`name==lowest` for every runtime dependency of pyproject.toml."""
    requirements = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    return [f"{r.name}=={s.version}" for r in requirements for s in r.specifier if s.operator == ">="]


def make_environment(folder: Path, constraints: list[str]) -> Path:
    """The Python of an environment in `folder` with the workbench and `constraints` installed."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        limits = folder / "constraints.txt"
        limits.write_text("\n".join(constraints))
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-c", limits, "-e", ROOT], check=True)
        (folder / "complete").touch()
    return python


def measure_demo(python: Path, prompts: int) -> dict[str, dict[str, float]]:
    """contestant -> reward -> mean, of the demo's first prompts."""
    with tempfile.TemporaryDirectory() as runs:
        command = ["-m", "workbench", "run", "demo", f"limit={prompts}", "--runs", runs]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run([python, *command], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        (summary,) = Path(runs).glob("*/summary.json")
        contestants = json.loads(summary.read_text())["contestants"]
    return {c["name"]: {name: score["mean"] for name, score in c["rewards"].items()} for c in contestants}


def list_versions(python: Path) -> dict[str, str]:
    """Package -> version installed, for the workbench's own dependencies."""
    names = [floor.partition("==")[0] for floor in read_floors()]
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "workbench-floors")
    parser.add_argument("--prompts", type=int, default=4)
    args = parser.parse_args()
    pythons = {
        "floors": make_environment(args.folder / "floors", read_floors()),
        "newest": make_environment(args.folder / "newest", []),
    }
    versions = {name: list_versions(python) for name, python in pythons.items()}
    for package in versions["floors"]:
        print(f"{package:20}" + "".join(f"{versions[name][package]:>14}" for name in pythons))
    tables = {name: measure_demo(python, args.prompts) for name, python in pythons.items()}
    differences = []
    print(f"\n{'':34}{'floors':>14}{'newest':>14}")
    for contestant, rewards in tables["floors"].items():
        for reward, mean in rewards.items():
            other = tables["newest"][contestant][reward]
            differences.append(abs(mean - other))
            print(f"{contestant:14}{reward:20}{mean:14.4f}{other:14.4f}")
    print(f"\nlargest difference {max(differences):.1e}, tolerance {TOLERANCE:.0e}")
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
