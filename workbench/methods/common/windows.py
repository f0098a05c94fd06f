"""Chains that are random in a window of their steps alone, and what a step's length is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.core.types import Batch, Media, Policy, Trajectory, derive_seed
from workbench.methods.common.rollout import expand_groups
from workbench.methods.common.schedule import advanced_generators, alpha_sigma, ode_step_from


def sample_from_branch(policy: Policy, batch: Batch, group: int, width: int, prompts_per_pass: int = 0) -> Trajectory:
    """`group` samples a prompt that are one up to a step of the first half, drawn a batch, and random for `width` steps
    from there on (Flow-GRPO-Fast)."""
    last = max(0, policy.steps - 1 - width)  # where the window ends before the last step, which is not random
    first = derive_seed(batch.seeds[0], "branch") % (last // 2 + 1)
    return sample_in_window(
        policy, batch, group, range(first, min(first + width, policy.steps)), True, prompts_per_pass
    )


@torch.no_grad()
def sample_in_window(
    policy: Policy, batch: Batch, group: int, window: range, same_noise: bool = False, prompts_per_pass: int = 0
) -> Trajectory:
    """`group` samples a prompt, by the policy's kernel inside the window and
    by the deterministic first-order step outside.

    With same_noise a prompt's samples are one up to the window, which is then computed once. The clean end is decoded.
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
    noise = policy.noise(seeds[::group] if same_noise else seeds)
    generators = advanced_generators(seeds, noise)
    x, copies, states, marks = policy.start(noise), group if same_noise else 1, [], []
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
    """One over the length s_i - s_{i+1} of step i in noise level, over the mean of the same of all `steps`."""
    inverse = {j: 1 / max(alpha_sigma(policy, j)[1] - alpha_sigma(policy, j + 1)[1], 1e-6) for j in steps}
    return inverse[i] * len(inverse) / sum(inverse.values())
