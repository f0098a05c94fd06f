"""DRAGON: distributional rewards optimise diffusion models. Bai et al., TMLR 2025, arXiv:2504.15217.

Each round draws samples, builds from them a set D+ and a set D- of which the reward prefers the first, and learns from
their contrast. The reward may judge samples, samples against a set of examples, or whole sets; it needs no gradient.
How the sets are built: set_splits.py. With g = |v_ref - u|^2 - |v - u|^2, how much better than the untrained
model a sample is denoised, the loss is

    dpo   -log sigmoid( beta/2 (g(+) - g(-)) )                                    for a pair, both under the same noise;
    kto   1 - sigmoid( beta (g(+) - z) )  and  1 - sigmoid( beta (z - g(-)) ),    z = max(0, mean g), without gradient,
    nft   |v+ - u|^2 for (+), |v- - u|^2 for (-), of the model that drew them: DiffusionNFT's (nft.py), not the paper's;

plus anchor |v - u|^2 on D+ (TangoFlux, arXiv:2412.21037). Errors are means over dimensions; beta belongs to that
convention. Samples for learning may be drawn in fewer steps than those of use, at little loss (the paper's figure 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Natural, NonNegative, Reward, TrainablePolicy, Trajectory
from workbench.methods.common.demonstrations import build_demonstrations, check_group_size, draw_samples
from workbench.methods.common.forward_process import ForwardProcessMethod
from workbench.methods.common.noised_batch import NoisedBatch
from workbench.methods.common.rollout import count_batches
from workbench.methods.common.set_splits import Demonstrations
from workbench.methods.training.dpo import DPO
from workbench.methods.training.kto import KTO
from workbench.methods.training.nft import NFT


@dataclass(frozen=True)
class DRAGON(ForwardProcessMethod):
    """DRAGON (arXiv:2504.15217): two sets of one's own samples are contrasted,
    chosen by a reward of samples or of whole sets."""

    group: Count = 2
    sampling_steps: Natural = 0  # that samples are drawn in; 0: as in use
    build: Literal["swap", "credit"] = "swap"  # of D+ for rewards of whole sets; those of samples rank
    paired: bool = True  # D+ and D- have each prompt alike; false: they are halves of the whole batch
    contrast: NonNegative = 0.0  # swaps raise F(D+) - contrast F(D-)
    max_sweeps: Count = 3  # of swaps
    keep_fraction: NonNegative = 1.0  # of the pairs that is learnt from: those that differ most
    objective: Literal["kto", "dpo", "nft"] = "kto"  # the loss: KTO's, DPO's, or DiffusionNFT's (not of the paper)
    # of the loss: higher stays nearer to the untrained model (too high, and kto is flat); nft: to the last one, take 1
    beta: NonNegative = 100.0
    anchor: NonNegative = 0.0  # weight of D+'s own denoising loss
    lr: NonNegative = 1e-4
    schedule_skip: NonNegative = 0.0  # share of the schedule, from its noisy end, where a pair says little and is loud
    schedule_fraction: NonNegative = 1.0  # of the rest that is trained, from its noisy end
    prompts_per_pass: Natural = 0  # prompts, and in updates pairs, that go through the denoiser together; 0: all

    paper = "arXiv:2504.15217"
    optimises_sets = same_eps = True
    advantage = "whole"
    former_names = ForwardProcessMethod.former_names | dict(
        steps="sampling_steps", sweeps="max_sweeps", keep="keep_fraction", skip="schedule_skip"
    )

    def __post_init__(self) -> None:
        check_group_size(self)

    def calls(self, steps: int) -> int:
        """At most: pairs that don't differ cost nothing in an update."""
        times = self.count_levels(steps - self.skipped_levels(steps))[1]
        return self.group * ((self.sampling_steps or steps) + 2 * self.optimizer_steps * times)

    def skipped_levels(self, steps: int) -> int:
        return min(int(self.schedule_skip * steps), steps - 1)

    def copies(self) -> dict[str, float | None]:
        return {"old" if self.objective == "nft" else "reference": self.guidance}

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in count_batches(batches):
            if self.objective == "nft":
                policy.follow("old", 0.0)  # the model that these samples are of
            path = draw_samples(self, policy, batch)
            sets, scores, metrics = build_demonstrations(self, reward, path, batch.seeds[0])
            metrics |= {"loss": 0.0, "taught": 2 * len(sets.up) / len(scores)}
            # without pairs, what other batches gathered may still be due
            metrics |= self.learn_pairs(policy, path, sets) if len(sets.up) else {"grad_norm": policy.update()}
            yield Event(k, metrics, path.media, path.prompts, path.seeds, {"reward": scores})

    def learn_pairs(self, policy: TrainablePolicy, path: Trajectory, sets: Demonstrations) -> dict[str, float]:
        """A batch's updates, from its pairs side by side."""
        rows = torch.stack([sets.up, sets.down], 1).flatten()  # [2P]: + - + - ...
        seeds, prompts = (tuple(values[n] for n in rows.tolist()) for values in (path.seeds, path.prompts))
        sides = replace(path, prompts=prompts, seeds=seeds, x=path.x[rows.to(path.x.device)])
        sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=path.x.device).repeat(len(sets.up))
        pairs, batch, first = replace(self, group=2), Batch(prompts[::2], seeds[::2]), self.skipped_levels(policy.steps)
        for u in range(self.optimizer_steps):
            metrics = defaultdict[str, float](float)
            for i, part, share in pairs.level_batches(sign, batch, policy.steps - first, u):
                noised = pairs.predict_noised(policy, sides, sign, batch, first + i, part, u)
                policy.backward(loss := self.loss(noised).sum() * share / len(rows))
                metrics["loss"] += loss.item()
                metrics["agrees"] += noised.preference_accuracy() * share / len(rows)
                metrics["winner_drift"] += noised.winner_drift() * share / len(sets.up)
            norm = policy.update()
        return {**metrics, "grad_norm": norm}

    def loss(self, batch: NoisedBatch) -> Tensor:
        """[n]; the denoising loss of D+ counts twice, for it is a mean over D+ and the rest one over both."""
        if self.objective == "dpo":
            loss = DPO(beta=self.beta).loss(batch)
        elif self.objective == "nft":
            loss = NFT(beta=self.beta, advantage_clip=1.0, kl=0.0).loss(batch)
        else:  # z is of all that meet here, not of a pair
            loss = KTO(beta=self.beta).loss(replace(batch, group=torch.zeros_like(batch.group)))
        return loss + 2 * self.anchor * (batch.weight > 0) * batch.error(batch.live)
