"""ReFL: reward feedback learning. Xu et al., NeurIPS 2023, arXiv:2304.05977, Algorithm 1.

The chain runs without gradient to a random late step, one step's x0-prediction is decoded and judged with gradient, and
a sample that is good enough teaches no more:

    L = max(0, reward_threshold - r( decode(x0(x_i)) )),        i uniform over the late steps.

Late enough that the prediction is sharp, early enough that there is still something to decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, NonNegative, Reward, TrainablePolicy, derive_seed
from workbench.methods.common.reward_gradient import NEEDS, GradientMethod, ascend_reward, update_event
from workbench.methods.common.rollout import count_batches


@dataclass(frozen=True)
class ReFL(GradientMethod):
    """Reward feedback learning (arXiv:2304.05977): the reward's gradient through the x0-prediction of one late step."""

    start: NonNegative = 0.75  # the step is drawn from here, as a share of the chain
    end: NonNegative = 1.0  # to before here
    # rewards above teach no more, in their own units (ImageReward's: 2); a large number: no limit
    reward_threshold: float = 2.0

    needs = NEEDS | {"stochastic"}
    paper = "arXiv:2304.05977"
    former_names = {"first": "start", "enough": "reward_threshold"}

    def __post_init__(self):
        if not self.start < self.end <= 1:
            raise BadInput(
                f"method: start {self.start} and end {self.end} are shares of the chain: set start < end <= 1"
            )

    def calls(self, steps: int) -> int:
        return steps + 1

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in count_batches(batches):
            low = min(math.floor(self.start * policy.steps), policy.steps - 1)
            i = low + derive_seed(batch.seeds[0], "late") % max(1, round(self.end * policy.steps) - low)
            with policy.merged():
                x = policy.sample(batch.prompts, seeds=batch.seeds).x[:, i].detach()
            media = policy.decode(policy.predict(x, i, batch.prompts).x0, batch.prompts)
            r = ascend_reward(policy, reward, media, batch, threshold=self.reward_threshold)
            yield update_event(policy, k, batch, media, r, late=float(i))
