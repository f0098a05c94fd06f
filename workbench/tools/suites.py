"""Pictures for a public benchmark, made by a run and laid out in the folders that the benchmark's own scorer reads.

workbench/tools/suite_layouts.py describes the files of each benchmark. A run makes the pictures, so that any method can
be used and an interrupted suite resumes; OUT/manifest.json records how they were made, and how they are scored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import pipelines
from workbench.core.errors import BadInput, is_disk_full
from workbench.core.io import media, parsing
from workbench.core.paths import write_atomic
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.engine import run
from workbench.engine.plan import check_disk
from workbench.methods import METHODS
from workbench.methods.common.method import short_name
from workbench.runs import config as configs
from workbench.runs import store
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress
from workbench.tools.suite_layouts import SUITES, Entry, Suite

MANIFEST = "manifest.json"
FLAGS = {
    "prompts": "--prompts",
    "contestants": "--method",
    "method": "--method",
    "limit": "--limit",
    "reward": "--reward",
}


@dataclass(frozen=True)
class SuiteJob:
    """A suite that passed every check that needs no weights."""

    name: str
    suite: Suite
    entries: Sequence[Entry]
    prompt_file: Path
    out: Path
    config: configs.RunConfig

    def picture_paths(self) -> dict[str, tuple[Entry, int]]:
        """Path under `out` of every picture -> its entry and k."""
        seeds = self.config.samples_per_prompt
        each = [(e, k, order * seeds + k) for order, e in enumerate(self.entries) for k in range(seeds)]
        return {self.suite.picture_path(e, k, n, self.config.name): (e, k) for e, k, n in each}

    def identity(self) -> dict[str, Any]:
        """The settings that must be equal for two calls to share an OUT."""
        files = sorted(self.prompt_file.glob("*.json")) if self.prompt_file.is_dir() else [self.prompt_file]
        config = {k: v for k, v in dataclasses.asdict(self.config).items() if k != "prompts"}
        prompts = {f.name: media.file_digest(f) for f in files}
        return {"suite": self.name, "prompts": prompts, "entries": len(self.entries), "config": config}


def prepare_job(
    name: str,
    prompts: Path,
    out: Path,
    *,
    pipeline: str,
    method: str = "sample",
    reward: str | None = None,
    seeds: int | None = None,
    limit: int = 0,
    overrides: Sequence[str] = (),
) -> SuiteJob:
    """Read and check all arguments. Raises BadInput, in one sentence, naming file and line.

    `method` and `reward` are names, or YAML: `{reno: {iterations: 20}}`. `seeds` None: as many as the benchmark asks
    for. `overrides` are `key=value` settings of the run (batch, seed, name, device, watch, ...).
    """
    if name not in SUITES:
        raise BadInput(f"unknown suite {name!r}; {suggest_nearest(name, SUITES)}")
    suite = SUITES[name]
    if not prompts.exists():
        raise BadInput(f"--prompts: no such file {prompts}; give your copy of the benchmark's prompt file")
    if limit < 0:
        raise BadInput(f"--limit: {limit} prompts can't be made; 0 is for all")
    if seeds is not None and seeds < 1:
        raise BadInput(f"--seeds: must be at least 1, got {seeds}")
    if not (entries := suite.read_entries(prompts)[: limit or None]):
        raise BadInput(f"{prompts}: no prompt in it")
    contestant, block = parse_method(method)
    values = {"pipeline": pipeline, "contestants": {contestant: block}}
    values |= {"samples_per_prompt": suite.images_per_prompt if seeds is None else seeds}
    values |= {"reward": "brightness" if reward is None else parse_yaml(reward, "--reward")}
    values |= {"prompts": [*dict.fromkeys(e.prompt for e in entries)]}
    values |= {"name": re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(pipeline).name}-{contestant}").lstrip("._-")[:64]}
    for text in overrides:
        if (key := text.partition("=")[0].split(".")[0]) in FLAGS:
            raise BadInput(f"override {text!r}: here {FLAGS[key]} says that")
        configs.apply_override(values, text)
    config = configs.check_config(build_dataclass(configs.RunConfig, values, "suite"))
    if "reward" in configs.build_methods(config, METHODS)[contestant].needs and reward is None:
        raise BadInput(f"method {contestant} optimises a reward; say which with --reward NAME")
    if suite.is_single_image and config.samples_per_prompt > 1:
        raise BadInput(f"{name}: its scorer reads one picture a prompt; use --seeds 1")
    if (modality := pipelines.read_config(repo := configs.pipeline_labels(config)[contestant]).modality) != "image":
        raise BadInput(f"{name} judges pictures, and {repo} makes {modality}")
    return SuiteJob(name, suite, entries, prompts, out, config)


def parse_yaml(text: str, where: str) -> Any:
    return parsing.parse_yaml(text, where)


def parse_method(text: str) -> tuple[str, dict]:
    value = parse_yaml(text, "--method")
    value = {value: {}} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or len(value) != 1 or not isinstance(next(iter(value.values())) or {}, Mapping):
        raise BadInput(f"--method {text!r}: write NAME or {{NAME: {{setting: value}}}}")
    name, settings = next(iter(value.items()))
    return short_name(str(name)), {"name": str(name)} | dict(settings or {})


def make_pictures(job: SuiteJob, plan: Plan, runs: Path) -> Iterator[Progress]:
    """Make and lay out what is missing in `job.out`, and yield the run's progress. Afterwards the manifest says
    `complete`, unless the method failed: the run folder says why. Raises BadInput for an OUT that holds anything else,
    and DiskFull."""
    manifest = open_manifest(job, plan.command)
    if not missing_files(job, manifest):
        return
    config = dataclasses.asdict(job.config)
    run_record = {"name": job.config.name, "config": config, "status": "done"}
    folder = next((f for f in store.list_run_folders(runs) if run_record.items() <= f.read().items()), None)
    if folder is None:
        check_disk(plan, runs)
        folder = store.RunFolder.open(runs, job.config.name, config)
        yield from run.execute_run(plan, folder)
    if folder.read()["status"] == "done":
        lay_out(job, folder, manifest)


@contextmanager
def explain_write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise run.DiskFull(f"the disk of {out} is full; make room and run the same command to go on") from error
        raise BadInput(f"{error.filename or out}: can't be written ({error.strerror}); choose another --out") from error


def open_manifest(job: SuiteJob, command: str) -> dict:
    """The manifest of `job.out`, begun if there is none. Raises BadInput for a folder that holds anything else."""
    path, identity = job.out / MANIFEST, job.identity()
    with explain_write_errors(job.out):
        if path.is_file():
            try:
                manifest = parsing.read_json(path)
            except BadInput as error:
                raise BadInput(f"{error}; choose another --out") from None
            if not isinstance(manifest, dict) or not identity.items() <= manifest.items():
                raise BadInput(f"{job.out} holds what another command or prompt file made; choose another --out")
            return manifest
        job.out.mkdir(parents=True, exist_ok=True)
        if any(job.out.iterdir()):
            raise BadInput(f"{job.out} is not empty, and no suite was made there; choose another --out")
        manifest = {"complete": False, "command": command, **identity, "files": []}
        write_atomic(path, store.dump_json(manifest))
    return manifest


def missing_files(job: SuiteJob, manifest: Mapping) -> list[str]:
    """Files still to be written. Raises BadInput for a file that was changed, or does not belong to the suite."""
    digests, paths = {f["file"]: f["sha256"] for f in manifest["files"]}, []
    for file, text in job.suite.extra_files(job.entries, job.config.samples_per_prompt).items():
        digests[file] = hashlib.sha256(text.encode()).hexdigest()
    files = {*job.picture_paths(), *digests}
    for file in files:
        same = (job.out / file).is_file() and media.file_digest(job.out / file) == digests.get(file)
        if not same and manifest["complete"] and (job.out / file).exists():
            raise BadInput(f"{job.out / file} was changed since it was made; remove it and run the same command")
        paths += [] if same else [file]
    if not paths:
        check_no_strays(job.out, files)
    return paths if paths or manifest["complete"] else [MANIFEST]


def lay_out(job: SuiteJob, folder: store.RunFolder, manifest: Mapping) -> None:
    """Put the pictures of a finished run where the scorer looks, count them, and complete the manifest.

    PNG files are hard links to the run's own where the disk can do that, else copies; JPEG is written with PIL's own
    settings, as the benchmark's example does. Files that are there already are left as they are.
    """
    finals = [e for e in folder.events() if e.get("final")]
    samples = {(s["prompt"], s["k"]): s for e in finals for s in e["samples"]}
    entries, files = {f["file"]: f for f in manifest["files"]}, []
    with explain_write_errors(job.out):
        for file, (entry, k) in job.picture_paths().items():
            if file not in entries or not (job.out / file).is_file():
                sample = samples[entry.prompt, k]
                if not sample["file"]:
                    raise BadInput(f"no picture of {entry.prompt!r} to lay out: {sample['reason']}")
                digest = place_picture(folder.path / sample["file"], sample["sha256"], job.out / file)
                entries[file] = {"file": file, "prompt": entry.prompt, "k": k, "seed": sample["seed"], "sha256": digest}
            files.append(entries[file])
        extra_files = job.suite.extra_files(job.entries, job.config.samples_per_prompt)
        for file, text in extra_files.items():
            write_once(job.out / file, text.encode())
        check_no_strays(job.out, {*job.picture_paths(), *extra_files})
        record = folder.read()
        provenance = {key: record[key] for key in ("versions", "git", "device", "created", "methods", "rewards")}
        commands = job.suite.scorer_commands(job.entries[0].part, job.out, job.prompt_file, job.config)
        complete = dict(manifest) | {
            "complete": True,
            "run": folder.path.name,
            "made_with": provenance,
            "scorer": job.suite.scorer,
        }
        complete |= {
            "score": commands,
            "renamed": job.suite.renamed_prompts(job.entries),
            "count": len(files),
            "files": files,
        }
        write_atomic(job.out / MANIFEST, store.dump_json(complete))


def place_picture(source: Path, digest: str, target: Path) -> str:
    """Put `source` at `target`, in the format of the target's suffix; returns the digest of the target."""
    if not source.is_file() or media.file_digest(source) != digest:
        raise BadInput(f"{source} is gone or damaged; remove its run folder and run the same command")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".jpg":
        picture = io.BytesIO()
        Image.open(source).convert("RGB").save(picture, "JPEG")
        write_once(target, picture.getvalue())
        return media.file_digest(target)
    if target.exists():
        write_once(target, source.read_bytes())
        return digest
    try:
        os.link(source, target)  # as good as a copy: nothing rewrites the pictures of a run
    except OSError:  # another disk, or one without links
        write_atomic(target, source.read_bytes())
    return digest


def write_once(path: Path, content: bytes) -> None:
    """Write a file, or check that the one already there has this content."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    elif path.read_bytes() != content:
        raise BadInput(f"{path} isn't what was made; remove it and run the same command")


def check_no_strays(out: Path, expected: set[str]) -> None:
    """Raises BadInput for a foreign file among the pictures, which the scorer would read too."""
    for folder in {(out / file).parent for file in expected} - {out}:
        for path in folder.iterdir():
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
                path.unlink()  # left by a write that was killed
            elif path.is_file() and path.relative_to(out).as_posix() not in expected:
                raise BadInput(f"{path} is not of this suite, and the scorer would read it; move it away")
