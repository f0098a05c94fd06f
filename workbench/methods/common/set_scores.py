"""A set reward as a function of rows, so that many subsets of the same media can be scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from workbench.core.types import Media, Reward, embeds_media
from workbench.methods.common.set_splits import SetScore


@torch.no_grad()
def prepare_set_score(
    reward: Reward, media: Media | Iterable[Media], prompts: Sequence[str]
) -> tuple[SetScore, Tensor]:
    """(the score F of any rows of these media, the rows that can be scored).

    media: [N], or in chunks. An EmbeddingReward (or a combination whose `rewards` are all of this kind) embeds the
    media once, so that a subset only costs its statistics; another reward is called for each subset. A reward's
    `embed_samples(media)`, name -> [N,D], embeds for all components, distributed over processes.
    """
    chunks = [media] if isinstance(media, Media) else media
    parts, total = getattr(reward, "rewards", {"": reward}), getattr(reward, "total", lambda scores, _: scores[""])
    if not can_embed(reward):
        joined = Media.cat(list(chunks))

        def score_rows(rows: Tensor) -> float:
            return float(reward(media=joined[rows.tolist()], prompts=[prompts[n] for n in rows.tolist()]))

        return score_rows, joined.data.flatten(1).isfinite().all(1).nonzero().flatten().cpu()
    embed = getattr(reward, "embed_samples", lambda media: {name: part.features(media) for name, part in parts.items()})
    features = [embed(chunk) for chunk in chunks]
    points = {name: torch.cat([rows[name] for rows in features]) for name in parts}
    targets = {name: part.target(None, points[name].device) for name, part in parts.items()}
    points = {name: (x.cpu() if x.device.type == "mps" else x).double() for name, x in points.items()}
    finite = torch.stack([x.isfinite().all(1) for x in points.values()]).all(0)

    def score_embedded(rows: Tensor) -> float:
        scores = {name: part.score_rows(points[name][rows], targets[name]) for name, part in parts.items()}
        return float(total(scores, [prompts[n] for n in rows.tolist()]))

    return score_embedded, finite.nonzero().flatten().cpu()


def can_embed(reward: Reward) -> bool:
    """Whether a reward, or each of its components, embeds media once for any number of subsets."""
    return all(embeds_media(r) for r in getattr(reward, "rewards", {"": reward}).values())
