"""Judges of pairs that are held out: each contestant's samples against the first contestant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from workbench.core.finite import find_finite_rows
from workbench.core.inputs import stack_sources
from workbench.core.io import media
from workbench.core.types import Media, Reward
from workbench.runs.plan import Plan
from workbench.runs.store import RunFolder


def find_pair_judges(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """The rewards that can say how far a sample beats a rival (`score_against`)."""
    return {name: reward for name, reward in rewards.items() if hasattr(reward, "score_against")}


@torch.no_grad()
def score_against_first(
    plan: Plan, folder: RunFolder, name: str, rows: Sequence[tuple], samples: Media, prompts: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Held-out judge of pairs -> [B]: how far each sample of contestant `name` beats that of the first contestant of
    the same prompt and seed, asked in both orders; 1/2 for the first contestant itself. NaN for a sample without a
    rival, which has no file."""
    judges = find_pair_judges(plan.watch.rewards if plan.watch else {})
    if not judges:
        return {}
    first, suffix = next(iter(plan.methods)), media.SUFFIX_BY_MODALITY[samples.modality]
    files = [folder.path / "media" / first / f"{position:04d}-{k}{suffix}" for position, _, k, _ in rows]
    finite = find_finite_rows(samples).tolist()
    met = [b for b, path in enumerate(files) if finite[b] and (name == first or path.is_file())]
    scores = {}
    for label, judge in judges.items():
        values = torch.full((len(samples),), torch.nan)
        if name == first:
            values[met] = 0.5
        elif met:
            compared, texts = samples[met], [prompts[b] for b in met]
            rivals = Media.cat([media.read_media(files[b]) for b in met])
            references = stack_sources(judge, compared, texts)
            values[met] = judge.score_against(media=compared, rivals=rivals, prompts=texts, references=references).cpu()
        scores[label] = values
    return scores
