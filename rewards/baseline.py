"""What the un-aligned model scores on each prompt: measured once, kept in a file, the yardstick of the transforms.

Named in a config by a run's folder, whose contestant `base` is taken, or by a JSON file that `BaselineScores.write`
made:
    {"rewards": {"clip": {"version": "ViT-L-14", "scores": {"a red circle": [0.21, 0.24]}}}}
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json, read_json, read_text
from workbench.core.paths import write_atomic
from workbench.core.schema import suggest_nearest
from workbench.core.types import Media, prompt_key

BASE = "base"  # the contestant of a run that is the un-aligned model


@dataclass(frozen=True, eq=False)
class BaselineScores:
    """Base scores, reward -> prompt -> one score a sample, none of them NaN; and the version of each reward. Prompts
    with inputs are told apart by these too (`Prompt.key`)."""

    scores: Mapping[str, Mapping[str, Sequence[float]]]
    versions: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(source: str | Path) -> BaselineScores:
        """From a file or a run's folder; read anew when it changed. Raises BadInput, naming it."""
        path = Path(source).expanduser()
        file = path / "events.jsonl" if path.is_dir() else path
        try:
            stamp = file.stat()
        except OSError:
            raise BadInput(f"no base scores at {path}; give a run's folder or a file of base scores") from None
        return _read_cached(path, file, (stamp.st_mtime_ns, stamp.st_size))

    @staticmethod
    @torch.no_grad()
    def measure(reward: Any, samples: Iterable[tuple[Media, Sequence[str]]]) -> BaselineScores:
        """Score what the un-aligned model made, batch by batch, with every component of `reward`, a WeightedReward."""
        scores: dict[str, dict[str, list[float]]] = {name: {} for name in reward.rewards}
        for media, prompts in samples:
            for name, values in reward.breakdown(media=media, prompts=prompts).items():
                _add_scores(scores[name], prompts, values.tolist())
        return BaselineScores(scores, {name: part.spec.version for name, part in reward.rewards.items()})

    def write(self, path: str | Path) -> None:
        """The whole file or none of it."""
        rewards = {
            n: {"version": self.versions.get(n, ""), "scores": {p: list(v) for p, v in s.items()}}
            for n, s in self.scores.items()
        }
        write_atomic(Path(path), json.dumps({"rewards": rewards}, ensure_ascii=False, allow_nan=False).encode())

    def check(self, name: str, version: str, where: str) -> None:
        """Raises BadInput unless it holds scores of reward `name`, and of this version where it knows one."""
        if not any(self.scores.get(name, {}).values()):
            raise BadInput(f"{where}: no base scores of reward {name!r}; {suggest_nearest(name, self.scores)}")
        if self.versions.get(name, version) != version:
            raise BadInput(
                f"{where}: the base scores of {name} are of version {self.versions[name]!r}, this one is {version!r}; "
                "measure the base again"
            )

    def for_prompt(self, name: str, prompt: str, pooled: bool = False) -> Tensor:
        """float64 [M]: the scores of this prompt. One without any takes those of all prompts if `pooled`, and raises
        BadInput otherwise."""
        if values := self.scores[name].get(prompt_key(prompt)):
            return torch.tensor(values, dtype=torch.float64)
        if pooled:
            return self.pool[name]
        raise BadInput(
            f"no base scores of {name} for the prompt {str(prompt)!r}; measure it, or set `pooled: true` "
            "to use all prompts' scores"
        )

    @functools.cached_property
    def pool(self) -> dict[str, Tensor]:
        """reward -> float64 [N]: its scores over all prompts."""
        return {
            n: torch.tensor([x for v in s.values() for x in v], dtype=torch.float64) for n, s in self.scores.items()
        }

    @functools.cached_property
    def spread(self) -> dict[str, float]:
        """reward -> standard deviation between samples of a prompt, pooled over prompts; 0 where no prompt has two."""
        spread = {}
        for name, prompts in self.scores.items():
            rows = [torch.tensor(v, dtype=torch.float64) for v in prompts.values() if len(v) > 1]
            square = sum(float((r - r.mean()).square().sum()) for r in rows)
            spread[name] = math.sqrt(square / max(sum(len(r) - 1 for r in rows), 1))
        return spread

    @functools.cached_property
    def version(self) -> str:
        """A hash of the scores."""
        plain = {n: {p: list(v) for p, v in s.items()} for n, s in self.scores.items()}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


@functools.lru_cache(8)
def _read_cached(path: Path, file: Path, stamp: tuple[int, int]) -> BaselineScores:
    try:
        text = read_text(file)
        return _from_run(path, text) if path.is_dir() else _from_file(parse_json(text, str(file)))
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{file} holds no base scores; give a run's folder or a file of base scores") from None


def _from_file(value: dict) -> BaselineScores:
    rewards = value["rewards"]
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in rewards}
    for name, part in rewards.items():
        for prompt, values in part["scores"].items():
            _add_scores(scores[name], [prompt] * len(values), values)
    return BaselineScores(scores, {name: part["version"] for name, part in rewards.items() if part.get("version")})


def _from_run(path: Path, log: str) -> BaselineScores:
    events = [parse_json(line, f"{path}/events.jsonl") for line in log.split("\n")[:-1] if line]
    if not (finals := [e for e in events if e.get("final") and e["contestant"] == BASE]):
        raise BadInput(f"{path}: this run has no finished contestant {BASE!r}, whose scores would be the base scores")
    scores: dict[str, dict[str, list[float]]] = {}
    for sample in (s for e in finals for s in e["samples"]):
        for name, score in sample["scores"].items():
            _add_scores(scores.setdefault(name, {}), [_sample_key(sample)], [score])
    return BaselineScores(scores, read_json(path / "run.json").get("rewards", {}))


def _sample_key(sample: Mapping[str, Any]) -> str:
    """`Prompt.key` of a sample in a run's log."""
    return "\0".join([sample["prompt"], *(f"{n}={d}" for n, d in sorted(sample.get("inputs", {}).items()))])


def _add_scores(scores: dict[str, list[float]], prompts: Sequence[str], values: Iterable[float | None]) -> None:
    for prompt, value in zip(prompts, values, strict=True):
        if value is not None and math.isfinite(value):
            scores.setdefault(prompt_key(prompt), []).append(float(value))
