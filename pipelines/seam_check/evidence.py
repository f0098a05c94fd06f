"""What the checks of the seam compare: the pipeline's own call, step by step, and the policy's samples of it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines import seams
from pipelines.conditions import compute_in_groups
from pipelines.policy import Policy
from pipelines.transitions import Kernel
from workbench.core.types import Trajectory

SEEDS = (1, 2)
# Schedulers whose step returns x0 besides the next state; that keep it.
X0_RETURNED = {"DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "SCM"}
BLENDING = "it lays its source under the mask after every step, so that parts of a state are not sampled"
X0_KEPT = {"CosineDPMSolverMultistep"}  # besides solvers whose config says so


class CheckResult(NamedTuple):
    claim: str
    holds: bool | None  # None: it can't be tested on this pipeline
    evidence: str  # the numbers in words


class NotApplicable(Exception):  # noqa: N818
    """Raised with the reason why a claim can't be tested on this pipeline."""


@dataclass(frozen=True)
class RecordedStep:
    """One scheduler step of the pipeline's own call."""

    x: Tensor  # [B,*latent], the state before it
    output: Tensor  # [B,*latent], the guided denoiser's output
    x_next: Tensor  # [B,*latent]
    x0: Tensor | None  # [B,*latent], the scheduler's own x0, where it has one
    rows: int  # that went through the denoisers for it


@dataclass(frozen=True)
class Evidence:
    """The data of all tests: two rows of the pipeline's own call, as recorded and as the policy samples them."""

    policy: Policy
    prompts: tuple[str, ...]
    recorded: list[RecordedStep]
    sample: Trajectory
    nfe: int  # that the policy counted for its samples
    places: tuple[int, ...]  # steps to check, with the last; only the first where guidance has momentum
    exact: float  # relative error allowed at the first step, whose noise is recovered up to rounding


def try_claim(claim: str, check: Callable[[str], CheckResult]) -> CheckResult:
    try:
        return check(claim)
    except NotApplicable as reason:
        return CheckResult(claim, None, str(reason))
    except Exception as error:  # methods would hit it too
        return CheckResult(claim, False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def record_steps(policy: Policy, prompts: Sequence[str], seeds: Sequence[int] = SEEDS) -> list[RecordedStep]:
    """Every scheduler step of the pipeline's own call, recorded without any policy's hooks. Sources are encoded by the
    mode of their posterior, and rows computed in the groups that the class takes."""
    group_rows, rows = policy.structure.group_rows, Counter[int]()

    def record_together(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, ...]:
        steps: list[list[Tensor]] = []

        def on_call(call: seams.ModuleCall, forward: seams.Forward) -> Any:
            rows[call.step] += call.rows if call.module in policy.structure.denoisers else 0
            return forward(*call.args, **call.kwargs)

        def on_step(step: seams.SchedulerStep) -> Any:
            before = seams.clone_tensors([step.sample, step.model_output])
            returned = step.advance()
            x0 = scheduler_x0(step.scheduler, returned)
            after = seams.clone_tensors([seams.prev_sample(returned), *([] if x0 is None else [x0])])
            steps.append([group_rows(x) for x in before + after])
            return returned

        arguments = policy.call_arguments(prompts, seeds)
        with torch.random.fork_rng(policy._cuda_devices), seams.encode_sources_by_mode(policy.pipe):
            seams.run_pipeline(policy.pipe, arguments, on_call=on_call, on_step=on_step)
        return tuple(x for step in steps for x in step)

    tensors = compute_in_groups(record_together, policy.grouping, prompts, tuple(seeds))
    kinds = len(tensors) // policy.steps
    steps = [tensors[i * kinds : (i + 1) * kinds] for i in range(policy.steps)]
    return [
        RecordedStep(x, output, x_next, x0[0] if x0 else None, rows[i])
        for i, (x, output, x_next, *x0) in enumerate(steps)
    ]


def scheduler_x0(scheduler: Any, returned: Any) -> Tensor | None:
    family = type(scheduler).__name__.removesuffix("Scheduler")
    if family in X0_RETURNED:
        return returned[1] if isinstance(returned, tuple) else returned.pred_original_sample
    predicts_x0 = getattr(scheduler, "predict_x0", False) or "++" in str(scheduler.config.get("algorithm_type"))
    return scheduler.model_outputs[-1] if family in X0_KEPT or predicts_x0 else None


def absolute_distance(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def relative_distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute value of b."""
    return absolute_distance(a, b) / max(b.float().abs().max().item(), 1e-12)


def take_largest(*values: float) -> float:
    """NaN counts as larger than any number."""
    return max(values, key=lambda value: (math.isnan(value), value))


def compare_steps(
    claim: str, differences: Mapping[int, float], allowed: Mapping[int, float], controls: Mapping[str, float]
) -> CheckResult:
    """Holds if each step's difference is allowed, and the controls, at the last step, exceed ten times that."""
    holds = all(differences[i] <= allowed[i] for i in differences)  # NaN does not hold
    holds = holds and all(control > 10 * allowed[max(allowed)] for control in controls.values())
    largest = take_largest(*differences.values())
    steps = f" over {len(differences)} steps" if len(differences) > 1 else ""
    control_text = "".join(f"; {value:.1e} with {name} (control)" for name, value in controls.items())
    return CheckResult(claim, holds, f"largest difference {largest:.1e}{steps}{control_text}")


def allowed_rounding(evidence: Evidence, places: Sequence[int], rounding: float = 0.0) -> dict[int, float]:
    return {i: max(rounding, evidence.exact if i == 0 else 0.0) for i in places}


def with_kernel(policy: Policy, kernel: Kernel) -> Policy:
    """The same policy, sampling by that kernel. Raises NotApplicable where a step has no probability that is known."""
    require_levels(policy)
    twin = copy.copy(policy)
    twin.kernel = kernel
    return twin


def require_levels(policy: Policy) -> None:
    if policy.is_blending:
        raise NotApplicable(f"not tried: {BLENDING}")
    if "stochastic" not in policy.provides:
        raise NotApplicable(f"not tried: the noise levels of {type(policy.structure.scheduler).__name__} are not known")


@contextmanager
def perturbed_weights(policy: Policy) -> Iterator[None]:
    """The denoisers' weights 5 % off inside the block, exactly as they were after it."""
    modules = [seams.named_networks(policy.pipe)[name] for name in policy.structure.denoisers]
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    try:
        with torch.no_grad():
            for p in (p for module in modules for p in module.parameters()):
                p.mul_(1.05)
        yield
    finally:
        for module, state in zip(modules, states, strict=True):
            module.load_state_dict(state)
