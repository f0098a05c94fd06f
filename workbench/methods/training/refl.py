"""ReFL: reward feedback learning. Xu et al., NeurIPS 2023, arXiv:2304.05977, Algorithm 1.

The chain runs without gradient to a random late step, one step's x0-prediction is decoded and judged with gradient, and a sample
that is good enough teaches no more:

    L = weight max(0, enough - r( decode(x0(x_i)) )),        i uniform over the late steps.

Late enough that the prediction is sharp, early enough that there is still something to decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.core.types import BadInput, Batch, Event, NonNegative, Reward, TrainablePolicy, derive
from workbench.methods.training.direct import NEEDS, climb, taught


@dataclass(frozen=True)
class ReFL:
    """Reward feedback learning (arXiv:2304.05977): the reward's gradient through the x0-prediction of one late step."""

    first: NonNegative = 0.75  # the step is drawn from here, as a share of the chain
    end: NonNegative = 1.0  # to before here
    enough: float = 2.0  # rewards above teach no more, in their own units (ImageReward's: 2); a large number: no limit
    lr: NonNegative = 1e-5  # step size of AdamW

    needs = NEEDS | {"stochastic"}
    scales = ""
    paper = "arXiv:2304.05977"

    def __post_init__(self):
        if not self.first < self.end <= 1:
            raise BadInput(
                f"method: first {self.first} and end {self.end} are shares of the chain: set first < end <= 1"
            )

    def calls(self, steps: int) -> int:
        return steps + 1

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            low = min(math.floor(self.first * policy.steps), policy.steps - 1)
            i = low + derive(batch.seeds[0], "late") % max(1, round(self.end * policy.steps) - low)
            with policy.merged():
                x = policy.sample(batch.prompts, seeds=batch.seeds).x[:, i].detach()
            media = policy.decode(policy.predict(x, i, batch.prompts).x0, batch.prompts)
            r = climb(policy, reward, media, batch, enough=self.enough)
            yield taught(policy, k, batch, media, r, late=float(i))
