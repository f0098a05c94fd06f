"""Warnings where weights are trained at another size, length or number of steps than they are sampled at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import PipelineConfig
from pipelines.lora_source import RECORD, read_record

LENGTHS = ("num_frames", "audio_length_in_s", "audio_end_in_s", "audio_duration", "audio_duration_s", "duration")


def compare_sizes(trained: Mapping[str, Any], sampled: Mapping[str, Any]) -> list[str]:
    """Clauses such as "height 384 against 512" for settings of two pipelines that differ: steps and arguments of the
    call."""
    calls = [{"steps": p["steps"], **(p.get("call") or {})} for p in (trained, sampled)]
    names = [n for n in ("steps", "height", "width", *LENGTHS) if calls[0].get(n) != calls[1].get(n)]
    return [f"{n} {' against '.join(str(call.get(n, 'its default')) for call in calls)}" for n in names]


def size_warnings(name: str, trained: PipelineConfig, sampled: PipelineConfig) -> list[str]:
    """A warning of the plan for contestant `name`, whose weights are trained by one pipeline and sampled by another;
    none where their sizes are the same."""
    clauses = compare_sizes(vars(trained), vars(sampled))
    what = f"contestant {name} is trained at another size than it is sampled and judged at"
    return [f"warning: {what}: {', '.join(clauses)}"] if clauses else []


def export_warnings(pipelines: Mapping[str, PipelineConfig]) -> list[str]:
    """Warnings for contestants whose LoRA an earlier training exported for other sizes than they are sampled at."""
    lines = []
    for name, pipeline in pipelines.items():
        folder = Path(pipeline.lora).expanduser() if pipeline.lora else None
        if folder is not None and (folder / RECORD).is_file():
            clauses = compare_sizes(read_record(folder)["pipeline"], vars(pipeline))
            what = f"contestant {name}: its LoRA was exported for another size than it is sampled at"
            lines += [f"warning: {what}: {', '.join(clauses)}"] if clauses else []
    return lines
