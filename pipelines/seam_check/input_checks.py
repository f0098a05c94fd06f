"""Checks of pipelines that make their samples from pictures or sounds besides a text: each row is made from its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from pipelines.prompt_cache import PromptCaches
from pipelines.seam_check.evidence import SEEDS, CheckResult, Evidence, absolute_distance
from workbench.core.inputs import prompt_inputs
from workbench.core.types import Prompt

ROUNDING = 1e-2  # of the change that other inputs bring about


def check_inputs(claim: str, evidence: Evidence) -> CheckResult:
    """Each of its inputs changes the media, texts and seeds being equal."""
    sample = evidence.sample.media.data
    others = exchange_inputs(evidence)
    changes = {}
    for name in evidence.policy.conditions.inputs:
        rows = zip(evidence.prompts, others, strict=True)
        prompts = [Prompt(p, {**prompt_inputs(p), name: prompt_inputs(q)[name]}) for p, q in rows]
        changes[name] = absolute_distance(sample_media(evidence, prompts), sample)
    same = absolute_distance(sample_media(evidence, evidence.prompts), sample)
    words = ", ".join(f"{change:.1e} with another {name}" for name, change in changes.items())
    holds = same == 0 and all(change > 0 for change in changes.values())
    return CheckResult(claim, holds, f"its media move by {words}; {same:.1e} with the same inputs (control)")


def check_input_rows(claim: str, evidence: Evidence) -> CheckResult:
    """Other inputs of the second row change the second row and leave the first."""
    sample, first = evidence.sample.media.data, evidence.prompts[0]
    media = sample_media(evidence, (first, exchange_inputs(evidence)[1]))
    leak, change = (absolute_distance(media[row], sample[row]) for row in (0, 1))
    details = (
        f"the first row moves by {leak:.1e} with other inputs of the second, which moves by {change:.1e} (control)"
    )
    return CheckResult(claim, leak <= ROUNDING * change and change > 0, details)


def check_memory(claim: str, evidence: Evidence) -> CheckResult:
    """The same texts with other inputs, after the policy has encoded the first ones, against a policy without
    memory."""
    others, fresh = exchange_inputs(evidence), copy.copy(evidence.policy)
    fresh.prompt_caches = PromptCaches(0, 0)
    with torch.no_grad():
        expected = fresh.sample(others, seeds=SEEDS).media.data
    difference = absolute_distance(sample_media(evidence, others), expected)
    control = absolute_distance(evidence.sample.media.data, expected)
    details = f"{difference:.1e} off one that has encoded nothing before; {control:.1e} with the first inputs (control)"
    return CheckResult(claim, difference == 0 < control, details)


def exchange_inputs(evidence: Evidence) -> tuple[str, ...]:
    """The texts of the prompts with other inputs of noise."""
    return evidence.policy.conditions.example_prompts([str(p) for p in evidence.prompts], seed=500)


def sample_media(evidence: Evidence, prompts: Sequence[str]) -> torch.Tensor:
    with torch.no_grad():
        return evidence.policy.sample(prompts, seeds=SEEDS).media.data
