"""Flow-GRPO and its kin: PPO on the denoising chain, with a prompt's other samples as baseline. Liu et al., NeurIPS
2025, arXiv:2505.05470, Eq. 4-6; what follows are settings.

The policy's kernel makes the chain random (flow-sde, ancestral, cps); its step i has a density, its mean over latent
dimensions gives rho_i = p(x_{i+1} | x_i) / p_old(x_{i+1} | x_i), and

    L = mean over samples and trained steps of  max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl KL(p || p_ref).

The tiny clip belongs to the mean; so does kl, by the exact KL of a step (the paper's 0.04 leaves out the step's length,
~0.1) and the raw ratio: beside `guard` the same kl holds back 1 to 10 times as much, the more the lower the noise.

ratio guard   mean(eps (mu - mu_old)) as log-ratio and steps weighted by one over their length (arXiv:2510.22319): the
              raw one falls short of 1, the more so the lower the noise
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

from workbench.core.types import Batch, Count, Event, NonNegative, Reward, TrainablePolicy, Trajectory, derive_seed
from workbench.methods.common import losses
from workbench.methods.common.denoising_chain import ChainMethod, predict_step
from workbench.methods.common.rollout import Advantage, ScoredSamples, count_batches, score_samples, stochastic_steps
from workbench.methods.common.windows import inverse_step_length, sample_in_window


@dataclass(frozen=True)
class GRPO(ChainMethod):
    """Group-relative policy optimisation on the denoising chain (Flow-GRPO, arXiv:2505.05470), by a random kernel."""

    clip_range: NonNegative = 1e-4  # PPO's clip, of ratios of densities that are means over dimensions
    kl: NonNegative = 0.004  # weight of KL(p || p_ref), mean over dimensions
    ratio: Literal["guard", "raw"] = "guard"  # rho: p / p_old (raw), or its log centred at every level (GRPO-Guard)
    # steps that teach: all, a `random` share of them, those of a window that slides (mix) or from a branch on (fast)
    window: Literal["all", "random", "mix", "fast"] = "all"
    timestep_fraction: NonNegative = 0.6  # window random: of the random steps
    window_size: Count = 4  # window mix and fast: random steps (fast: 1 or 2)
    window_interval: Count = 25  # window mix: batches before it moves on by a step
    same_noise: bool = False  # a prompt's samples begin alike (DanceGRPO: less hacking, less diversity)
    advantage_clip: NonNegative = 5.0  # advantages are clipped here
    # A: r - group's mean, over std of batch or group, or bare (centre, leave-one-out); whole: no groups; gdpo: by part
    advantage: Advantage = "batch"

    paper = "arXiv:2505.05470"
    former_names = ChainMethod.former_names | {
        "share": "timestep_fraction",
        "width": "window_size",
        "dwell": "window_interval",
        "bound": "advantage_clip",
    }

    def calls(self, steps: int) -> int:
        """At most, and for a kernel that is random at all steps but the last."""
        counts = {"all": steps - 1, "random": max(1, round(self.timestep_fraction * (steps - 1)))}
        n = counts.get(self.window, self.window_size)
        return self.group * (steps + self.optimizer_steps * n * (2 if self.kl else 1))

    def advantages(self, scored: ScoredSamples) -> Tensor:
        """[N]; NaN takes no part."""
        return scored.advantage(self.advantage).clamp(-self.advantage_clip, self.advantage_clip)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in count_batches(batches):
            path = self.sample_chains(policy, batch, k)
            steps, scored = self.trained_steps(path, batch), score_samples(reward, path, self.group)
            a, norm, log_ratios = self.advantages(scored), 0.0, torch.zeros(1)
            old: dict[tuple[int, int], Tensor] = {}  # the means of the steps by the weights that drew them
            taught_rows = (~a.isnan()).nonzero().flatten()
            for _ in range(self.optimizer_steps):  # also without rows: what other batches gathered may be due
                parts = []
                for i in steps if len(taught_rows) else ():
                    scale = inverse_step_length(policy, i, steps) if self.ratio == "guard" else 1.0
                    for rows in taught_rows.split((self.prompts_per_pass or len(batch)) * self.group):
                        log_ratio, kl = self.compare_weights(policy, path, i, rows, old)
                        loss = scale * losses.clipped_surrogate(log_ratio, a[rows], self.clip_range) + self.kl * kl
                        policy.backward(loss.sum() / (len(taught_rows) * len(steps)))
                        parts.append(log_ratio.detach())
                norm, log_ratios = policy.update(), torch.cat(parts) if parts else log_ratios
            clipped = ((log_ratios.exp() - 1).abs() > self.clip_range).double().mean().item()
            yield scored.event(k, a, norm, log_ratio=log_ratios.abs().max().item(), clipped=clipped)

    def compare_weights(
        self, policy: TrainablePolicy, path: Trajectory, i: int, rows: Tensor, old: dict[tuple[int, int], Tensor]
    ) -> tuple[Tensor, Tensor | float]:
        """Log-ratio [n] of step i to the weights that drew it, and KL [n] to the reference."""
        law, x_next = predict_step(policy, path, i, rows), path.x[rows, i + 1]
        kl: Tensor | float = 0.0
        # The first update still has the weights that drew, and other rows in its batches: what they say now is exact.
        before = replace(law, mean=old.setdefault((i, int(rows[0])), law.mean.detach()))
        if self.kl:
            with torch.no_grad(), policy.reference():
                base = predict_step(policy, path, i, rows)
            kl = law.kl(base)
        if self.ratio == "guard":
            return losses.guard_log_ratio(law.mean, before.mean, law.std, x_next), kl
        return law.log_prob(x_next) - before.log_prob(x_next), kl

    def sample_chains(self, policy: TrainablePolicy, batch: Batch, k: int) -> Trajectory:
        if self.window != "mix":
            return super().sample_chains(policy, batch, k)
        first = k // self.window_interval % max(1, policy.steps - self.window_size)  # the last step is not random
        steps = range(first, min(first + self.window_size, policy.steps))
        return sample_in_window(policy, batch, self.group, steps, self.same_noise, self.prompts_per_pass)

    def trained_steps(self, path: Trajectory, batch: Batch) -> list[int]:
        steps = stochastic_steps(path)
        n = max(1, round(self.timestep_fraction * len(steps))) if self.window == "random" else len(steps)
        generator = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "steps"))
        order = torch.randperm(len(steps), generator=generator)
        return sorted(steps[j] for j in order[:n])
