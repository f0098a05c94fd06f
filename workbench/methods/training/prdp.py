"""PRDP: proximal reward difference prediction. Deng et al., CVPR 2024, arXiv:2402.08714, Eq. 9-13, Algorithm 1.

At the optimum of the KL-regularised reward, r(a) - r(b) = beta (rhat(a) - rhat(b)) for any two samples of a prompt, where
rhat = sum_i log p(x_{i+1} | x_i) / p_ref(x_{i+1} | x_i). So the differences are regressed, over all pairs of a group:

    L = ( rhat(a) - rhat(b) - (r(a) - r(b)) / beta )^2,

and the larger of this and the same with every step's log-ratio held within clip of where it was when the batch was drawn: nothing
is gained by leaving the vicinity of the old weights. Supervised, so stable where policy gradients collapse; the constant of the
prompt cancels. L depends on the weights through rhat alone: its gradient in each step's log-ratio is found first, and then spent
on one step at a time, so memory does not grow with the steps. Log-densities are means over dimensions; beta and clip belong to
that convention, and beta to the reward's scale.

Not in the paper: window `fast`, where a prompt's samples are one up to a branch point and random for a few steps alone, as in
Flow-GRPO-Fast. What cancels is then the constant of prompt and branch point; the many late steps, whose log-ratios are large and
whose choices are small, are left out of rhat, and an update costs a fraction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Natural, NonNegative, Reward, TrainablePolicy, Trajectory
from workbench.methods.common.rollout import NEEDS, judge, noisy, random, roll
from workbench.methods.common.windows import branch


@dataclass(frozen=True)
class PRDP:
    """Proximal reward difference prediction (arXiv:2402.08714): regress differences of reward on ratios of density."""

    group: Count = 16  # samples a prompt; all their pairs are compared
    beta: NonNegative = 10.0  # of the KL to the reference: higher stays nearer
    clip: NonNegative = 1e-4  # how far a step's log-ratio may go in a batch
    window: Literal["all", "fast"] = "all"  # random steps: the kernel's, or a few from a branch point on
    width: Count = 4  # window fast: random steps
    lr: NonNegative = 1e-4  # step size of AdamW
    updates: Count = 4  # per batch
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all

    needs = NEEDS
    scales = ""
    paper = "arXiv:2402.08714"

    def check(self, pipeline, reward, lora) -> None:
        if self.window == "all":
            random(pipeline, reward, lora)

    def calls(self, steps: int) -> int:
        """At most, and for a kernel that is random at all steps but the last."""
        some = steps - 1 if self.window == "all" else self.width
        return self.group * (steps + (1 + 2 * self.updates) * some)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            path = self.draw(policy, batch)
            steps, judged, norm, total = noisy(path), judge(reward, path, self.group), 0.0, 0.0
            a = judged.advantage("centre")
            rows = (~a.isnan()).nonzero().flatten()
            if len(rows):
                parts = rows.split((self.at_once or len(batch)) * self.group)
                with torch.no_grad(), policy.reference():
                    base = density(policy, path, steps, parts)  # [n,T]
                old = None
                for _ in range(self.updates):
                    with torch.no_grad():
                        now = density(policy, path, steps, parts) - base
                    old = now.clone() if old is None else old  # the first update still has the weights that drew
                    loss = difference_loss(now.requires_grad_(), old, judged.reward[rows], rows // self.group, self)
                    (pull,) = torch.autograd.grad(loss, now)  # [n,T]
                    for t, i in enumerate(steps):
                        for part, weight in zip(parts, pull[:, t].split([len(p) for p in parts]), strict=True):
                            policy.backward((weight * step_density(policy, path, i, part)).sum())
                    norm, total = policy.update(), loss.item()
            else:
                norm = policy.update()  # what other batches gathered may be due
            yield judged.event(k, a, norm, loss=total)

    def draw(self, policy, batch: Batch) -> Trajectory:
        if self.window == "fast":
            return branch(policy, batch, self.group, self.width, self.at_once)
        return roll(policy, batch, self.group, self.at_once)


def difference_loss(now: Tensor, old: Tensor, reward: Tensor, group: Tensor, settings: PRDP) -> Tensor:
    """[]: Eq. 13, mean over the pairs of a group. now, old: log-ratios [n,T] of the steps; reward, group: [n]."""
    held = old + (now - old).clamp(-settings.clip, settings.clip)

    def miss(log_ratio: Tensor) -> Tensor:  # [n,n]
        score = log_ratio.sum(1) - reward / settings.beta
        return (score[:, None] - score[None]).square()

    pairs = (group[:, None] == group[None]).triu(1)
    return torch.maximum(miss(now), miss(held))[pairs].mean()


def density(policy, path: Trajectory, steps: tuple[int, ...], parts: tuple[Tensor, ...]) -> Tensor:
    """[n,T]: log-density of each step of the rows in `parts`."""
    return torch.stack([torch.cat([step_density(policy, path, i, rows) for rows in parts]) for i in steps], 1)


def step_density(policy, path: Trajectory, i: int, rows: Tensor) -> Tensor:
    """[n]: log p(x_{i+1} | x_i)."""
    law = policy.transition(path.x[rows, i], i, [path.prompts[n] for n in rows.tolist()])
    return law.log_prob(path.x[rows, i + 1])
