"""The mixture policy with two weights to train: x0 = theta_0 + (1 + theta_1) E[x0 | x]. At theta = 0 it is the exact
flow.

It has all that workbench.methods asks of a policy that trains: an optimiser, backward and update, the weights before
training (`reference`) and copies that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from mixture_policy import MixturePolicy
from torch import Tensor


class TrainableMixture(MixturePolicy):
    """Implements workbench.core.types.TrainablePolicy. adam False: plain gradient descent, whose step is known."""

    provides = frozenset({"latents", "stochastic", "trainable"})

    def __init__(self, *args, adam: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self.before, self.copies, self.adam = torch.zeros(2, dtype=torch.float64), {}, adam
        self.now, self.updates, self.grads = self.theta, 0, []

    def optimizer(self, lr: float, **settings) -> torch.optim.Optimizer:
        kind = torch.optim.Adam if self.adam else torch.optim.SGD
        self.steps_of = kind([self.theta], lr=lr, **settings)
        return self.steps_of

    def backward(self, loss: Tensor) -> None:
        assert loss.dim() == 0 and self.now is self.theta
        loss.backward()

    def update(self) -> float:
        grad = torch.zeros(2) if self.theta.grad is None else self.theta.grad.clone()
        self.grads.append(grad)
        if self.theta.grad is None:
            return 0.0
        self.steps_of.step()
        self.steps_of.zero_grad()
        self.updates += 1
        return grad.norm().item()

    @contextmanager
    def _with(self, weights: Tensor) -> Iterator[None]:
        self.now, before = weights, self.now
        try:
            yield
        finally:
            self.now = before

    def reference(self):
        return self._with(self.before)

    def use(self, name: str):
        return self._with(self.theta if name == "train" else self.copies[name])

    def merged(self):
        return nullcontext()

    @torch.no_grad()
    def follow(self, name: str, decay: float) -> None:
        self.copies.setdefault(name, self.theta.detach().clone()).mul_(decay).add_(self.theta, alpha=1 - decay)

    def _posterior_mean(self, x: Tensor, i: int, log_weights: Tensor) -> Tensor:
        exact = super()._posterior_mean(x, i, log_weights)
        return (self.now[0] + (1 + self.now[1]) * exact).to(x.dtype)
