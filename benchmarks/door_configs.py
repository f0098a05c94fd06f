"""Configs as people write and break them: every run and pipeline config that comes with the workbench, mutated.

Most are planned as `--dry-run` does, in this process. Some 70 that get through on the starter pipelines are also run,
each in a process of its own: a contestant that fails there should have been refused by the plan.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from door_outcomes import Outcome, try_in_process, try_input

import pipelines
from workbench.core.paths import CONFIGS
from workbench.core.schema import build_dataclass
from workbench.engine import run as runner
from workbench.engine.plan import plan_run
from workbench.runs.config import RunConfig, read_run_config
from workbench.runs.store import RunFolder

RUN_SHARE = 15  # one in so many mutations is also run
LONG = "x" * 300_000
HUGE = 10**60

# What stands in a config where something else should: of every type, empty, huge, quoted, and from elsewhere.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    1e-12,
    0.5,
    -2.5,
    1e30,
    2**31,
    2**63,
    HUGE,
    "",
    " ",
    "64",
    "1e3",
    "-1",
    "nan",
    "inf",
    "none",
    "true",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "../../etc/passwd",
    "/dev/zero",
    "/",
    ".",
    "~",
    "reno",
    "nobody:Nothing",
    "starter:",
    "starter:../..",
    "{name: reno",
    "äöü 丸 \U0001f534",
    LONG,
    [],
    [[]],
    [None],
    ["a red circle"],
    ["a red circle", 5],
    [1, 2],
    [-1, 0.5],
    {},
    {"a": {}},
    {"name": None},
    {"name": "reno"},
    {"name": "reno", "lr": "fast"},
    {1: 2},
    {None: 1},
    {"": ""},
    {"weight": 0},
    {"clip": -1},
    {"reward": {"clip": 1.0}},
)
# Whole texts, or a value in a text, that YAML's own reader may stumble over.
TEXTS = (
    "",
    "null",
    "[]",
    "5",
    "\t",
    "---\n---\n",
    "{" * 3000,
    "- " * 3000 + "1",
    "pipeline: starter-image\npipeline: sd-turbo\n",
    "seed: " + "1" * 5000,
    "seed: .nan",
    "seed: 2001-99-99",
    "? [a, b]\n: 1",
    "&a [*a]",
    "!!python/object/apply:os.system ['true']",
    "<<: 1",
    "a: *b",
    "\0",
    "%YAML 9.9\n---\na: 1",
    "a: &a "
    + "["
    + "x," * 9
    + "]\n"
    + "\n".join(f"{k}: &{k} [{f'*{j},' * 9}]" for j, k in zip("abcdefg", "bcdefgh", strict=True)),
)


def run(count: int, seed: int) -> list[Outcome]:
    outcomes = [try_mutation(kind, name, text) for kind, name, text in iterate_mutations(count, seed)]
    return outcomes + run_configs(max(count // RUN_SHARE, 1), seed)


def iterate_mutations(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(kind, name, the bytes of a config file) of `count` mutations."""
    rng = random.Random(seed)
    sources = [*sorted((CONFIGS / "runs").rglob("*.yaml")), *sorted((CONFIGS / "pipelines").glob("*.yaml"))]
    for n in range(count):
        source = sources[n % len(sources)]
        kind = "pipeline" if source.parent.name == "pipelines" else "run"
        way = rng.choice(("value", "value", "value", "key", "missing", "text", "bytes"))
        text = source.read_text()
        values = yaml.safe_load(text)
        if way == "text":
            data = mutate_text(rng, text).encode("utf-8", "surrogatepass")
        elif way == "bytes":
            data = mutate_bytes(rng, text.encode())
        else:
            data = dump_yaml(mutate_values(rng, values, way))
        yield f"{kind} config, {way}", f"{n}: {source.stem}", data


def dump_yaml(values: Any) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10**9).encode("utf-8", "surrogatepass")


def mutate_values(rng: random.Random, values: dict, way: str) -> dict:
    """The settings with one of them replaced, renamed, or taken away."""
    values = copy.deepcopy(values)
    block, key = rng.choice(list(list_places(values)))
    if way == "value":
        block[key] = copy.deepcopy(rng.choice(VALUES))
    elif way == "missing" or isinstance(block, list):
        del block[key]
    else:
        renamed = rng.choice((str(key) + "s", str(key)[:-1], str(key).upper(), "", 5, None, LONG, f"{key}\n", "a.b"))
        block[renamed] = block.pop(key)
    return values


