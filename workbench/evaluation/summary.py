"""The summary of a run (summary.json), computed from its folder alone, so that resumed runs are no different."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType

from pipelines.loading import resolve_device
from workbench.core.inputs import prompt_inputs
from workbench.core.io import media
from workbench.core.types import Media
from workbench.evaluation import sample_checks, set_rewards, statistics
from workbench.methods import name_of
from workbench.runs import config, run_inputs, store
from workbench.runs.budget import Cost
from workbench.runs.plan import Plan
from workbench.runs.stages import TaskScores


def summarise_run(plan: Plan, folder: store.RunFolder) -> dict:
    """The content of summary.json: a part for each contestant (scores, differences from the base and from best-of-n,
    win rates, diversity, cost, training), interference of stages, and the hacking alarm."""
    events, repos = folder.events(), config.pipeline_labels(plan.config)
    parts: list[dict] = []  # one per contestant
    samples_of: dict[str, list[dict]] = {}
    sets: dict[str, dict[str, set_rewards.SetScore]] = {}  # contestant -> set reward -> score
    for name, method in plan.methods.items():
        failed = next((e["failed"] for e in events if e["contestant"] == name and "failed" in e), None)
        finals = [e for e in events if e["contestant"] == name and e.get("final")]
        head = {"name": name, "method": name_of(method), "pipeline": repos[name]}
        if failed or len(finals) < plan.batch_count:
            parts.append(head | {"failed": failed or "did not finish"})
            continue
        samples = [s for e in sorted(finals, key=lambda e: e["batch"]) for s in e["samples"]]
        blanks = sample_checks.describe_blanks(samples)
        if blanks and blanks["blank"]["count"] == len(samples):
            reason = blanks["blank"]["named"][0]["reason"]
            parts.append(head | {"failed": f"none of its {len(samples)} samples can be used: {reason}"})
            continue
        cost = sum((Cost(**e["cost"]) for e in finals), Cost())
        optimised = plan.reward_of(name).weights if "reward" in method.needs else {}
        base = next(iter(samples_of.values()), None)
        part = head | statistics.summarise_contestant(samples, base, optimised, score_bounds(plan))
        part |= blanks
        sets[name] = score_whole_sets(plan, folder, samples)
        part = set_rewards.add_set_scores(part, sets[name], next(iter(sets.values())), optimised)
        files: dict[int, list] = {}
        for s in filter(itemgetter("file"), samples):
            files.setdefault(s["index"], []).append(folder.path / s["file"])
        groups = ([media.read_media(f).data.numpy() for f in group] for group in files.values() if len(group) > 1)
        part |= {"diversity": statistics.measure_diversity(groups)} | dataclasses.asdict(cost)
        if training := folder.read(f"checkpoints/{name}/done.json"):
            part["training"] = training  # its cost; `nfe`, `seconds` and so on are of the final samples alone
        if plan.config.curve:
            own = [e for e in events if e["contestant"] == name]
            part["curve"] = budget_curve(own, plan.batch_count, score_bounds(plan))
        samples_of[name] = samples
        parts.append(part)
    _add_differences_from_best_of_n(parts, samples_of, score_bounds(plan))
    trainings = (p.get("training", {}).get("stages") for p in parts)
    stages: list[Mapping] = next(filter(None, trainings), [])  # of the first contestant that was trained in stages
    return ({"stages": stage_interference(plan, stages)} if stages else {}) | {
        "run": folder.path.name,
        "modality": plan.modality,
        "prompts": len({r[0] for r in plan.rows}),
        "seeds": plan.config.samples_per_prompt,
        "control": plan.config.control,
        "contestants": parts,
        "flat_rewards": sample_checks.find_flat_rewards(samples_of),
        "alarm": statistics.hacking_alarm(parts, next(iter(plan.methods)), alarm_margins(plan)),
        **describe_inputs(plan, folder),
    }


def describe_inputs(plan: Plan, folder: store.RunFolder) -> dict[str, list[dict[str, str]]]:
    """{"inputs": [{name: file in the run folder} of each prompt]}; {} where no prompt has any."""
    prompts = {n: prompt for n, prompt, *_ in plan.rows}
    if not any(map(prompt_inputs, prompts.values())):
        return {}
    files = run_inputs.store_inputs(folder.path, prompts.values())
    return {"inputs": [{n: files[v.digest] for n, v in prompt_inputs(p).items()} for p in prompts.values()]}


def score_whole_sets(
    plan: Plan, folder: store.RunFolder, samples: Sequence[Mapping]
) -> dict[str, set_rewards.SetScore]:
    """Set reward -> its score of a contestant's samples, which are read from their files; those without are left
    out."""
    samples = [s for s in samples if s["file"]]
    size, device = plan.config.batch, resolve_device(plan.config.device)

    def chunks():
        for low in range(0, len(samples), size):
            rows = [media.read_media(folder.path / s["file"]) for s in samples[low : low + size]]
            for _, alike in groupby(rows, key=lambda row: (row.data.shape, row.rate)):  # imported ones may differ
                media_batch = Media.cat([*alike])
                yield replace(media_batch, data=media_batch.data.to(device))

    prompts = [run_inputs.restore_prompt(folder.path, s) for s in samples]
    return {
        name: set_rewards.score_set(reward, chunks(), prompts)
        for name, reward in set_rewards.set_rewards_of(plan).items()
    }


def stage_interference(plan: Plan, rows: Sequence[Mapping]) -> dict:
    """How each stage of a training changed the score of each task, and what was forgotten: by the tasks' own rewards,
    and by the first held-out reward of each task if all have one. rows: {"after", "tasks": {task: {reward: mean}}},
    that of the base first."""
    names = tuple(stage.name for stage in plan.stages.stages) if plan.stages else ()
    judges = {"reward": ["reward"] * len(names)}
    watches = [task.watch for task in plan.tasks if task.watch]
    if len(watches) == len(plan.tasks):
        judges["held out"] = [next(iter(watch.rewards)) for watch in watches]
    out = {"tasks": list(names), "after": [row["after"] for row in rows]}
    for kind, by in judges.items():
        scores = tuple(tuple(row["tasks"][n].get(j, math.nan) for n, j in zip(names, by, strict=True)) for row in rows)
        matrix = TaskScores(names, scores)
        tables = {"scores": scores, "gained": matrix.stage_gains(), "forgotten": matrix.forgetting_by_task()}
        out[kind] = {"judges": by} | _json_numbers(tables)
    return out


def _json_numbers(value):
    """Any nesting of numbers, rounded to 6 decimals, with None in place of what isn't finite."""
    if isinstance(value, dict):
        return {key: _json_numbers(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_numbers(v) for v in value]
    return round(value, 6) if math.isfinite(value) else None


def score_bounds(plan: Plan) -> dict[str, statistics.Bounds]:
    """Reward -> the range that its scores can't leave, of the rewards of samples that declare one."""
    rewards = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {name: r.spec.bounds for name, r in rewards.items() if r.spec.bounds and r.spec.scope != "set"}


def _add_differences_from_best_of_n(
    parts: Sequence[dict], samples_of: Mapping[str, Sequence[Mapping]], bounds: Mapping[str, statistics.Bounds]
) -> None:
    """Add to the parts the paired differences from the best-of-n with the largest budget."""
    rivals = [p for p in parts if p["method"] == "best_of_n" and "failed" not in p]
    if not rivals:
        return
    rival = max(rivals, key=lambda p: p["nfe"])
    for part in parts:
        if part is not rival and "failed" not in part:
            pair = (samples_of[part["name"]], samples_of[rival["name"]])
            part["versus_best_of_n"] = statistics.compare_paired(*pair, bounds)


def budget_curve(
    events: Sequence[Mapping], batches: int, bounds: Mapping[str, statistics.Bounds] = MappingProxyType({})
) -> list[dict]:
    """Scores of a contestant's best so far against its budget: [{"nfe", "seconds", "rewards": {name: estimate}}], costs
    per sample, at the steps at which all its batches were scored, and at the end."""
    judged_at_step: dict[float, list[tuple[Mapping, list[int], Mapping]]] = {}
    for e in events:
        if e.get("final"):
            scores = {name: [s["scores"][name] for s in e["samples"]] for name in e["samples"][0]["scores"]}
            judged_at_step.setdefault(math.inf, []).append((e, [s["index"] for s in e["samples"]], scores))
    prompts = {e["batch"]: index for e, index, _ in judged_at_step[math.inf]}
    for e in events:
        if "curve" in e:
            judged_at_step.setdefault(e["step"], []).append((e, prompts[e["batch"]], e["curve"]))
    points = []
    for step in sorted(judged_at_step):
        parts = judged_at_step[step]
        if len(parts) < batches:
            continue
        rows, clusters = sum(e["rows"] for e, _, _ in parts), [i for _, index, _ in parts for i in index]
        rewards = {
            name: statistics.mean_with_interval(
                [statistics.none_to_nan(v) for _, _, scores in parts for v in scores[name]],
                clusters,
                bounds=bounds.get(name),
            )
            for name in parts[0][2]
        }
        cost = {unit: sum(e["cost"][unit] for e, _, _ in parts) / rows for unit in ("nfe", "seconds")}
        points.append(cost | {"rewards": rewards})
    return points


def alarm_margins(plan: Plan) -> dict[str, float]:
    """Held-out reward -> the fall that the hacking alarm tolerates: a twentieth of its typical range;
    none for the oracle."""
    ranges = {n: r.spec.typical for n, r in (plan.watch.rewards if plan.watch else {}).items() if n != "oracle"}
    return {name: (typical[1] - typical[0]) / 20 for name, typical in ranges.items() if typical}
