"""What a batch brings to learn from: the policy's own samples and their rewards, or pairs of media of which one won."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from workbench.core.types import Batch, Media, PairBatch, Reward, TrainablePolicy, Trajectory
from workbench.methods.common import losses
from workbench.methods.common.rollout import Judged, judge, roll, spread

if TYPE_CHECKING:
    from workbench.methods.common.forward_process import Matching, Seen


def weights(policy: TrainablePolicy, name: str) -> AbstractContextManager:
    """Within it the policy has these weights: the untrained ones ("reference"), or a copy of the adapter."""
    return policy.reference() if name == "reference" else policy.use(name)


def gathered(method: Matching, policy: TrainablePolicy, reward: Reward, batch: Batch) -> tuple[Matching, Judged]:
    """A batch as groups: G samples a prompt by the method's weights, judged; or each pair as two with rewards 1 and 0, and then
    the method with groups of two."""
    if isinstance(batch, PairBatch):
        return replace(method, group=2), paired(policy, batch)
    with weights(policy, method.samples), policy.merged():  # no density of these chains is asked for
        path = roll(policy, batch, method.group, method.at_once)
    path = replace(path, x=path.x[:, -1:].clone())  # the chains themselves are not needed
    return method, judge(reward, path, method.group)


@torch.no_grad()
def paired(policy: TrainablePolicy, batch: PairBatch) -> Judged:
    """The media of B pairs as 2 B samples, winner and loser side by side, with rewards 1 and 0."""
    rows = torch.arange(2 * len(batch)).view(2, -1).T.flatten()  # w0 l0 w1 l1 ...
    media = Media.cat([batch.winners, batch.losers])[rows]
    prompts, seeds = spread(batch, 2)
    x = policy.encode(media).float()[:, None]  # [2B,1,*latent]
    path = Trajectory(prompts, x, torch.zeros(len(x), 0, dtype=torch.float64), (), media, seeds)
    won = torch.tensor([1.0, 0.0], dtype=torch.float64, device=x.device).repeat(len(batch))
    return Judged(path, won, {}, {}, 2, own=False)


def agrees(seen: Seen) -> float:
    """How many of the n rows are of pairs whose winner is denoised the better, against the reference: DPO's implicit accuracy
    (a tie counts half)."""
    base = seen.reference if seen.old is None else seen.old
    better = (0.0 if base is None else seen.error(base)) - seen.error(seen.live)
    margin = losses.group_sum((better * seen.weight.sign()).detach(), seen.group)
    return 0.5 * (margin.sign() + 1).sum().item()
