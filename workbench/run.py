"""The driver: the one place where pipelines, rewards and methods meet.

`plan` checks everything that can be checked without weights and raises BadInput; `execute` makes, judges and stores, and
yields what happens, so that the command line, the app and tests all watch the same stream.
"""

from __future__ import annotations

import dataclasses
import errno
import platform
import random
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import pipelines
from rewards import compose

from . import config as configs
from . import data, media, report, store
from .assets import ROOT
from .controls import Counted, controlled
from .cost import Budget, Cost, Meter
from .judges import judges
from .methods import METHODS, name_of
from .parts import supplied
from .strict import build
from .summary import summarise
from .types import BadInput, Batch, Event, Media, Stopped, derive

FREE_MB = 64  # kept free on the disk of the runs, on top of what a run will write


class DiskFull(OSError):
    """The disk filled up in the middle of a run; nothing is half-written, and the run can go on."""


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no weights."""

    config: configs.RunConfig
    methods: Mapping[str, Any]  # contestant -> method
    pipelines: Mapping[str, Any]  # contestant -> pipelines.PipelineConfig
    reward: compose.Weighted  # optimised
    watch: compose.Weighted | None  # held out
    rows: Sequence[tuple[int, str, int, int]]  # (position, prompt, k, noise seed), one a sample
    checks: Sequence[str]
    command: str = ""  # what repeats it
    budget: Budget | None = None

    @property
    def modality(self) -> str:
        return next(iter(self.pipelines.values())).modality

    @property
    def batches(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def calls(self, name: str) -> int:
        """Denoiser calls that contestant `name` will make, CFG pairs counted once."""
        return self.methods[name].calls(self.pipelines[name].steps) * len(self.rows)


@dataclass(frozen=True)
class Progress:
    """What just happened, for whoever watches."""

    contestant: str
    batch: int
    batches: int
    event: Event | None = None  # None: the batch was finished earlier
    folder: Path | None = None
    failed: str = ""


def plan(config: configs.RunConfig, command: str = "") -> Plan:
    """Raises BadInput, in one sentence, for whatever can be known to fail."""
    methods = configs.contestants(config, METHODS)
    budget = build(Budget, config.budget, "budget").checked() if config.budget is not None else None
    repos = configs.repos(config)
    read = {repo: pipelines.read(repo) for repo in dict.fromkeys(repos.values())}
    made = {name: read[repo] for name, repo in repos.items()}
    where = [
        pipelines.preflight(pipeline, device=config.device, dtype=config.dtype, attention=config.attention)
        for pipeline in read.values()
    ]
    if len({p.modality for p in read.values()}) > 1:
        told = ", ".join(f"{repo} makes {p.modality}" for repo, p in read.items())
        raise BadInput(f"contestants: they can't be compared, for {told}")
    reward = compose.from_config(config.reward, judges())
    watch = compose.from_config(config.watch, judges(), where="watch") if config.watch else None
    if twice := set(reward.rewards) & set(watch.rewards if watch else ()):
        raise BadInput(f"watch: {', '.join(sorted(twice))} is optimised by this run, so it can't be held out too")
    for part in (reward, watch) if watch else (reward,):
        for repo, pipeline in read.items():
            fits(part, repo, pipeline.modality)
    able(methods, made, reward)
    for method in methods.values():
        supplied(method)
    found = data.prompts(config.prompts)
    rows = data.items(found[: config.limit or None], config.seed, config.seeds)
    if config.control == "shuffled" and len({r[1] for r in rows}) < 2:
        raise BadInput("control: shuffled prompts need at least two different prompts")
    for part in (reward, watch) if watch else (reward,):
        part.check_own([r[1] for r in rows])
    checks = [
        *(
            f"pipeline {repo}: {pipeline.modality}, {pipeline.steps} step(s), "
            f"on {device} in {str(dtype).removeprefix('torch.')}, attention {kernels}"
            for (repo, pipeline), (device, dtype, kernels) in zip(read.items(), where, strict=True)
        ),
        f"optimised: {', '.join(reward.rewards)}; held out: {', '.join(watch.rewards) if watch else 'nothing'}",
        f"{len({r[1] for r in rows})} prompts x {config.seeds} seed(s) = {len(rows)} samples in batches of {config.batch}",
    ]
    if budget:
        checks.append(f"at most {budget} a sample; a contestant that is cut delivers the best it has")
    return Plan(config, methods, made, reward, watch, rows, checks, command, budget)


def able(methods: Mapping[str, Any], made: Mapping[str, Any], reward: compose.Weighted) -> None:
    """Raises BadInput for a method that needs what its pipeline or the reward does not provide."""
    provided = {"latents", "reward"} | ({"differentiable"} if reward.spec.differentiable else set())
    for name, method in methods.items():
        if missing := method.needs - provided - made[name].provides:
            dull = [n for n, r in reward.rewards.items() if not r.spec.differentiable]
            because = f"; {', '.join(dull)} has no gradient" if "differentiable" in missing and dull else ""
            raise BadInput(
                f"contestant {name} needs what this run does not provide: {', '.join(sorted(missing))}{because}"
            )


def fits(part: compose.Weighted, repo: str, modality: str) -> None:
    """Raises BadInput for a reward of another modality, or one that asks for more than a sample and its prompt: no
    method here makes a prompt's samples in one call, or from a source picture."""
    for name, judge in part.rewards.items():
        if modality not in judge.spec.modalities:
            raise BadInput(
                f"reward {name} judges {' and '.join(sorted(judge.spec.modalities))}, "
                f"but {repo} makes {modality}; see: workbench list rewards"
            )
        if "source" in judge.spec.needs:
            raise BadInput(
                f"reward {name} compares with the source of an edit, and these samples are made from nothing"
            )
        if judge.spec.scope == "set":
            raise BadInput(f"reward {name} judges whole sets; here each sample needs a score of its own")
    if part.spec.scope != "sample":
        raise BadInput(
            f"reward {part.spec.name} compares the samples of one prompt in one call, and no contestant of this run makes "
            "a prompt's samples together"
        )


