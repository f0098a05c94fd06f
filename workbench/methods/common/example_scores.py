"""Scores of examples on several axes, as levels from 0 to 5: those that come with them, or a reward's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.inputs import BEST_LEVEL
from workbench.core.types import Media, Reward, is_composed
from workbench.methods.common.starting_latents import CaptionedMedia

TAIL = 0.05  # of the scores at each end, beyond which there is no further level
PART = 32  # examples that are scored together
Scores = Mapping[str, Mapping[str, float]]  # name of an example -> axis -> level


class ScoredMedia(CaptionedMedia, Protocol):
    """Media with prompts and scores (workbench.runs.captioned_media reads them from a folder)."""

    axes: tuple[str, ...]  # of the scores; () where none come with the media

    def list_prompts(self) -> list[str]: ...

    def name(self, prompt: str, n: int) -> str: ...  # of the n-th medium of a prompt

    def scores(self, prompt: str, n: int) -> Mapping[str, float]: ...  # axis -> 0 to 5


@torch.no_grad()
def score_examples(examples: ScoredMedia, reward: Reward, size: Sequence[int]) -> Scores:
    """The scores of all examples: their own, else those by the parts of a composed reward, each asked once. An example
    that can't be scored has no level on that axis. Raises BadInput for a reward that scores all alike."""
    keys = [(prompt, n) for prompt in examples.list_prompts() for n in range(examples.count(prompt))]
    if examples.axes:
        return {examples.name(*key): examples.scores(*key) for key in keys}
    assert is_composed(reward), "a training's reward has parts"
    parts = []
    for first in range(0, len(keys), PART):
        rows = keys[first : first + PART]
        media = Media.cat([examples.read(prompt, n, tuple(size)) for prompt, n in rows])
        parts.append(reward.breakdown(media=media, prompts=[prompt for prompt, _ in rows]))
    values = {axis: torch.cat([part[axis].double().cpu() for part in parts]) for axis in parts[0]}
    levels = {axis: scale_to_levels(v, axis).tolist() for axis, v in values.items()}
    known = [{axis: v[k] for axis, v in levels.items() if v[k] == v[k]} for k in range(len(keys))]  # without NaN
    return {examples.name(*key): row for key, row in zip(keys, known, strict=True)}


def scale_to_levels(values: Tensor, axis: str) -> Tensor:
    """Scores [N] as levels [N]: their 5 % quantile is 0, their 95 % quantile 5, NaN stays. Where these are equal, the
    lowest and the highest. Raises BadInput for scores that are all equal."""
    finite = values[values.isfinite()]
    if not len(finite) or finite.min() == finite.max():
        raise BadInput(f"reward: {axis} scores all examples alike, so there is nothing to tell apart; give others")
    low, high = torch.quantile(finite, torch.tensor([TAIL, 1 - TAIL], dtype=finite.dtype))
    low, high = (low, high) if low < high else (finite.min(), finite.max())
    levels = (BEST_LEVEL * (values - low) / (high - low)).clamp(0, BEST_LEVEL)
    return levels.where(values.isfinite(), torch.nan)


def shuffle_scores(scores: Scores) -> Scores:
    """The same scores, each given to another example."""
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0)).tolist()
    values = list(scores.values())
    return {key: values[k] for key, k in zip(scores, order, strict=True)}
