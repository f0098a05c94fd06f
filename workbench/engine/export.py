"""Exports of a training run: its best weights, written again on demand, and their model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

import pipelines
from pipelines import dial_files, export_files, lora_source
from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.engine import plan as planning
from workbench.engine import usage_code
from workbench.engine.input_checks import count_trained_prompts
from workbench.engine.user_objects import UserObjects
from workbench.report import findings
from workbench.runs import config, store
from workbench.runs.plan import Plan
from workbench.runs.prompt_inputs import label_input
from workbench.runs.train_config import TrainConfig
from workbench.training import training_runs

CORRECTED = "method: corrected"
CARD, GRID = "README.md", "grid.png"
EXPORTS = "exports.json"  # in the run folder: the exports that were made on demand, by folder


@dataclass(frozen=True)
class ExportResult:
    """An export and its folder."""

    folder: Path
    exported: pipelines.PolicyExport

    def to_dict(self) -> dict:
        """For JSON."""
        e = self.exported
        return {
            "folder": str(self.folder),
            "files": [str(f) for f in e.files],
            "load": list(e.load),
            "difference": e.difference,
            "effect": e.effect,
            "notes": list(e.notes),
        }

    def describe(self) -> list[str]:
        """Lines for the user: files, the Python that loads them, how they were checked, notes."""
        e = self.exported
        checked = f"loaded back: predictions differ by {e.difference:.1g}, where training moved them by {e.effect:.2g}"
        return [*(str(f) for f in e.files), *e.load, checked, *e.notes]


def export_again(
    run: Path,
    name: str | None,
    out: Path | None,
    *,
    comfy: bool,
    merged: bool,
    reuse: bool = False,
    number: int | None = None,
    objects: UserObjects | None = None,
) -> ExportResult:
    """Export the best weights of a training run into the new folder `out`.

    name: the contestant, where several were trained. reuse: return an earlier export into the same folder with the same
    settings. number: the round whose weights are exported, without a model card, also of a training that is not
    finished. objects: Python objects that the run's config names. Raises BadInput for a run that trained nothing, a
    round of which no checkpoint is kept, or a folder that exists."""
    folder = store.RunFolder(run)
    record = folder.read()
    if not record:
        raise BadInput(f"{run} is no run folder: it has no run.json")
    run_config = build_dataclass(config.RunConfig, record.get("config"), str(run / "run.json"))
    plan = planning.plan_run(run_config, record.get("command", ""), objects)
    checkpoints = {n: training_runs.checkpoint_store(plan, folder, n) for n in plan.trained_contestants}
    rounds = {n: [*checkpoint_store] for n, checkpoint_store in checkpoints.items()}
    finished = [n for n in checkpoints if (checkpoints[n].finished_record if number is None else number in rounds[n])]
    if number is not None and not finished:
        kept_rounds = "; ".join(f"{n} {', '.join(map(str, numbers)) or 'none'}" for n, numbers in rounds.items())
        raise BadInput(f"{run}: no checkpoint of round {number} is kept; these are: {kept_rounds or 'none'}")
    if not finished:
        raise BadInput(f"{run}: nothing in this run has finished its training, so there is nothing to export")
    if name is None and len(finished) > 1:
        raise BadInput(f"{run}: trained {', '.join(finished)}; name one with --contestant")
    name = name or finished[0]
    if name not in finished:
        raise BadInput(f"{run}: no trained contestant {name!r}; {suggest_nearest(name, finished)}")
    out = out or run / (f"export-{name}" if number is None else f"export-{name}-round-{number}")
    exports, target = folder.read(EXPORTS), str(out.resolve())
    settings = {
        "contestant": name,
        "comfy": comfy,
        "merged": merged,
        "best": checkpoints[name].finished_record["best"] if number is None else number,
    }
    same = reuse and settings.items() <= exports.get(target, {}).items()
    if same and (result := _recorded_export(out, exports[target]["told"])) is not None:
        return result
    if out.exists():
        raise BadInput(f"{out}: exists already, and an export is never written over; name another with --out")
    policy, weights, best = training_runs.load_best_policy(plan, folder, name, number=number)
    about = {"method": name, "run": folder.path.name, "update": str(best)}
    base = plan.pipelines[name]
    result = pipelines.export_policy(policy, out, name=weights, comfy=comfy, merged=merged, about=about, pipeline=base)
    if number is None:
        write_model_card(plan, folder, name, out)
    complete = ExportResult(out, replace(result, files=tuple(sorted(p for p in out.rglob("*") if p.is_file()))))
    rows = complete.to_dict() | {"files": [p.relative_to(out).as_posix() for p in complete.exported.files]}
    folder.write(EXPORTS, folder.read(EXPORTS) | {target: settings | {"told": rows}})
    return complete


def _recorded_export(out: Path, rows: Mapping) -> ExportResult | None:
    """An earlier export, by its record in EXPORTS; None where one of its files is missing."""
    files = tuple(out / name for name in rows["files"])
    if not all(f.is_file() for f in files):
        return None
    return ExportResult(
        out,
        pipelines.PolicyExport(files, tuple(rows["load"]), rows["difference"], rows["effect"], tuple(rows["notes"])),
    )


def write_model_card(plan: Plan, folder: store.RunFolder, name: str, out: Path) -> None:
    """Write README.md and grid.png into the folder of an export: what was trained, on which data, the scores, and how
    to repeat it."""
    summary, run = folder.read("summary.json"), folder.read()
    training = training_runs.checkpoint_store(plan, folder, name).finished_record
    if (folder.path / GRID).is_file():
        shutil.copyfile(folder.path / GRID, out / GRID)
    config, recipe = plan.config, plan.train_config
    base = plan.pipelines[name]
    repos = usage_code.list_base_repos(base)
    tags = ["alignment", run["methods"][name]["name"]]
    head = {"base_model": repos[0] if len(repos) == 1 else repos, "library_name": "diffusers", "tags": tags}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        f"# {config.name}: {base.name or base.repo} {_describe_outcome(training, run['methods'][name]['name'])}",
        "",
        *(f"**Warning:** {sentence}\n" for sentence in findings.warnings_of_training(name, training)),
        *_result_lines(plan, summary, name),
        "",
        f"Trained for {training['updates']} rounds ({training['samples']:,} samples, {training['seconds'] / 60:.1f} "
        f"minutes); these are the weights {'of the end' if plan.stages else 'after round ' + str(training['best'])}. "
        f"Distance from the base, |W - W0| / |W0|: {training['distance']:.3g}.",
        "",
        *_usage_lines(plan, run, name, out),
        "## Rewards",
        *(
            f"- {n} {run['rewards'].get(n, '')}: optimised, weight {weight:g}"
            for n, weight in plan.reward_of(name).weights.items()
        ),
        *(f"- {n} {run['rewards'].get(n, '')}: held out" for n in (plan.watch.rewards if plan.watch else ())),
        "",
        "## Data",
        f"{_describe_training_data(plan)}, {len(plan.held_out_prompts)} watched meanwhile, "
        f"{_describe_test_prompts(config, summary)}; seed {config.seed}.",
        "",
        "## Settings",
        "```yaml",
        yaml.safe_dump(
            {"method": run["methods"][name], "train": _recipe_settings(recipe)} | _further_settings(config),
            sort_keys=False,
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


def _usage_lines(plan: Plan, run: Mapping, name: str, out: Path) -> list[str]:
    """Markdown: how the files are used."""
    base, parts = plan.pipelines[name], lora_source.read_record(out)["parts"]
    dtypes = [placement.get("dtype") for placement in run.get("placement", {}).values()]
    load_lines = [*(export_files.load_line(n, layout) for n, layout in parts.items()), *dial_files.usage_lines(out)]
    load_lines = [line.replace("{folder}", "FOLDER") for line in load_lines]
    code = usage_code.write_usage(base, load_lines, next(filter(None, dtypes), "float32"))
    if plan.methods[name].sampler() is not None:
        return ["## Use", f"It corrects the noise: name this folder as a pipeline, and sample it by `{CORRECTED}`.", ""]
    start = Path(base.lora)
    start_name = start.parent.name if start.name == "export" else start.name
    started = [f"Trained on top of {start_name}, which is in these files too.", ""] if base.lora else []
    started += [f"{note}.\n" for note in run.get("loras", {}).get(name, ()) if "not applied" in note]
    if base.inputs:
        arguments = ", ".join(f"{label_input(name)} (`{argument}`)" for name, argument in base.inputs.items())
        started += [f"{base.pipeline} makes its samples from more than a prompt: {arguments}.", ""]
    return ["## Use", *started, "In plain diffusers, with this folder for `FOLDER`:", "```python", code, "```", ""]


def _describe_outcome(training: Mapping, method: str) -> str:
    return f"aligned by {method}" if training["distance"] else f"as it was before {method}"


def _describe_test_prompts(run_config: config.RunConfig, summary: Mapping) -> str:
    if not summary:
        return "none judged in the end"
    source = _prompts_source(run_config.test if run_config.test is not None else run_config.prompts)
    return f"{summary['prompts']} judged in the end ({source}), {summary['seeds']} noise(s) each"


def _result_lines(plan: Plan, summary: Mapping, name: str) -> list[str]:
    """Markdown: a table of the base's and the trained contestant's scores, and sentences about them."""
    contestants = {c["name"]: c for c in summary.get("contestants", ()) if "failed" not in c}
    base = next((c for n, c in contestants.items() if n not in plan.trained_contestants), None)
    if name not in contestants:
        return ["It has not been judged."]
    rewards = [c for c in (base, contestants[name]) if c is not None]
    lines = ["| judge | " + " | ".join(c["name"] for c in rewards) + " |", "|---" * (len(rewards) + 1) + "|"]
    for judge, row in contestants[name]["rewards"].items():
        cells = [_format_estimate(c["rewards"].get(judge, {})) for c in rewards]
        lines.append(f"| {judge}{' (optimised)' if row['optimised'] else ''} | " + " | ".join(cells) + " |")
    warnings = findings.training_sentences(summary)  # stand at the top
    sentences = [sentence for sentence in findings.headline_sentences(summary) if sentence not in warnings]
    alarm = [f"**Alarm:** {summary['alarm']}"] if summary.get("alarm") else []
    repeated = count_trained_prompts({row[1] for row in plan.rows}, plan.trained_sources)
    subject = (
        f"{repeated} of the {summary['prompts']} were trained on too" if repeated else "none of which was trained on"
    )
    return [
        *lines,
        "",
        f"Means with 95 % intervals over prompts, {subject}.",
        "",
        *sentences,
        *alarm,
        "",
        f"![before and after]({GRID})",
    ]


def _format_estimate(row: Mapping) -> str:
    if row.get("mean") is None:
        return "–"
    return f"{row['mean']:.3f}" + (" [{:.3f}, {:.3f}]".format(*row["ci95"]) if row["ci95"] else "")


def _prompts_source(prompts: str | list[str]) -> str:
    return prompts if isinstance(prompts, str) else "a list in the config"


def _describe_training_data(plan: Plan) -> str:
    if plan.pairs is None:
        return f"{len(plan.train_prompts)} prompts to train on ({_prompts_source(plan.config.prompts)})"
    return f"{len(plan.pairs)} preference pairs ({plan.pairs.files})"


def _further_settings(run_config: config.RunConfig) -> dict:
    return {key: value for key in ("pairs", "stages") if (value := getattr(run_config, key)) is not None}


def _recipe_settings(recipe: TrainConfig) -> dict:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(recipe).items()}
