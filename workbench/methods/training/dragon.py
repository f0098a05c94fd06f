"""DRAGON: distributional rewards optimise diffusion models. Bai et al., TMLR 2025, arXiv:2504.15217.

Each round draws samples, builds from them a set D+ and a set D- of which the reward prefers the first, and learns from their
contrast. The reward may judge samples, samples against a set of examples, or whole sets; it needs no gradient. How the sets are
built is told in sets.py. With g = |v_ref - u|^2 - |v - u|^2, how much better than the untrained model a sample is
denoised, the loss is

    dpo   -log sigmoid( beta/2 (g(+) - g(-)) )                                       for a pair, both under the same noise;
    kto   1 - sigmoid( beta (g(+) - z) )  and  1 - sigmoid( beta (z - g(-)) ),       z = max(0, mean g), without gradient,
    nft   |v+ - u|^2 for (+), |v- - u|^2 for (-), of the model that drew them: DiffusionNFT's (nft.py), not of the paper;

plus anchor |v - u|^2 on D+ (TangoFlux, arXiv:2412.21037). Errors are means over dimensions; beta belongs to that convention.
Samples for learning may be drawn in fewer steps than those of use, at little loss (the paper's figure 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import (
    BadInput,
    Batch,
    Count,
    Event,
    Natural,
    NonNegative,
    Reward,
    TrainablePolicy,
    Trajectory,
    derive,
)
from workbench.methods.common import forward_process
from workbench.methods.common.demonstrations import built, drawn
from workbench.methods.common.forward_process import Seen
from workbench.methods.common.rollout import NEEDS
from workbench.methods.common.set_splits import Demonstrations
from workbench.methods.common.training_data import agrees
from workbench.methods.training.dpo import DPO
from workbench.methods.training.kto import KTO
from workbench.methods.training.nft import NFT


@dataclass(frozen=True)
class DRAGON:
    """DRAGON (arXiv:2504.15217): two sets of one's own samples are contrasted, chosen by a reward of samples or of whole sets."""

    group: Count = 2  # samples a prompt
    steps: Natural = 0  # that they are drawn in; 0: as in use
    build: Literal["swap", "credit"] = "swap"  # of D+ for rewards of whole sets; those of samples rank
    paired: bool = True  # D+ and D- have each prompt alike; false: they are halves of the whole batch
    contrast: NonNegative = 0.0  # swaps raise F(D+) - contrast F(D-)
    sweeps: Count = 3  # of swaps, at most
    keep: NonNegative = 1.0  # share of the pairs that is learnt from: those that differ most
    objective: Literal["kto", "dpo", "nft"] = "kto"  # the loss: KTO's, DPO's, or DiffusionNFT's (not of the paper)
    # of the loss: higher stays nearer to the untrained model (too high, and kto is flat); nft: to the last one, take 1
    beta: NonNegative = 100.0
    anchor: NonNegative = 0.0  # weight of D+'s own denoising loss
    lr: NonNegative = 1e-4  # step size of AdamW
    updates: Count = 1  # per batch
    times: Natural = 0  # noise levels a pair meets in an update; 0: all
    skip: NonNegative = 0.0  # share of the schedule, from its noisy end, where a pair says little and is loud
    share: NonNegative = 1.0  # of the rest that is trained, from its noisy end
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling
    at_once: Natural = 0  # prompts, and in updates pairs, that go through the denoiser together; 0: all

    needs, scales, paper = NEEDS, "", "arXiv:2504.15217"
    sets = True  # may optimise a reward that judges whole sets
    samples, same_eps, advantage = "train", True, "whole"

    def __post_init__(self):
        if self.paired and self.group % 2:
            raise BadInput(f"method.group: {self.group} samples of a prompt don't make pairs; give an even number")

    def calls(self, steps: int) -> int:
        """At most: pairs that don't differ cost nothing in an update."""
        return self.group * (
            (self.steps or steps) + 2 * self.updates * forward_process.levels(self, steps - self.skipped(steps))[1]
        )

    def skipped(self, steps: int) -> int:
        return min(int(self.skip * steps), steps - 1)

    def copies(self) -> dict[str, float | None]:
        return {"old" if self.objective == "nft" else "reference": self.guidance}

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            if self.objective == "nft":
                policy.follow("old", 0.0)  # the model that these samples are of
            path = drawn(self, policy, batch)
            draw = torch.Generator().manual_seed(derive(batch.seeds[0], "demonstrations"))
            found, worth, told = built(self, reward, path, draw)
            told |= {"loss": 0.0, "taught": 2 * len(found.up) / len(worth)}
            # without pairs, what other batches gathered may still be due
            told |= self.learn(policy, path, found) if len(found.up) else {"grad_norm": policy.update()}
            yield Event(k, told, path.media, path.prompts, path.seeds, {"reward": worth})

    def learn(self, policy: TrainablePolicy, path: Trajectory, found: Demonstrations) -> dict[str, float]:
        """A batch's updates, from its pairs side by side."""
        rows = torch.stack([found.up, found.down], 1).flatten()  # [2P]: + - + - ...
        seeds, prompts = (tuple(many[n] for n in rows.tolist()) for many in (path.seeds, path.prompts))
        sides = replace(path, prompts=prompts, seeds=seeds, x=path.x[rows.to(path.x.device)])
        sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=path.x.device).repeat(len(found.up))
        pairs, batch, first = replace(self, group=2), Batch(prompts[::2], seeds[::2]), self.skipped(policy.steps)
        for u in range(self.updates):
            told = Counter()
            for i, few, share in forward_process.meetings(pairs, sign, batch, policy.steps - first, u):
                seen = forward_process.look(pairs, policy, sides, sign, batch, first + i, few, u)
                policy.backward(loss := self.loss(seen).sum() * share / len(rows))
                told.update(loss=loss.item(), agrees=agrees(seen) * share / len(rows))
            norm = policy.update()
        return {**told, "grad_norm": norm}

    def loss(self, seen: Seen) -> Tensor:
        """[n]; the denoising loss of D+ counts twice, for it is a mean over D+ and the rest one over both."""
        if self.objective == "dpo":
            told = DPO(beta=self.beta).loss(seen)
        elif self.objective == "nft":
            told = NFT(beta=self.beta, bound=1.0, kl=0.0).loss(seen)
        else:  # z is of all that meet here, not of a pair
            told = KTO(beta=self.beta).loss(replace(seen, group=torch.zeros_like(seen.group)))
        return told + 2 * self.anchor * (seen.weight > 0) * seen.error(seen.live)
