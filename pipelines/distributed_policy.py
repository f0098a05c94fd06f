"""A policy whose rows are distributed over processes, and over micro-batches of `micro` rows in each process.

All processes call it with the same rows; each computes its part and gets all results, its own with their gradient. So a
method sees whole groups and whole batches on any number of processes, computes the same as on one, and the gradients of
the processes add up to the full gradient. Which process computes which rows is hidden from the method.
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


class DistributedPolicy:
    """A Policy or TrainablePolicy, distributed. micro 0: a process computes its rows at once; otherwise `micro` at a
    time, and micro-batches recompute their activations in the backward pass, so that memory is that of one.

    accumulate: calls of `update` per optimiser step."""

    def __init__(self, policy: Policy, micro: int = 0, accumulate: int = 1):
        self.policy: Any = policy  # a TrainablePolicy where it is trained
        self.micro, self.accumulate = micro, accumulate
        self.world = processes.join_processes(policy.device)
        self.sharded = isinstance(policy, TrainablePolicy) and policy.sharded
        self.settings: dict[str, Any] = {}  # of the optimiser, besides those that the method passes
        self.learning_rate = 0.0  # the method's, before `scale_learning_rate`
        self.current_optimizer: torch.optim.Optimizer | None = None
        self.rounds_gathered = 0  # calls of `update` since the last optimiser step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    # --- computed row by row -----------------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], noise: Tensor | None = None, grad: int = 0
    ) -> Trajectory:
        def compute(rows: list[int], noise: Tensor | None) -> tuple[Tensor, ...]:
            row_seeds = [seeds[n] for n in rows]
            path = self.policy.sample([prompts[n] for n in rows], seeds=row_seeds, noise=noise, grad=grad)
            random.append(path.stochastic)  # no tensors: a recomputed closure would keep them alive
            return path.x, path.log_prob, path.media.data

        random: list[tuple[int, ...]] = []
        x, log_prob, data = self._compute_shared(compute, prompts, noise, grad > 0)
        return Trajectory(tuple(prompts), x, log_prob, random[0], self._to_media(data), tuple(seeds))

    def transition(self, x: Tensor, i: int, prompts: Sequence[str]) -> Transition:
        def compute(rows: list[int], x: Tensor) -> tuple[Tensor, ...]:
            law = self.policy.transition(x, i, [prompts[n] for n in rows])
            std.append(law.std)
            return law.mean, law.x0

        std: list[Tensor] = []
        mean, x0 = self._compute_shared(compute, prompts, x)
        return Transition(mean, std[0], x0)

    def predict(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Prediction:
        def compute(rows: list[int], x: Tensor) -> tuple[Tensor, ...]:
            prediction = self.policy.predict(x, i, [prompts[n] for n in rows], guidance)
            return prediction.x0, prediction.eps, prediction.v

        return Prediction(*self._compute_shared(compute, prompts, x))

    def decode(self, latents: Tensor, prompts: Sequence[str]) -> Media:
        def compute(rows: list[int], latents: Tensor) -> tuple[Tensor, ...]:
            return (self.policy.decode(latents, [prompts[n] for n in rows]).data,)

        return self._to_media(*self._compute_shared(compute, prompts, latents))

    def _to_media(self, data: Tensor) -> Media:
        return Media(data, self.policy.modality, self.policy.rate)

    def noise_correction(self, noise: Tensor, prompts: Sequence[str]) -> Tensor:
        def compute(rows: list[int], noise: Tensor) -> tuple[Tensor, ...]:
            return (self.policy.noise_correction(noise, [prompts[n] for n in rows]),)

        return self._compute_shared(compute, prompts, noise)[0]

    @torch.no_grad()
    def encode(self, media: Media) -> Tensor:
        def compute(rows: list[int], data: Tensor) -> tuple[Tensor, ...]:
            return (self.policy.encode(replace(media, data=data)),)

        return self._compute_shared(compute, [None] * len(media), media.data)[0]

    def score_rows(self, score: Callable[[list[int]], dict[str, Tensor]], n: int) -> dict[str, Tensor]:
        """name -> [n,...] for n rows: `score(rows)` is called for this process's rows, `micro` at a time."""
        rows = self.rows_of_process(n)
        size = self.micro or len(rows)
        part_scores = [score(rows[k : k + size]) for k in range(0, len(rows), size)]
        return {
            name: self._gather_rows(torch.cat([scores[name] for scores in part_scores]), n) for name in part_scores[0]
        }

    def rows_of_process(self, n: int, process: int | None = None) -> list[int]:
        """The rows of this process, or of another. At least one: a superfluous result is dropped."""
        process_index = self.world.process_index if process is None else process
        return torch.arange(n).tensor_split(self.world.num_processes)[process_index].tolist() or [0]

    def split_rows(self, n: int, process: int | None = None) -> list[list[int]]:
        """The micro-batches of a process. With sharded weights all processes must run the denoiser equally often, so
        one with fewer micro-batches repeats its last row; the results are dropped."""
        rows = self.rows_of_process(n, process)
        micro = 1 if self.sharded and self.policy.grouping != "each" else self.micro
        size = micro or len(rows)
        row_parts = [rows[k : k + size] for k in range(0, len(rows), size)]
        max_parts = len(row_parts)
        if self.sharded and micro:
            max_parts = -(-len(self.rows_of_process(n, 0)) // size)  # the first process has the most
        return row_parts + [rows[-1:]] * (max_parts - len(row_parts))

    def _compute_shared(
        self, compute: Callable, prompts: Sequence[str | None], x: Tensor | None, graph: bool = True
    ) -> list[Tensor]:
        """The results [n,...] of `compute(rows, x[rows])` for all n prompts, gathered from the processes."""
        n, graph = len(prompts), graph and torch.is_grad_enabled()
        run, outputs = self._recompute_in_backward if graph and self.micro else _compute_once, []
        for k, rows in enumerate(self.split_rows(n)):
            compute_part = partial(self._compute_part, compute, self._cache_scope(prompts, k))
            outputs.append(run(compute_part, rows, None if x is None else x[rows]))
        count = len(self.rows_of_process(n))
        return [self._gather_rows(torch.cat(each)[:count], n) for each in zip(*outputs, strict=True)]

    def _cache_scope(self, prompts: Sequence[str | None], k: int) -> tuple | None:
        """The prompts of micro-batch k in all processes, as a key of the prompt caches: with sharded weights, all
        processes must have the same calls cached, and make the same ones. None without shards."""
        if not self.sharded:
            return None
        return tuple(
            tuple(prompts[row] for row in self.split_rows(len(prompts), p)[k]) for p in range(self.world.num_processes)
        )

    def _compute_part(
        self, compute: Callable, scope: tuple | None, rows: list[int], x: Tensor | None
    ) -> tuple[Tensor, ...]:
        self.policy.cache_scope = scope
        try:
            return compute(rows, x)
        finally:
            self.policy.cache_scope = None

    def _recompute_in_backward(self, compute: Callable, rows: list[int], x: Tensor | None) -> tuple[Tensor, ...]:
        """Compute without a graph now, and again for the gradient (checkpointing); rows are counted once."""

        def counted(x: Tensor | None, _: Tensor) -> tuple[Tensor, ...]:
            before = self.policy.nfe, self.policy.decodes
            out = compute(rows, x)
            if torch.is_grad_enabled():
                self.policy.nfe, self.policy.decodes = before
            return out

        # reentrant, as the two passes save different tensors: prompts are encoded in the first only
        asks = torch.ones((), requires_grad=True)
        return checkpoint(counted, x, asks, use_reentrant=True, preserve_rng_state=False)

    def _gather_rows(self, local_rows: Tensor, n: int) -> Tensor:
        """[n,...]: the rows of all processes, in order; those of this one are `local_rows`, with their graph."""
        if self.world.num_processes == 1:
            return local_rows
        from accelerate.utils import gather

        shares = [len(s) for s in torch.arange(n).tensor_split(self.world.num_processes)]
        max_rows = max(shares)
        sent = local_rows.detach().to(self.world.device)  # NCCL can't gather CPU tensors
        if len(sent) < max_rows:
            sent = torch.cat([sent, sent[-1:].expand(max_rows - len(sent), *sent.shape[1:])])
        everyone = gather(sent.contiguous()).to(local_rows.device)
        if not local_rows.requires_grad and min(shares) == max_rows:
            return everyone
        parts = [rows[:share] for rows, share in zip(everyone.split(max_rows), shares, strict=True)]
        parts[self.world.process_index] = local_rows[: shares[self.world.process_index]]
        return torch.cat(parts)

    # --- passed on to the policy -------------------------------------------------------------------------------------

    def reference(self) -> AbstractContextManager[None]:
        return self.policy.reference()

    def use(self, name: str) -> AbstractContextManager[None]:
        return self.policy.use(name)

    def merged(self) -> AbstractContextManager[None]:
        return self.policy.merged()

    def follow(self, name: str, decay: float) -> None:
        self.policy.follow(name, decay)

    def optimizer(self, lr: float, **settings: Any) -> torch.optim.Optimizer:
        self.learning_rate = lr
        self.current_optimizer = self.policy.optimizer(lr, **{**self.settings, **settings})
        return self.current_optimizer

    def scale_learning_rate(self, factor: float) -> None:
        """Set the learning rate to `factor` times the method's."""
        if self.current_optimizer is None:
            raise RuntimeError("scale_learning_rate() before optimizer(lr): there is no rate to scale")
        for group in self.current_optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    def backward(self, loss: Tensor) -> None:
        """Scaled by the number of processes: each has the gradient of its own rows, and `update` averages them."""
        if loss.requires_grad:  # false if no row is this process's
            self.policy.backward(loss * self.world.num_processes / self.accumulate)

    def update(self) -> float:
        """An optimiser step at every `accumulate`-th call, as TrainablePolicy.update; 0 at the others."""
        self.rounds_gathered = (self.rounds_gathered + 1) % self.accumulate
        return 0.0 if self.rounds_gathered else self.policy.update()


def _compute_once(compute: Callable, rows: list[int], x: Tensor | None) -> tuple[Tensor, ...]:
    return compute(rows, x)
