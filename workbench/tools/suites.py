"""A public benchmark's pictures, made by the driver and laid out in the very folders that its own scorer reads.

workbench/tools/suite_layouts.py says what each benchmark's files look like. A run makes the pictures, so that any method can be
used and a killed one goes on; OUT/manifest.json says what was made of what, and how it is scored.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

import pipelines
from workbench.core.io import media
from workbench.core.paths import write_atomic
from workbench.core.schema import build, nearest
from workbench.core.types import BadInput
from workbench.engine import run
from workbench.methods import METHODS
from workbench.runs import config as configs
from workbench.runs import store
from workbench.tools.suite_layouts import SUITES, Entry, Suite

MANIFEST = "manifest.json"
OWN = {
    "prompts": "--prompts",
    "contestants": "--method",
    "method": "--method",
    "limit": "--limit",
    "reward": "--reward",
}


@dataclass(frozen=True)
class Job:
    """A suite that has been asked for and passed every check that needs no weights."""

    name: str
    suite: Suite
    entries: Sequence[Entry]
    source: Path
    out: Path
    config: configs.RunConfig

    def targets(self) -> dict[str, tuple[Entry, int]]:
        """Path under `out` of every picture -> its entry and k."""
        seeds = self.config.seeds
        each = [(e, k, order * seeds + k) for order, e in enumerate(self.entries) for k in range(seeds)]
        return {self.suite.place(e, k, n, self.config.name): (e, k) for e, k, n in each}

    def identity(self) -> dict[str, Any]:
        """What must be the same for two calls to share an OUT."""
        files = sorted(self.source.glob("*.json")) if self.source.is_dir() else [self.source]
        config = {k: v for k, v in dataclasses.asdict(self.config).items() if k != "prompts"}
        prompts = {f.name: media.fingerprint(f) for f in files}
        return {"suite": self.name, "prompts": prompts, "entries": len(self.entries), "config": config}


def job(name: str, prompts: Path, out: Path, *, pipeline: str, method: str = "sample", reward: str | None = None,
        seeds: int | None = None, limit: int = 0, overrides: Sequence[str] = ()) -> Job:  # fmt: skip
    """Everything asked for, read and checked: raises BadInput, in one sentence, naming file and line.

    `method` and `reward` are names, or YAML: `{reno: {iterations: 20}}`. `seeds` None: as many as the benchmark asks for.
    `overrides` are `key=value` settings of the run (batch, seed, name, device, watch, ...).
    """
    if name not in SUITES:
        raise BadInput(f"unknown suite {name!r}; {nearest(name, SUITES)}")
    suite = SUITES[name]
    if not prompts.exists():
        raise BadInput(f"--prompts: no such file {prompts}; give your copy of the benchmark's prompt file")
    if limit < 0:
        raise BadInput(f"--limit: {limit} prompts can't be made; 0 is for all")
    if not (entries := suite.read(prompts)[: limit or None]):
        raise BadInput(f"{prompts}: no prompt in it")
    contestant, block = _method(method)
    values = {"pipeline": pipeline, "contestants": {contestant: block}}
    values |= {"seeds": suite.images if seeds is None else seeds}
    values |= {"reward": "brightness" if reward is None else _yaml(reward, "--reward")}
    values |= {"prompts": [*dict.fromkeys(e.prompt for e in entries)]}
    values |= {"name": re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(pipeline).name}-{contestant}").lstrip("._-")[:64]}
    for text in overrides:
        if (key := text.partition("=")[0].split(".")[0]) in OWN:
            raise BadInput(f"override {text!r}: here {OWN[key]} says that")
        configs.override(values, text)
    config = configs.check(build(configs.RunConfig, values, "suite"))
    if "reward" in configs.contestants(config, METHODS)[contestant].needs and reward is None:
        raise BadInput(f"method {contestant} optimises a reward; say which with --reward NAME")
    if suite.single and config.seeds > 1:
        raise BadInput(f"{name}: its scorer reads one picture a prompt; use --seeds 1")
    if (made := pipelines.read(repo := configs.repos(config)[contestant]).modality) != "image":
        raise BadInput(f"{name} judges pictures, and {repo} makes {made}")
    return Job(name, suite, entries, prompts, out, config)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"{where} {text!r}: not valid YAML; write NAME or {{NAME: {{setting: value}}}}") from None


def _method(text: str) -> tuple[str, dict]:
    said = _yaml(text, "--method")
    said = {said: {}} if isinstance(said, str) else said
    if not isinstance(said, Mapping) or len(said) != 1 or not isinstance(next(iter(said.values())) or {}, Mapping):
        raise BadInput(f"--method {text!r}: write NAME or {{NAME: {{setting: value}}}}")
    name, settings = next(iter(said.items()))
    return str(name), {"name": str(name)} | dict(settings or {})


def make(job: Job, plan: run.Plan, runs: Path) -> Iterator[run.Progress]:
    """Make and lay out what is missing in `job.out`, as the run's progress. Afterwards the manifest says `complete`, unless
    the method failed: the run folder holds why. Raises BadInput for an OUT that holds anything else, and DiskFull."""
    kept = claim(job, plan.command)
    if not missing(job, kept):
        return
    config = dataclasses.asdict(job.config)
    asked = {"name": job.config.name, "config": config, "status": "done"}
    folder = next((f for f in store.folders(runs) if asked.items() <= f.read().items()), None)
    if folder is None:
        run.room(plan, runs)
        folder = store.RunFolder.open(runs, job.config.name, config)
        yield from run.execute(plan, folder)
    if folder.read()["status"] == "done":
        lay_out(job, folder, kept)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise run.DiskFull(f"the disk of {out} is full; make room and run the same command to go on") from error
        raise BadInput(f"{error.filename or out}: can't be written ({error.strerror}); choose another --out") from error


def claim(job: Job, command: str) -> dict:
    """The manifest of `job.out`, begun if there is none. Raises BadInput for a folder that holds anything else."""
    path, asked = job.out / MANIFEST, job.identity()
    with _writing(job.out):
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise BadInput(f"{path} is damaged; choose another --out") from None
            if not isinstance(kept, dict) or not asked.items() <= kept.items():
                raise BadInput(f"{job.out} holds what another command or prompt file made; choose another --out")
            return kept
        job.out.mkdir(parents=True, exist_ok=True)
        if any(job.out.iterdir()):
            raise BadInput(f"{job.out} is not empty, and no suite was made there; choose another --out")
        kept = {"complete": False, "command": command, **asked, "files": []}
        write_atomic(path, store.dump(kept))
    return kept


def missing(job: Job, kept: Mapping) -> list[str]:
    """What is still to be written. Raises BadInput for a file that isn't what was made, or is one too many."""
    wanted, absent = {f["file"]: f["sha256"] for f in kept["files"]}, []
    for place, text in job.suite.beside(job.entries, job.config.seeds).items():
        wanted[place] = hashlib.sha256(text.encode()).hexdigest()
    places = {*job.targets(), *wanted}
    for place in places:
        same = (job.out / place).is_file() and media.fingerprint(job.out / place) == wanted.get(place)
        if not same and kept["complete"] and (job.out / place).exists():
            raise BadInput(f"{job.out / place} was changed since it was made; remove it and run the same command")
        absent += [] if same else [place]
    if not absent:
        _no_strays(job.out, places)
    return absent if absent or kept["complete"] else [MANIFEST]


