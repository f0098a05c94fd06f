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
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import pipelines
from rewards import compose

from . import config as configs
from . import data, evaluate, media, report, store
from .assets import ROOT
from .cost import Cost, Meter
from .judges import judges
from .methods import METHODS, name_of
from .types import BadInput, Batch, Event, Media, Reward, derive

FREE_MB = 64  # kept free on the disk of the runs, on top of what a run will write


class DiskFull(OSError):
    """The disk filled up in the middle of a run; nothing is half-written, and the run can go on."""


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no weights."""

    config: configs.RunConfig
    pipeline: Any  # pipelines.loading.PipelineConfig
    methods: Mapping[str, Any]  # contestant -> method
    reward: compose.Weighted  # optimised
    watch: compose.Weighted | None  # held out
    rows: Sequence[tuple[int, str, int, int]]  # (position, prompt, k, noise seed), one a sample
    checks: Sequence[str]
    command: str = ""  # what repeats it

    @property
    def batches(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def calls(self, name: str) -> int:
        """Denoiser calls that contestant `name` will make, CFG pairs counted once."""
        return self.methods[name].calls(self.pipeline.steps) * len(self.rows)


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
    pipeline = pipelines.read(config.pipeline)
    device, dtype, kernels = pipelines.preflight(
        pipeline, device=config.device, dtype=config.dtype, attention=config.attention
    )
    reward = compose.from_config(config.reward, judges())
    watch = compose.from_config(config.watch, judges(), where="watch") if config.watch else None
    if twice := set(reward.rewards) & set(watch.rewards if watch else ()):
        raise BadInput(f"watch: {', '.join(sorted(twice))} is optimised by this run, so it can't be held out too")
    for part in (reward, watch) if watch else (reward,):
        for name, judge in part.rewards.items():
            if pipeline.modality not in judge.spec.modalities:
                raise BadInput(
                    f"reward {name} judges {' and '.join(sorted(judge.spec.modalities))}, "
                    f"but {config.pipeline} makes {pipeline.modality}; see: workbench list rewards"
                )
        whole(part)
    provided = {"latents", "reward"} | ({"differentiable"} if reward.spec.differentiable else set())
    for name, method in methods.items():
        if missing := method.needs - provided - pipeline.provides:
            dull = [n for n, r in reward.rewards.items() if not r.spec.differentiable]
            because = f"; {', '.join(dull)} has no gradient" if "differentiable" in missing and dull else ""
            raise BadInput(
                f"contestant {name} needs what this run does not provide: {', '.join(sorted(missing))}{because}"
            )
    found = data.prompts(config.prompts)
    rows = data.items(found[: config.limit or None], config.seed, config.seeds)
    if config.control == "shuffled" and len({r[1] for r in rows}) < 2:
        raise BadInput("control: shuffled prompts need at least two different prompts")
    for part in (reward, watch) if watch else (reward,):
        part.check([r[1] for r in rows])
    checks = [
        f"pipeline {config.pipeline}: {pipeline.modality}, {pipeline.steps} step(s)",
        f"on {device} in {str(dtype).removeprefix('torch.')}, attention {kernels}",
        f"optimised: {', '.join(reward.rewards)}; held out: {', '.join(watch.rewards) if watch else 'nothing'}",
        f"{len({r[1] for r in rows})} prompts x {config.seeds} seed(s) = {len(rows)} samples in batches of {config.batch}",
    ]
    return Plan(config, pipeline, methods, reward, watch, rows, checks, command)


def whole(part: compose.Weighted) -> None:
    """Raises BadInput for a reward that needs more than one sample in a call: no method here scores whole groups."""
    for name, judge in part.rewards.items():
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
    height, width = plan.pipeline.call.get("height", 1024), plan.pipeline.call.get("width", 1024)
    need = len(plan.rows) * len(plan.methods) * height * width * 3 / 2**20 if plan.pipeline.modality == "image" else 0
    free = shutil.disk_usage(there).free / 2**20
    if free < FREE_MB:
        raise BadInput(f"{there}: only {free:.0f} MB free on this disk, at least {FREE_MB} are needed; use --runs")
    if free < need / 4:  # PNG of real pictures is rarely smaller than a quarter of the raw size
        raise BadInput(f"{there}: {free:.0f} MB free, about {need:.0f} MB of pictures to write; use --runs")


def weights_mb(plan: Plan) -> float:
    """What the pipeline's weights take on this disk; 0 when they are on the hub."""
    folder = plan.pipeline.folder
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 2**20 if folder else 0.0


def execute(plan: Plan, folder: store.RunFolder) -> Iterator[Progress]:
    """Make, judge and store what is not done yet; `summary.json`, `grid.png` and `report.html` at the end."""
    done, started = folder.rewind(), folder.read()
    record = started or _record(plan)
    folder.write("run.json", record | {"status": "running"})
    status = "failed"
    try:
        if missing := [n for n in plan.methods if any((n, b) not in done for b in range(plan.batches))]:
            yield from _make(plan, folder, missing, done)
        summary = summarise(plan, folder)
        folder.write("summary.json", summary)
        report.write_report(folder.path)
        status = "failed" if any("failed" in c for c in summary["contestants"]) else "done"
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


