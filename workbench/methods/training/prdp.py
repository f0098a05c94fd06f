"""PRDP: proximal reward difference prediction. Deng et al., CVPR 2024, arXiv:2402.08714, Eq. 9-13, Algorithm 1.

At the optimum of the KL-regularised reward, r(a) - r(b) = beta (rhat(a) - rhat(b)) for any two samples of a prompt,
where rhat = sum_i log p(x_{i+1} | x_i) / p_ref(x_{i+1} | x_i). So the differences are regressed, over all pairs of a
group:

    L = ( rhat(a) - rhat(b) - (r(a) - r(b)) / beta )^2,

and the larger of this and the same with every step's log-ratio held within clip of where it was when the batch was
drawn: nothing is gained by leaving the vicinity of the old weights. Supervised, so stable where policy gradients
collapse; the constant of the prompt cancels. L depends on the weights through rhat alone: its gradient in each step's
log-ratio is found first, and then spent on one step at a time, so memory does not grow with the steps. Log-densities
are means over dimensions; beta and clip belong to that convention, and beta to the reward's scale.

Not in the paper: window `fast`, where a prompt's samples are one up to a branch point and random for a few steps alone,
as in Flow-GRPO-Fast. What cancels is then the constant of prompt and branch point; the many late steps, whose
log-ratios are large and whose choices are small, are left out of rhat, and an update costs a fraction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, NonNegative, Policy, Reward, TrainablePolicy, Trajectory
from workbench.methods.common.denoising_chain import ChainMethod, predict_step
from workbench.methods.common.rollout import count_batches, score_samples, stochastic_steps


@dataclass(frozen=True)
class PRDP(ChainMethod):
    """Proximal reward difference prediction (arXiv:2402.08714): regress differences of reward on ratios of density."""

    group: Count = 16  # samples a prompt; all their pairs are compared
    beta: NonNegative = 10.0  # of the KL to the reference: higher stays nearer
    clip_range: NonNegative = 1e-4  # how far a step's log-ratio may go in a batch
    window: Literal["all", "fast"] = "all"  # random steps: the kernel's, or a few from a branch point on
    window_size: Count = 4  # window fast: random steps
    lr: NonNegative = 1e-4
    optimizer_steps: Count = 4

    paper = "arXiv:2402.08714"
    former_names = ChainMethod.former_names | {"width": "window_size"}

    def calls(self, steps: int) -> int:
        """At most, and for a kernel that is random at all steps but the last."""
        n = steps - 1 if self.window == "all" else self.window_size
        return self.group * (steps + (1 + 2 * self.optimizer_steps) * n)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in count_batches(batches):
            path = self.sample_chains(policy, batch, k)
            steps, scored, norm, total = stochastic_steps(path), score_samples(reward, path, self.group), 0.0, 0.0
            a = scored.advantage("centre")
            rows = (~a.isnan()).nonzero().flatten()
            if len(rows):
                parts = rows.split((self.prompts_per_pass or len(batch)) * self.group)
                with torch.no_grad(), policy.reference():
                    base = chain_log_probs(policy, path, steps, parts)  # [n,T]
                old = None
                for _ in range(self.optimizer_steps):
                    with torch.no_grad():
                        live = chain_log_probs(policy, path, steps, parts) - base
                    old = live.clone() if old is None else old  # the first update still has the weights that drew
                    loss = difference_loss(live.requires_grad_(), old, scored.reward[rows], rows // self.group, self)
                    (pull,) = torch.autograd.grad(loss, live)  # [n,T]
                    for t, i in enumerate(steps):
                        for part, weight in zip(parts, pull[:, t].split([len(p) for p in parts]), strict=True):
                            policy.backward((weight * step_log_prob(policy, path, i, part)).sum())
                    norm, total = policy.update(), loss.item()
            else:
                norm = policy.update()  # what other batches gathered may be due
            yield scored.event(k, a, norm, loss=total)


def difference_loss(live: Tensor, old: Tensor, reward: Tensor, group: Tensor, settings: PRDP) -> Tensor:
    """[]: Eq. 13, mean over the pairs of a group. live, old: log-ratios [n,T] of the steps; reward, group: [n]."""
    clipped = old + (live - old).clamp(-settings.clip_range, settings.clip_range)

    def square_miss(log_ratio: Tensor) -> Tensor:  # [n,n]
        score = log_ratio.sum(1) - reward / settings.beta
        return (score[:, None] - score[None]).square()

    pairs = (group[:, None] == group[None]).triu(1)
    return torch.maximum(square_miss(live), square_miss(clipped))[pairs].mean()


def chain_log_probs(policy: Policy, path: Trajectory, steps: tuple[int, ...], parts: tuple[Tensor, ...]) -> Tensor:
    """[n,T]: log-density of each step of the rows in `parts`."""
    return torch.stack([torch.cat([step_log_prob(policy, path, i, rows) for rows in parts]) for i in steps], 1)


def step_log_prob(policy: Policy, path: Trajectory, i: int, rows: Tensor) -> Tensor:
    """[n]: log p(x_{i+1} | x_i)."""
    return predict_step(policy, path, i, rows).log_prob(path.x[rows, i + 1])