def lay_out(job: Job, folder: store.RunFolder, kept: Mapping) -> None:
    """Put the pictures of a finished run where the scorer looks, count them, and complete the manifest.

    PNG files are hard links to the run's own where the disk can do that, else copies; JPEG is written with PIL's own
    settings, as the benchmark's example does. What is there already stays as it is.
    """
    finals = [e for e in folder.events() if e.get("final")]
    samples = {(s["prompt"], s["k"]): s for e in finals for s in e["samples"]}
    known, files = {f["file"]: f for f in kept["files"]}, []
    with _writing(job.out):
        for place, (entry, k) in job.targets().items():
            if place not in known or not (job.out / place).is_file():
                sample = samples[entry.prompt, k]
                digest = _put(folder.path / sample["file"], sample["sha256"], job.out / place)
                known[place] = {"file": place, "prompt": entry.prompt, "k": k, "seed": sample["seed"], "sha256": digest}
            files.append(known[place])
        beside = job.suite.beside(job.entries, job.config.seeds)
        for place, text in beside.items():
            _once(job.out / place, text.encode())
        _no_strays(job.out, {*job.targets(), *beside})
        run, score = folder.read(), job.suite.commands(job.entries[0].part, job.out, job.source, job.config)
        made = {key: run[key] for key in ("versions", "git", "device", "created", "methods", "rewards")}
        told = dict(kept) | {"complete": True, "run": folder.path.name, "made_with": made, "scorer": job.suite.scorer}
        told |= {"score": score, "renamed": job.suite.renamed(job.entries), "count": len(files), "files": files}
        write_atomic(job.out / MANIFEST, store.dump(told))


def _put(source: Path, digest: str, target: Path) -> str:
    """`source` as `target`, in the format that the target's name says; returns the digest of what is there."""
    if not source.is_file() or media.fingerprint(source) != digest:
        raise BadInput(f"{source} is gone or damaged; remove its run folder and run the same command")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".jpg":
        picture = io.BytesIO()
        Image.open(source).convert("RGB").save(picture, "JPEG")
        _once(target, picture.getvalue())
        return media.fingerprint(target)
    if target.exists():
        _once(target, source.read_bytes())
        return digest
    try:
        os.link(source, target)  # as good as a copy: nothing rewrites the pictures of a run
    except OSError:  # another disk, or one without links
        write_atomic(target, source.read_bytes())
    return digest


def _once(path: Path, content: bytes) -> None:
    """Write a file that isn't there; one that is must be the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    elif path.read_bytes() != content:
        raise BadInput(f"{path} isn't what was made; remove it and run the same command")


def _no_strays(out: Path, expected: set[str]) -> None:
    """Raises BadInput for a file among the pictures that the scorer would judge too."""
    for folder in {(out / place).parent for place in expected} - {out}:
        for path in folder.iterdir():
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
                path.unlink()  # left by a write that was killed
            elif path.is_file() and path.relative_to(out).as_posix() not in expected:
                raise BadInput(f"{path} is not of this suite, and the scorer would read it; move it away")
