"""The training that votes ask for: its config, written out beside the votes that it names, and planned like any run.

Preferences are learnt from pairs of media, encoded into the pipeline's latents: dpo, or kto, which takes each medium by
itself. `reward` climbs the taste that was learnt from the votes, by its gradient (draft), on samples of its own; it is
the way where a pipeline's media can't be encoded, as sounds from a vocoder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import pipelines
from workbench.core.errors import BadInput
from workbench.core.inputs import FileInput, prompt_inputs
from workbench.core.paths import CONFIGS, write_atomic
from workbench.core.schema import build_dataclass
from workbench.core.text import quote_value
from workbench.core.types import derive_seed, prompt_key
from workbench.engine import input_checks
from workbench.feedback import vote_export
from workbench.feedback.learn import digest_file
from workbench.feedback.vote_export import relative_path
from workbench.feedback.votes import Vote
from workbench.runs import config as configs

Method = Literal["dpo", "kto", "reward"]
BASE, TUNED = "base", "tuned"
PAIRS_PER_ROUND, PASSES, FEWEST_ROUNDS, MOST_ROUNDS = 16, 5, 24, 400  # of a training on pairs
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": 100, "levels_per_sample": 2, "lr": 1e-3},
    "kto": {"name": "kto", "group": 2, "beta": 1000, "levels_per_sample": 2, "lr": 1e-3},
    "reward": {"name": "draft", "grad_steps": 1, "lr": 6e-4},
}
TRAIN: dict[str, Any] = {  # the last weights are kept: no judge chooses them, so all of `watch` are held out
    "prompts_per_round": 16, "eval_every": 0, "eval_prompts": 8, "best": "last", "ema": 0.9, "warmup": 4, "decay": 0.5,
    "betas": [0.95, 0.99], "weight_decay": 0, "lora": {"rank": 32, "alpha": 64, "targets": "all"},
}  # fmt: skip
REWARD_ROUNDS = 30
PUBLISHED = {"dpo": 3e-5, "kto": 3e-5, "reward": 1e-4}  # learning rates for larger models, by LoRA


@dataclass(frozen=True)
class VoteTraining:
    """What is to be trained on which votes, and on which prompts it is judged."""

    name: str  # of the run
    method: Method
    pipeline: str
    taste: Mapping[str, Any]  # the block of the taste that was learnt from the votes
    test: str | Sequence[str]  # held-out prompts: a list, a file or a name; prompts that were voted on are left out
    watch: Sequence[str] = ()
    samples: int = 80  # of each contestant, on the held-out prompts
    seed: int = 0
    overrides: Sequence[str] = field(default=())  # key=value, as `workbench run` takes them


def write_training(vote_list: Sequence[Vote], runs: Path, folder: Path, training: VoteTraining) -> configs.RunConfig:
    """Write pairs.jsonl, prompts.jsonl, test.jsonl and config.yaml into `folder`, and return the config. Raises
    BadInput where no vote prefers anything, and where no held-out prompt is left."""
    pairs = vote_export.majority_votes(vote_list)
    if not pairs:
        raise BadInput("these votes are ties, or contradict each other on every pair; vote more")
    pipeline = pipelines.read_config(training.pipeline)
    voted = list({prompt_key(v.prompt): v.prompt for v in vote_list}.values())
    held_out = hold_out(read_test(training.test, pipeline), voted, training)
    folder.mkdir(parents=True, exist_ok=True)
    vote_export.write_jsonl(pairs, runs, folder / "pairs.jsonl")
    write_prompts(voted, folder / "prompts.jsonl")
    write_prompts(held_out, folder / "test.jsonl")
    values = make_config(training, folder, pipeline, len(pairs), len(held_out))
    for text in training.overrides:
        configs.apply_override(values, text)
    note = (
        f"# {training.method} on {len(pairs)} pairs from {len(vote_list)} votes (SHA-256 of pairs.jsonl: "
        f"{digest_file(folder / 'pairs.jsonl')})\n"
    )
    write_atomic(folder / "config.yaml", note + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return configs.check_config(build_dataclass(configs.RunConfig, values, "config.yaml"))


def make_config(
    training: VoteTraining, folder: Path, pipeline: pipelines.PipelineConfig, pairs: int, prompts: int
) -> dict[str, Any]:
    """The config of the training as plain values."""
    is_starter, on_pairs = pipeline.repo.startswith("starter:"), training.method != "reward"
    method = dict(METHODS[training.method])
    train = dict(TRAIN)
    if not is_starter:
        method["lr"], train["lora"] = PUBLISHED[training.method], {"rank": 32, "alpha": 64}
    if on_pairs:
        train["prompts_per_round"] = min(PAIRS_PER_ROUND, pairs)
        train["rounds"] = min(max(math.ceil(PASSES * pairs / PAIRS_PER_ROUND), FEWEST_ROUNDS), MOST_ROUNDS)
    else:
        train["rounds"] = REWARD_ROUNDS
    values: dict[str, Any] = {
        "name": training.name,
        "pipeline": training.pipeline,
        "contestants": {BASE: "sample", TUNED: method},
        **({"pairs": {"files": str(folder / "pairs.jsonl"), "ties": "drop"}} if on_pairs else {}),
        "reward": dict(training.taste),
        "watch": list(training.watch) or None,
        "prompts": str(folder / "prompts.jsonl"),
        "test": str(folder / "test.jsonl"),
        "samples_per_prompt": math.ceil(training.samples / prompts),
        "batch": 16,
        "seed": training.seed,
        "train": train,
    }
    return {key: value for key, value in values.items() if value is not None}


def read_test(test: str | Sequence[str], pipeline: pipelines.PipelineConfig) -> list[str]:
    """The prompts of a list, with the inputs that the pipeline takes. Raises BadInput."""
    source: Any = test if isinstance(test, str) else list(test)
    return list(input_checks.read_prompt_lists({"test": source}, {pipeline.name: pipeline}, {})["test"].prompts)


def hold_out(prompts: Sequence[str], voted: Sequence[str], training: VoteTraining) -> list[str]:
    """At most `asked.samples` of the prompts, by a seeded draw, and none that was voted on. Raises BadInput where none
    is left."""
    voted_keys = set(map(prompt_key, voted))
    fresh = [prompt for prompt in prompts if prompt_key(prompt) not in voted_keys]
    if not fresh:
        raise BadInput("test: all of these prompts were voted on, so none is held out; name others with --test")
    return sorted(fresh, key=lambda prompt: derive_seed(training.seed, "held out", prompt))[: training.samples]


def suggest_test(pipeline: str) -> str:
    """The name of the held-out prompts that come with a pipeline of the starter pack. Raises BadInput where there are
    none."""
    config = pipelines.read_config(pipeline)
    pack = config.repo.removeprefix("starter:").partition("/")[0]
    name = f"starter-{pack}-test"
    if not config.repo.startswith("starter:") or not any((CONFIGS / "prompts").glob(f"{name}.*")):
        raise BadInput(f"name held-out prompts with --test: none come with {quote_value(pipeline)}")
    return name


def write_prompts(prompts: Sequence[str], file: Path) -> None:
    """Prompts as JSON lines, with paths of what they came with, relative to the file."""
    rows = []
    for prompt in prompts:
        inputs = {n: v.path for n, v in prompt_inputs(prompt).items() if isinstance(v, FileInput)}
        rows.append({"prompt": str(prompt)} | {n: relative_path(Path(), path, file) for n, path in inputs.items()})
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
