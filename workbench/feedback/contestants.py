"""Who a contestant is across runs: its name, its settings, what it optimised, its pipeline. Votes are counted together
only where all of that is the same: seven iterations of a method and forty-nine are two contestants."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from workbench.methods import METHODS
from workbench.runs import config as run_config
from workbench.runs.imported_media import PIPELINE as IMPORTED

NO_SETTINGS = ("name", "pipeline", "media")  # of a block: they are told otherwise
TRAINED_BY = ("train", "stages", "pairs", "test")  # parts of a config that decide what a training becomes
PLAIN = "sample"  # the method that optimises nothing


def name_contestant(contestant: str, settings: str, pipeline: str) -> str:
    """The identity of a contestant across runs, as people read it."""
    return " · ".join(part for part in (contestant, settings, "" if pipeline == IMPORTED else pipeline) if part)


def pipeline_of(config: Mapping, contestant: str) -> str:
    """The label of a contestant's pipeline: the run's own, unless its block names another."""
    block = (config.get("contestants") or {}).get(contestant)
    return run_config.pipeline_of(block, config["pipeline"])


def describe_settings(config: Mapping, contestant: str) -> str:
    """What tells a contestant from others of its name and pipeline: `iterations=49 for starter_clip`; "" for plain
    samples and for imported media. Settings that equal the method's defaults are left out; one that was trained has a
    digest of its training at the end."""
    block = _block_of(config, contestant)
    settings = {k: v for k, v in block.items() if k not in NO_SETTINGS}
    method = block.get("name", contestant)
    if "media" in block or (method == PLAIN and not settings):
        return ""
    cls = METHODS.get(method) if isinstance(method, str) else None
    defaults = {f.name: f.default for f in dataclasses.fields(cls)} if cls is not None else {}  # type: ignore[arg-type]
    words = [method] if method not in (contestant, PLAIN) else []
    words += [f"{k}={_shorten(v)}" for k, v in sorted(settings.items()) if k not in defaults or defaults[k] != v]
    if method == PLAIN:
        return " ".join(words)
    words += [f"for {reward}"] if (reward := _describe_reward(config.get("reward"))) else []
    if any(config.get(key) for key in ("train", "stages", "pairs")):
        training = json.dumps([config.get(key) for key in TRAINED_BY], sort_keys=True)
        words.append(f"#{hashlib.sha256(training.encode()).hexdigest()[:4]}")
    return " ".join(words)


def _block_of(config: Mapping, contestant: str) -> dict[str, Any]:
    """A contestant's block as a mapping; of the shorthands `method` and `stages` too."""
    blocks = config.get("contestants")
    if blocks is None:
        method = config.get("method") if config.get("stages") is None else {}
        blocks = {} if contestant == "base" else {contestant: method}
        block = blocks.get(contestant, PLAIN)
    else:
        block = blocks.get(contestant)
    return {"name": block} if isinstance(block, str) else dict(block or {})


def _describe_reward(reward: Any) -> str:
    """`clip + 0.3 aesthetic`; settings of a reward are left to its name."""
    if not isinstance(reward, Mapping):
        return str(reward or "")
    weights = {name: value for name, value in reward.items()}
    return " + ".join(
        f"{value:g} {name}" if isinstance(value, (int, float)) and value != 1 else str(name)
        for name, value in weights.items()
    )


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 40 else f"{text[:30]}…{hashlib.sha256(text.encode()).hexdigest()[:4]}"