def list_places(block: Any) -> Iterator[tuple[Any, Any]]:
    """(block, key) of every setting in a config, at any depth."""
    for key, value in list(block.items() if isinstance(block, dict) else enumerate(block)):
        yield block, key
        if isinstance(value, (dict, list)):
            yield from list_places(value)


def mutate_text(rng: random.Random, text: str) -> str:
    if rng.random() < 0.3:
        return rng.choice(TEXTS)
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    key = lines[at].partition(":")[0]
    lines[at] = rng.choice(
        (
            lines[at] + "\n" + lines[at],
            "  " + lines[at],
            "\t" + lines[at],
            lines[at].replace(": ", ":", 1),
            f"{key}: {rng.choice(TEXTS[7:])}",
            f'{key}: "{LONG}"',
            f"{key}: {'9' * 5000}",
            f'{key}: "\\ud800"',
            f"{key}: [{'[' * 300}",
            f"{key}: !!int abc",
            f"{key}: !!float ''",
            f"{key}: 1e999",
            f"{key}: -.inf",
            lines[at][: rng.randrange(len(lines[at]) + 1)],
        )
    )
    return "\n".join(lines)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    way = rng.randrange(5)
    if way == 0:
        return data.decode().encode("utf-16")
    if way == 1:
        return b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    at = rng.randrange(len(data))
    if way == 2:
        return data[:at] + bytes(rng.randrange(256) for _ in range(4)) + data[at:]
    if way == 3:
        return data[:at]
    return data[:at] + b"\xfc" + data[at + 1 :]


def try_mutation(kind: str, name: str, data: bytes) -> Outcome:
    """What reading and planning a config says, with the seconds that it took."""
    started = time.process_time()  # not of the clock: other programs may be at work
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        path = Path(folder) / "config.yaml"
        path.write_bytes(data)
        answer, note = try_input(lambda: plan_config(path, is_pipeline=kind.startswith("pipeline")))
    seconds = time.process_time() - started
    if seconds > 10:
        answer, note = "time-out", f"{seconds:.0f} s"
    return Outcome(kind, name, answer, note, seconds)


def plan_config(path: Path, is_pipeline: bool) -> None:
    """What `workbench run FILE --dry-run` does; a pipeline config is planned by a run that names it."""
    if not is_pipeline:
        plan_run(read_run_config(path))
        return
    pipelines.read_config(str(path))
    reward, values = "brightness", {"pipeline": str(path), "prompts": ["a red circle"], "method": "best_of_n"}
    modality = pipelines.read_config(str(path)).modality
    reward = {"image": "brightness", "video": "motion", "audio": "loudness"}[modality]
    plan_run(build_dataclass(RunConfig, {**values, "reward": reward, "name": "door"}, "config"))


SMALL = """
pipeline: {name: starter-image, call: {width: 64, height: 64}}
contestants:
  base: sample
  two: {name: best_of_n, n: 2}
  reno: {iterations: 2}
reward: {starter_clip: 1.0, brightness: {weight: 0.1, within: [0.2, 0.8]}}
watch: [contrast]
prompts: [a red circle, a blue square]
samples_per_prompt: 1
batch: 2
budget: {nfe: 8}
"""


def run_configs(count: int, seed: int) -> list[Outcome]:
    """Mutations of one small run, made until the end."""
    rng, outcomes = random.Random(seed + 1), []
    for n in range(count):
        values = mutate_values(rng, yaml.safe_load(SMALL), rng.choice(("value", "value", "value", "key", "missing")))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_bytes(dump_yaml(values))
            outcomes.append(try_in_process("run to its end", str(n), lambda path=path: run_to_end(path), limit_s=180))
    return outcomes


def run_to_end(path: Path) -> str:
    """Plan and execute the run; says which contestant failed that the plan had let through."""
    with contextlib.redirect_stderr(io.StringIO()):
        plan = plan_run(read_run_config(path))
        if len(plan.rows) > 8 or any(plan.denoiser_calls(name) > 200 for name in plan.methods):
            return ""  # valid, and too long for this
        folder = RunFolder.open(path.parent / "runs", plan.config.name, plan.config.__dict__, True)
        for _ in runner.execute_run(plan, folder):
            pass
        summary = folder.read("summary.json")
    return "; ".join(f"{c['name']} failed: {c['failed']}" for c in summary["contestants"] if "failed" in c)
