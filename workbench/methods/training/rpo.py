"""RPO: reward preference optimisation for one subject, from a few pictures of it.
Miao et al., NeurIPS 2024, arXiv:2407.12164.

Pictures R of the subject are preferred to pictures G that the untrained model makes of a prompt, as far as a reward
says so: y is 1 with probability sigmoid(r(R) - r(G)), drawn anew each time. With e = |v - u|^2 - |v_ref - u|^2 and
other noise at other levels for R, denoised under `caption`, and for G, under its prompt,

    L = similarity_weight |v - u|^2 on R  -  y log sigmoid(beta D) - (1 - y) log sigmoid(-beta D),        D = e_G - e_R.

The paper labels by text alone (lambda = 0) and stops by the lambda-Harmonic reward of samples, best kept: text and
subject pull apart, and training longer trades the one for the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.types import Batch, Count, Event, Media, Natural, NonNegative, Reward, TrainablePolicy, derive_seed
from workbench.methods.common import losses
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.rollout import NEEDS, count_batches
from workbench.methods.common.subject_pairs import ReferencePairs, denoising_errors, remove_token

BEST = "best"  # the copy of the weights that did best in validation


@dataclass(frozen=True)
class RPO(MethodDefaults):
    """Reward preference optimisation (arXiv:2407.12164): learn a subject from its pictures, stopped by a reward."""

    references: Any = ""  # a folder of pictures of the subject
    caption: str = "a photo of [V]"  # that they are denoised under: add the class, as in "a photo of [V] dog"
    token: str = "[V]"  # the subject's name in prompts; rewards are asked without it
    label_reward: str = ""  # the part of the reward that labels pairs (the paper: its text side); "" the whole
    samples_per_prompt: Count = 16  # samples of the untrained model that a prompt is compared with
    beta: NonNegative = 1.0  # how far from the untrained model a preference is worth going: higher stays nearer
    similarity_weight: NonNegative = 1.0  # of the pictures' own denoising loss
    validate_every: Natural = 40  # batches between validations; 0: none
    # a list of prompts, or a file; with what comes with them, as those of the run; none: those met so far
    validation_prompts: Any = ()
    validation_samples: Count = 4  # samples of each
    patience: Natural = 0  # validations in a row without a better one that end the training; 0: it goes on
    lr: NonNegative = 5e-6  # step size of AdamW
    guidance: float | None = None  # of the denoiser in training; not given: as in sampling

    needs = NEEDS
    paper = "arXiv:2407.12164"
    delivered_copy, selects_weights = BEST, True
    former_names = {
        "labels": "label_reward",
        "images": "samples_per_prompt",
        "similar": "similarity_weight",
        "every": "validate_every",
        "prompts": "validation_prompts",
        "trials": "validation_samples",
    }

    def calls(self, steps: int) -> int:
        """At most, without validations."""
        return steps + 4

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        references: Media = self.references(policy.size) if callable(self.references) else self.references
        settings = {key: getattr(self, key) for key in ("caption", "token", "label_reward", "samples_per_prompt")}
        pairs = ReferencePairs(policy, reward, references, **settings)
        memory = getattr(batches, "memory", {})  # what a training that goes on later goes on with
        best, since = memory.get("best", -math.inf), memory.get("since", 0)
        prompts = dict.fromkeys(memory.get("seen", ()))
        for k, batch in count_batches(batches):
            if self.patience and since >= self.patience:
                return
            prompts |= dict.fromkeys(batch.prompts)
            memory["seen"] = list(prompts)
            x0, y, labelled = pairs(batch)
            loss, accuracy = self.loss(policy, x0, y, labelled, batch)
            policy.backward(loss)
            metrics = {"loss": loss.item(), "agrees": accuracy, "labelled": y.mean().item()}
            metrics["grad_norm"] = policy.update()
            if not (self.validate_every and (k + 1) % self.validate_every == 0):
                yield Event(k, metrics, None, batch.prompts, batch.seeds)
                continue
            r, media, texts, seeds = self.validate(policy, reward, self.validation_prompts or tuple(prompts))
            since = 0 if (value := r.nanmean().item()) > best else since + 1
            if not since:
                best = value
                policy.follow(BEST, 0.0)
            memory |= {"best": best, "since": since}
            yield Event(k, metrics | {"reward": value, "best": best}, media, texts, seeds, {"reward": r})

    def loss(
        self, policy: TrainablePolicy, x0: Tensor, y: Tensor, prompts: Sequence[str], batch: Batch
    ) -> tuple[Tensor, float]:
        """[] and the share of pairs whose label the weights agree with; rows of x0 [2B,*latent]: R of all,
        then G of all."""
        seeds = [derive_seed(s, side) for side in ("reference", "generated") for s in batch.seeds]
        live, base = denoising_errors(policy, x0, prompts, seeds, self.guidance)  # [2B]
        gain = base - live.detach()  # [2B]
        d = (base - live).view(2, -1)
        margin = self.beta * (d[0] - d[1])  # [B]
        loss = y * losses.preference_loss(margin) + (1 - y) * losses.preference_loss(-margin)
        accuracy = ((gain.view(2, -1).diff(dim=0)[0] < 0) == (y > 0.5)).double().mean().item()
        return self.similarity_weight * live.view(2, -1)[0].mean() + loss.mean(), accuracy

    @torch.no_grad()
    def validate(
        self, policy: TrainablePolicy, reward: Reward, prompts: Sequence[str]
    ) -> tuple[Tensor, Media, tuple[str, ...], tuple[int, ...]]:
        """Rewards [N] of `validation_samples` a prompt, always of the same noise, and what they are of."""
        texts = tuple(p for p in prompts for _ in range(self.validation_samples))
        seeds = tuple(derive_seed(n, "validation", p) for p in prompts for n in range(self.validation_samples))
        media = policy.sample(texts, seeds=seeds).media
        return reward(media=media, prompts=[remove_token(p, self.token) for p in texts]), media, texts, seeds
