"""A policy whose rows are shared out: among the processes that were launched together, and `micro` at a time in each.

Every process asks for the same rows, computes its part, and is given all of them back, its own with their gradient. So a method
sees whole groups and whole batches wherever it runs, its arithmetic is that of one process, and the gradients of the processes
add up to the gradient. Nothing is said of who computes what, so a method can't depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipelines import processes
from pipelines.policy import Policy
from pipelines.trainable_policy import TrainablePolicy
from workbench.core.types import Media, Prediction, Trajectory, Transition


class Rows:
    """`policy`, with its rows shared out. micro 0: a process computes its rows at once; otherwise the parts recompute their
    activations in the backward pass, so that its memory is that of one part."""

    def __init__(self, policy: Policy, micro: int = 0, accumulate: int = 1):
        self.policy, self.micro, self.accumulate = policy, micro, accumulate
        self.world = processes.world(policy.device)
        self.sharded = isinstance(policy, TrainablePolicy) and policy.sharded
        self.settings: dict[str, Any] = {}  # of the optimiser, besides what the method says
        self.rate = 0.0  # the method's learning rate
        self.optimizer_: torch.optim.Optimizer | None = None
        self.gathered = 0  # rounds since the last step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    # --- what is computed row by row ---------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], noise: Tensor | None = None, grad: int = 0
    ) -> Trajectory:
        def part(rows: list[int], noise: Tensor | None) -> tuple[Tensor, ...]:
            own = [prompts[n] for n in rows], [seeds[n] for n in rows]
            path = self.policy.sample(own[0], seeds=own[1], noise=noise, grad=grad)
            random.append(path.stochastic)  # and no tensor: what recomputes a part would hold its own outcome, for good
            return path.x, path.log_prob, path.media.data

        random: list[tuple[int, ...]] = []
        x, log_prob, data = self._share(part, prompts, noise, grad > 0)
        return Trajectory(tuple(prompts), x, log_prob, random[0], self._media(data), tuple(seeds))

    def transition(self, x: Tensor, i: int, prompts: Sequence[str]) -> Transition:
        def part(rows: list[int], x: Tensor) -> tuple[Tensor, ...]:
            law = self.policy.transition(x, i, [prompts[n] for n in rows])
            std.append(law.std)
            return law.mean, law.x0

        std: list[Tensor] = []
        mean, x0 = self._share(part, prompts, x)
        return Transition(mean, std[0], x0)

    def predict(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Prediction:
        def part(rows: list[int], x: Tensor) -> tuple[Tensor, ...]:
            said = self.policy.predict(x, i, [prompts[n] for n in rows], guidance)
            return said.x0, said.eps, said.v

        return Prediction(*self._share(part, prompts, x))

    def decode(self, latents: Tensor, prompts: Sequence[str]) -> Media:
        def part(rows: list[int], latents: Tensor) -> tuple[Tensor, ...]:
            return (self.policy.decode(latents, [prompts[n] for n in rows]).data,)

        return self._media(*self._share(part, prompts, latents))

    def _media(self, data: Tensor) -> Media:
        return Media(data, self.policy.modality, self.policy.rate)

    def correction(self, noise: Tensor, prompts: Sequence[str]) -> Tensor:
        def part(rows: list[int], noise: Tensor) -> tuple[Tensor, ...]:
            return (self.policy.correction(noise, [prompts[n] for n in rows]),)

        return self._share(part, prompts, noise)[0]

    @torch.no_grad()
    def encode(self, media: Media) -> Tensor:
        def part(rows: list[int], data: Tensor) -> tuple[Tensor, ...]:
            return (self.policy.encode(replace(media, data=data)),)

        return self._share(part, [None] * len(media), media.data)[0]

    def judge(self, score: Callable[[list[int]], dict[str, Tensor]], n: int) -> dict[str, Tensor]:
        """name -> [n] of what `score` says of some of n rows, each process judging its own, `micro` at a time."""
        rows = self.mine(n)
        size = self.micro or len(rows)
        told = [score(rows[k : k + size]) for k in range(0, len(rows), size)]
        return {name: self._gather(torch.cat([some[name] for some in told]), n) for name in told[0]}

    def mine(self, n: int, process: int | None = None) -> list[int]:
        """The rows of this process, or another, at least one: what nobody needs is computed and dropped."""
        place = self.world.process_index if process is None else process
        return torch.arange(n).tensor_split(self.world.num_processes)[place].tolist() or [0]

    def parts(self, n: int, process: int | None = None) -> list[list[int]]:
        """Rows that go through the denoiser at once. Where weights are sharded, each process needs all others whenever it runs
        the denoiser: one that has fewer parts repeats its last row, and drops it."""
        rows = self.mine(n, process)
        size = self.micro or len(rows)
        found = [rows[k : k + size] for k in range(0, len(rows), size)]
        most = -(-len(self.mine(n, 0)) // size) if self.sharded and self.micro else len(found)  # the first has the most
        return found + [rows[-1:]] * (most - len(found))

    def _share(self, part: Callable, asked: Sequence[str | None], x: Tensor | None, graph: bool = True) -> list[Tensor]:
        """What `part` makes of the rows of these prompts, and of those of x [n,...]."""
        n, graph = len(asked), graph and torch.is_grad_enabled()
        run, made = self._again if graph and self.micro else _once, []
        for k, few in enumerate(self.parts(n)):
            known = partial(self._known, part, self._scope(asked, k))
            made.append(run(known, few, None if x is None else x[few]))
        count = len(self.mine(n))
        return [self._gather(torch.cat(each)[:count], n) for each in zip(*made, strict=True)]

    def _scope(self, asked: Sequence[str | None], k: int) -> tuple | None:
        """The prompts of everybody's part k. What a prompt's first call computes, later ones remember: by this, all processes
        remember the same calls, and compute the same ones."""
        if not self.sharded:
            return None
        return tuple(tuple(asked[row] for row in self.parts(len(asked), p)[k]) for p in range(self.world.num_processes))

    def _known(self, part: Callable, scope: tuple | None, rows: list[int], x: Tensor | None) -> tuple[Tensor, ...]:
        self.policy.scope = scope
        try:
            return part(rows, x)
        finally:
            self.policy.scope = None

    def _again(self, part: Callable, rows: list[int], x: Tensor | None) -> tuple[Tensor, ...]:
        """Computed now without a graph, and once more when its gradient is asked for; what it costs is counted once."""

        def counted(x: Tensor | None, _: Tensor) -> tuple[Tensor, ...]:
            before = self.policy.nfe, self.policy.decodes
            out = part(rows, x)
            if torch.is_grad_enabled():
                self.policy.nfe, self.policy.decodes = before
            return out

        asks = torch.ones(
            (), requires_grad=True
        )  # reentrant, for the two passes keep different tensors: encodings are made once
        return checkpoint(counted, x, asks, use_reentrant=True, preserve_rng_state=False)

    def _gather(self, own: Tensor, n: int) -> Tensor:
        """[n,...] of every process's rows; those of this one are `own`, with their graph."""
        if self.world.num_processes == 1:
            return own
        from accelerate.utils import gather

        shares = [len(s) for s in torch.arange(n).tensor_split(self.world.num_processes)]
        most = max(shares)
        sent = own.detach().to(self.world.device)  # NCCL takes nothing from the CPU
        if len(sent) < most:
            sent = torch.cat([sent, sent[-1:].expand(most - len(sent), *sent.shape[1:])])
        everyone = gather(sent.contiguous()).to(own.device)
        if not own.requires_grad and min(shares) == most:
            return everyone
        parts = [rows[:share] for rows, share in zip(everyone.split(most), shares, strict=True)]
        parts[self.world.process_index] = own[: shares[self.world.process_index]]
        return torch.cat(parts)

    # --- what is done once -------------------------------------------------------------------------------------------

    def reference(self) -> AbstractContextManager[None]:
        return self.policy.reference()

    def use(self, name: str) -> AbstractContextManager[None]:
        return self.policy.use(name)

    def merged(self) -> AbstractContextManager[None]:
        return self.policy.merged()

    def follow(self, name: str, decay: float) -> None:
        self.policy.follow(name, decay)

    def optimizer(self, lr: float, **settings: Any) -> torch.optim.Optimizer:
        self.rate = lr
        self.optimizer_ = self.policy.optimizer(lr, **{**self.settings, **settings})
        return self.optimizer_

    def pace(self, factor: float) -> None:
        """Set the learning rate to `factor` times the method's."""
        for group in self.optimizer_.param_groups:
            group["lr"] = self.rate * factor

    def backward(self, loss: Tensor) -> None:
        """Gradients are averaged over processes in `update`, and here each has the gradient of its own rows alone."""
        if loss.requires_grad:  # not where none of the rows are this process's
            self.policy.backward(loss * self.world.num_processes / self.accumulate)

    def update(self) -> float:
        """Steps at every `accumulate`-th call; 0 at the others."""
        self.gathered = (self.gathered + 1) % self.accumulate
        return 0.0 if self.gathered else self.policy.update()


def _once(part: Callable, rows: list[int], x: Tensor | None) -> tuple[Tensor, ...]:
    return part(rows, x)
