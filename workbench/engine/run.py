"""The driver: the one place where pipelines, rewards and methods meet.

workbench.engine.plan checks everything that can be checked without weights; `execute_run` trains, samples, scores and
stores, and yields Progress reports, the same for the command line, the app, Python and tests.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import random
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.torch
import torch

import pipelines
from pipelines import processes
from workbench.core.errors import BadInput, DiskFull, Stopped, is_disk_full, is_read_only
from workbench.core.finite import find_finite_rows
from workbench.core.io import media
from workbench.core.types import Batch, Event, Method, Policy, Reward, derive_seed
from workbench.engine import export, import_media, resume
from workbench.engine.pairwise_watch import score_against_first
from workbench.engine.run_record import describe_run
from workbench.evaluation.summary import summarise_run
from workbench.report import grid_page, pages
from workbench.runs import config, prompts, run_inputs, store
from workbench.runs.budget import Budget, Cost, Meter
from workbench.runs.controls import CountedReward, apply_control, exchange_inputs
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress, json_number, score_samples
from workbench.runs.resolve import resolve_dependencies
from workbench.training import contestant_training, training_runs


def execute_run(
    plan: Plan, folder: store.RunFolder, stop: threading.Event | None = None, load: Callable | None = None
) -> Iterator[Progress]:
    """Train, sample, score and store what is not done yet; then write `summary.json`, `grid.png` and
    `report.html`.

    Once `stop` is set, the batch under way is delivered as it is and no other is begun; a later call goes on from
    there. `load` replaces pipelines.load, for example by one that caches. Raises BadInput while another process works
    on the same run, where a file or setting of a run that goes on has changed (engine/resume.py), and where nothing can
    be written; DiskFull.
    """
    stop, load = stop or threading.Event(), load or pipelines.load
    if not processes.is_main_process():  # one of several processes writes; the others only train
        yield from contestant_training.train_contestants(plan, folder, stop, load)
        return
    try:
        with folder.exclusive_lock():
            yield from _execute_locked(plan, folder, stop, load)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFull(f"the disk of {folder.path} is full; make room and run the same command to go on") from error
        if is_read_only(error):
            why = getattr(error, "strerror", None) or error
            raise BadInput(
                f"{folder.path}: nothing can be written there ({why}); a finished run is read by: workbench report RUN "
                "--out FILE"
            ) from error
        raise


def _execute_locked(plan: Plan, folder: store.RunFolder, stop: threading.Event, load: Callable) -> Iterator[Progress]:
    started, record = folder.read(), describe_run(plan)
    if started:  # before the log is cut: a run that is refused stays as it was
        resume.check_same_run(folder, started, record)
    with store.open_index(folder.path.parent):  # a damaged index is reported before any work
        pass
    for note in resume.placement_changes(started, record):
        yield message(plan, next(iter(plan.methods)), note)
    if lines := folder.drop_damaged_lines():
        where = f"line {lines[0]}" if len(lines) == 1 else f"lines {', '.join(map(str, lines[:5]))}"
        note = f"{where} of events.jsonl could not be read, so what they told of is made again"
        yield message(plan, next(iter(plan.methods)), note)
    damage = resume.forget_damaged_batches(folder)
    for (name, batch), note in damage.items():
        if name in plan.methods:
            yield message(plan, name, f"{note}, so batch {batch} is made again")
    finished = training_runs.rewind_run(plan, folder)
    record = started or record
    if loras := {n: notes for n, p in plan.pipelines.items() if p.lora and (notes := pipelines.plan_lora(p))}:
        record["loras"] = loras
    record.setdefault("threads", torch.get_num_threads())  # the last digits of what the CPU computes depend on it
    folder.write("run.json", record | {"status": "running"})
    (folder.path / store.CLAIM).unlink(missing_ok=True)
    status = "failed"
    try:
        run_inputs.store_inputs(folder.path, (row[1] for row in plan.rows))
        yield from contestant_training.train_contestants(plan, folder, stop, load)
        sampling_plan = training_runs.plan_with_exports(plan, folder)
        unfinished = [n for n in sampling_plan.methods if any((n, b) not in finished for b in range(plan.batch_count))]
        if unfinished and plan.imported:
            yield from import_media.store_imported(plan, folder, unfinished, finished, stop)
        elif unfinished and not stop.is_set():
            yield from _sample_missing(sampling_plan, folder, unfinished, finished, stop, load, record)
        summary = mark_unfinished(summarise_run(plan, folder), folder.events())
        folder.write("summary.json", summary)
        pages.write_report(folder.path)
        grid_page.write_grid_page(folder.path)
        for name in sampling_plan.methods:
            if name in plan.trained_contestants:
                export.write_model_card(plan, folder, name, training_runs.export_folder(plan, folder, name))
        failed = any("failed" in c for c in summary["contestants"])
        status = "stopped" if stop.is_set() else "failed" if failed else "done"
    except (KeyboardInterrupt, GeneratorExit):
        status = "stopped"
        raise
    except Exception as error:
        if is_disk_full(error):
            status = ""  # nothing more can be written: what is there stays whole, and says "running"
        raise
    finally:
        if status:
            # the index first: a run that is killed in between, or finds the index locked, stays unfinished, and updates
            # the index when it is resumed
            store.sync_index(folder.path.parent, folder, status)
            folder.write("run.json", record | {"status": status})


def message(plan: Plan, name: str, note: str) -> Progress:
    """A Progress report with a sentence on contestant `name`."""
    return Progress(name, 0, plan.batch_count, phase="message", note=note)


def _sample_missing(
    plan: Plan,
    folder: store.RunFolder,
    names: Sequence[str],
    finished: set,
    stop: threading.Event,
    load: Callable,
    record: dict,
) -> Iterator[Progress]:
    config, loaded, policy, meter = plan.config, None, None, None
    inputs = exchange_inputs(config, [r[1] for r in plan.rows])
    for name in group_by_weights(plan, names):
        optimised = CountedReward(apply_control(plan.reward_of(name), config, [r[1] for r in plan.rows]))
        if plan.pipelines[name] != loaded:
            shared = {"like": policy} if loaded and pipelines.shares_weights(loaded, plan.pipelines[name]) else {}
            policy = meter = None  # one pipeline in memory at a time
            if not shared:
                gc.collect()
                torch.cuda.empty_cache()
            loaded = plan.pipelines[name]
            policy = load(loaded, device=config.device, dtype=config.dtype, attention=config.attention, **shared)
            policy.stop = stop
        if loaded.lora and not loaded.lora.startswith(str(folder.path)):  # of its own exports all is applied
            record.setdefault("loras", {})[name] = [*policy.notes]
            yield from (message(plan, name, f"LoRA {note}") for note in policy.notes)
        method, meter = resolve_dependencies(plan.methods[name]), Meter(policy, optimised)
        for number, (rows, batch) in enumerate(prompts.iterate_batches(plan.rows, config.batch)):
            if (name, number) in finished:
                yield Progress(name, number, plan.batch_count)
                continue
            meter.cost, meter.cut, judged_at = Cost(), False, 0.0
            try:
                events = metered_events(method, policy, optimised, inputs.exchange(batch), meter, plan.budget, stop)
                for event in map(inputs.restore, events):
                    metrics = {key: json_number(value) for key, value in event.metrics.items()}
                    entry = {"contestant": name, "batch": number, "step": event.step, "metrics": metrics}
                    entry |= {"rows": len(rows), "cost": dataclasses.asdict(meter.cost)}
                    if event.final:
                        reason = explain_blank(policy)
                        entry |= {"final": True, **_store_samples(plan, folder, name, number, rows, event, reason)}
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
                if is_disk_full(error):
                    raise
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
                store.write_atomic(folder.path / f"failure-{name}.txt", traceback.format_exc())
                folder.append_event({"contestant": name, "batch": number, "failed": reason})
                yield Progress(name, number, plan.batch_count, failed=reason)
                break


def group_by_weights(plan: Plan, names: Sequence[str]) -> list[str]:
    """The contestants in their order, but for those of the same weights, which follow each other: these are loaded
    once."""
    loads: list[pipelines.PipelineConfig] = []

    def find_load(name: str) -> int:
        pipeline = plan.pipelines[name]
        if not any(pipelines.shares_weights(other, pipeline) for other in loads):
            loads.append(pipeline)
        return next(n for n, other in enumerate(loads) if pipelines.shares_weights(other, pipeline))

    return sorted(names, key=find_load)


def explain_blank(policy: Policy) -> str:
    """Why a sample of this policy that is not finite has no file. A policy that blanks samples on purpose says so in
    `blank_reason`."""
    pipe = getattr(policy, "pipe", None)
    networks = [p for p in getattr(pipe, "components", {}).values() if isinstance(p, torch.nn.Module)]
    dtype = str(next((p.dtype for network in networks for p in network.parameters()), "")).removeprefix("torch.")
    hint = "; try dtype: fp32" if dtype in ("float16", "bfloat16") else ""
    where = f" in {dtype}" if dtype else ""
    return getattr(policy, "blank_reason", "") or f"its values are not finite{where}{hint}"


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
    plan: Plan, folder: store.RunFolder, name: str, number: int, rows: Sequence, event: Event, nan_reason: str
) -> dict[str, Any]:
    """Score the final media as they will be stored and write them; returns their rows for the log, and the digest of
    the latents. A sample that is not finite has no file, no scores, and `nan_reason`."""
    samples_media = media.quantise_media(event.media.detach())
    scores, finite = score_samples(plan, samples_media, event.prompts), find_finite_rows(samples_media).tolist()
    scores |= score_against_first(plan, folder, name, rows, samples_media, event.prompts)
    media_folder, latents_folder = folder.path / "media" / name, folder.path / "latents" / name
    media_folder.mkdir(parents=True, exist_ok=True), latents_folder.mkdir(parents=True, exist_ok=True)
    latents, digest = None, {}
    if event.latents is not None:
        latents = f"latents/{name}/{number:04d}.safetensors"
        data = safetensors.torch.save({"noise": event.latents.detach().cpu().contiguous()})
        store.write_atomic(folder.path / latents, data)
        digest = {"latents_sha256": hashlib.sha256(data).hexdigest()}
    oracle = (plan.watch.rewards if plan.watch else {}).get("oracle") or plan.reward.rewards.get("oracle")
    categories = oracle.categories(event.prompts) if oracle else [None] * len(rows)
    samples, repo = [], config.pipeline_labels(plan.config)[name]
    for b, (position, prompt, k, seed) in enumerate(rows):
        own_scores = {reward: json_number(values[b]) for reward, values in scores.items()}
        sample = {
            "index": position,
            "prompt": prompt,
            **run_inputs.record_inputs(prompt),
            "k": k,
            "seed": seed,
            "category": categories[b],
            "scores": own_scores,
        }
        if finite[b]:
            meta = {"prompt": prompt, **run_inputs.record_inputs(prompt), "seed": seed, "contestant": name}
            meta |= {"pipeline": repo, "scores": own_scores}
            path = media.write_media(samples_media[b], media_folder / f"{position:04d}-{k}", meta=meta)
            sample |= {"file": path.relative_to(folder.path).as_posix(), "sha256": media.file_digest(path)}
        else:
            sample |= {"file": None, "sha256": None, "reason": nan_reason}
        samples.append(sample | {"latents": latents})
    return {"samples": samples, **digest}
