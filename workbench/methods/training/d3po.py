"""D3PO: preferences over whole denoising chains. Yang et al., CVPR 2024, arXiv:2311.13231, Eq. 14 and Algorithm 1.

The best and the worst of a prompt's samples are a pair (w, l), and every random step of their chains is preferred alike:

    L = mean over steps of  -log sigmoid( beta ( log clip(rho_w) - log clip(rho_l) ) ),    rho = p / p_ref of x_{i+1} given x_i,

with rho clipped to 1 +- c and densities by their mean over dimensions. Unlike DPO on noised samples it needs a random kernel,
and what it compares is what was really drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from workbench.core.types import Batch, Count, Event, Natural, NonNegative, Reward, TrainablePolicy
from workbench.methods.common import losses
from workbench.methods.common.rollout import NEEDS, judge, noisy, random, roll
from workbench.methods.training.dpo import DPO


@dataclass(frozen=True)
class D3PO:
    """Direct preference for denoising policies (arXiv:2311.13231): the best chain over the worst, step by step."""

    group: Count = 2  # samples a prompt, of which the best and the worst are a pair
    beta: NonNegative = 0.1  # higher stays nearer to the reference; up to 1, with clip 0.1, it only scales the loss
    clip: NonNegative = 0.1  # of the density ratio to the reference
    lr: NonNegative = 3e-5  # step size of AdamW
    updates: Count = 1  # per batch
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all

    needs = NEEDS
    scales = ""
    paper = "arXiv:2311.13231"

    check = staticmethod(random)

    def calls(self, steps: int) -> int:
        """At most, and for a kernel that is random at all steps but the last."""
        return self.group * steps + 4 * self.updates * (steps - 1)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            path = roll(policy, batch, self.group, self.at_once)
            steps, judged, norm, total = noisy(path), judge(reward, path, self.group), 0.0, 0.0
            sign = DPO(group=self.group).weigh(judged.advantage("centre"))  # 1 best, -1 worst, else NaN
            pairs = torch.stack([(sign == 1).nonzero().flatten(), (sign == -1).nonzero().flatten()], 1)  # [P,2]
            for _ in range(self.updates):  # also where nothing is taught: what other batches gathered may be due
                total = 0.0
                for i in steps if len(pairs) else ():
                    for few in pairs.split(self.at_once or len(batch)):
                        score = self.log_ratio(policy, path, i, few.flatten()).view(-1, 2)
                        loss = losses.preference(self.beta * (score[:, 0] - score[:, 1])).sum()
                        loss = loss / (len(pairs) * len(steps))
                        policy.backward(loss)
                        total += loss.item()
                norm = policy.update()
            yield judged.event(k, sign, norm, loss=total)

    def log_ratio(self, policy, path, i, rows):
        """[n]: log clip(p / p_ref) of step i."""
        x, x_next, prompts = path.x[rows, i], path.x[rows, i + 1], [path.prompts[n] for n in rows.tolist()]
        with torch.no_grad(), policy.reference():
            base = policy.transition(x, i, prompts).log_prob(x_next)
        ratio = policy.transition(x, i, prompts).log_prob(x_next) - base
        low = math.log1p(-self.clip) if self.clip < 1 else -math.inf
        return ratio.clamp(low, math.log1p(self.clip))  # a far one's exp() would be inf, and its gradient NaN
