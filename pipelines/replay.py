"""Runs of a policy's pipeline that begin or end at one of its steps, as if its state there were another one.

The pipeline runs its own code from the beginning; stand-ins replace the denoiser in steps that don't matter, and the
state is put into the place of what the scheduler returned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines import seams
from pipelines.prompt_cache import PromptCaches


def model_output(policy: Any, x: Tensor, i: int, prompts: tuple[str, ...], guidance: float | None = None) -> Tensor:
    """[B,*latent]: the guided model output that the scheduler would get at step i if its state were x [B,*latent]."""
    graph, structure = torch.is_grad_enabled(), policy.structure

    def on_step(step: seams.SchedulerStep) -> Any:
        if step.index == i:
            raise seams.LeavePipeline(structure.group_rows(step.model_output))
        with torch.no_grad():
            ret = step.advance()
        if step.index < i - 1:
            return ret
        torch.set_grad_enabled(graph)
        return seams.with_sample(ret, x)

    noise = None
    if i == 0 and not structure.has_offset:
        noise = structure.exact_noise(x)
    elif i == 0 and not structure.is_noised_by_scheduler:
        with torch.no_grad():
            offset = first_state(policy, x.new_zeros(len(x), *structure.noise_shape), prompts)
        noise = structure.exact_noise(x, offset)
    return policy.run_pipeline(
        prompts,
        unused_generators(prompts),
        live=lambda k: k == i,
        on_draw=None if noise is None else serve_noise(noise),
        on_step=on_step,
        on_add_noise=lay_state(policy, x, i),
        grad=graph and i == 0,
        guidance=guidance,
    )


def run_decoder(policy: Any, latents: Tensor, prompts: tuple[str, ...]) -> Any:
    """What the pipeline returns when its last step ends in these latents [B,*latent]."""
    graph = torch.is_grad_enabled()

    def on_step(step: seams.SchedulerStep) -> Any:
        last = step.index == policy.steps - 1
        with torch.no_grad():
            ret = step.advance()
        torch.set_grad_enabled(last and graph)
        return seams.with_sample(ret, latents, everywhere=True) if last else ret

    return policy.run_pipeline(
        prompts,
        unused_generators(prompts),
        live=lambda i: False,
        on_step=on_step,
        on_add_noise=lay_state(policy, latents, policy.steps),
    )


def first_state(policy: Any, noise: Tensor, prompts: tuple[str, ...]) -> Tensor:
    """The first state x_0 [B,*latent] of a call with this noise [B,*draw], with the graph to it."""
    return _leave_at_step(policy, 0, prompts, noise, lambda step: step.sample, is_live=False)


def early_output(policy: Any, i: int, prompts: tuple[str, ...], seeds: Sequence[int], grouping: str) -> Tensor:
    """The guided output [B,*latent] at step i of a call whose inputs are given in that form. No gradient; the policy's
    counts and caches stay as they are."""
    twin = copy.copy(policy)
    twin.grouping, twin.prompt_caches = grouping, PromptCaches(0, 0)
    with torch.no_grad():
        return _leave_at_step(twin, i, prompts, policy.noise(seeds), lambda step: step.model_output, is_live=True)


def _leave_at_step(
    policy: Any,
    i: int,
    prompts: tuple[str, ...],
    noise: Tensor,
    read: Callable[[seams.SchedulerStep], Tensor],
    is_live: bool,
) -> Tensor:
    def on_step(step: seams.SchedulerStep) -> Any:
        if step.index < i:
            return step.advance()
        raise seams.LeavePipeline(policy.structure.group_rows(read(step)))

    return policy.run_pipeline(
        prompts,
        unused_generators(prompts),
        live=lambda i: is_live,
        on_draw=serve_noise(noise),
        on_step=on_step,
        grad=torch.is_grad_enabled(),
    )


def is_blending(policy: Any) -> bool:
    """Whether the pipeline changes a state between two steps, as where it lays a source under a mask."""
    if not policy.conditions or policy.steps == 1:
        return False
    generator, states = torch.Generator().manual_seed(0), []

    def on_step(step: seams.SchedulerStep) -> Any:
        if step.index == 1:
            raise seams.LeavePipeline(step.sample.float())
        states.append(torch.randn(step.sample.shape, generator=generator).to(step.sample))
        return seams.with_sample(step.advance(), states[0])

    prompts = policy.example_prompts("a")
    with torch.no_grad():
        state = policy.run_pipeline(prompts, unused_generators(prompts), live=lambda i: False, on_step=on_step)
    change = (state.reshape(states[0].shape) - states[0].float()).abs().max()
    return bool(change > 2e-2 * states[0].float().abs().max())  # beyond the rounding of half precision


def lay_state(policy: Any, x: Tensor, i: int) -> seams.OnAddNoise | None:
    """Puts the state x [B,*latent] before step i in the place of the noised source, where the pipeline asks for one: as
    its first state, or to lay it under a mask after a step, which then leaves x as it is."""
    structure = policy.structure

    def on_add_noise(steps_taken: int, noised: Tensor) -> Tensor:
        if steps_taken != i or (i == 0 and not structure.has_offset):
            return noised
        state = x.to(noised)
        state = state if state.shape == noised.shape else structure.to_draw_layout(state).view_as(noised)
        return seams.like_layout(state, noised)

    return on_add_noise if policy.conditions else None


def serve_noise(noise: Tensor) -> seams.OnDraw:
    """Puts noise [B,*draw] in the place of the first draw of that shape."""
    noises = iter([noise])
    return lambda eps: next(noises, eps).to(eps) if eps.shape == noise.shape else eps


def unused_generators(prompts: Sequence[str]) -> list[torch.Generator]:
    """For runs whose draws don't matter."""
    return [torch.Generator().manual_seed(0) for _ in prompts]
