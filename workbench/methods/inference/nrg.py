"""Flow-NRG: guidance by a reward that was trained on noisy latents. Liu et al. 2025, arXiv:2501.13918.

The judge reads the state x_i itself at its noise level, so a step costs one denoiser call and a small gradient: no
decoding, no backward pass through the denoiser. Of flow matching, with s from 1 to 0,

    v <- v - scale * s / (1 - s) * sum_k w_k grad_{x_i} r_k(x_i, s, prompt);

s / (1 - s) diverges in pure noise and is capped. Written for any x_i = a x0 + s eps as a move of the predicted x0 by
s * (s / a) * grad (guided_step.py). The objectives' weights are chosen at sampling time. rewards.latent_training trains
such a reward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, Natural, NonNegative, Policy, Reward, derive_seed
from workbench.methods.common import guided_step
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.schedule import alpha_sigma


@runtime_checkable
class NoisyJudge(Protocol):
    """A reward on noisy latents, with a gradient; one row's scores do not depend on the other rows."""

    objectives: tuple[str, ...]  # K

    def check(self, latent: Sequence[int]) -> None: ...  # raises BadInput unless it reads latents of this shape

    def __call__(self, x: Tensor, a: float, s: float, prompts: Sequence[str]) -> Tensor: ...  # [B,K], x = a x0 + s eps


@dataclass(frozen=True)
class NRG(MethodDefaults):
    """Flow-NRG: guidance by a reward trained on noisy latents, its objectives weighted at sampling time."""

    model: str | NoisyJudge = ""  # the file of a latent reward, see rewards/latent.py
    weights: dict | None = None  # objective -> weight, others 0; without any: 1 each
    scale: float = 0.1  # how hard; with normalise none an inverse temperature: the target is p(x) exp(scale * reward)
    normalise: Literal["none", "unit"] = "unit"  # unit: x0 moves by scale * s / |(a, s)| a value, rms
    base: Literal["ode", "sde"] = "ode"  # the deterministic first-order step, or the policy's Gaussian one
    start: NonNegative = 0.0  # guidance begins after this share of the steps
    stop: NonNegative = 1.0  # and ends after this one
    cap: NonNegative = 10.0  # bound on s / a, which diverges in pure noise; has no part in unit
    every: Natural = 0  # show and judge the predicted clean sample every so many steps; 0: the finished one only

    needs = frozenset({"latents", "stochastic", "reward"})
    yields_predictions = True  # its media on the way are what a chain under way is going to be, not samples
    paper = "arXiv:2501.13918"
    measured = "raises neither its reward nor the oracle"

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            self.objective_weights()  # raises BadInput before anything is loaded

    def calls(self, steps: int) -> int:
        return steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        """Raises BadInput without a judge, for one of other latents, and for weights of objectives that it has not."""
        weights = self.objective_weights()
        for batch in batches:
            generators = [torch.Generator().manual_seed(derive_seed(s, "nrg")) for s in batch.seeds]
            x, step = policy.start(policy.noise(batch.seeds), batch.prompts).float(), 0
            self.judge().check(x.shape[1:])
            for i in range(policy.steps):
                with torch.no_grad():
                    law = guided_step.base_step(policy, x, i, batch.prompts, self.base)
                if guided_step.in_window(i, policy.steps, self.start, self.stop):
                    law = guided_step.shift_prediction(
                        policy, law, i, self.guidance_delta(x, *alpha_sigma(policy, i), batch.prompts, weights)
                    )
                x = law.sample(generators)
                if self.every and (i + 1) % self.every == 0 and i + 1 < policy.steps:
                    preview = guided_step.final_event(policy, reward, law.x0, batch, step)
                    yield Event(step, preview.metrics, preview.media, batch.prompts, batch.seeds, preview.scores)
                    step += 1
            yield guided_step.final_event(policy, reward, x, batch, step)

    def judge(self) -> NoisyJudge:
        if isinstance(self.model, str):
            raise BadInput("nrg: give `model`, the file of a latent reward; rewards/latent.py trains one")
        return self.model

    def objective_weights(self) -> list[float]:
        """[K]: the weight of each of the judge's objectives."""
        objectives = self.judge().objectives
        weights = dict.fromkeys(objectives, 1.0) if self.weights is None else self.weights
        if unknown := [name for name in weights if name not in objectives]:
            raise BadInput(f"nrg: no objective {unknown[0]!r} in this latent reward; it has {', '.join(objectives)}")
        return [float(weights.get(name, 0.0)) for name in objectives]

    def guidance_delta(self, x: Tensor, a: float, s: float, prompts: Sequence[str], weights: Sequence[float]) -> Tensor:
        """[B,*latent]: how far the predicted x0 moves at x_i = x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            r = self.judge()(x, a, s, prompts)  # [B,K]
            (g,) = torch.autograd.grad((r * r.new_tensor(weights)).sum(), x)
        pull = (
            guided_step.unit_rms(g) * (s / math.hypot(a, s))
            if self.normalise == "unit"
            else g * (s * guided_step.capped_noise_ratio(a, s, self.cap))
        )
        return guided_step.zero_nonfinite(self.scale * pull)
