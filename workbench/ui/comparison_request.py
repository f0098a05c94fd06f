"""What a person, or a program, asks the studio for. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ComparisonRequest:
    """Contestants on the same prompts and noises; checked by studio_comparison.build_config."""

    prompts: Sequence[str] | str  # themselves, or the name of a list in configs/prompts
    pipeline: str
    contestants: Sequence[str]  # lines; see contestant_choices.py
    rewards: Mapping[str, float]  # optimised: name -> weight
    watch: Sequence[str] | None = None  # held out; None: whoever can look on
    seed: int = 0
    seeds: int = 1  # noises per prompt
    calls: int = 0  # denoiser calls a sample to which every method is fitted; 0: as their settings say
    batch: int = 16  # samples made at once
    # what all samples are made from besides their prompts: name -> file that input_uploads.py has kept
    inputs: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0  # of a list, only the first so many prompts; 0: all of it
