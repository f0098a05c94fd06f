"""D3PO: preferences over whole denoising chains. Yang et al., CVPR 2024, arXiv:2311.13231, Eq. 14 and Algorithm 1.

The best and the worst of a prompt's samples are a pair (w, l),
and every random step of their chains is preferred alike:

    L = mean over steps of  -log sigmoid( beta ( log clip(rho_w) - log clip(rho_l) ) ),

of rho = p / p_ref of x_{i+1} given x_i,
with rho clipped to 1 +- c and densities by their mean over dimensions. Unlike DPO on noised samples it needs a random
kernel, and what it compares is what was really drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, NonNegative, Reward, TrainablePolicy, Trajectory
from workbench.methods.common import losses
from workbench.methods.common.denoising_chain import ChainMethod, predict_step
from workbench.methods.common.rollout import count_batches, score_samples, stochastic_steps
from workbench.methods.training.dpo import DPO


@dataclass(frozen=True)
class D3PO(ChainMethod):
    """Direct preference for denoising policies (arXiv:2311.13231): the best chain over the worst, step by step."""

    group: Count = 2  # samples a prompt, of which the best and the worst are a pair
    beta: NonNegative = 0.1  # higher stays nearer to the reference; up to 1, with clip 0.1, it only scales the loss
    clip_range: NonNegative = 0.1  # of the density ratio to the reference
    lr: NonNegative = 3e-5

    paper = "arXiv:2311.13231"

    def calls(self, steps: int) -> int:
        """At most, and for a kernel that is random at all steps but the last."""
        return self.group * steps + 4 * self.optimizer_steps * (steps - 1)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in count_batches(batches):
            path = self.sample_chains(policy, batch, k)
            steps, scored, norm, total = stochastic_steps(path), score_samples(reward, path, self.group), 0.0, 0.0
            sign = DPO(group=self.group).weigh(scored.advantage("centre"))  # 1 best, -1 worst, else NaN
            pairs = torch.stack([(sign == 1).nonzero().flatten(), (sign == -1).nonzero().flatten()], 1)  # [P,2]
            for _ in range(self.optimizer_steps):  # also without pairs: what other batches gathered may be due
                total, drift = 0.0, 0.0
                for i in steps if len(pairs) else ():
                    for part in pairs.split(self.prompts_per_pass or len(batch)):
                        score = self.log_ratio(policy, path, i, part.flatten()).view(-1, 2)
                        loss = losses.preference_loss(self.beta * (score[:, 0] - score[:, 1])).sum()
                        count = len(pairs) * len(steps)
                        policy.backward(loss := loss / count)
                        total += loss.item()
                        drift += (score[:, 0] < 0).sum().item() / count  # steps of winners that are less likely now
                norm = policy.update()
            yield scored.event(k, sign, norm, loss=total, winner_drift=drift)

    def log_ratio(self, policy: TrainablePolicy, path: Trajectory, i: int, rows: Tensor) -> Tensor:
        """[n]: log clip(p / p_ref) of step i."""
        x_next = path.x[rows, i + 1]
        with torch.no_grad(), policy.reference():
            base = predict_step(policy, path, i, rows).log_prob(x_next)
        ratio = predict_step(policy, path, i, rows).log_prob(x_next) - base
        low = math.log1p(-self.clip_range) if self.clip_range < 1 else -math.inf
        return ratio.clamp(low, math.log1p(self.clip_range))  # a far one's exp() would be inf, and its gradient NaN
