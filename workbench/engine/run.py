"""The driver: the one place where pipelines, rewards and methods meet.

`plan` checks everything that can be checked without weights and raises BadInput; `execute` trains what is to be trained, makes,
judges and stores, and yields what happens, so that the command line, the app and tests all watch the same stream.
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

import numpy as np
import safetensors.torch
import torch

import pipelines
from pipelines import processes
from workbench.core.io import media
from workbench.core.paths import ROOT
from workbench.core.types import BadInput, Batch, Event, Stopped, derive
from workbench.engine import export
from workbench.engine.plan import FREE_MB, Plan, able, fits, plan, room, weights_mb
from workbench.evaluation.summary import summarise
from workbench.methods import name_of
from workbench.report import pages
from workbench.runs import config, prompts, store
from workbench.runs.budget import Budget, Cost, Meter
from workbench.runs.controls import Counted, controlled
from workbench.runs.progress import Progress, judge
from workbench.runs.progress import number as _number
from workbench.runs.resolve import supplied
from workbench.training import train, training_runs

__all__ = [
    "FREE_MB",
    "DiskFull",
    "Plan",
    "Progress",
    "able",
    "execute",
    "fits",
    "judge",
    "plan",
    "record",
    "room",
    "weights_mb",
]


class DiskFull(OSError):
    """The disk filled up in the middle of a run; nothing is half-written, and the run can go on."""


def execute(
    plan: Plan, folder: store.RunFolder, stop: threading.Event | None = None, load: Callable | None = None
) -> Iterator[Progress]:
    """Make, judge and store what is not done yet; `summary.json`, `grid.png` and `report.html` at the end.

    Once `stop` is set, what is being made is delivered as it is and nothing else is begun; the same run goes on from
    there. `load`, in place of pipelines.load, may remember pipelines. Raises BadInput while another process works on the same run.
    """
    stop, load = stop or threading.Event(), load or pipelines.load
    if not processes.leads():  # of several processes one writes, and the others only help it to train
        yield from train.follow(plan, folder, stop, load)
        return
    with folder.alone():
        yield from _execute(plan, folder, stop, load)


def _execute(plan: Plan, folder: store.RunFolder, stop: threading.Event, load) -> Iterator[Progress]:
    started, kept = folder.read(), record(plan)
    if started:  # before anything is forgotten: what is refused stays as it was
        same_prompts(folder, started, kept)
        same_judges(folder, started, kept)
        kept = started
    with store.index(folder.path.parent):  # one that is damaged is said before anything is made
        pass
    done = training_runs.rewind(plan, folder)
    folder.write("run.json", kept | {"status": "running"})
    status = "failed"
    try:
        yield from train.train(plan, folder, stop, load)
        ready = training_runs.trained(plan, folder)
        missing = [n for n in ready.methods if any((n, b) not in done for b in range(plan.batches))]
        if missing and not stop.is_set():
            yield from _make(ready, folder, missing, done, stop, load)
        summary = unfinished(summarise(plan, folder), folder.events())
        folder.write("summary.json", summary)
        pages.write_report(folder.path)
        for name in ready.methods:
            if name in plan.trained:
                export.card(plan, folder, name, training_runs.exported(plan, folder, name))
        failed = any("failed" in c for c in summary["contestants"])
        status = "stopped" if stop.is_set() else "failed" if failed else "done"
    except (KeyboardInterrupt, GeneratorExit):
        status = "stopped"
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            status = ""  # nothing more can be written: what is there stays whole, and says "running"
            raise DiskFull(f"the disk of {folder.path} is full; make room and run the same command to go on") from error
        raise
    finally:
        if status:
            # the index first: a run that is killed in between, or finds the index locked, is not done, and goes on to it
            store.sync(folder.path.parent, folder, status)
            folder.write("run.json", kept | {"status": status})


def same_prompts(folder: store.RunFolder, started: dict, now: dict) -> None:
    """Raises BadInput where the prompt files that a run goes on with are not what they were when it began. A run from before
    the digest was kept goes on."""
    if started.get("prompts", now["prompts"]) != now["prompts"]:
        raise BadInput(
            f"{folder.path}: its prompts have changed since this run began, so what it has made could not be compared with "
            "what is missing; start anew with --new"
        )


def same_judges(folder: store.RunFolder, started: dict, now: dict) -> None:
    """Raises BadInput where a run would go on with another version of what has judged a part of it."""
    for name, then in started["rewards"].items():
        if now["rewards"].get(name, then) != then:
            raise BadInput(
                f"{folder.path}: {name} was {then!r} when this run began and is {now['rewards'][name]!r} now, so its scores "
                "could not be compared; start anew with --new"
            )


def _make(
    plan: Plan, folder: store.RunFolder, missing: Sequence[str], done: set, stop: threading.Event, load
) -> Iterator[Progress]:
    config, loaded, policy, meter = plan.config, None, None, None
    optimised = Counted(controlled(plan.reward, config, [r[1] for r in plan.rows]))
    for name in missing:
        if plan.pipelines[name] is not loaded:
            policy = meter = None  # one pipeline in memory at a time
            gc.collect()
            torch.cuda.empty_cache()
            loaded = plan.pipelines[name]
            policy = load(loaded, device=config.device, dtype=config.dtype, attention=config.attention)
            policy.stop = stop
        method, meter = supplied(plan.methods[name]), Meter(policy, optimised)
        for number, (rows, batch) in enumerate(prompts.batches(plan.rows, config.batch)):
            if (name, number) in done:
                yield Progress(name, number, plan.batches)
                continue
            meter.cost, meter.cut, judged_at = Cost(), False, 0.0
            try:
                for event in metered(method, policy, optimised, batch, meter, plan.budget, stop):
                    metrics = {key: _number(value) for key, value in event.metrics.items()}
                    entry = {"contestant": name, "batch": number, "step": event.step, "metrics": metrics}
                    entry |= {"rows": len(rows), "cost": dataclasses.asdict(meter.cost)}
                    if event.final:
                        entry |= {"final": True, "samples": _keep(plan, folder, name, number, rows, event)}
                        entry |= {"stopped": True} if stop.is_set() else {}
                        entry |= {"predicted": True} if meter.cut and getattr(method, "predicts", False) else {}
                    elif config.curve and event.media is not None and meter.cost.nfe >= 2 * judged_at:
                        judged_at = meter.cost.nfe
                        seen = judge(plan, media.quantise(event.media.detach()), event.prompts)
                        entry["curve"] = {reward: [*map(_number, values)] for reward, values in seen.items()}
                    folder.append(entry)
                    yield Progress(name, number, plan.batches, event, folder.path)
            except (BadInput, OSError):
                raise
            except Stopped:
                return
            except Exception as error:  # one contestant's failure is reported in the table; the others go on
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
                store.write_atomic(folder.path / f"failure-{name}.txt", traceback.format_exc())
                folder.append({"contestant": name, "batch": number, "failed": reason})
                yield Progress(name, number, plan.batches, failed=reason)
                break


def metered(
    method,
    policy,
    reward,
    batch: Batch,
    meter: Meter,
    budget: Budget | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """The method's events for one batch, with only the method's own work on the meter. Global randomness is seeded by the
    batch, so that a batch comes out the same whatever ran before it. An event after which another like it would not fit
    into the budget is the last one, and what it carries is delivered; so is the last one before a stop, which comes
    between two calls of the denoiser. Raises Stopped where there is nothing to deliver."""
    seed = derive(batch.seeds[0], "batch")
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    events, spent, best = method(policy, reward, [batch]), Cost(), None
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
        cut = stop is not None and stop.is_set()
        cut = cut or bool(budget and budget.full(spent, meter.cost, len(batch)))
        if cut and not event.final and event.media is not None:
            events.close()
            meter.cut = True
            yield replace(event, final=True)
            return
        spent, best = meter.cost, best if event.media is None else event
        yield event


def unfinished(summary: dict, events: Sequence[dict]) -> dict:
    """The summary, with a sentence for each contestant that the budget cut before its chains were at their end."""
    for c in summary["contestants"]:
        cut = [e for e in events if e.get("predicted") and e["contestant"] == c["name"]]
        if cut and "failed" not in c:
            c["predicted"] = (
                f"{c['name']} was cut by the budget in mid-chain: {sum(e['rows'] for e in cut)} of its {c['samples']} samples are "
                "predictions of where a chain was going, often blurred, and say little of what the method makes when it ends."
            )
    return summary


def _keep(plan: Plan, folder: store.RunFolder, name: str, number: int, rows: Sequence, event: Event) -> list[dict]:
    """Judge the final media as they will be stored, write them, and return their rows for the log."""
    made = media.quantise(event.media.detach())
    scores = judge(plan, made, event.prompts)
    place, noises = folder.path / "media" / name, folder.path / "latents" / name
    place.mkdir(exist_ok=True), noises.mkdir(exist_ok=True)
    latents = f"latents/{name}/{number:04d}.safetensors" if event.latents is not None else None
    if event.latents is not None:
        noise = event.latents.detach().cpu().contiguous()
        store.write_atomic(folder.path / latents, safetensors.torch.save({"noise": noise}))
    oracle = (plan.watch.rewards if plan.watch else {}).get("oracle") or plan.reward.rewards.get("oracle")
    categories = oracle.categories(event.prompts) if oracle else [None] * len(rows)
    samples, repo = [], config.repos(plan.config)[name]
    for b, (position, prompt, k, seed) in enumerate(rows):
        own = {reward: _number(values[b]) for reward, values in scores.items()}
        meta = {"prompt": prompt, "seed": seed, "contestant": name, "pipeline": repo, "scores": own}
        path = media.write(made[b], place / f"{position:04d}-{k}", meta=meta)
        sample = {"index": position, "prompt": prompt, "k": k, "seed": seed, "category": categories[b], "scores": own}
        file = path.relative_to(folder.path).as_posix()
        samples.append(sample | {"file": file, "sha256": media.fingerprint(path), "latents": latents})
    return samples


def record(plan: Plan) -> dict:
    """What run.json says of a run, but for its status."""
    config = dataclasses.asdict(plan.config)
    everyone = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {
        "name": plan.config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": plan.command,
        "config": config,
        "methods": {n: {"name": name_of(m)} | dataclasses.asdict(m) for n, m in plan.methods.items()},
        "rewards": {n: r.spec.version for n, r in everyone.items()},
        "prompts": digest(plan),
        "seed": plan.config.seed,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "git": _revision(),
        "device": plan.config.device,
    }


def digest(plan: Plan) -> str:
    """SHA-256 of what a run samples and trains on: its config names prompt files, and files are edited."""
    asked = {"rows": [*map(list, plan.rows)], "train": [*plan.train], "held": [*plan.held]}
    asked |= {"stages": [[*task.train] for task in plan.tasks]}
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _revision() -> str:
    """The workbench's own revision, or '' outside a checkout."""
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        return ""
    done = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
