"""Variants: a named pipeline with some settings changed, {name: flux-dev, steps: 8, call: {height: 384}}.

In tables and messages a variant is a label, `flux-dev {steps: 8, call: {height: 384}}`, which can be read back.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_yaml

MERGED = ("call", "text", "components")  # settings that a variant changes key by key; others are replaced
ORDER = ("class", "repo", "steps", "scheduler", "kernel", "components", "call", "text")  # of settings in a label
TEXT = re.compile(r"(\S.*?) (\{.*\})")
SMALL, MEDIUM = {"height": 256, "width": 256}, {"height": 512, "width": 512}
FLOW_MATCHING = "FlowMatchEulerDiscreteScheduler"

# Former configs -> the variants that replace them.
FORMER: dict[str, dict[str, Any]] = {
    "flux-dev-6": {"name": "flux-dev", "steps": 6, "call": MEDIUM},
    "flux-dev-8": {"name": "flux-dev", "steps": 8, "call": {"height": 384, "width": 384}},
    "flux-dev-25": {"name": "flux-dev", "steps": 25, "call": {"height": 720, "width": 720}},
    "qwen-image-10": {"name": "qwen-image", "repo": "Qwen/Qwen-Image-2512", "steps": 10, "call": MEDIUM},
    "qwen-image-30": {"name": "qwen-image", "repo": "Qwen/Qwen-Image-2512", "steps": 30, "call": MEDIUM},
    "sd15-20": {"name": "sd15", "steps": 20, "call": {"guidance_scale": 5.0}},
    "sd15-40": {"name": "sd15", "steps": 40},
    "sd35-medium-10": {"name": "sd35-medium", "steps": 10, "call": MEDIUM},
    "sd35-medium-14": {"name": "sd35-medium", "steps": 14, "call": MEDIUM},
    "starter-music-4": {"name": "starter-music", "steps": 4, "call": {"guidance_scale": 1.0}},
    "starter-video-4": {"name": "starter-video", "steps": 4},
    "wan21-1.3b-12": {"name": "wan21-1.3b", "steps": 12, "call": {"num_frames": 1}},
    "wan21-1.3b-20": {"name": "wan21-1.3b", "steps": 20, "call": {**SMALL, "num_frames": 17}},
    "wan21-14b-10": {
        "name": "wan21-14b",
        "steps": 10,
        "scheduler": {"class": FLOW_MATCHING, "shift": 3.0},
        "call": {**SMALL, "num_frames": 5},
    },
    "wan22-a14b-10": {
        "name": "wan22-a14b",
        "steps": 10,
        "scheduler": {"class": FLOW_MATCHING, "shift": 12.0},
        "call": {"height": 480, "width": 480, "num_frames": 5},
    },
    "z-image-10": {"name": "z-image", "steps": 10, "call": MEDIUM},
}

_ANNOUNCED: set[str] = set()


def current_source(source: Any, announce: bool = True) -> Any:
    """A pipeline's source in its current form: a label and a former name become {name: ..., changes}, a variant without
    changes its name; anything else is returned as it is. A former name is reported once on stderr if `announce`."""
    if isinstance(source, (str, Path)):
        if variant := FORMER.get(str(source)):
            if announce and str(source) not in _ANNOUNCED:
                _ANNOUNCED.add(str(source))
                text = yaml_flow(variant)
                print(f"the pipeline {source} is written {text} now; the old name still works", file=sys.stderr)
            return copy.deepcopy(variant)
        if (match := TEXT.fullmatch(str(source))) is None:
            return source
        try:
            changes = parse_yaml(match[2], "pipeline")
        except BadInput:
            return source
        return {"name": match[1], **changes} if isinstance(changes, Mapping) else source
    if isinstance(source, Mapping) and isinstance(source.get("name"), str):
        base = current_source(source["name"], announce)
        changes = {key: value for key, value in source.items() if key != "name"}
        if isinstance(base, Mapping):
            return merge_variant(base, changes)
        return {"name": base, **changes} if changes else base
    return source


def merge_variant(source: Any, changes: Mapping) -> dict:
    """A pipeline's source with further changes."""
    source = current_source(source)
    return merge_changes(source if isinstance(source, Mapping) else {"name": source}, changes)


def merge_changes(values: Mapping, changes: Mapping) -> dict:
    """The settings of a pipeline with some changed."""
    merged = dict(values)
    for key, value in changes.items():
        by_key = key in MERGED and isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = {**merged[key], **value} if by_key else value
    return merged


def split_variant(source: Mapping) -> tuple[str, dict]:
    """(name, changes). Raises BadInput where there is no name."""
    if not isinstance(source.get("name"), str):
        raise BadInput(
            f"pipeline: the key 'name' is missing or no text in {yaml_flow(source)}; say which pipeline it is"
        )
    return source["name"], {key: value for key, value in source.items() if key != "name"}


def pipeline_label(source: Any) -> str:
    """The label of a pipeline's source for tables and messages; pipelines.read_config understands it."""
    source = current_source(source, announce=False)
    if not isinstance(source, Mapping):
        return str(source)
    name, changes = split_variant(source)
    rank = {key: n for n, key in enumerate(ORDER)}
    ordered = {key: _sort_keys(changes[key]) for key in sorted(changes, key=lambda k: (rank.get(k, len(rank)), str(k)))}
    return f"{name} {yaml_flow(ordered)}" if ordered else name


def _sort_keys(value: Any) -> Any:
    return {key: value[key] for key in sorted(value, key=str)} if isinstance(value, Mapping) else value


def yaml_flow(values: Mapping) -> str:
    """A mapping as one line of YAML."""
    return yaml.safe_dump(
        dict(values), default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True
    ).strip()
