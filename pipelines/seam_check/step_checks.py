"""Checks of single denoising steps: `transition`, `predict` and `log_prob` at the states of the pipeline's own call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.seam_check.evidence import (
    SEEDS,
    CheckResult,
    Evidence,
    NotApplicable,
    absolute_distance,
    allowed_rounding,
    compare_steps,
    perturbed_weights,
    relative_distance,
    require_levels,
    take_largest,
    with_kernel,
)
from pipelines.transitions import Ancestral
from workbench.core.inputs import reword_prompt

FIRST_ORDER = {"FlowMatchEulerDiscrete", "CogVideoXDDIM"}  # schedulers whose next state is one first-order step


@torch.no_grad()
def check_replay(claim: str, evidence: Evidence) -> CheckResult:
    """The denoiser's output that `transition` and `predict` start from, at the recorded states."""
    policy, recorded = evidence.policy, evidence.recorded

    def replay(i: int) -> Tensor:
        return policy._model_output(recorded[i].x, i, evidence.prompts)

    places = (0,) if evidence.places == (0,) else range(len(recorded))
    last = places[-1]
    differences = {i: relative_distance(replay(i), recorded[i].output) for i in places}
    with perturbed_weights(policy):
        other_weights = relative_distance(replay(last), recorded[last].output)
    other_state = policy._model_output(recorded[last].x.flip(0), last, evidence.prompts)
    controls = {
        "weights 5 % off": other_weights,
        "another state": relative_distance(other_state, recorded[last].output),
    }
    return compare_steps(claim, differences, allowed_rounding(evidence, places), controls)


@torch.no_grad()
def check_prompts(claim: str, evidence: Evidence) -> CheckResult:
    policy, x = evidence.policy, evidence.recorded[0].x
    output = policy._model_output(x, 0, evidence.prompts)
    swapped = tuple(reword_prompt(p, str(q)) for p, q in zip(evidence.prompts, evidence.prompts[::-1], strict=True))
    change = relative_distance(policy._model_output(x, 0, swapped), output)
    same = relative_distance(policy._model_output(x, 0, evidence.prompts), output)
    details = f"its output moves by {change:.1e}; {same:.1e} with the same prompts (control)"
    return CheckResult(claim, change > 0 and same == 0, details)


def check_count(claim: str, evidence: Evidence) -> CheckResult:
    """What the policy counts for its samples is what runs through the denoisers in the pipeline's own call; a
    ControlNet isn't one of them."""
    rows = sum(step.rows for step in evidence.recorded)
    helpers = "".join(f", without {name}" for name in sorted(evidence.policy.structure.helpers))
    details = f"{evidence.nfe} rows of {evidence.policy.steps} steps; {rows} in the pipeline's own call{helpers}"
    return CheckResult(claim, 0 < rows == evidence.nfe, details)


@torch.no_grad()
def check_levels(claim: str, evidence: Evidence) -> CheckResult:
    """x0 of `predict` against that of the scheduler's own step, or the first-order step against the scheduler's."""
    policy, recorded = evidence.policy, evidence.recorded
    euler = with_kernel(policy, Ancestral(eta=0.0))

    def difference(i: int, x: Tensor) -> float:
        x0 = recorded[i].x0
        if x0 is None:
            return relative_distance(euler.transition(x, i, evidence.prompts).mean, recorded[i].x_next)
        return relative_distance(policy.predict(x, i, evidence.prompts).x0, x0)

    scheduler = policy.structure.scheduler
    first_order = type(scheduler).__name__.removesuffix("Scheduler") in FIRST_ORDER
    if recorded[-1].x0 is None and (not first_order or scheduler.config.get("stochastic_sampling")):
        raise NotApplicable(f"not tried: a step of {type(scheduler).__name__} does not tell its x0")
    differences = {i: difference(i, recorded[i].x) for i in evidence.places}
    last = evidence.places[-1]
    control = difference(last, recorded[last].x.flip(0))
    allowed = allowed_rounding(evidence, evidence.places, 1e-4 if evidence.sample.x.dtype == torch.float32 else 5e-2)
    return compare_steps(claim, differences, allowed, {"another state": control})


@torch.no_grad()
def check_transitions(claim: str, evidence: Evidence) -> CheckResult:
    """`sample` by deterministic steps, x_i -> x_{i+1}, against the mean of `transition` from x_i."""
    policy = with_kernel(evidence.policy, Ancestral(eta=0.0))
    x = policy.sample(evidence.prompts, seeds=SEEDS).x
    last = evidence.places[-1]

    def miss_next_state(i: int, state: Tensor) -> float:
        return relative_distance(policy.transition(state, i, evidence.prompts).mean.to(x.dtype), x[:, i + 1])

    differences = {i: miss_next_state(i, x[:, i]) for i in evidence.places}
    control = miss_next_state(last, x[:, last].flip(0))
    return compare_steps(claim, differences, allowed_rounding(evidence, evidence.places), {"another state": control})


