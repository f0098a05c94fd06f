"""A run folder's log becomes its summary, exactly as the files say: a resumed run sums up like any other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines import preflight
from workbench.core.io import media
from workbench.core.types import Media
from workbench.evaluation import set_rewards, statistics
from workbench.methods import name_of
from workbench.runs import config, store
from workbench.runs.budget import Cost
from workbench.runs.stages import Matrix


def summarise(plan, folder: store.RunFolder) -> dict:
    """The summary of what the run folder holds, exactly as the files say: a resumed run sums up like any other."""
    events, parts, made, repos = folder.events(), [], {}, config.repos(plan.config)
    sets: dict[str, dict[str, set_rewards.Whole]] = {}  # contestant -> what rewards of whole sets say
    for name, method in plan.methods.items():
        failed = next((e["failed"] for e in events if e["contestant"] == name and "failed" in e), None)
        finals = [e for e in events if e["contestant"] == name and e.get("final")]
        head = {"name": name, "method": name_of(method), "pipeline": repos[name]}
        if failed or len(finals) < plan.batches:
            parts.append(head | {"failed": failed or "did not finish"})
            continue
        samples = [s for e in sorted(finals, key=lambda e: e["batch"]) for s in e["samples"]]
        cost = sum((Cost(**e["cost"]) for e in finals), Cost())
        optimised = plan.reward.weights if "reward" in method.needs else {}
        part = head | statistics.contestant(samples, next(iter(made.values()), None), optimised)
        sets[name] = wholes(plan, folder, samples)
        part = set_rewards.amended(part, sets[name], next(iter(sets.values())), optimised)
        files: dict[int, list] = {}
        for s in samples:
            files.setdefault(s["index"], []).append(folder.path / s["file"])
        groups = ([media.read(f).data.numpy() for f in group] for group in files.values() if len(group) > 1)
        part |= {"diversity": statistics.diversity(groups)} | dataclasses.asdict(cost)
        if taught := folder.read(f"checkpoints/{name}/done.json"):
            part["training"] = taught  # what it took; nfe, seconds and so on are those of the samples alone
        if plan.config.curve:
            part["curve"] = curve([e for e in events if e["contestant"] == name], plan.batches)
        made[name] = samples
        parts.append(part)
    _against_best_of_n(parts, made)
    taught = next((p["training"]["stages"] for p in parts if p.get("training", {}).get("stages")), None)
    return ({"stages": interference(plan, taught)} if taught else {}) | {
        "run": folder.path.name,
        "modality": plan.modality,
        "prompts": len({r[0] for r in plan.rows}),
        "seeds": plan.config.seeds,
        "control": plan.config.control,
        "contestants": parts,
        "alarm": statistics.alarm(parts, next(iter(plan.methods)), margins(plan)),
    }


def wholes(plan, folder: store.RunFolder, samples: Sequence[Mapping]) -> dict[str, set_rewards.Whole]:
    """What the run's rewards of whole sets say of a contestant's samples, as the files are."""
    size, where = plan.config.batch, preflight(next(iter(plan.pipelines.values())), device=plan.config.device)[0]

    def chunks():
        for low in range(0, len(samples), size):
            few = Media.cat([media.read(folder.path / s["file"]) for s in samples[low : low + size]])
            yield replace(few, data=few.data.to(where))

    prompts = [s["prompt"] for s in samples]
    return {name: set_rewards.whole(reward, chunks(), prompts) for name, reward in set_rewards.sets(plan).items()}


def interference(plan, rows: Sequence[Mapping]) -> dict:
    """What each stage of a training brought each task, and what of it was forgotten: by the tasks' own rewards, and by the first
    held-out judge of each where all have one. rows: {"after", "tasks": {task: {judge: mean}}}, the base's first."""
    names = tuple(stage.name for stage in plan.stages.stages)
    judges = {"reward": ["reward"] * len(names)}
    if all(task.watch for task in plan.tasks):
        judges["held out"] = [next(iter(task.watch.rewards)) for task in plan.tasks]
    out = {"tasks": list(names), "after": [row["after"] for row in rows]}
    for kind, by in judges.items():
        scores = tuple(tuple(row["tasks"][n].get(j, math.nan) for n, j in zip(names, by, strict=True)) for row in rows)
        matrix = Matrix(names, scores)
        told = {"scores": scores, "gained": matrix.gained(), "forgotten": matrix.forgotten()}
        out[kind] = {"judges": by} | _numbers(told)
    return out


def _numbers(value):
    """Without what JSON can't keep."""
    if isinstance(value, dict):
        return {key: _numbers(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(v) for v in value]
    return round(value, 6) if math.isfinite(value) else None


def _against_best_of_n(parts: Sequence[dict], made: Mapping[str, Sequence[Mapping]]) -> None:
    """Add the paired differences from the best-of-n of the largest budget."""
    rivals = [p for p in parts if p["method"] == "best_of_n" and "failed" not in p]
    if not rivals:
        return
    rival = max(rivals, key=lambda p: p["nfe"])
    for part in parts:
        if part is not rival and "failed" not in part:
            part["versus_best_of_n"] = statistics.versus(made[part["name"]], made[rival["name"]])


def curve(events: Sequence[Mapping], batches: int) -> list[dict]:
    """What a contestant's best so far was worth as its budget grew: [{"nfe", "seconds", "rewards": {name: estimate}}], per
    sample, at the steps at which all its batches were judged, and at the end."""
    found: dict[int, list[tuple[Mapping, list[int], Mapping]]] = {}
    for e in events:
        if e.get("final"):
            scores = {name: [s["scores"][name] for s in e["samples"]] for name in e["samples"][0]["scores"]}
            found.setdefault(math.inf, []).append((e, [s["index"] for s in e["samples"]], scores))
    prompts = {e["batch"]: index for e, index, _ in found[math.inf]}
    for e in events:
        if "curve" in e:
            found.setdefault(e["step"], []).append((e, prompts[e["batch"]], e["curve"]))
    points = []
    for step in sorted(found):
        parts = found[step]
        if len(parts) < batches:
            continue
        rows, clusters = sum(e["rows"] for e, _, _ in parts), [i for _, index, _ in parts for i in index]
        rewards = {
            name: statistics.interval([statistics.nan(v) for _, _, scores in parts for v in scores[name]], clusters)
            for name in parts[0][2]
        }
        spent = {unit: sum(e["cost"][unit] for e, _, _ in parts) / rows for unit in ("nfe", "seconds")}
        points.append(spent | {"rewards": rewards})
    return points


def margins(plan) -> dict[str, float]:
    """What counts as a fall of a held-out judge: a twentieth of its typical range, so that no trifle rings the alarm."""
    ranges = {n: r.spec.typical for n, r in (plan.watch.rewards if plan.watch else {}).items() if n != "oracle"}
    return {name: (typical[1] - typical[0]) / 20 for name, typical in ranges.items() if typical}
