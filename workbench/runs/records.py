"""The shapes of a run folder's JSON files. They are checked whenever one is read, for people edit them: whoever takes
a value out of one may rely on its type.

Only what is read somewhere is declared. A key that came later is not required: old runs go on being read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.core.shapes import check_shape

Number = float | None  # None where there is none: JSON has no NaN


class ConfigRecord(TypedDict):
    pipeline: NotRequired[str | dict[str, Any]]
    reward: NotRequired[str | dict[str, Any]]
    watch: NotRequired[str | list[str] | dict[str, Any] | None]
    contestants: NotRequired[dict[str, Any] | None]
    seed: NotRequired[int]


class RunRecord(TypedDict):
    """run.json"""

    name: NotRequired[str]
    config: NotRequired[ConfigRecord]
    created: NotRequired[str]
    status: NotRequired[str]
    command: NotRequired[str]
    methods: NotRequired[dict[str, dict[str, Any]]]
    pipelines: NotRequired[dict[str, dict[str, Any]]]
    reward_settings: NotRequired[dict[str, dict[str, Any]]]
    stages: NotRequired[dict[str, dict[str, Any]]]
    objects: NotRequired[dict[str, str]]
    rewards: NotRequired[dict[str, str]]
    inputs: NotRequired[dict[str, dict[str, str]]]
    placement: NotRequired[dict[str, dict[str, str]]]
    prompts: NotRequired[str]
    seed: NotRequired[int]
    versions: NotRequired[dict[str, str]]
    git: NotRequired[str]
    device: NotRequired[str]


class Estimate(TypedDict):
    mean: Number
    ci95: list[float] | None
    n: NotRequired[int]
    optimised: NotRequired[bool]


class CurvePoint(TypedDict):
    nfe: Number
    seconds: Number
    rewards: dict[str, Estimate]


class TrainingRecord(TypedDict):
    """checkpoints/NAME/done.json"""

    samples: NotRequired[int]
    seconds: NotRequired[Number]
    updates: NotRequired[int]
    peak_mb: NotRequired[Number]
    distance: NotRequired[float | dict[str, Any] | None]
    best: NotRequired[int | str | None]
    alarm: NotRequired[str | None]
    ended: NotRequired[str | None]
    warnings: NotRequired[list[str]]


class BestRecord(TypedDict):
    update: int


class BlankSample(TypedDict):
    prompt: str
    seed: int
    reason: str


class BlankRecord(TypedDict):
    count: int
    of: int
    named: list[BlankSample]


class FlatReward(TypedDict):
    samples: int
    value: NotRequired[float]
    prompts: NotRequired[int]


class ContestantRecord(TypedDict):
    name: str
    method: NotRequired[str]
    pipeline: NotRequired[str]
    failed: NotRequired[str]
    samples: NotRequired[int]
    blank: NotRequired[BlankRecord]
    rewards: NotRequired[dict[str, Estimate]]
    oracle: NotRequired[dict[str, Estimate]]
    versus_base: NotRequired[dict[str, Estimate]]
    versus_best_of_n: NotRequired[dict[str, Estimate]]
    wins: NotRequired[dict[str, Estimate]]
    diversity: NotRequired[Number]
    nfe: NotRequired[int]
    reward_calls: NotRequired[int]
    decodes: NotRequired[int]
    seconds: NotRequired[Number]
    peak_mb: NotRequired[Number]
    training: NotRequired[TrainingRecord]
    curve: NotRequired[list[CurvePoint]]


class SummaryRecord(TypedDict):
    """summary.json"""

    contestants: list[ContestantRecord]
    run: NotRequired[str]
    modality: NotRequired[str]
    prompts: NotRequired[int]
    seeds: NotRequired[int]
    control: NotRequired[str]
    alarm: NotRequired[str | None]
    flat_rewards: NotRequired[dict[str, FlatReward]]
    stages: NotRequired[dict[str, Any]]
    inputs: NotRequired[list[dict[str, str]]]  # of each prompt, name -> file in the run folder


class SampleRecord(TypedDict):
    index: int
    prompt: str
    seed: int
    file: str | None
    scores: dict[str, Number]
    k: NotRequired[int]
    sha256: NotRequired[str | None]
    latents: NotRequired[str | None]
    category: NotRequired[str | None]
    reason: NotRequired[str | None]
    inputs: NotRequired[dict[str, str]]  # name -> digest


class CostRecord(TypedDict):
    nfe: int
    reward_calls: int
    decodes: int
    seconds: Number
    peak_mb: float


class EventRecord(TypedDict):
    """A line of events.jsonl"""

    contestant: str
    batch: NotRequired[int]
    step: NotRequired[int]
    rows: NotRequired[int]
    final: NotRequired[bool]
    stopped: NotRequired[bool]
    failed: NotRequired[str]
    alarm: NotRequired[str | None]
    phase: NotRequired[str]
    metrics: NotRequired[dict[str, Number]]
    cost: NotRequired[dict[str, Number]]
    samples: NotRequired[list[SampleRecord]]


class SampledRecord(TypedDict):
    samples: list[SampleRecord]


class FinalRecord(TypedDict):
    """What an event has that ends a batch."""

    batch: int
    cost: CostRecord
    samples: list[SampleRecord]


SHAPES: dict[str, Any] = {"run.json": RunRecord, "summary.json": SummaryRecord, "done.json": TrainingRecord}


def check_record(content: Mapping[str, Any], path: Path) -> None:
    """Raises BadInput for a JSON file of a run that is not as the workbench writes it."""
    if content and (shape := SHAPES.get(path.name)) is not None:
        check_shape(content, shape, str(path))
        if shape is RunRecord:
            pipeline_label(content.get("config", {}).get("pipeline", ""))  # a mapping without a name says so


def is_event(value: Any, to_go_on: bool = False) -> bool:
    """Whether a value is an event of a run's log; to_go_on: with all that a run needs to go on from it."""
    try:
        check_shape(value, EventRecord, "event")
        if value.get("final"):
            check_shape(value, FinalRecord if to_go_on else SampledRecord, "event")
    except BadInput:
        return False
    return True
