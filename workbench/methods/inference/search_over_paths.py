"""Search over paths. Ma et al. 2025, arXiv:2501.09732, section 3.2.

Noise a good sample back to an earlier index, denoise it again several ways, keep the best: later decisions of the chain
are searched while what was decided before that index is kept. The paper goes from noise level sigma up by delta_f and
down by delta_b, and judges there by the x0-prediction; with delta_f = 0.78 and delta_b = 0.81 of the whole range that
is all but the end of the chain. Here each branch goes to the end, which costs these few steps and leaves no prediction
between the reward and what it judges, also on schedules of a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Natural, NonNegative, Policy, Reward, derive_seed
from workbench.methods.common.best_sample import BestSample, seeded_normal
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.schedule import ode_step_from


@dataclass(frozen=True)
class SearchOverPaths(MethodDefaults):
    """Search over paths (arXiv:2501.09732): noise the best samples back, denoise them several ways, keep the best."""

    paths: Count = 2  # samples that survive a round, per prompt; the paper's N
    branches: Count = 2  # new ways tried from each of them; the paper's M
    rounds: Natural = 4  # times that the survivors are noised back
    renoise_fraction: NonNegative = (
        0.78  # share of the schedule that is walked again (the paper's delta_f); 1 starts from noise
    )

    needs = frozenset({"latents", "stochastic", "reward"})
    scales = "rounds"
    scales_in_turns = True
    paper = "arXiv:2501.09732"
    measured = "no difference from best_of_n shown at equal calls"
    former_names = {"back": "renoise_fraction"}

    def calls(self, steps: int) -> int:
        return self.paths * (steps + self.rounds * self.branches * (steps - self.renoise_index(steps)))

    def renoise_index(self, steps: int) -> int:
        """The index to which samples are noised back: at least the last step is walked again."""
        return max(0, min(steps - 1, steps - round(self.renoise_fraction * steps)))

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            best, step, last = BestSample(batch), 0, self.paths * (1 + self.rounds * self.branches) - 1
            clean: list[Tensor] = []  # candidates [B,*latent] in the order of their birth, and
            scores: list[Tensor] = []  # what the reward says of them, each [B]
            for k in range(self.paths):
                seeds = batch.seeds if k == 0 else [derive_seed(s, "path", k) for s in batch.seeds]
                chain = policy.sample(batch.prompts, seeds=seeds)
                scores.append(reward(media=chain.media, prompts=batch.prompts))
                clean.append(chain.x[:, -1].float())
                best.take(chain.media, scores[-1])
                yield best.event(step, final=step == last)
                step += 1
            for _ in range(self.rounds):
                for parent in list(clean):
                    for _ in range(self.branches):
                        x0 = redenoise(policy, parent, self.renoise_index(policy.steps), batch, step)
                        media = policy.decode(x0, batch.prompts)
                        scores.append(reward(media=media, prompts=batch.prompts))
                        clean.append(x0)
                        best.take(media, scores[-1])
                        yield best.event(step, final=step == last)
                        step += 1
                clean, scores = select_best(clean, scores, self.paths)


def redenoise(policy: Policy, x0: Tensor, i: int, batch: Batch, draw: int) -> Tensor:
    """Clean latents [B,*latent]: x0 noised to index i afresh, then first-order deterministic steps to the end."""
    x = policy.noised(x0, i, seeded_normal(batch.seeds, x0.shape[1:], "branch", draw).to(x0))
    for k in range(i, policy.steps):
        x = ode_step_from(policy, x, k, batch.prompts)
    return x


def select_best(clean: list[Tensor], scores: list[Tensor], n: int) -> tuple[list[Tensor], list[Tensor]]:
    """The n best candidates of each row, best first; equals stay in order, those without a finite score come last."""
    rewards = torch.stack(scores)  # [K,B]
    order = rewards.where(rewards.isfinite(), -math.inf).argsort(dim=0, descending=True, stable=True)[:n]
    row = torch.arange(rewards.shape[1], device=rewards.device)
    return list(torch.stack(clean)[order, row]), list(rewards[order, row])