def _make(plan: Plan, folder: store.RunFolder, missing: Sequence[str], done: set) -> Iterator[Progress]:
    config = plan.config
    policy = pipelines.load(plan.pipeline, device=config.device, dtype=config.dtype, attention=config.attention)
    optimised = Counted(controlled(plan.reward, config, [r[1] for r in plan.rows]))
    for name in missing:
        method, meter = plan.methods[name], Meter(policy, optimised)
        for number, (rows, batch) in enumerate(data.batches(plan.rows, config.batch)):
            if (name, number) in done:
                yield Progress(name, number, plan.batches)
                continue
            meter.cost = Cost()
            try:
                for event in metered(method, policy, optimised, batch, meter):
                    metrics = {key: _number(value) for key, value in event.metrics.items()}
                    entry = {"contestant": name, "batch": number, "step": event.step, "metrics": metrics}
                    if event.final:
                        samples = _keep(plan, folder, name, number, rows, event)
                        entry |= {"final": True, "cost": dataclasses.asdict(meter.cost), "samples": samples}
                    folder.append(entry)
                    yield Progress(name, number, plan.batches, event, folder.path)
            except (BadInput, OSError):
                raise
            except Exception as error:  # one contestant's failure is reported in the table; the others go on
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
                store.write_atomic(folder.path / f"failure-{name}.txt", traceback.format_exc())
                folder.append({"contestant": name, "batch": number, "failed": reason})
                yield Progress(name, number, plan.batches, failed=reason)
                break


def metered(method, policy, reward, batch: Batch, meter: Meter) -> Iterator[Event]:
    """The method's events for one batch, with only the method's own work on the meter. Global randomness is seeded by the
    batch, so that a batch comes out the same whatever ran before it."""
    seed = derive(batch.seeds[0], "batch")
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    events = method(policy, reward, [batch])
    while True:
        with meter:
            event = next(events, None)
        if event is None:
            return
        yield event


class Counted:
    """A reward that counts the samples it judges."""

    def __init__(self, reward: Reward):
        self.reward, self.spec, self.judged = reward, reward.spec, 0

    def __call__(self, *, media, prompts, references=None):
        self.judged += len(media)
        return self.reward(media=media, prompts=prompts, references=references)


@dataclass(frozen=True)
class Negated:
    """A control that must fail: the method is paid for what the reward dislikes."""

    reward: Reward
    spec: Any = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "spec", self.reward.spec)

    def __call__(self, *, media, prompts, references=None):
        return -self.reward(media=media, prompts=prompts, references=references)


@dataclass(frozen=True)
class Shuffled(Negated):
    """A control that must fail: each sample is judged against another sample's prompt."""

    other: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *, media, prompts, references=None):
        return self.reward(media=media, prompts=[self.other[p] for p in prompts], references=references)


def controlled(reward: Reward, config: configs.RunConfig, prompts: Sequence[str]) -> Reward:
    if config.control == "negated":
        return Negated(reward)
    if config.control == "shuffled":
        ring = sorted(set(prompts), key=lambda p: derive(config.seed, "shuffle", p))
        return Shuffled(reward, other=dict(zip(ring, ring[1:] + ring[:1], strict=True)))  # no prompt keeps its own
    return reward


def _keep(plan: Plan, folder: store.RunFolder, name: str, number: int, rows: Sequence, event: Event) -> list[dict]:
    """Judge the final media as they will be stored, write them, and return their rows for the log."""
    made = media.quantise(event.media.detach())
    scores = judge(plan, made, event.prompts)
    place, noises = folder.path / "media" / name, folder.path / "latents" / name
    place.mkdir(exist_ok=True), noises.mkdir(exist_ok=True)
    latents = f"latents/{name}/{number:04d}.safetensors"
    noise = event.latents.detach().cpu().contiguous()
    store.write_atomic(folder.path / latents, safetensors.torch.save({"noise": noise}))
    oracle = (plan.watch.rewards if plan.watch else {}).get("oracle") or plan.reward.rewards.get("oracle")
    categories = oracle.categories(event.prompts) if oracle else [None] * len(rows)
    samples = []
    for b, (position, prompt, k, seed) in enumerate(rows):
        own = {reward: _number(values[b]) for reward, values in scores.items()}
        meta = {"prompt": prompt, "seed": seed, "contestant": name, "pipeline": plan.config.pipeline, "scores": own}
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


def summarise(plan: Plan, folder: store.RunFolder) -> dict:
    """The summary of what the run folder holds, exactly as the files say: a resumed run sums up like any other."""
    events, parts = folder.events(), []
    base = None
    for name, method in plan.methods.items():
        failed = next((e["failed"] for e in events if e["contestant"] == name and "failed" in e), None)
        finals = [e for e in events if e["contestant"] == name and e.get("final")]
        head = {"name": name, "method": name_of(method)}
        if failed or len(finals) < plan.batches:
            parts.append(head | {"failed": failed or "did not finish"})
            continue
        samples = [s for e in sorted(finals, key=lambda e: e["batch"]) for s in e["samples"]]
        cost = sum((Cost(**e["cost"]) for e in finals), Cost())
        part = head | evaluate.contestant(samples, base, list(plan.reward.rewards) if "reward" in method.needs else [])
        pictures: dict[int, list] = {}
        for s in samples:
            pictures.setdefault(s["index"], []).append(media.read(folder.path / s["file"]).data.numpy())
        part |= {"diversity": evaluate.diversity(pictures)} | dataclasses.asdict(cost)
        base = base or samples
        parts.append(part)
    return {
        "run": folder.path.name,
        "modality": plan.pipeline.modality,
        "prompts": len({r[0] for r in plan.rows}),
        "seeds": plan.config.seeds,
        "control": plan.config.control,
        "contestants": parts,
        "alarm": evaluate.alarm(parts, next(iter(plan.methods)), _margins(plan)),
    }


def _margins(plan: Plan) -> dict[str, float]:
    """What counts as a fall of a held-out judge: a twentieth of its typical range, so that no trifle rings the alarm."""
    ranges = {n: r.spec.typical for n, r in (plan.watch.rewards if plan.watch else {}).items() if n != "oracle"}
    return {name: (typical[1] - typical[0]) / 20 for name, typical in ranges.items() if typical}


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
