"""Checks of gradients: through the whole sampling, and through the denoiser and the decoder alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.seam_check.evidence import SEEDS, CheckResult, Evidence

# Steps of the finite differences, relative to the size of the state. The nearest slope counts.
STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TOLERANCE = 0.1  # relative: a float32 network is not linear over a long step, nor exact over a short one


def check_gradient(claim: str, evidence: Evidence) -> CheckResult:
    """Of the first row's media: finite, and not zero, to its own noise, and none to the other row's."""
    policy = evidence.policy
    noise = policy.noise(SEEDS).requires_grad_()
    media = policy.sample(evidence.prompts, seeds=SEEDS, noise=noise, grad=policy.steps).media
    (gradient,) = torch.autograd.grad(media.data[0].square().sum(), noise)
    norm, leak = (gradient[row].double().norm().item() for row in (0, 1))
    holds = math.isfinite(norm) and norm > 0 and leak <= 1e-6 * norm
    return CheckResult(claim, holds, f"norm {norm:.2e}; {leak:.1e} to another row's noise (control)")


def check_denoiser_gradient(claim: str, evidence: Evidence) -> CheckResult:
    """Of the denoiser's guided output to the state, at the first and the last step that is checked."""
    policy, recorded = evidence.policy, evidence.recorded

    def output_at(i: int) -> Callable[[Tensor], Tensor]:
        return lambda x: policy._model_output(x, i, evidence.prompts)

    places = sorted({evidence.places[0], evidence.places[-1]})
    return compare_with_differences(claim, [(output_at(i), recorded[i].x) for i in places])


def check_decoder_gradient(claim: str, evidence: Evidence) -> CheckResult:
    """Of the decoded media to the last state."""

    def decode(x: Tensor) -> Tensor:
        return evidence.policy.decode(x, evidence.prompts).data

    return compare_with_differences(claim, [(decode, evidence.sample.x[:, -1])])


def compare_with_differences(claim: str, functions: list[tuple[Callable[[Tensor], Tensor], Tensor]]) -> CheckResult:
    """Holds if the gradient of each f at its x [B,*] is finite and not zero, has no part from one row's values to
    another row's state, and is, in float32, how fast f changes along it."""
    words, holds = [], True
    for f, x in functions:
        norm, leak, slope = measure_gradient(f, x)
        is_exact = x.dtype == torch.float32
        holds &= math.isfinite(norm) and norm > 0 and leak <= 1e-6 * norm
        holds &= not is_exact or abs(slope - norm) <= TOLERANCE * norm
        words.append(f"norm {norm:.2e}" + (f", {slope:.2e} by differences" if is_exact else "") + f"; {leak:.1e} leaks")
    return CheckResult(claim, holds, f"{'; '.join(words)} to the other row (control)")


def measure_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float, float]:
    """(norm of the gradient of a weighted sum of f's first row to that row's x, of that to the other row's x, slope of
    the sum along the gradient by central differences)."""
    state = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = f(state)
        weights = torch.randn(value.shape[1:], generator=torch.Generator().manual_seed(0)).to(value)
        (gradient,) = torch.autograd.grad((weights * value[0]).sum(), state)
    norm, leak = (row.double().norm().item() for row in (gradient[0], gradient[1:]))
    if not (math.isfinite(norm) and norm > 0):
        return norm, leak, math.nan
    direction = torch.zeros_like(x)
    direction[0] = gradient[0] / norm
    size, slopes = x[0].double().norm().item(), []
    for step in (size * relative for relative in STEPS):
        with torch.no_grad():
            high, low = (f(x + sign * step * direction)[0].double() for sign in (1, -1))
        slopes.append(((weights.double() * (high - low)).sum() / (2 * step)).item())
        if abs(slopes[-1] - norm) <= TOLERANCE * norm:
            break
    return norm, leak, min(slopes, key=lambda slope: abs(slope - norm))
