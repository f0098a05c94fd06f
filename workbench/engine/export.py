"""What a training run leaves for others: its weights again, on demand, and a model card that says what they are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

import pipelines
from workbench.core.paths import write_atomic
from workbench.core.schema import build, nearest
from workbench.core.types import BadInput
from workbench.engine import plan as planning
from workbench.report import findings
from workbench.runs import config, store
from workbench.training import training_runs

CARD, GRID = "README.md", "grid.png"
EXPORTS = "exports.json"  # in the run folder: where its weights were exported to again, and how


@dataclass(frozen=True)
class Told:
    """What was exported."""

    folder: Path
    exported: pipelines.Exported

    def rows(self) -> dict:
        e = self.exported
        return {
            "folder": str(self.folder),
            "files": [str(f) for f in e.files],
            "load": list(e.load),
            "difference": e.difference,
            "effect": e.effect,
            "notes": list(e.notes),
        }

    def lines(self) -> list[str]:
        e = self.exported
        checked = f"loaded back: predictions differ by {e.difference:.1g}, where training moved them by {e.effect:.2g}"
        return [*(str(f) for f in e.files), *e.load, checked, *e.notes]


def again(run: Path, name: str | None, out: Path | None, *, comfy: bool, merged: bool, reuse: bool = False) -> Told:
    """Export the best weights of a training run anew. With `reuse`, what this has exported there before in the same way is
    taken as it is. Raises BadInput for a run that trained nothing, or a folder that is there."""
    folder = store.RunFolder(run)
    kept = folder.read()
    if not kept:
        raise BadInput(f"{run} is no run folder: it has no run.json")
    plan = planning.plan(build(config.RunConfig, kept["config"], str(run / "run.json")), kept.get("command", ""))
    done = [n for n in plan.trained if training_runs.shelf(plan, folder, n).finished]
    if not done:
        raise BadInput(f"{run}: nothing in this run has finished its training, so there is nothing to export")
    if name is None and len(done) > 1:
        raise BadInput(f"{run}: trained {', '.join(done)}; name one with --contestant")
    name = name or done[0]
    if name not in done:
        raise BadInput(f"{run}: no trained contestant {name!r}; {nearest(name, done)}")
    out = out or run / f"export-{name}"
    known, place = folder.read(EXPORTS), str(out.resolve())
    how = {
        "contestant": name,
        "comfy": comfy,
        "merged": merged,
        "best": training_runs.shelf(plan, folder, name).finished["best"],
    }
    same = reuse and how.items() <= known.get(place, {}).items()
    if same and (told := _as_told(out, known[place]["told"])) is not None:
        return told
    if out.exists():
        raise BadInput(f"{out}: exists already, and an export is never written over; name another with --out")
    policy, weights, best = training_runs.best(plan, folder, name)
    about = {"method": name, "run": folder.path.name, "update": str(best)}
    base = plan.pipelines[name]
    told = pipelines.export(policy, out, name=weights, comfy=comfy, merged=merged, about=about, pipeline=base)
    card(plan, folder, name, out)
    made = Told(out, replace(told, files=tuple(sorted(p for p in out.rglob("*") if p.is_file()))))
    rows = made.rows() | {"files": [p.relative_to(out).as_posix() for p in made.exported.files]}
    folder.write(EXPORTS, folder.read(EXPORTS) | {place: how | {"told": rows}})
    return made


def _as_told(out: Path, rows: Mapping) -> Told | None:
    """An export as it was told of when it was made; None where a file of it is missing."""
    files = tuple(out / name for name in rows["files"])
    if not all(f.is_file() for f in files):
        return None
    return Told(
        out, pipelines.Exported(files, tuple(rows["load"]), rows["difference"], rows["effect"], tuple(rows["notes"]))
    )


def card(plan, folder: store.RunFolder, name: str, out: Path) -> None:
    """README.md and grid.png into the folder of an export: what was trained, on what, judged by whom, and how to repeat it."""
    summary, run = folder.read("summary.json"), folder.read()
    training = training_runs.shelf(plan, folder, name).finished
    if (folder.path / GRID).is_file():
        shutil.copyfile(folder.path / GRID, out / GRID)
    config, recipe = plan.config, plan.recipe
    base = plan.pipelines[name]
    head = {"base_model": base.repo, "library_name": "diffusers", "tags": ["alignment", run["methods"][name]["name"]]}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        f"# {config.name}: {base.name or base.repo} aligned by {run['methods'][name]['name']}",
        "",
        *_results(plan, summary, name),
        "",
        f"Trained for {training['updates']} rounds ({training['samples']:,} samples, {training['seconds'] / 60:.1f} minutes); these are "
        f"the weights {'of the end' if plan.stages else 'after round ' + str(training['best'])}. Distance from the base, |W - W0| / |W0|: {training['distance']:.3g}.",
        *([f"\n**Alarm in training:** {training['alarm']}"] if training["alarm"] else []),
        "",
        "## Rewards",
        *(
            f"- {n} {run['rewards'].get(n, '')}: optimised, weight {plan.reward.weights[n]:g}"
            for n in plan.reward.rewards
        ),
        *(f"- {n} {run['rewards'].get(n, '')}: held out" for n in (plan.watch.rewards if plan.watch else ())),
        "",
        "## Data",
        f"{_taught(plan)}, {len(plan.held)} watched meanwhile, {_judged(config, summary)}; seed {config.seed}.",
        "",
        "## Settings",
        "```yaml",
        yaml.safe_dump(
            {"method": run["methods"][name], "train": _given(recipe)} | _further(config), sort_keys=False
        ).strip(),
        "```",
        "",
        "## Again",
        "```",
        run.get("command") or f"workbench run {folder.path}",
        "```",
        f"Workbench revision {run.get('git') or 'unknown'}; "
        + ", ".join(f"{k} {v}" for k, v in run["versions"].items())
        + ".",
        "",
    ]
    write_atomic(out / CARD, "\n".join(lines))


def _judged(config, summary: Mapping) -> str:
    if not summary:
        return "none judged in the end"
    source = _source(config.test if config.test is not None else config.prompts)
    return f"{summary['prompts']} judged in the end ({source}), {summary['seeds']} noise(s) each"


def _results(plan, summary: Mapping, name: str) -> list[str]:
    """Base and trained, under every judge."""
    found = {c["name"]: c for c in summary.get("contestants", ()) if "failed" not in c}
    base = next((c for n, c in found.items() if n not in plan.trained), None)
    if name not in found:
        return ["It has not been judged."]
    shown = [c for c in (base, found[name]) if c is not None]
    lines = ["| judge | " + " | ".join(c["name"] for c in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for judge, row in found[name]["rewards"].items():
        cells = [_cell(c["rewards"].get(judge, {})) for c in shown]
        lines.append(f"| {judge}{' (optimised)' if row['optimised'] else ''} | " + " | ".join(cells) + " |")
    said = findings.headline(summary)
    alarm = [f"**Alarm:** {summary['alarm']}"] if summary.get("alarm") else []
    seen = 0 if plan.pairs is not None else planning.trained_on(plan.rows, plan.train)
    whose = f"{seen} of the {summary['prompts']} were trained on too" if seen else "none of which was trained on"
    return [
        *lines,
        "",
        f"Means with 95 % intervals over prompts, {whose}.",
        "",
        *said,
        *alarm,
        "",
        f"![before and after]({GRID})",
    ]


def _cell(row: Mapping) -> str:
    if row.get("mean") is None:
        return "–"
    return f"{row['mean']:.3f}" + (" [{:.3f}, {:.3f}]".format(*row["ci95"]) if row["ci95"] else "")


def _source(prompts) -> str:
    return prompts if isinstance(prompts, str) else "a list in the config"


def _taught(plan) -> str:
    if plan.pairs is None:
        return f"{len(plan.train)} prompts to train on ({_source(plan.config.prompts)})"
    return f"{len(plan.pairs)} preference pairs ({plan.pairs.files})"


def _further(config) -> dict:
    return {key: getattr(config, key) for key in ("pairs", "stages") if getattr(config, key) is not None}


def _given(recipe) -> dict:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(recipe).items()}
