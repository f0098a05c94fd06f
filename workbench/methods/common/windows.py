"""Chains that are stochastic only in a window of steps (Flow-GRPO-Fast, MixGRPO), and relative lengths of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.core.types import Batch, Media, Policy, Trajectory, derive_seed
from workbench.methods.common.rollout import expand_groups
from workbench.methods.common.schedule import advanced_generators, alpha_sigma, ode_step_from


def sample_from_branch(policy: Policy, batch: Batch, group: int, width: int, prompts_per_pass: int = 0) -> Trajectory:
    """`group` samples per prompt that share one chain up to a branch step, drawn per batch from the first half, and are
    stochastic for `width` steps from there (Flow-GRPO-Fast)."""
    last = max(0, policy.steps - 1 - width)  # the window ends before the last step, which is deterministic
    first = derive_seed(batch.seeds[0], "branch") % (last // 2 + 1)
    return sample_in_window(
        policy, batch, group, range(first, min(first + width, policy.steps)), True, prompts_per_pass
    )


@torch.no_grad()
def sample_in_window(
    policy: Policy, batch: Batch, group: int, window: range, same_noise: bool = False, prompts_per_pass: int = 0
) -> Trajectory:
    """`group` samples per prompt, by the policy's kernel inside the window of steps, by first-order ODE steps outside.

    same_noise: a prompt's samples share one chain before the window, which is computed once.
    """
    size, paths = prompts_per_pass or len(batch), []
    for low in range(0, len(batch), size):
        part = Batch(batch.prompts[low : low + size], batch.seeds[low : low + size])
        paths.append(_sample_in_window(policy, part, group, window, same_noise))
    x, log_prob = torch.cat([p.x for p in paths]), torch.cat([p.log_prob for p in paths])
    media = Media.cat([p.media for p in paths])
    return replace(
        paths[0],
        prompts=expand_groups(batch, group)[0],
        seeds=expand_groups(batch, group)[1],
        x=x,
        log_prob=log_prob,
        media=media,
    )


def _sample_in_window(policy: Policy, batch: Batch, group: int, window: range, same_noise: bool) -> Trajectory:
    prompts, seeds = expand_groups(batch, group)
    copies = group if same_noise else 1
    noise = policy.noise(seeds[::copies])
    generators = advanced_generators(seeds, noise)
    x, states, marks = policy.start(noise, prompts[::copies]), [], []
    scores = torch.zeros(len(seeds), policy.steps, dtype=torch.float64, device=x.device)
    for i in range(policy.steps):
        if i == window.start:
            x, copies = x.repeat_interleave(copies, 0), 1
        states.append(x.repeat_interleave(copies, 0))
        if i not in window:
            x = ode_step_from(policy, x, i, prompts[::copies])
            continue
        law = policy.transition(x, i, prompts)
        x = law.sample(generators)
        if law.std.any():
            scores[:, i] = law.log_prob(x)
            marks.append(i)
    states.append(x)
    return Trajectory(prompts, torch.stack(states, 1), scores, tuple(marks), policy.decode(x, prompts), seeds)


def inverse_step_length(policy: Policy, i: int, steps: Sequence[int]) -> float:
    """1 / (s_i - s_{i+1}), the inverse length of step i in noise level, divided by its mean over `steps`."""
    inverse = {j: 1 / max(alpha_sigma(policy, j)[1] - alpha_sigma(policy, j + 1)[1], 1e-6) for j in steps}
    return inverse[i] * len(inverse) / sum(inverse.values())
