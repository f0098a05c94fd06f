"""The forward process: what was sampled is noised again, predicted, and its error weighed. One loop for many losses.

    a batch   G samples a prompt by any solver; only the clean latents x0 and the advantages A are kept
    an update for some levels i: x_i = a_i x0 + s_i eps, and the method's loss on what live, old and reference weights predict

A prompt's samples meet the same levels, prompts different ones. Pairs of media (PairBatch) are groups of two with rewards 1, 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workbench.core.types import Batch, Event, Reward, TrainablePolicy, Trajectory, derive
from workbench.methods.common import losses
from workbench.methods.common.best_sample import gaussian
from workbench.methods.common.rollout import Advantage
from workbench.methods.common.schedule import level
from workbench.methods.common.training_data import agrees, gathered, weights


@dataclass(frozen=True)
class Seen:
    """n noised samples, whole groups as far as they take part, and the clean latents that are predicted from them."""

    x0: Tensor  # [n,*latent]
    s: float  # noise level
    unit: float  # of x0's errors: where the denoiser's output moves by one
    weight: Tensor  # [n] float64, the method's own
    group: Tensor  # [n], which prompt
    live: Tensor  # [n,*latent], with gradient
    old: Tensor | None = None  # [n,*latent] each, if the method asks for it
    reference: Tensor | None = None

    def error(self, predicted: Tensor) -> Tensor:  # [n]: the denoising loss of a prediction
        return losses.apart(predicted, self.x0, self.unit)

    def drift(self, other: Tensor | None) -> Tensor | float:  # [n]: of two predictions
        return 0.0 if other is None else losses.apart(self.live, other, self.unit)


class Matching(Protocol):
    """What the loop asks of a method."""

    group: int  # samples a prompt
    lr: float
    updates: int  # per batch
    times: int  # levels a sample meets in an update; 0: all
    share: float  # of the schedule that is trained, from its noisy end
    guidance: float | None  # of the denoiser in training; None: as in sampling
    at_once: int  # prompts whose groups go through the denoiser together; 0: all
    advantage: Advantage
    same_eps: bool  # the samples of a prompt meet the same noise
    samples: str  # "train", "old" or "reference": which weights sample

    def weigh(self, advantage: Tensor) -> Tensor: ...  # [N] -> [N]; NaN takes no part
    def copies(self) -> Mapping[str, float | None]: ...  # which of old and reference predict, and with what guidance
    def decay(self, k: int) -> float: ...  # of the old copy after batch k
    def loss(self, seen: Seen) -> Tensor: ...  # [n]


def levels(method: Matching, steps: int) -> tuple[int, int]:  # that are trained; that a sample meets in an update
    count = max(1, int(method.share * steps))
    return count, min(method.times or count, count)


def calls(method: Matching, steps: int) -> int:  # at most: in an update, what takes no part costs nothing
    return method.group * (steps + method.updates * levels(method, steps)[1] * (1 + len(method.copies())))


def train(method: Matching, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
    policy.optimizer(lr=method.lr)
    if "old" in method.copies():
        policy.follow("old", 1.0)  # begins at the live weights, unless a resumed run brings it along
    for k, batch in enumerate(batches, getattr(batches, "first", 0)):
        now, judged = gathered(method, policy, reward, batch)
        weight = now.weigh(judged.advantage(now.advantage))  # [N]
        taught = int((~weight.isnan()).sum())
        for u in range(now.updates):  # also where nothing is taught: what other batches gathered may be due
            told = Counter(loss=0.0)
            for i, rows, share in meetings(now, weight, batch, policy.steps, u):
                seen = look(now, policy, judged.path, weight, batch, i, rows, u)
                policy.backward(loss := now.loss(seen).sum() * share / taught)
                told.update(loss=loss.item(), **({} if judged.own else {"agrees": agrees(seen) * share / taught}))
            norm = policy.update()
        if "old" in now.copies():
            policy.follow("old", now.decay(k))
        yield judged.event(k, weight, norm, **told)


def meetings(method: Matching, weight: Tensor, batch: Batch, steps: int, u: int) -> Iterator[tuple[int, Tensor, float]]:
    """Level, rows [n] and share of the update, so that each row meets `times` levels of its prompt's own choice."""
    (count, times), where = levels(method, steps), {}
    for b, seed in enumerate(batch.seeds):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, "levels", u)))
        for i in order[:times].tolist():
            where.setdefault(i, []).append(b)
    for i in sorted(where):
        for few in torch.tensor(where[i]).split(method.at_once or len(batch)):
            rows = (few[:, None] * method.group + torch.arange(method.group)).flatten()
            if len(rows := rows[~weight.cpu()[rows].isnan()]):
                yield i, rows, 1 / times


def look(method, policy, path: Trajectory, weight: Tensor, batch: Batch, i: int, rows: Tensor, u: int) -> Seen:
    x0, group = path.x[rows, -1].detach().float(), rows // method.group
    prompts = [path.prompts[n] for n in rows]
    seeds = [batch.seeds[b] if method.same_eps else path.seeds[n] for n, b in zip(rows, group, strict=True)]
    x = policy.noised(x0, i, gaussian(seeds, x0.shape[1:], "eps", i, u).to(x0))
    found = {}
    for name, guidance in method.copies().items():
        with torch.no_grad(), weights(policy, name):
            found[name] = policy.predict(x, i, prompts, guidance).x0
    live = policy.predict(x, i, prompts, method.guidance).x0
    return Seen(x0, level(policy, i)[1], policy.unit(i), weight[rows], group.to(x0.device), live, **found)
