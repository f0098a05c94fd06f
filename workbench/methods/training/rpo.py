"""RPO: reward preference optimisation for one subject, from a few pictures of it. Miao et al., NeurIPS 2024, arXiv:2407.12164.

Pictures R of the subject are preferred to pictures G that the untrained model makes of a prompt, as far as a reward says so: y is 1
with probability sigmoid(r(R) - r(G)), drawn anew each time. With e = |v - u|^2 - |v_ref - u|^2 and other noise at other levels for
R, denoised under `caption`, and for G, under its prompt,

    L = similar |v - u|^2 on R  -  y log sigmoid(beta D) - (1 - y) log sigmoid(-beta D),        D = e_G - e_R.

The paper labels by text alone (lambda = 0) and stops by the lambda-Harmonic reward of samples, best kept: text and subject pull
apart, and training longer trades the one for the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Media, Natural, NonNegative, Reward, TrainablePolicy, derive
from workbench.methods.common import losses
from workbench.methods.common.best_sample import gaussian
from workbench.methods.common.rollout import NEEDS
from workbench.methods.common.subject_pairs import Compared, plain

BEST = "best"  # the copy of the weights that did best in validation


@dataclass(frozen=True)
class RPO:
    """Reward preference optimisation (arXiv:2407.12164): learn a subject from its pictures, stopped by a reward."""

    references: Any = ""  # a folder of pictures of the subject
    caption: str = "a photo of [V]"  # that they are denoised under: add the class, as in "a photo of [V] dog"
    token: str = "[V]"  # the subject's name in prompts; rewards are asked without it
    labels: str = ""  # the part of the reward that labels pairs (the paper: its text side); "" the whole
    images: Count = 16  # samples of the untrained model that a prompt is compared with
    beta: NonNegative = 1.0  # how far from the untrained model a preference is worth going: higher stays nearer
    similar: NonNegative = 1.0  # weight of the pictures' own denoising loss
    every: Natural = 40  # batches between validations; 0: none
    prompts: tuple[str, ...] = ()  # of validations; none: those met so far
    trials: Count = 4  # samples of each
    patience: Natural = 0  # validations in a row without a better one that end the training; 0: it goes on
    lr: NonNegative = 5e-6  # step size of AdamW
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling

    needs, scales, paper = NEEDS, "", "arXiv:2407.12164"
    result = BEST  # the copy to deliver, where there is one

    def calls(self, steps: int) -> int:
        """At most, without validations."""
        return steps + 4

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        shown: Media = self.references(policy.size) if callable(self.references) else self.references
        pairs = Compared(self, policy, reward, shown)
        kept = getattr(batches, "memory", {})  # what a training that goes on later goes on with
        best, since, seen = kept.get("best", -math.inf), kept.get("since", 0), dict.fromkeys(kept.get("seen", ()))
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            if self.patience and since >= self.patience:
                return
            seen |= dict.fromkeys(batch.prompts)
            kept["seen"] = list(seen)
            x0, y, prompts = pairs(batch)
            loss, right = self.loss(policy, x0, y, prompts, batch)
            policy.backward(loss)
            told = {"loss": loss.item(), "agrees": right, "labelled": y.mean().item(), "grad_norm": policy.update()}
            if not (self.every and (k + 1) % self.every == 0):
                yield Event(k, told, None, batch.prompts, batch.seeds)
                continue
            now, media, asked, seeds = self.validate(policy, reward, self.prompts or tuple(seen))
            since = 0 if (value := now.nanmean().item()) > best else since + 1
            if not since:
                best = value
                policy.follow(BEST, 0.0)
            kept |= {"best": best, "since": since}
            yield Event(k, told | {"reward": value, "best": best}, media, asked, seeds, {"reward": now})

    def loss(self, policy, x0: Tensor, y: Tensor, prompts: Sequence[str], batch: Batch) -> tuple[Tensor, float]:
        """[] and the share of pairs whose label the weights agree with; rows of x0 [2B,*latent]: R of all, then G of all."""
        live, base = self.errors(policy, x0, prompts, batch)
        gain = base - live.detach()  # [2B]
        d = (base - live).view(2, -1)
        margin = self.beta * (d[0] - d[1])  # [B]
        told = y * losses.preference(margin) + (1 - y) * losses.preference(-margin)
        right = ((gain.view(2, -1).diff(dim=0)[0] < 0) == (y > 0.5)).double().mean().item()
        return self.similar * live.view(2, -1)[0].mean() + told.mean(), right

    def errors(self, policy, x0: Tensor, prompts: Sequence[str], batch: Batch) -> tuple[Tensor, Tensor]:
        """[2B] float64 each: denoising losses of the live and of the untrained weights, each row at a level of its own."""
        seeds = [derive(s, side) for side in ("reference", "generated") for s in batch.seeds]
        where = torch.tensor([derive(s, "level") % policy.steps for s in seeds])
        eps, found = gaussian(seeds, x0.shape[1:], "eps").to(x0), {}
        for i in sorted(set(where.tolist())):
            rows = (where == i).nonzero().flatten()
            x, asked = policy.noised(x0[rows], i, eps[rows]), [prompts[n] for n in rows.tolist()]
            with torch.no_grad(), policy.reference():
                base = losses.apart(policy.predict(x, i, asked, self.guidance).x0, x0[rows], policy.unit(i))
            live = losses.apart(policy.predict(x, i, asked, self.guidance).x0, x0[rows], policy.unit(i))
            found |= {n: (a, b) for n, a, b in zip(rows.tolist(), live, base, strict=True)}
        return tuple(torch.stack([found[n][k] for n in range(len(x0))]) for k in (0, 1))

    @torch.no_grad()
    def validate(self, policy, reward: Reward, prompts: Sequence[str]) -> tuple[Tensor, Media, tuple, tuple]:
        """Rewards [N] of `trials` samples a prompt, always of the same noise, and what they are of."""
        asked = tuple(p for p in prompts for _ in range(self.trials))
        seeds = tuple(derive(n, "validation", p) for p in prompts for n in range(self.trials))
        media = policy.sample(asked, seeds=seeds).media
        return reward(media=media, prompts=[plain(p, self.token) for p in asked]), media, asked, seeds
