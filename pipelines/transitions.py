"""Kernels: Gaussian steps p(x_{i+1} | x_i) in place of a scheduler's own, for steering and policy gradients.

A kernel is first order and Markov whatever the scheduler is: it replaces the steps of a multistep solver
(DPM-Solver++, UniPC) and does not reproduce them. Levels (a, s) now and (a', s') next are those of schedule.py; the
last step, s' = 0, is deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Transition

from .schedule import NoiseLevel, predict_eps, predict_x0


@dataclass(frozen=True)
class Ancestral:
    """DDIM-eta (arXiv:2010.02502, Eq. 16) on VP states, Euler-ancestral on VE ones, the same posterior on flows.

    eta = 1 is the DDPM posterior, eta = 0 the deterministic first-order step.
    """

    eta: float = 1.0
    name: ClassVar[str] = "ancestral"

    def __call__(self, n: NoiseLevel, x: Tensor, out: Tensor) -> Transition:
        ratio = n.a * n.s_next / (n.a_next * n.s) if n.s_next else 0.0
        var = (self.eta * n.s_next) ** 2 * max(1 - ratio**2, 0.0)
        return _step_to_next_level(n, x, out, var)


@dataclass(frozen=True)
class CPS:
    """Coefficients-preserving sampling (arXiv:2509.05952): std = s' sin(eta pi / 2), whatever the step's length.

    Meant for a window of one or two steps: over a whole trajectory it narrows the distribution.
    """

    eta: float = 0.8
    name: ClassVar[str] = "cps"

    def __call__(self, n: NoiseLevel, x: Tensor, out: Tensor) -> Transition:
        return _step_to_next_level(n, x, out, (n.s_next * math.sin(self.eta * math.pi / 2)) ** 2)


@dataclass(frozen=True)
class FlowSDE:
    """Euler-Maruyama on the SDE with the flow's marginals (Flow-GRPO, arXiv:2505.05470, Eq. 9). Flow matching only.

    g = eta sqrt(s / (1 - s)). At s = 1 the next level stands in the denominator, as in the authors' code; so it does
    where a schedule starts within START of 1 (solvers start at 999 of 1,000 times) and its step is far longer than 1 -
    s, over which g would change several-fold.
    """

    eta: float = 0.7
    name: ClassVar[str] = "flow-sde"
    START: ClassVar[float] = 1.1e-3

    def __call__(self, n: NoiseLevel, x: Tensor, out: Tensor) -> Transition:
        if not n.is_flow:
            raise TypeError("the flow-sde kernel needs flow matching (a = 1 - s); use: ancestral")
        if n.s_next > n.s:  # Stable Audio 3 begins so, where it starts from a source
            raise TypeError("the flow-sde kernel needs noise levels that fall, and this schedule has a step that rises")
        x0, eps = predict_x0(n, x, out), predict_eps(n, x, out)
        if not n.s_next:
            return Transition(x0, torch.zeros((), device=x.device), x0)
        dt, to_one = n.s_next - n.s, 1 - n.s
        if to_one < min(self.START, -dt / 4):
            to_one = 1 - n.s_next
        g2 = self.eta**2 * n.s / to_one
        mean = x + (eps - x0 + g2 / (2 * n.s) * eps) * dt  # the score is -eps / s, and eps = x + (1 - s) v
        return Transition(mean, torch.tensor(math.sqrt(g2 * -dt), device=x.device), x0)


Kernel = Ancestral | CPS | FlowSDE
KERNELS = {kind.name: kind for kind in (Ancestral, CPS, FlowSDE)}


def make_kernel(name: str, eta: float | None = None) -> Kernel:
    """A kernel by its name; eta: None for its default. Raises BadInput for an unknown name."""
    if name not in KERNELS:
        raise BadInput(f"kernel: {name!r} is not known; known: {', '.join(KERNELS)}")
    return KERNELS[name]() if eta is None else KERNELS[name](eta)


def _step_to_next_level(n: NoiseLevel, x: Tensor, out: Tensor, var: float) -> Transition:
    """N(a' x0 + sqrt(s'^2 - var) eps, var): the signal and the noise of x_{i+1} are on schedule for any var <= s'^2."""
    x0 = predict_x0(n, x, out)
    mean = n.a_next * x0
    if n.s_next:
        mean = mean + math.sqrt(max(n.s_next**2 - var, 0.0)) * predict_eps(n, x, out)
    return Transition(mean, torch.tensor(math.sqrt(var), device=x.device), x0)
