"""DDPO: denoising diffusion policy optimisation. Black et al., ICLR 2024, arXiv:2305.13301, Eq. 5 (DDPO-IS).

The chain is a Markov decision process whose last state is judged, and PPO climbs the reward, as in grpo, by

    L = mean over samples and steps of  max(-A rho, -A clip(rho, 1 - c, 1 + c)),

with A the reward standardised over the whole batch: no groups, so a batch of few prompts confuses a hard prompt with a
bad sample (the authors' statistics per prompt, kept over rounds, are not here: use groups). No KL, the raw ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.core.types import Count, NonNegative
from workbench.methods.common.rollout import Advantage
from workbench.methods.training.grpo import GRPO


@dataclass(frozen=True)
class DDPO(GRPO):
    """Denoising diffusion policy optimisation (arXiv:2305.13301): PPO on the chain; needs a random kernel."""

    group: Count = 1
    kl: NonNegative = 0.0
    ratio: Literal["guard", "raw"] = "raw"
    advantage: Advantage = "whole"

    paper = "arXiv:2305.13301"