def room(plan: Plan, runs: Path) -> None:
    """Raises BadInput when the disk of `runs` has no room for what the run will write."""
    there = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    sides = [p.call.get("height", 1024) * p.call.get("width", 1024) for p in plan.pipelines.values()]
    need = len(plan.rows) * sum(sides) * 3 / 2**20 if plan.modality == "image" else 0
    free = shutil.disk_usage(there).free / 2**20
    if free < FREE_MB:
        raise BadInput(f"{there}: only {free:.0f} MB free on this disk, at least {FREE_MB} are needed; use --runs")
    if free < need / 4:  # PNG of real pictures is rarely smaller than a quarter of the raw size
        raise BadInput(f"{there}: {free:.0f} MB free, about {need:.0f} MB of pictures to write; use --runs")


def weights_mb(plan: Plan) -> float:
    """What the pipelines' weights take on this disk; 0 when they are on the hub."""
    folders = {p.folder for p in plan.pipelines.values() if p.folder}
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*.safetensors")) / 2**20


def execute(
    plan: Plan, folder: store.RunFolder, stop: threading.Event | None = None, load=pipelines.load
) -> Iterator[Progress]:
    """Make, judge and store what is not done yet; `summary.json`, `grid.png` and `report.html` at the end.

    Once `stop` is set, what is being made is delivered as it is and nothing else is begun; the same run goes on from
    there. `load` may remember pipelines. Raises BadInput while another process works on the same run.
    """
    with folder.alone():
        yield from _execute(plan, folder, stop or threading.Event(), load)


def _execute(plan: Plan, folder: store.RunFolder, stop: threading.Event, load) -> Iterator[Progress]:
    done, started = folder.rewind(), folder.read()
    record = started or _record(plan)
    folder.write("run.json", record | {"status": "running"})
    status = "failed"
    try:
        if missing := [n for n in plan.methods if any((n, b) not in done for b in range(plan.batches))]:
            yield from _make(plan, folder, missing, done, stop, load)
        summary = summarise(plan, folder)
        folder.write("summary.json", summary)
        report.write_report(folder.path)
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
            folder.write("run.json", record | {"status": status})
            store.sync(folder.path.parent, folder)


def _make(
    plan: Plan, folder: store.RunFolder, missing: Sequence[str], done: set, stop: threading.Event, load
) -> Iterator[Progress]:
    config, loaded, policy = plan.config, None, None
    optimised = Counted(controlled(plan.reward, config, [r[1] for r in plan.rows]))
    for name in missing:
        if plan.pipelines[name] is not loaded:
            policy = None  # one pipeline in memory at a time
            loaded = plan.pipelines[name]
            policy = load(loaded, device=config.device, dtype=config.dtype, attention=config.attention)
            policy.stop = stop
        method, meter = supplied(plan.methods[name]), Meter(policy, optimised)
        for number, (rows, batch) in enumerate(data.batches(plan.rows, config.batch)):
            if (name, number) in done:
                yield Progress(name, number, plan.batches)
                continue
            meter.cost, judged_at = Cost(), 0.0
            try:
                for event in metered(method, policy, optimised, batch, meter, plan.budget, stop):
                    metrics = {key: _number(value) for key, value in event.metrics.items()}
                    entry = {"contestant": name, "batch": number, "step": event.step, "metrics": metrics}
                    entry |= {"rows": len(rows), "cost": dataclasses.asdict(meter.cost)}
                    if event.final:
                        entry |= {"final": True, "samples": _keep(plan, folder, name, number, rows, event)}
                        entry |= {"stopped": True} if stop.is_set() else {}
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
            yield replace(event, final=True)
            return
        spent, best = meter.cost, best if event.media is None else event
        yield event


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
    samples, repo = [], configs.repos(plan.config)[name]
    for b, (position, prompt, k, seed) in enumerate(rows):
        own = {reward: _number(values[b]) for reward, values in scores.items()}
        meta = {"prompt": prompt, "seed": seed, "contestant": name, "pipeline": repo, "scores": own}
        path = media.write(made[b], place / f"{position:04d}-{k}", meta=meta)
        sample = {"index": position, "prompt": prompt, "k": k, "seed": seed, "category": categories[b], "scores": own}
        file = path.relative_to(folder.path).as_posix()
        samples.append(sample | {"file": file, "sha256": media.fingerprint(path), "latents": latents})
    return samples


@torch.no_grad()
def judge(plan: Plan, made: Media, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Every reward of the run, optimised and held out, on finished media: name -> [B]."""
    scores = plan.reward.breakdown(media=made, prompts=prompts)
    return scores | (plan.watch.breakdown(media=made, prompts=prompts) if plan.watch else {})


def _number(value: torch.Tensor | float) -> float | None:
    number = float(value)
    return round(number, 6) if np.isfinite(number) else None


def _record(plan: Plan) -> dict:
    config = dataclasses.asdict(plan.config)
    everyone = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    return {
        "name": plan.config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": plan.command,
        "config": config,
        "methods": {n: {"name": name_of(m)} | dataclasses.asdict(m) for n, m in plan.methods.items()},
        "rewards": {n: r.spec.version for n, r in everyone.items()},
        "seed": plan.config.seed,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "git": _revision(),
        "device": plan.config.device,
    }


def _revision() -> str:
    """The workbench's own revision, or '' outside a checkout."""
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        return ""
    done = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
