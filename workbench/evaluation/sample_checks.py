"""What is odd about a run's samples: some that are no media, and rewards that can't tell them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from workbench.evaluation.statistics import none_to_nan

MAX_NAMED = 3  # blank samples that a summary names
ALIKE = 1e-6  # relative difference under which scores are the same number, rounded


def describe_blanks(samples: Sequence[Mapping]) -> dict:
    """{"blank": {"count", "of", "named": [{"prompt", "seed", "reason"}]}} of the samples without a file; {} where all
    have one. `of` is the count of all."""
    blanks = [s for s in samples if not s["file"]]
    if not blanks:
        return {}
    named = [{key: s.get(key, "") for key in ("prompt", "seed", "reason")} for s in blanks[:MAX_NAMED]]
    return {"blank": {"count": len(blanks), "of": len(samples), "named": named}}


def find_flat_rewards(samples_of: Mapping[str, Sequence[Mapping]]) -> dict[str, dict]:
    """Reward -> {"samples", "value"} where all samples of all contestants have the same score, or {"samples",
    "prompts"} where all samples of each prompt have, and prompts differ: it ranks none of them."""
    everyone = [s for samples in samples_of.values() for s in samples]
    flat = {}
    for name in everyone[0]["scores"] if everyone else ():
        scored = [(s["index"], none_to_nan(s["scores"].get(name))) for s in everyone]
        scored = [(index, value) for index, value in scored if value == value]
        if len(scored) < 2:
            continue
        if is_flat(value for _, value in scored):
            flat[name] = {"samples": len(scored), "value": scored[0][1]}
            continue
        groups: dict[int, list[float]] = {}
        for index, value in scored:
            groups.setdefault(index, []).append(value)
        if all(is_flat(values) for values in groups.values()) and len(groups) < len(scored):
            flat[name] = {"samples": len(scored), "prompts": len(groups)}
    return flat


def is_flat(values: Iterable[float]) -> bool:
    """Whether all values are the same number but for rounding."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    return high - low <= ALIKE * max(abs(low), abs(high))
