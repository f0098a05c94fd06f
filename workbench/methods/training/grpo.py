"""Flow-GRPO and its kin: PPO on the denoising chain, with a prompt's other samples as baseline. Liu et al., NeurIPS 2025,
arXiv:2505.05470, Eq. 4-6; what follows are settings.

The policy's kernel makes the chain random (flow-sde, ancestral, cps); its step i has a density, its mean over latent dimensions
gives rho_i = p(x_{i+1} | x_i) / p_old(x_{i+1} | x_i), and

    L = mean over samples and trained steps of  max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl KL(p || p_ref).

The tiny clip belongs to the mean; so does kl, by the exact KL of a step (the paper's 0.04 leaves out the step's length, ~0.1)
and the raw ratio: beside `guard` the same kl holds back 1 to 10 times as much, the more the lower the noise.

ratio guard   mean(eps (mu - mu_old)) as log-ratio and steps weighted by one over their length (GRPO-Guard, arXiv:2510.22319):
              the raw one falls short of 1, the more so the lower the noise
window all    every random step (Flow-GRPO); `random` a share of them, drawn a batch (DanceGRPO, arXiv:2505.07818)
       mix    random inside a window alone, that slides from noise to data (MixGRPO, arXiv:2507.21802)
       fast   random for a few steps from a branch point on, up to which a prompt's samples are one (Flow-GRPO-Fast)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workbench.core.types import (
    Batch,
    Count,
    Event,
    Natural,
    NonNegative,
    Reward,
    TrainablePolicy,
    Trajectory,
    derive,
)
from workbench.methods.common import losses
from workbench.methods.common.rollout import NEEDS, Advantage, Judged, judge, noisy, random, roll
from workbench.methods.common.windows import branch, pace, walk


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimisation on the denoising chain (Flow-GRPO, arXiv:2505.05470); needs a random kernel."""

    group: Count = 24  # samples a prompt
    clip: NonNegative = 1e-4  # PPO's clip, of ratios of densities that are means over dimensions
    kl: NonNegative = 0.004  # weight of KL(p || p_ref), mean over dimensions
    ratio: Literal["guard", "raw"] = "guard"  # rho: p / p_old (raw), or its log centred at every level (GRPO-Guard)
    # steps that teach: all, a `random` share of them, those of a window that slides (mix) or from a branch on (fast)
    window: Literal["all", "random", "mix", "fast"] = "all"
    share: NonNegative = 0.6  # window random: of the random steps
    width: Count = 4  # window mix and fast: random steps (fast: 1 or 2)
    dwell: Count = 25  # window mix: batches before it moves on by a step
    same_noise: bool = False  # a prompt's samples begin alike (DanceGRPO: less hacking, less diversity)
    bound: NonNegative = 5.0  # advantages are clipped here
    lr: NonNegative = 3e-4  # step size of AdamW
    updates: Count = 1  # per batch
    at_once: Natural = 0  # prompts whose groups go through the denoiser together; 0: all
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"

    needs, scales, paper = NEEDS, "", "arXiv:2505.05470"

    def check(self, pipeline, reward, lora) -> None:
        if self.window in ("all", "random"):
            random(pipeline, reward, lora)

    def calls(self, steps: int) -> int:
        """At most, and for a kernel that is random at all steps but the last."""
        some = {"all": steps - 1, "random": max(1, round(self.share * (steps - 1)))}.get(self.window, self.width)
        return self.group * (steps + self.updates * some * (2 if self.kl else 1))

    def worth(self, judged: Judged) -> Tensor:
        """[N]; NaN takes no part."""
        return judged.advantage(self.advantage).clamp(-self.bound, self.bound)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in enumerate(batches, getattr(batches, "first", 0)):
            path = self.roll(policy, batch, k)
            steps, judged = self.steps(path, batch), judge(reward, path, self.group)
            a, norm, far, old = self.worth(judged), 0.0, torch.zeros(1), {}
            taught = (~a.isnan()).nonzero().flatten()
            for _ in range(self.updates):  # also where nothing is taught: what other batches gathered may be due
                told = []
                for i in steps if len(taught) else ():
                    scale = pace(policy, i, steps) if self.ratio == "guard" else 1.0
                    for rows in taught.split((self.at_once or len(batch)) * self.group):
                        log_ratio, kl = self.compare(policy, path, i, rows, old)
                        loss = scale * losses.clipped_surrogate(log_ratio, a[rows], self.clip) + self.kl * kl
                        policy.backward(loss.sum() / (len(taught) * len(steps)))
                        told.append(log_ratio.detach())
                norm, far = policy.update(), torch.cat(told) if told else far
            clipped = ((far.exp() - 1).abs() > self.clip).double().mean().item()
            yield judged.event(k, a, norm, log_ratio=far.abs().max().item(), clipped=clipped)

    def compare(self, policy, path: Trajectory, i: int, rows: Tensor, old: dict) -> tuple[Tensor, Tensor | float]:
        """Log-ratio [n] of step i to the weights that drew it, and KL [n] to the reference."""
        x, x_next, prompts = path.x[rows, i], path.x[rows, i + 1], [path.prompts[n] for n in rows.tolist()]
        law, kl = policy.transition(x, i, prompts), 0.0
        # The first update still has the weights that drew, and other rows in its batches: what they say now is exact.
        before = replace(law, mean=old.setdefault((i, int(rows[0])), law.mean.detach()))
        if self.kl:
            with torch.no_grad(), policy.reference():
                base = policy.transition(x, i, prompts)
            kl = law.kl(base)
        if self.ratio == "guard":
            return losses.guard_log_ratio(law.mean, before.mean, law.std, x_next), kl
        return law.log_prob(x_next) - before.log_prob(x_next), kl

    def roll(self, policy, batch: Batch, k: int) -> Trajectory:
        if self.window in ("all", "random"):
            return roll(policy, batch, self.group, self.at_once, self.same_noise)
        if self.window == "fast":
            return branch(policy, batch, self.group, self.width, self.at_once)
        first = k // self.dwell % max(1, policy.steps - self.width)  # the last step is not random
        steps = range(first, min(first + self.width, policy.steps))
        return walk(policy, batch, self.group, steps, self.same_noise, self.at_once)

    def steps(self, path: Trajectory, batch: Batch) -> list[int]:
        known = noisy(path)
        some = max(1, round(self.share * len(known))) if self.window == "random" else len(known)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(derive(batch.seeds[0], "steps")))
        return sorted(known[n] for n in order[:some])
