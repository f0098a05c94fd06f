"""Judges of pairs that are held out: each contestant's samples against the first contestant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    first = next(iter(plan.methods))
    files = [_find_sample(folder.path / "media" / first, f"{position:04d}-{k}") for position, _, k, _ in rows]
    finite = find_finite_rows(samples).tolist()
    met = [b for b, path in enumerate(files) if finite[b] and (name == first or path is not None)]
    scores = {}
    for label, judge in judges.items():
        values = torch.full((len(samples),), torch.nan)
        if name == first:
            values[met] = 0.5
        elif met:
            for places, rivals in _stack_rivals(met, files):
                compared, texts = samples[places], [prompts[b] for b in places]
                references = stack_sources(judge, compared, texts)
                outcome = judge.score_against(media=compared, rivals=rivals, prompts=texts, references=references)
                values[places] = outcome.cpu()
        scores[label] = values
    return scores


def _find_sample(folder: Path, stem: str) -> Path | None:
    """The file of a contestant's sample, of any kind."""
    return next(folder.glob(f"{stem}.*"), None)


def _stack_rivals(places: Sequence[int], files: Sequence[Path | None]) -> list[tuple[list[int], Media]]:
    """(places, their rivals), those of one shape together: media that were made elsewhere may have any."""
    by_shape: dict[tuple, list[tuple[int, Media]]] = {}
    for b in places:
        path = files[b]
        assert path is not None, "only samples that have met a rival are compared"
        rival = media.read_media(path)
        by_shape.setdefault((rival.data.shape, rival.rate), []).append((b, rival))
    return [([b for b, _ in group], Media.cat([rival for _, rival in group])) for group in by_shape.values()]
