"""Samples that hold NaN or infinite values: found, and kept from rewards, which may fail on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.core.types import Media, Reward


def find_finite_rows(media: Media) -> Tensor:
    """bool [B]: the rows whose values are all finite."""
    return media.data.detach().flatten(1).isfinite().all(1)


def score_finite(reward: Reward, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
    """The reward's scores [B], NaN for rows that are not finite: a reward that scores samples one by one never sees
    them. One that compares samples gets all, as they are. `references` go with the rows where there is one for each, as
    a reward that needs `source` has them."""
    if reward.spec.scope != "sample" or bool(find_finite_rows(media).all()):
        return reward(media=media, prompts=prompts, references=references)
    per_row = references is not None and "source" in reward.spec.needs  # a source for each sample

    def score(rows: list[int]) -> dict[str, Tensor]:
        chosen = references[rows] if references is not None and per_row else references
        return {"": reward(media=media[rows], prompts=[prompts[n] for n in rows], references=chosen)}

    return score_finite_rows(score, media, [""])[""]


def score_finite_rows(
    score: Callable[[list[int]], dict[str, Tensor]], media: Media, names: Sequence[str]
) -> dict[str, Tensor]:
    """score(rows), name -> [B], of the finite rows; NaN for the others, where the graph to the media ends."""
    finite = find_finite_rows(media)
    if bool(finite.all()):
        return score([*range(len(media))])
    rows = finite.nonzero().flatten().tolist()
    parts = score(rows) if rows else {}
    scores = {}
    for name in parts or names:
        blank = torch.full((len(media),), torch.nan, device=media.data.device)
        if not rows and media.data.requires_grad:  # NaN with a gradient of 0: its loss can be differentiated
            blank = blank + 0 * media.data.flatten(1).nan_to_num(0, 0, 0).sum(1)
        part = parts.get(name)
        scores[name] = (
            blank if part is None else blank.to(part).index_put((torch.tensor(rows, device=part.device),), part)
        )
    return scores
