"""InstructVideo: reward fine-tuning as editing. Yuan et al., CVPR 2024, arXiv:2312.12490, section 4.1.

A clip is noised by a part of the chain and only that part is run, without new noise; the last step alone keeps its
gradient, as in DRaFT-1:

    min_theta  -r(x_S(theta), c),        x_{S - renoise_fraction S} = a x0 + s eps.

The paper edits clips of a data set in 12 of 20 steps. `clips` are such clips; without them x0 are samples of the
untrained model, made once a prompt. With samples_per_prompt 0 they are drawn anew by the current weights in each batch,
which costs the whole chain every time. Its judge of some frames is the reward `frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.core.types import Batch, Natural, NonNegative, TrainablePolicy
from workbench.methods.common.reward_gradient import NEEDS
from workbench.methods.common.starting_latents import StartingLatents, check_media
from workbench.methods.training.direct import DRaFT


@dataclass(frozen=True)
class InstructVideo(DRaFT):
    """InstructVideo (arXiv:2312.12490): clips are noised by a part of the chain, run again; the last step learns."""

    renoise_fraction: NonNegative = 0.6
    lr: NonNegative = 1e-5
    clips: Any = ""  # a folder of media with their prompts, to begin from; none: samples of the untrained model
    samples_per_prompt: Natural = 1  # such samples, made once; 0: new ones of the current weights in each batch

    needs = NEEDS | {"stochastic"}
    paper = "arXiv:2312.12490"

    def calls(self, steps: int) -> int:
        """At most: samples of the untrained model are made once."""
        return super().calls(steps) - (steps if self.clips else 0)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        if self.clips:
            check_media(self.clips, prompts, "method.clips")

    def clean_latents(self, policy: TrainablePolicy) -> Callable[[Batch], Tensor]:
        if not self.clips and not self.samples_per_prompt:
            return super().clean_latents(policy)
        return StartingLatents(policy, self.clips or None, self.samples_per_prompt)
