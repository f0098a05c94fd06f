"""The driver: the one place where pipelines, rewards and methods meet.

workbench.engine.plan checks everything that can be checked without weights; `execute_run` trains, samples, scores and
stores, and yields Progress reports, the same for the command line, the app, Python and tests.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import hashlib
import json
import platform
import random
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import safetensors.torch
import torch

import pipelines
from pipelines import processes
from workbench.core.errors import BadInput, Stopped
from workbench.core.io import media
from workbench.core.paths import ROOT
from workbench.core.types import Batch, Event, Method, Policy, Reward, derive_seed
from workbench.engine import export
from workbench.engine.user_objects import is_plain
from workbench.evaluation.summary import summarise_run
from workbench.methods import name_of
from workbench.report import pages
from workbench.runs import config, prompts, store
from workbench.runs.budget import Budget, Cost, Meter
from workbench.runs.controls import CountedReward, apply_control
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress, json_number, score_samples
from workbench.runs.resolve import resolve_dependencies
from workbench.training import contestant_training, training_runs


class DiskFull(OSError):
    """The disk filled up during a run; no file is half-written, and the run can be resumed."""


def execute_run(
    plan: Plan, folder: store.RunFolder, stop: threading.Event | None = None, load: Callable | None = None
) -> Iterator[Progress]:
    """Train, sample, score and store what is not done yet; then write `summary.json`, `grid.png` and
    `report.html`.

    Once `stop` is set, the batch under way is delivered as it is and no other is begun; a later call goes on from
    there. `load` replaces pipelines.load, for example by one that caches. Raises BadInput while another process works
    on the same run, or where its prompts or rewards have changed; DiskFull.
    """
    stop, load = stop or threading.Event(), load or pipelines.load
    if not processes.is_main_process():  # one of several processes writes; the others only train
        yield from contestant_training.train_contestants(plan, folder, stop, load)
        return
    with folder.exclusive_lock():
        started, record = folder.read(), describe_run(plan)
        if started:  # before the log is cut: a run that is refused stays as it was
            check_same_prompts(folder, started, record)
            check_same_rewards(folder, started, record)
            record = started
        with store.open_index(folder.path.parent):  # a damaged index is reported before any work
            pass
        finished = training_runs.rewind_run(plan, folder)
        folder.write("run.json", record | {"status": "running"})
        status = "failed"
        try:
            yield from contestant_training.train_contestants(plan, folder, stop, load)
            sampling_plan = training_runs.plan_with_exports(plan, folder)
            unfinished = [
                n for n in sampling_plan.methods if any((n, b) not in finished for b in range(plan.batch_count))
            ]
            if unfinished and not stop.is_set():
                yield from _sample_missing(sampling_plan, folder, unfinished, finished, stop, load)
            summary = mark_unfinished(summarise_run(plan, folder), folder.events())
            folder.write("summary.json", summary)
            pages.write_report(folder.path)
            for name in sampling_plan.methods:
                if name in plan.trained_contestants:
                    export.write_model_card(plan, folder, name, training_runs.export_folder(plan, folder, name))
            failed = any("failed" in c for c in summary["contestants"])
            status = "stopped" if stop.is_set() else "failed" if failed else "done"
        except (KeyboardInterrupt, GeneratorExit):
            status = "stopped"
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                status = ""  # nothing more can be written: what is there stays whole, and says "running"
                raise DiskFull(
                    f"the disk of {folder.path} is full; make room and run the same command to go on"
                ) from error
            raise
        finally:
            if status:
                # the index first: a run that is killed in between, or finds the index locked, stays unfinished, and
                # updates the index when it is resumed
                store.sync_index(folder.path.parent, folder, status)
                folder.write("run.json", record | {"status": status})


def check_same_prompts(folder: store.RunFolder, before: dict, record: dict) -> None:
    """Raises BadInput where the prompt files of a resumed run have changed since it began; not for an old run without a
    digest of its prompts."""
    if before.get("prompts", record["prompts"]) != record["prompts"]:
        raise BadInput(
            f"{folder.path}: its prompts have changed since this run began, so what it has made could not be compared "
            "with what is missing; start anew with --new"
        )


def check_same_rewards(folder: store.RunFolder, before: dict, record: dict) -> None:
    """Raises BadInput where a reward of a resumed run has another version than when the run began."""
    for name, old_version in before["rewards"].items():
        if record["rewards"].get(name, old_version) != old_version:
            raise BadInput(
                f"{folder.path}: {name} was {old_version!r} when this run began and is {record['rewards'][name]!r} "
                "now, so its scores could not be compared; start anew with --new"
            )


def _sample_missing(
    plan: Plan, folder: store.RunFolder, names: Sequence[str], finished: set, stop: threading.Event, load: Callable
) -> Iterator[Progress]:
    config, loaded, policy, meter = plan.config, None, None, None
    optimised = CountedReward(apply_control(plan.reward, config, [r[1] for r in plan.rows]))
    for name in names:
        if plan.pipelines[name] is not loaded:
            policy = meter = None  # one pipeline in memory at a time
            gc.collect()
            torch.cuda.empty_cache()
            loaded = plan.pipelines[name]
            policy = load(loaded, device=config.device, dtype=config.dtype, attention=config.attention)
            policy.stop = stop
        method, meter = resolve_dependencies(plan.methods[name]), Meter(policy, optimised)
        for number, (rows, batch) in enumerate(prompts.iterate_batches(plan.rows, config.batch)):
            if (name, number) in finished:
                yield Progress(name, number, plan.batch_count)
                continue
            meter.cost, meter.cut, judged_at = Cost(), False, 0.0
            try:
                for event in metered_events(method, policy, optimised, batch, meter, plan.budget, stop):
                    metrics = {key: json_number(value) for key, value in event.metrics.items()}
                    entry = {"contestant": name, "batch": number, "step": event.step, "metrics": metrics}
                    entry |= {"rows": len(rows), "cost": dataclasses.asdict(meter.cost)}
                    if event.final:
                        entry |= {"final": True, "samples": _store_samples(plan, folder, name, number, rows, event)}
                        entry |= {"stopped": True} if stop.is_set() else {}
                        entry |= {"predicted": True} if meter.cut and method.yields_predictions else {}
                    elif config.curve and event.media is not None and meter.cost.nfe >= 2 * judged_at:
                        judged_at = meter.cost.nfe
                        scores = score_samples(plan, media.quantise_media(event.media.detach()), event.prompts)
                        entry["curve"] = {reward: [*map(json_number, values)] for reward, values in scores.items()}
                    folder.append_event(entry)
                    yield Progress(name, number, plan.batch_count, event, folder.path)
            except (BadInput, OSError):
                raise
            except Stopped:
                return
            except Exception as error:  # one contestant's failure is reported in the table; the others go on
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
                store.write_atomic(folder.path / f"failure-{name}.txt", traceback.format_exc())
                folder.append_event({"contestant": name, "batch": number, "failed": reason})
                yield Progress(name, number, plan.batch_count, failed=reason)
                break


def metered_events(
    method: Method,
    policy: Policy,
    reward: Reward,
    batch: Batch,
    meter: Meter,
    budget: Budget | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """The method's events for one batch, with only the method's own work on the meter.

    Global random generators are seeded by the batch, so that its result doesn't depend on what ran before. An event
    after which another step of the same cost would exceed the budget becomes the final one, and so does the last event
    with media before a stop, which comes between two denoiser calls. Raises Stopped where there is no such event."""
    seed = derive_seed(batch.seeds[0], "batch")
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    events, cost_before, best = method(policy, reward, [batch]), Cost(), None
    while True:
        try:
            with meter:
                event = next(events, None)
        except Stopped:
            if best is None:
                raise
            yield replace(best, final=True)
            return
        if event is None:
            return
        is_last = stop is not None and stop.is_set()
        is_last = is_last or bool(budget and budget.would_exceed(cost_before, meter.cost, len(batch)))
        if is_last and not event.final and event.media is not None:
            events.close()
            meter.cut = True
            yield replace(event, final=True)
            return
        cost_before, best = meter.cost, best if event.media is None else event
        yield event


def mark_unfinished(summary: dict, events: Sequence[dict]) -> dict:
    """The summary, with a sentence for each contestant that the budget cut before its chains were at their end."""
    for c in summary["contestants"]:
        cut = [e for e in events if e.get("predicted") and e["contestant"] == c["name"]]
        if cut and "failed" not in c:
            c["predicted"] = (
                f"{c['name']} was cut by the budget in mid-chain: {sum(e['rows'] for e in cut)} of its {c['samples']} "
                "samples are predictions of where a chain was going, often blurred, and say little of what the method "
                "makes when it ends."
            )
    return summary


def _store_samples(
    plan: Plan, folder: store.RunFolder, name: str, number: int, rows: Sequence, event: Event
) -> list[dict]:
    """Score the final media as they will be stored, write them, and return their rows for the log."""
    samples_media = media.quantise_media(event.media.detach())
    scores = score_samples(plan, samples_media, event.prompts)
    media_folder, latents_folder = folder.path / "media" / name, folder.path / "latents" / name
    media_folder.mkdir(exist_ok=True), latents_folder.mkdir(exist_ok=True)
    latents = f"latents/{name}/{number:04d}.safetensors" if event.latents is not None else None
    if event.latents is not None:
        noise = event.latents.detach().cpu().contiguous()
        store.write_atomic(folder.path / latents, safetensors.torch.save({"noise": noise}))
    oracle = (plan.watch.rewards if plan.watch else {}).get("oracle") or plan.reward.rewards.get("oracle")
    categories = oracle.categories(event.prompts) if oracle else [None] * len(rows)
    samples, repo = [], config.pipeline_labels(plan.config)[name]
    for b, (position, prompt, k, seed) in enumerate(rows):
        own_scores = {reward: json_number(values[b]) for reward, values in scores.items()}
        meta = {"prompt": prompt, "seed": seed, "contestant": name, "pipeline": repo, "scores": own_scores}
        path = media.write_media(samples_media[b], media_folder / f"{position:04d}-{k}", meta=meta)
        sample = {
            "index": position,
            "prompt": prompt,
            "k": k,
            "seed": seed,
            "category": categories[b],
            "scores": own_scores,
        }
        file = path.relative_to(folder.path).as_posix()
        samples.append(sample | {"file": file, "sha256": media.file_digest(path), "latents": latents})
    return samples


def describe_run(plan: Plan) -> dict:
    """The content of run.json, without the status."""
    config = dataclasses.asdict(plan.config)
    everyone = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {
        "name": plan.config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": plan.command,
        "config": config,
        "methods": {n: {"name": name_of(m)} | settings_as_json(m) for n, m in plan.methods.items()},
        "rewards": {n: r.spec.version for n, r in everyone.items()},
        "prompts": digest_prompts(plan),
        "seed": plan.config.seed,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "git": _git_revision(),
        "device": plan.config.device,
    }


def settings_as_json(method: Method) -> dict[str, Any]:
    """A method's settings as JSON values, with the repr of other objects."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    return {name: value if is_plain(value) else repr(value) for name, value in values.items()}


def digest_prompts(plan: Plan) -> str:
    """SHA-256 of the prompts and seeds of a run: its config only names prompt files, which may be edited."""
    prompts = {"rows": [*map(list, plan.rows)], "train": [*plan.train_prompts], "held": [*plan.held_out_prompts]}
    prompts |= {"stages": [[*task.train_prompts] for task in plan.tasks]}
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _git_revision() -> str:
    """The workbench's own revision, or '' outside a checkout."""
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        return ""
    process = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return process.stdout.strip()
