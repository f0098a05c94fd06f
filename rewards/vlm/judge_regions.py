"""Judges of a picture and of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import torch
from torch import Tensor

from rewards.vlm.judge import Judge
from rewards.vlm.judge_client import JudgeError
from rewards.vlm.judge_presets import PRESETS
from workbench.core.errors import BadInput
from workbench.core.types import AtLeast, Media


@dataclass(frozen=True)
class JudgeRegions(Judge):
    """A judge's view of the whole picture and of its parts (after SRUM): (1 - share) * global + share * mean local.

    The parts are the tiles of a grid, each shown beside the whole; `last_dimensions` holds `global`, `local` and the
    spatial reward `map`, [B,grid,grid]. A tile without a readable answer is NaN there and takes no part in the mean.
    """

    preset: str = "regions"
    grid: Annotated[int, AtLeast(2)] = 2  # tiles across and down
    share: Annotated[float, AtLeast(0.0)] = 0.5  # weight of the parts, up to 1

    spec = PRESETS["regions"].spec("judge_regions")
    kind = "regions"

    def __post_init__(self):
        super().__post_init__()
        if self.share > 1:
            raise BadInput(f"{self.spec.name}: `share` is at most 1, got {self.share:g}")

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        scene, n, passes = self._encode_batch(media, prompts, references), self.grid, range(self.passes)
        if min(media.data.shape[-2:]) < n:
            raise BadInput(f"{self.spec.name}: a grid of {n} needs pictures of at least {n} pixels a side")
        jobs = {}
        for b in scene.good:
            picture, prompt = scene.pictures[b], scene.prompts[b]
            for k in passes:
                jobs[b, k, -1] = self._make_job(0, k, prompt, media.modality, [], picture)
                for tile, crop in enumerate(_cut_tiles(scene.media[b], n)):
                    jobs[b, k, tile] = self._make_job(1, k, prompt, media.modality, [], picture, [self._png_uri(crop)])
        answers = self._ask_jobs(jobs)
        scores, parts = self._empty_scores(len(media), ["global", "local"])
        parts["map"] = torch.full((len(media), n * n), torch.nan)
        for b in scene.good:
            replies = {t: [answers[b, k, t] for k in passes] for t in range(-1, n * n)}
            means = {
                t: fmean(r) for t, a in replies.items() if (r := [v[0] for v in a if not isinstance(v, JudgeError)])
            }
            picture, local = means.pop(-1, torch.nan), list(means.values())
            for tile, value in means.items():
                parts["map"][b, tile] = value
            parts["global"][b], parts["local"][b] = picture, fmean(local) if local else torch.nan
            scores[b] = (1 - self.share) * parts["global"][b] + self.share * parts["local"][b]
            if scores[b].isnan():
                self.last_failures[b] = str(next(v for a in replies.values() for v in a if isinstance(v, JudgeError)))
        parts["map"] = parts["map"].view(-1, n, n)
        self.last_dimensions.update(parts)
        return scores.to(media.data.device)


def _cut_tiles(picture: Tensor, n: int) -> list[Tensor]:
    """[3,H,W] -> n*n crops that cover it, row by row."""
    return [tile for row in picture.tensor_split(n, -2) for tile in row.tensor_split(n, -1)]