@torch.no_grad()
def check_log_prob(claim: str, evidence: Evidence) -> CheckResult:
    """log_prob as it was recorded, as `transition` scores it afterwards, and by torch's own normal distribution."""
    policy = with_kernel(evidence.policy, evidence.policy.kernel or Ancestral())
    trajectory = policy.sample(evidence.prompts, seeds=SEEDS)
    places = [i for i in evidence.places if i in trajectory.stochastic]
    if not places:
        raise NotApplicable("not tried: none of its steps is stochastic, the last being deterministic")
    laws = {i: policy.transition(trajectory.x[:, i], i, evidence.prompts) for i in places}
    differences = {}
    for i, law in laws.items():
        x_next = trajectory.x[:, i + 1].double()
        normal = torch.distributions.Normal(law.mean.double(), law.std.double())
        by_torch = normal.log_prob(x_next).flatten(1).mean(1)  # [B]
        scores = law.log_prob(trajectory.x[:, i + 1])
        differences[i] = take_largest(
            absolute_distance(scores, trajectory.log_prob[:, i]), absolute_distance(scores, by_torch)
        )
    last = places[-1]
    one_off = laws[last].log_prob(trajectory.x[:, last + 1] + laws[last].std)
    swapped = policy.transition(trajectory.x[:, last].flip(0), last, evidence.prompts).log_prob(
        trajectory.x[:, last + 1]
    )
    controls = {
        "the next state one standard deviation off": absolute_distance(one_off, trajectory.log_prob[:, last]),
        "another state": absolute_distance(swapped, trajectory.log_prob[:, last]),
    }
    return compare_steps(claim, differences, allowed_rounding(evidence, places, 1e-5), controls)


@torch.no_grad()
def check_prediction(claim: str, evidence: Evidence) -> CheckResult:
    """x_i = a x0 + s eps (`noised`), v by its definition, and the x0 of `transition`."""
    policy, recorded = evidence.policy, evidence.recorded
    require_levels(policy)
    differences = {}
    for i in evidence.places:
        x, level = recorded[i].x, policy.levels[i]
        prediction = policy.predict(x, i, evidence.prompts)
        x0, eps = prediction.x0, prediction.eps
        v = eps - x0 if level.is_flow else (level.a * eps - level.s * x0) / math.hypot(level.a, level.s)
        rebuilt = policy.noised(x0, i, eps)
        differences[i] = take_largest(
            relative_distance(rebuilt.where(x0.abs() < (level.clip or math.inf), x), x),  # eps is never clipped
            relative_distance(prediction.v, v),
            relative_distance(x0, policy.transition(x, i, evidence.prompts).x0),
        )
    first = policy.predict(recorded[0].x, 0, evidence.prompts)
    control = relative_distance(policy.noised(first.x0, 0, -first.eps), recorded[0].x)
    allowed = dict.fromkeys(differences, max(1e-4, evidence.exact))
    return compare_steps(claim, differences, allowed, {"the other sign of eps": control})


@torch.no_grad()
def check_rows(claim: str, evidence: Evidence) -> CheckResult:
    """One prompt twice, so that padding is the same: the second row against the same seed alone."""
    policy = evidence.policy
    if "stochastic" in policy.provides:  # its noise between the steps, too
        policy = with_kernel(policy, policy.kernel or Ancestral())
    single_noise, batch_noise = (policy.noise(seeds) for seeds in (SEEDS[1:], SEEDS))
    if not torch.equal(batch_noise[1:], single_noise):
        difference = absolute_distance(batch_noise[1:], single_noise)
        return CheckResult(claim, False, f"noise of one seed in a batch and alone differs by {difference:.1e}")
    one = policy.sample(evidence.prompts[:1], seeds=SEEDS[1:]).x[:, -1].float()
    two = policy.sample(evidence.prompts[:1] * 2, seeds=SEEDS).x[:, -1].float()
    size = one.square().mean().sqrt()
    other, error = (((row - one[0]).square().mean().sqrt() / size).item() for row in two)
    details = f"last state {error:.1e} off in a batch of two; {other:.1e} with another seed (control)"
    return CheckResult(claim, error < 0.1 * other, details)
