"""The base of methods on the forward process: samples are noised again, denoised, and the errors weighted.

    a batch   G samples per prompt by any solver; only the clean latents x0 and the advantages A are used
    an update for some levels i: x_i = a_i x0 + s_i eps, and the method's loss of the predictions by live, old and
              reference weights

The samples of a prompt are noised to the same levels, those of different prompts to different ones. Pairs of media
(PairBatch) are groups of two with rewards 1 and 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Natural, NonNegative, Reward, TrainablePolicy, Trajectory
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.noised_batch import NoisedBatch, draw_levels
from workbench.methods.common.rollout import NEEDS, count_batches
from workbench.methods.common.schedule import alpha_sigma
from workbench.methods.common.training_data import collect_batch, using_weights


@dataclass(frozen=True)
class ForwardProcessMethod(MethodDefaults):
    """The settings and the training loop that these methods share. Each defines `loss`, and overrides what differs."""

    group: Count = 24  # samples per prompt
    lr: NonNegative = 3e-4  # step size of AdamW
    optimizer_steps: Count = 1  # per batch
    levels_per_sample: Natural = 0  # noise levels per sample in an update; 0: all
    schedule_fraction: NonNegative = 1.0  # share of the schedule to train on, from its noisy end
    guidance: float | None = None  # guidance scale in training; not given: as in sampling
    prompts_per_pass: Natural = 0  # prompts whose groups go through the denoiser together; 0: all

    needs = NEEDS
    samples = "train"  # "train", "old" or "reference": which weights sample
    same_eps = False  # whether the samples of a prompt get the same noise
    advantage = "centre"
    former_names = {
        "updates": "optimizer_steps",
        "times": "levels_per_sample",
        "share": "schedule_fraction",
        "at_once": "prompts_per_pass",
    }

    def loss(self, batch: NoisedBatch) -> Tensor:  # [n]
        raise NotImplementedError

    def weigh(self, advantage: Tensor) -> Tensor:  # [N] -> weights [N]; NaN leaves a sample out
        return advantage

    def copies(self) -> dict[str, float | None]:  # which weights besides the live ones predict, and their guidance
        return {"reference": self.guidance}

    def decay(self, k: int) -> float:  # of the old copy after batch k
        return 1.0

    def count_levels(self, steps: int) -> tuple[int, int]:  # (trained levels, levels per sample and update)
        count = max(1, int(self.schedule_fraction * steps))
        return count, min(self.levels_per_sample or count, count)

    def calls(self, steps: int) -> int:  # at most: samples left out of an update cost nothing
        times = self.count_levels(steps)[1]
        return self.group * (steps + self.optimizer_steps * times * (1 + len(self.copies())))

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        if "old" in self.copies():
            policy.follow("old", 1.0)  # starts at the live weights, unless a resumed run has a copy
        for k, batch in count_batches(batches):
            scored = collect_batch(policy, reward, batch, self.group, self.samples, self.prompts_per_pass)
            method = self if scored.group == self.group else replace(self, group=scored.group)
            weight = method.weigh(scored.advantage(self.advantage))  # [N]
            n, winners = int((~weight.isnan()).sum()), int((weight > 0).sum())
            for u in range(self.optimizer_steps):  # even if all weights are NaN: gradients of other batches may be due
                metrics = defaultdict[str, float](float, loss=0.0)
                for i, rows, share in method.level_batches(weight, batch, policy.steps, u):
                    noised = method.predict_noised(policy, scored.path, weight, batch, i, rows, u)
                    policy.backward(loss := method.loss(noised).sum() * share / n)
                    metrics["loss"] += loss.item()
                    if not scored.from_policy:
                        metrics["agrees"] += noised.preference_accuracy() * share / n
                    if self.learns_from_pairs and winners:
                        metrics["winner_drift"] += noised.winner_drift() * share / winners
                norm = policy.update()
            if "old" in self.copies():
                policy.follow("old", self.decay(k))
            yield scored.event(k, weight, norm, **metrics)

    def level_batches(self, weight: Tensor, batch: Batch, steps: int, u: int) -> Iterator[tuple[int, Tensor, float]]:
        """(level, rows [n], their share of the update): each row at as many levels, which its prompt's seed selects."""
        count, times = self.count_levels(steps)
        for i, prompts in sorted(draw_levels(batch.seeds, count, times, u).items()):
            for part in torch.tensor(prompts).split(self.prompts_per_pass or len(batch)):
                rows = (part[:, None] * self.group + torch.arange(self.group)).flatten()
                if len(rows := rows[~weight.cpu()[rows].isnan()]):
                    yield i, rows, 1 / times

    def predict_noised(
        self, policy: TrainablePolicy, path: Trajectory, weight: Tensor, batch: Batch, i: int, rows: Tensor, u: int
    ) -> NoisedBatch:
        """Rows [n] of `path` noised to level i in update u, and denoised by the live weights and those of `copies`."""
        x0, group = path.x[rows, -1].detach().float(), rows // self.group
        prompts = [path.prompts[n] for n in rows]
        seeds = [batch.seeds[b] if self.same_eps else path.seeds[n] for n, b in zip(rows, group, strict=True)]
        x = policy.noised(x0, i, seeded_normal(seeds, x0.shape[1:], "eps", i, u).to(x0))
        predictions = {}
        for name, guidance in self.copies().items():
            with torch.no_grad(), using_weights(policy, name):
                predictions[name] = policy.predict(x, i, prompts, guidance).x0
        live = policy.predict(x, i, prompts, self.guidance).x0
        s = alpha_sigma(policy, i)[1]
        return NoisedBatch(x0, s, policy.output_scale(i), weight[rows], group.to(x0.device), live, **predictions)
