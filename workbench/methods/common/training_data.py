"""Training data of a batch: the policy's own samples with rewards, or preference pairs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from workbench.core.types import Batch, Media, PairBatch, Reward, TrainablePolicy, Trajectory
from workbench.methods.common.rollout import ScoredSamples, expand_groups, sample_groups, score_samples


def using_weights(policy: TrainablePolicy, name: str) -> AbstractContextManager:
    """Inside the context the policy has these weights: the untrained ones ("reference"), or a named copy."""
    return policy.reference() if name == "reference" else policy.use(name)


def collect_batch(
    policy: TrainablePolicy, reward: Reward, batch: Batch, group: int, weights: str = "train", prompts_per_pass: int = 0
) -> ScoredSamples:
    """A batch in groups: `group` samples per prompt by the named weights, with rewards; or of a PairBatch each pair, as
    a group of two with rewards 1 and 0."""
    if isinstance(batch, PairBatch):
        return encode_pairs(policy, batch)
    with using_weights(policy, weights), policy.merged():  # no log-densities of these chains are needed
        path = sample_groups(policy, batch, group, prompts_per_pass)
    path = replace(path, x=path.x[:, -1:].clone())  # the chains themselves are not needed
    return score_samples(reward, path, group)


@torch.no_grad()
def encode_pairs(policy: TrainablePolicy, batch: PairBatch) -> ScoredSamples:
    """The media of B pairs as 2 B samples, winner and loser side by side, with rewards 1 and 0."""
    rows = torch.arange(2 * len(batch)).view(2, -1).T.flatten()  # w0 l0 w1 l1 ...
    media = Media.cat([batch.winners, batch.losers])[rows]
    prompts, seeds = expand_groups(batch, 2)
    x = policy.encode(media).float()[:, None]  # [2B,1,*latent]
    path = Trajectory(prompts, x, torch.zeros(len(x), 0, dtype=torch.float64), (), media, seeds)
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64, device=x.device).repeat(len(batch))
    return ScoredSamples(path, rewards, {}, {}, 2, from_policy=False)
